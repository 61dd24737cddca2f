package ebpf

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"fairway.dev/fairway/internal/dataplane"
)

// A network namespace that goes without its node's clean-up, as when a container
// is killed, leaves that node's programs attached to cgroups, where they look at
// sockets until the next boot. Other nodes on the machine remove them.
//
// That a namespace has gone the kernel says: its loopback interface lasts as
// long as it does, and a link to that one ends with it. The program of the link
// passes everything on.

// signPin is the name of the pinned link to the loopback interface.
const signPin = "loopback"

// hangSign sees to it that the link to the loopback interface is there, and pinned.
// Without it, as before Linux 6.6, nobody can tell that the namespace has gone.
func (d *Dataplane) hangSign(fixed dataplane.Repairs) error {
	pin := filepath.Join(string(d.pins), linksDir, signPin)
	if d.sign == nil {
		d.sign, _ = link.LoadPinnedLink(pin, nil)
	}
	if d.sign != nil {
		if onInterface(d.sign) {
			return pinAgain(d.sign, pin, fixed)
		}
		_ = d.sign.Unpin()
		_ = d.sign.Close()
	}
	var err error
	if d.sign, err = attachSign(d.o.NetNS); err != nil {
		d.log.Debug("eBPF: what this node leaves, should its network namespace go without a clean-up, will stay until the next boot", "error", err)
		return nil
	}
	if err := os.Remove(pin); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := d.sign.Pin(pin); err != nil {
		return fmt.Errorf("pin %s: %w", pin, err)
	}
	return nil
}

// attachSign attaches a program that does nothing to the loopback interface.
func attachSign(netns int) (link.Link, error) {
	const next = -1 // TCX_NEXT
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "fairway_sign", Type: ebpf.SchedCLS, AttachType: ebpf.AttachTCXIngress,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, next), asm.Return()}, License: "Dual MIT/GPL",
	})
	if err != nil {
		return nil, err
	}
	defer p.Close()
	handle, err := netlinkAt(netns)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	lo, err := handle.LinkByName("lo")
	if err != nil {
		return nil, err
	}
	var l link.Link
	err = inNetns(netns, func() (err error) {
		l, err = link.AttachTCX(link.TCXOptions{Interface: lo.Attrs().Index, Program: p, Attach: ebpf.AttachTCXIngress, Anchor: link.Tail()})
		return err
	})
	return l, err
}

// onInterface reports whether a link is attached to an interface still.
func onInterface(l link.Link) bool {
	info, err := l.Info()
	return err == nil && info.TCX() != nil && info.TCX().Ifindex != 0
}

// removeStale removes what is pinned for network namespaces that have gone, in
// the directory that p is in and in those beside it whose names begin with
// "fairway", as the ones of `fairway up` do.
func (p pins) removeStale(log *slog.Logger) error {
	parent := filepath.Dir(string(p))
	var found []string
	for _, pattern := range []string{parent, filepath.Join(filepath.Dir(parent), "fairway*")} {
		dirs, err := filepath.Glob(filepath.Join(pattern, namespacePrefix+"*"))
		if err != nil {
			return err
		}
		found = append(found, dirs...)
	}
	var errs []error
	for _, dir := range found {
		if dir == string(p) || !pins(dir).gone() {
			continue
		}
		log.Info("eBPF: removing the programs that a node has left whose network namespace is gone", "pins", dir)
		errs = append(errs, pins(dir).remove())
	}
	return errors.Join(errs...)
}

// gone reports whether the kernel says that the network namespace is no more:
// the link to its loopback interface has ended, and so have those to all others.
func (p pins) gone() bool {
	dir := filepath.Join(string(p), linksDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	signed := false
	for _, e := range entries {
		sign := e.Name() == signPin
		if !sign && !strings.HasPrefix(e.Name(), pinPrefix) {
			continue
		}
		l, err := link.LoadPinnedLink(filepath.Join(dir, e.Name()), nil)
		if err != nil {
			return false
		}
		info, err := l.Info()
		_ = l.Close()
		if err != nil || info.TCX() == nil || info.TCX().Ifindex != 0 {
			return false
		}
		signed = signed || sign
	}
	return signed
}
