package listener

import (
	"context"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

// QUIC has in the process's memory what TCP has in the kernel's: what clients
// have sent and nobody has read, and what they have not acknowledged. quic-go
// counts neither for us, so what is counted is how much there can be of both:
// the windows.
const (
	// firstStreamWindow and firstConnectionWindow are what a client may send ahead
	// at first: quic-go lets it send more once that is read as fast as it comes.
	firstStreamWindow     = 32 << 10
	firstConnectionWindow = 128 << 10
	// freeFlight is how much may be unacknowledged without being counted:
	// quic-go's first congestion window is 40 KiB.
	freeFlight = 64 << 10
	// muchFlight is how much a client that is stalled may have while memory is short of it.
	muchFlight = 256 << 10
	// lookInterval is between two looks at the connections.
	lookInterval = 250 * time.Millisecond
	// defaultStall is how long a client may acknowledge nothing of what it is
	// sent, if that is much and memory short of it.
	defaultStall = 5 * time.Second
	// probe is the least that quic-go sends again if nothing is acknowledged, and
	// more than acknowledgements of its own.
	probe = 1200
	// shortWait is how long a connection may be without request while memory is short.
	shortWait = 5 * time.Second
)

// allow decides whether a client may send delta more ahead on its connection.
// It must not call conn.
func (s *quicServer) allow(conn *quic.Conn, delta uint64) bool {
	known, ok := s.conns.Load(conn)
	if !ok || s.ahead.Much() {
		return false
	}
	c := known.(*quicConn)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return false
	}
	c.granted += int(delta)
	s.ahead.Add(int(delta))
	return true
}

// forget counts out what is held for a connection that has ended.
func (c *quicConn) forget() {
	c.mu.Lock()
	c.ended = true
	c.server.ahead.Add(-c.granted)
	c.mu.Unlock()
	u := &c.unacked
	u.mu.Lock()
	defer u.mu.Unlock()
	u.ended = true
	c.server.options.Unacked.Add(-u.counted)
	close(u.next)
}

// look is the janitor's at all connections.
func (s *quicServer) look(now time.Time) {
	short := s.options.Short != nil && s.options.Short()
	s.conns.Range(func(_, known any) bool {
		c := known.(*quicConn)
		if short {
			c.mu.Lock()
			idle := c.running == 0 && now.Sub(c.idleSince) > shortWait
			c.mu.Unlock()
			if idle {
				c.endIdle()
			}
		}
		if stalled := c.unacked.look(c, now); stalled >= s.stall && s.options.Unacked.Much() {
			c.cut.Store(true)
			s.flood(c, ReasonUnacked, "memory is short: the client does not acknowledge what it is sent")
		}
		return true
	})
}

// watch looks until the server is closed.
func (s *quicServer) watch() {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		select {
		case <-s.ended:
			return
		case now := <-tick.C:
			s.look(now)
		}
	}
}

// unacked is how much of answers a client may have been sent and not have
// acknowledged. That is the congestion window, for a while after each write:
// until quic-go is seen to have measured another round trip, which it does with
// each acknowledgement, and to send nothing again.
type unacked struct {
	mu      sync.Mutex
	counted int           // above freeFlight
	open    bool          // something was sent, and nothing acknowledged since
	sent    uint64        // bytes
	rtt     time.Duration // the last that was measured
	since   time.Time     // when something was sent last
	acked   time.Time     // and when acknowledged
	room    int           // what may be written until the next look, while memory is short of it
	next    chan struct{} // closed by the next look
	ended   bool
}

// look finds out what the client has acknowledged, and returns for how long it
// has not, if that is much.
func (u *unacked) look(c *quicConn, now time.Time) (stalled time.Duration) {
	stats := c.ConnectionStats()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ended {
		return 0
	}
	measured := stats.LatestRTT != u.rtt
	if measured {
		u.rtt, u.acked, u.open = stats.LatestRTT, now, false
	}
	if stats.BytesSent-u.sent >= probe {
		if u.sent, u.since = stats.BytesSent, now; !measured {
			u.open = true
		}
	}
	// What is lost would have been sent again by then.
	if u.counted > 0 && !u.open && now.Sub(u.since) > max(time.Second, 4*stats.SmoothedRTT) {
		c.server.options.Unacked.Add(-u.counted)
		u.counted = 0
	}
	// Half of the window does not make it grow.
	u.room = int(stats.CongestionWindow / 2)
	close(u.next)
	u.next = make(chan struct{})
	if u.counted < muchFlight || !u.open {
		return 0
	}
	return now.Sub(u.acked)
}

// wrote counts what may be unacknowledged after a write.
func (c *quicConn) wrote() {
	most := int(c.ConnectionStats().CongestionWindow) - freeFlight
	if most <= 0 {
		return
	}
	u := &c.unacked
	u.mu.Lock()
	defer u.mu.Unlock()
	if more := most - u.counted; more > 0 && !u.ended {
		c.server.options.Unacked.Add(more)
		u.counted = most
	}
}

// mayWrite returns how much of n bytes may be written now. While much is
// unacknowledged, by all clients together, no congestion window is to grow.
func (c *quicConn) mayWrite(ctx context.Context, n int) int {
	u := &c.unacked
	for c.server.options.Unacked.Much() {
		u.mu.Lock()
		if room := u.room; room > 0 || u.ended {
			n = min(n, max(1, room))
			u.room -= n
			u.mu.Unlock()
			return n
		}
		next := u.next
		u.mu.Unlock()
		select {
		case <-next:
		case <-ctx.Done():
			return n // to learn why
		}
	}
	return n
}
