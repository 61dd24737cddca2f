package nft

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/dataplane/cases"
)

func logger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func TestCases(t *testing.T) {
	cases.Run(t, func(t *testing.T, n *cases.Network) dataplane.Dataplane {
		d, err := New(Options{Logger: logger(t), NetNS: int(n.Hosts["node-1"].Handle)})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}, cases.Packets)
}

// TestLargeService runs a Service with 5,000 endpoints.
func TestLargeService(t *testing.T) {
	cases.Large(t, func(t *testing.T, n *cases.Network) dataplane.Dataplane {
		d, err := New(Options{Logger: logger(t), NetNS: int(n.Hosts["node-1"].Handle)})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}, func(_ *testing.T, n *cases.Network, _ dataplane.Dataplane) cases.Kernel {
		o := Options{NetNS: int(n.Hosts["node-1"].Handle)}
		return cases.Kernel{
			Read: func() (dataplane.Holdings, error) { return Read(o) },
			Size: func() (string, error) {
				k := kernel{netns: o.NetNS, families: families(false)}
				_, have, err := k.read()
				return fmt.Sprintf("%d elements", len(have)), errors.Join(err, k.close())
			},
		}
	})
}
