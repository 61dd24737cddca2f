package nft

import (
	"bytes"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/testenv"
)

// TestPieces loads and changes Services in pieces, some of which the kernel refuses,
// for others have written to our tables: it refuses no more than those, and what it has
// in the end is what was asked for.
func TestPieces(t *testing.T) {
	const services, each = 4 * pieceSize, 2
	for name, refused := range map[string][]int{
		"all is well": nil, "the first": {1}, "one between": {pieceSize + 1}, "two in a row": {pieceSize + 7, 2 * pieceSize}, "the last": {services - 1},
	} {
		t.Run(name, func(t *testing.T) {
			ns := testenv.NewLab(t).Netns("node")
			var said bytes.Buffer
			d, err := New(Options{Logger: slog.New(slog.NewTextHandler(&said, nil)), NetNS: int(ns.Handle)})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = d.Close() })
			if err := d.SetNode(t.Context(), dataplane.Node{}); err != nil {
				t.Fatal(err)
			}
			list := manyServices(services, each)
			// damage does something to the first endpoint of those to be refused.
			damage := func(do func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error) {
				t.Helper()
				var all []nftables.SetElement
				for _, i := range refused {
					f := oneService(i, each).Frontends[0]
					key := frontendKey(f.Addr, f.Protocol, f.Port) + slotWord(0)
					all = append(all, nftables.SetElement{Key: []byte(key), Val: []byte(addrPort(netip.MustParseAddrPort("192.0.2.1:1")))})
				}
				conn, err := d.kernel.open()
				if err == nil && len(all) > 0 {
					err = errors.Join(do(conn, d.kernel.families[v4].set(endpoints), all), conn.Flush())
				}
				if err != nil {
					t.Fatal(err)
				}
				said.Reset()
			}
			damage((*nftables.Conn).SetAddElements)
			// One has what another one claims, in the next piece.
			const first, second = 10, pieceSize + 10
			list[second].New = oneService(first, each+1)
			list[second].New.Key = list[second].Key
			failed := d.Apply(t.Context(), list)
			var taken *dataplane.TakenError
			if err := failed[list[second].Key]; len(failed) != 1 || !errors.As(err, &taken) {
				t.Errorf("failed: %v", failed)
			}
			check := func(when string) {
				t.Helper()
				// After the first that fails, the kernel is read: what else is wrong is known.
				if n := strings.Count(said.String(), "a batch failed"); n != min(len(refused), 1) {
					t.Errorf("%s: %d pieces failed:\n%s", when, n, said.String())
				}
				reader := kernel{netns: int(ns.Handle), families: d.kernel.families}
				_, all, err := reader.read()
				if err = errors.Join(err, reader.close()); err != nil {
					t.Fatal(err)
				}
				want := holding{}
				for e := range d.claims.first {
					if value, ok := d.wanted(e); ok {
						want[e] = value
					}
				}
				if is := group(all); !maps.Equal(is, want) || !maps.Equal(d.have, want) {
					t.Errorf("%s: the kernel has %d subjects, and is known to have %d, want %d", when, len(is), len(d.have), len(want))
				}
			}
			check("after the load")
			// It passes on to the other one, which goes in the next piece, with others.
			list[first].New = oneService(services+1, each)
			list[first].New.Key = list[first].Key
			for i := range list {
				if i%3 == second%3 || slices.Contains(refused, i) {
					list[i] = change{Key: list[i].Key}
				}
			}
			damage((*nftables.Conn).SetDeleteElements)
			if failed := d.Apply(t.Context(), list); len(failed) > 0 {
				t.Errorf("failed: %v", failed)
			}
			check("after changes")
		})
	}
}
