package ebpf

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/testenv"
)

// connectPrograms counts what is attached to connect() at a cgroup.
func connectPrograms(t *testing.T, cgroup string) int {
	t.Helper()
	f, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	found, err := link.QueryPrograms(link.QueryOptions{Target: int(f.Fd()), Attach: ebpf.AttachCGroupInet4Connect})
	if err != nil {
		t.Fatal(err)
	}
	return len(found.Programs)
}

// TestGoneNamespace has a node leave its programs behind. While its network
// namespace is there they stay, whether a process has them open or not; once it
// is gone, the next check of another node removes them, or its start, or a
// clean-up.
func TestGoneNamespace(t *testing.T) {
	m := newMachine(t)
	lab := testenv.NewLab(t)
	options := func(fd int, pins string) Options {
		return Options{Logger: logger(t), NetNS: fd, Cgroup: m.cgroup, Pins: pins}
	}
	node, other := options(int(lab.Netns("node").Handle), m.pins), options(int(lab.Netns("other").Handle), m.pins)
	d := start(t, node)
	prune(t, d, nil)
	beside := filepath.Join(filepath.Dir(m.pins), "fairway-up")
	for _, how := range []struct {
		name   string
		parent string // of what is left
		look   func() error
	}{
		{"check", m.pins, func() error { return d.Verify(t.Context()) }},
		{"check, beside", beside, func() error { return d.Verify(t.Context()) }},
		{"clean-up", m.pins, func() error { return Cleanup(other) }},
		{"start", beside, func() error {
			if err := d.Close(); err != nil {
				return err
			}
			d = start(t, node)
			prune(t, d, nil)
			return nil
		}},
	} {
		t.Run(how.name, func(t *testing.T) {
			ns, err := newNamespace()
			if err != nil {
				t.Fatal(err)
			}
			left, err := New(options(int(ns.ns), how.parent))
			if err != nil {
				t.Fatal(err)
			}
			apply(t, left, planOf("left", model.TCP, vip, "192.0.2.1:80"))
			prune(t, left, nil)
			stays := func(why string) {
				t.Helper()
				if err := how.look(); err != nil {
					t.Fatal(err)
				}
				if n := connectPrograms(t, m.cgroup); n != 2 {
					t.Fatalf("%d programs at connect(), want 2: %s", n, why)
				}
			}
			stays("the other node is at work")
			if err := left.Close(); err != nil {
				t.Fatal(err)
			}
			stays("the other node's network namespace is there")
			ns.close()
			eventually(t, "the kernel says that the namespace has gone", left.pins.gone)
			if err := how.look(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "only the node's own program is left at connect()", func() bool { return connectPrograms(t, m.cgroup) == 1 })
			if _, err := os.Stat(string(left.pins)); !os.IsNotExist(err) {
				t.Errorf("%s is still there (%v)", left.pins, err)
			}
		})
	}
	if _, err := os.Stat(beside); !os.IsNotExist(err) {
		t.Errorf("%s, in which nothing is left, is still there (%v)", beside, err)
	}
}

// TestSignComesAgain has somebody unpin and detach the link that tells that a
// namespace is there.
func TestSignComesAgain(t *testing.T) {
	m := newMachine(t)
	o := Options{Logger: logger(t), NetNS: int(testenv.NewLab(t).Netns("node").Handle), Cgroup: m.cgroup, Pins: m.pins}
	d := start(t, o)
	prune(t, d, nil)
	pin := filepath.Join(string(d.pins), linksDir, signPin)
	for name, harm := range map[string]func() error{
		"unpinned": func() error { return os.Remove(pin) },
		"detached": func() error { return d.sign.Detach() }, // the one that there is then
		"both":     func() error { return errors.Join(d.sign.Detach(), os.Remove(pin)) },
	} {
		if err := harm(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := d.Verify(t.Context()); err != nil {
			t.Fatal(err)
		}
		l, err := link.LoadPinnedLink(pin, nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !onInterface(l) || d.pins.gone() {
			t.Errorf("%s: the link does not tell that the namespace is there", name)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
