package nft

import (
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
