package upstream

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/proxyproto"
)

// TestOwned: what is kept for a client ends when that has not asked for long, or
// with the endpoint, and is for a limited number of clients.
func TestOwned(t *testing.T) {
	e := newEndpoint("10.0.0.1:80", nil, mark{})
	client := func(port uint16) Ends {
		return Ends{Client: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port)}
	}
	now := time.Now()
	first := e.owned(proxyproto.V1, client(1), now)
	if e.owned(proxyproto.V1, client(1), now) != first || e.owned(proxyproto.V2, client(1), now) == first || e.owned(proxyproto.V1, client(2), now) == first {
		t.Fatal("connections are told apart by other things than their header")
	}
	keep := func(o *endpoint) net.Conn {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { _ = theirs.Close() })
		o.keep(h1, http1.NewBackend(ours), now)
		return theirs
	}
	ended := func(c net.Conn) bool {
		_ = c.SetReadDeadline(time.Now())
		_, err := c.Read(make([]byte, 1))
		return errors.Is(err, io.EOF)
	}
	busy := e.owned(proxyproto.V1, client(3), now.Add(-time.Hour))
	busy.acquire()
	idle, recent := e.owned(proxyproto.V1, client(4), now.Add(-time.Hour)), e.owned(proxyproto.V1, client(5), now)
	busyConn, idleConn, recentConn := keep(busy), keep(idle), keep(recent)
	if n := e.state(now).Kept; n != 3 {
		t.Errorf("%d are kept", n)
	}
	e.reapOwned()
	if ended(busyConn) || !ended(idleConn) || ended(recentConn) {
		t.Error("not just the idle connection has ended")
	}
	if e.owned(proxyproto.V1, client(4), now) == idle {
		t.Error("what has ended is there again")
	}
	busy.release()
	if e.inflight.Load() != 0 {
		t.Error("the endpoint counts a request that is done")
	}
	for port := range uint16(2 * maxOwned) {
		e.owned(proxyproto.V1, client(1000+port), now)
	}
	if n := len(e.owners); n != maxOwned {
		t.Errorf("%d clients have connections of their own", n)
	}
	e.remove()
	if !ended(busyConn) || !ended(recentConn) || e.ownReaper != nil {
		t.Error("something is left of an endpoint that is gone")
	}
	if o := e.owned(proxyproto.V1, client(1), now); o.keep(h1, nil, now) || len(e.owners) > 0 {
		t.Error("an endpoint that is gone keeps a connection")
	}
}
