package nft

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/testenv"
)

// TestRead reads back what every shape of Service has put into the kernel.
func TestRead(t *testing.T) {
	n := newNode(t)
	here := Options{NetNS: int(n.ns.Handle)}
	if _, err := Read(here); !errors.Is(err, ErrAbsent) {
		t.Fatalf("reading nothing: %v", err)
	}
	settings, services := everyShape()
	if err := n.dp.SetNode(t.Context(), settings); err != nil {
		t.Fatal(err)
	}
	n.put(services...)
	held, err := Read(here)
	if err != nil {
		t.Fatal(err)
	}
	if held.Mode() != "nftables" {
		t.Errorf("mode %q", held.Mode())
	}
	split := 0
	for _, s := range services {
		for i := range s.Frontends {
			f := &s.Frontends[i]
			got, ok := held.Held(f)
			if !ok {
				t.Fatalf("%s: %s %s port %d is not there", s.Key, f.Kind, f.Addr, f.Port)
			}
			if f.Split() {
				split++
			}
			if d := held.Differences(f); len(d) > 0 {
				t.Errorf("%s: %s %s port %d differs: %q", s.Key, f.Kind, f.Addr, f.Port, d)
			}
			for _, c := range []struct {
				want plan.Pool
				got  dataplane.HeldPool
			}{{f.Internal, got.Internal}, {f.External, got.External}} {
				var backends []netip.AddrPort
				if c.want.Action == plan.Forward {
					for _, b := range c.want.Backends {
						backends = append(backends, b.AddrPort)
					}
				}
				if c.got.Action != c.want.Action || !slices.Equal(c.got.Backends, backends) {
					t.Errorf("%s: %s %s port %d: kernel %+v, want %+v", s.Key, f.Kind, f.Addr, f.Port, c.got, c.want)
				}
			}
		}
	}
	if split == 0 {
		t.Error("no frontend treats clients outside differently, so that was not tried")
	}
	if _, ok := held.Held(&plan.Frontend{Addr: netip.MustParseAddr("10.96.7.7"), Port: 80}); ok {
		t.Error("an address of nobody is there")
	}
	for _, s := range services {
		for i := range s.Frontends {
			other := s.Frontends[i]
			other.AffinityTimeout += time.Minute
			other.Restricted = !other.Restricted
			want := 2
			if other.Internal.Action != plan.Forward && other.External.Action != plan.Forward {
				want = 1 // there is nothing to stay with
			}
			if d := held.Differences(&other); len(d) != want {
				t.Errorf("%s: %s %s port %d: what was planned otherwise is told as %q", s.Key, other.Kind, other.Addr, other.Port, d)
			}
		}
	}
	if held, err = Read(here); err != nil || len(held.(holdings).elements) == 0 {
		t.Errorf("reading once more: %v", err)
	}
}

// TestReadOfDamage tells where rules are gone though all elements are there.
func TestReadOfDamage(t *testing.T) {
	n := newNode(t)
	web := n.service("web", nil, "10.0.0.1", "10.0.0.2")
	n.put(web)
	n.prune()
	differences := func() []string {
		t.Helper()
		held, err := Read(Options{NetNS: int(n.ns.Handle)})
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := held.Held(&web.Frontends[0]); !ok {
			t.Error("the Service is not there")
		}
		return held.Differences(&web.Frontends[0])
	}
	for _, what := range []string{"table ip fairway", "chain ip fairway inside", "chain ip fairway to-2"} {
		if got := differences(); len(got) > 0 {
			t.Errorf("before %s was flushed: %q", what, got)
		}
		n.ns.Run("nft", append([]string{"flush"}, strings.Fields(what)...)...)
		if got := differences(); len(got) != 1 || !strings.Contains(got[0], "rules of table ip fairway are missing") {
			t.Errorf("after %s was flushed: %q", what, got)
		}
		if err := n.dp.Verify(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	n.ns.Run("nft", "flush", "table", "ip6", "fairway")
	if got := differences(); len(got) > 0 {
		t.Errorf("of the table of the other family: %q", got)
	}
}

// TestReadOfAnotherVersion tells tables that it cannot understand.
func TestReadOfAnotherVersion(t *testing.T) {
	ns := testenv.NewLab(t).Netns("node")
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.Handle)))
	if err != nil {
		t.Fatal(err)
	}
	conn.AddTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(Options{NetNS: int(ns.Handle)}); err == nil || errors.Is(err, ErrAbsent) {
		t.Errorf("error %v", err)
	}
}
