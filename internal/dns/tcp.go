package dns

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"fairway.dev/fairway/internal/dns/wire"
)

const (
	// tcpQueryTimeout bounds the time from the first byte of a query to its
	// last, so that clients cannot hold a connection by dribbling.
	tcpQueryTimeout = 2 * time.Second
	// tcpAnswerTimeout bounds the time that a client takes to receive an answer.
	tcpAnswerTimeout = 5 * time.Second
	// tcpPipeline bounds the queries of one TCP connection that are being answered.
	tcpPipeline = 64
	// tcpReadBuffer holds most queries with their length, to read both at once.
	tcpReadBuffer = 1024
	// tcpFlush is how many bytes of answers are held back while more queries
	// have arrived already.
	tcpFlush = 16 << 10
	// maxQuery bounds the size of a query.
	maxQuery = 4096
)

func (l *socket) serveTCP(ctx context.Context, wg *sync.WaitGroup, s *Server) error {
	counts := s.handler.metrics.counts(l.addr)
	for {
		conn, err := l.tcp.AcceptTCP()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if passes(err) {
				time.Sleep(10 * time.Millisecond)
				continue
			}
			return fmt.Errorf("accept on %s by TCP: %w", l.addr, err)
		}
		stream, err := newStream(conn)
		if err != nil {
			conn.Close()
			continue
		}
		c := &tcpConn{
			TCPConn: conn, stream: stream, server: s, client: conn.RemoteAddr().(*net.TCPAddr).AddrPort(),
			reader: bufio.NewReaderSize(stream, tcpReadBuffer), worker: s.handler.newWorker(l.addr, true, counts),
		}
		c.worker.client = c.client
		if !s.conns.admit(c) {
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer s.conns.remove(c)
			c.serve(ctx)
		})
	}
}

// passes reports whether what keeps connections from being accepted goes by: a
// shortage, of memory too where a cgroup limits that, or a client that has gone.
func passes(err error) bool {
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return true
	}
	for _, e := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// tcpConns are the open connections of all sockets. One client must not be able
// to take them all: at a limit the connection that has been idle longest makes
// room (RFC 7766 section 6.2.3), of the same client at its own limit.
type tcpConns struct {
	max, maxPerClient int
	// assigned are ranges where a client cannot choose its address. The Pods of
	// a node often share a /64, so that one Pod could use up the others' share.
	assigned []netip.Prefix

	// clock orders activities; it counts them.
	clock atomic.Uint64

	mu   sync.Mutex
	open map[*tcpConn]struct{}
}

func newTCPConns(o Options) *tcpConns {
	return &tcpConns{
		max: o.MaxTCPConnections, maxPerClient: o.MaxTCPPerClient, assigned: o.ReverseRanges,
		open: map[*tcpConn]struct{}{},
	}
}

// admit takes a connection in. It closes an idle one if that is what it takes,
// and reports false if all that could make room are answering queries.
func (t *tcpConns) admit(c *tcpConn) bool {
	c.share = shareOf(c.client.Addr(), t.assigned)
	c.active.Store(t.clock.Add(1))
	t.mu.Lock()
	defer t.mu.Unlock()
	same := 0
	var idlest, idlestSame *tcpConn
	for o := range t.open {
		if o.share == c.share {
			same++
			idlestSame = idler(idlestSame, o)
		}
		idlest = idler(idlest, o)
	}
	switch {
	case same >= t.maxPerClient:
		idlest = idlestSame
	case len(t.open) < t.max:
		t.open[c] = struct{}{}
		return true
	}
	if idlest == nil {
		return false
	}
	delete(t.open, idlest)
	idlest.Close()
	t.open[c] = struct{}{}
	return true
}

func (t *tcpConns) remove(c *tcpConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, c)
}

// shareOf is what counts as one client: an IPv4 address, or the /64 that one
// IPv6 host can have all addresses of (RFC 4291 section 2.5.1), unless somebody
// else assigned the address.
func shareOf(client netip.Addr, assigned []netip.Prefix) netip.Prefix {
	client = client.Unmap().WithZone("")
	bits := client.BitLen()
	if client.Is6() {
		bits = 64
		for _, p := range assigned {
			if p.Contains(client) {
				bits = 128
			}
		}
	}
	return netip.PrefixFrom(client, bits).Masked()
}

// idler returns the one that has been idle longer; a, which may be nil, if b is busy.
func idler(a, b *tcpConn) *tcpConn {
	if b.busy.Load() > 0 || a != nil && a.active.Load() < b.active.Load() {
		return a
	}
	return b
}

// tcpConn is a client's connection. Its queries are answered side by side, in
// the order in which answers are ready (RFC 7766 section 7).
type tcpConn struct {
	*net.TCPConn
	stream  *stream // reads and writes
	server  *Server
	client  netip.AddrPort
	writeM  sync.Mutex
	writeBy time.Time // deadline of writing, under writeM

	// Of the one that reads: answers not yet sent stand in out, each behind its length.
	reader     *bufio.Reader
	deadline   time.Time // of reading
	worker     *worker
	query, out []byte

	share netip.Prefix // what limits per client count it to
	busy  atomic.Int32 // queries being answered
	// active is when, by tcpConns.clock, it was opened, or had its last whole
	// query or answer. A part of a query is no activity.
	active atomic.Uint64
}

func (c *tcpConn) serve(ctx context.Context) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.CloseRead() })
	defer stop()
	slots := make(chan struct{}, tcpPipeline)
	var wg sync.WaitGroup
	defer wg.Wait() // a client that said all it wants to still gets its answers
	for ctx.Err() == nil {
		query, err := c.read()
		if err != nil {
			return
		}
		if !c.mayAsk(ctx) {
			return
		}
		c.begun()
		held := len(c.out)
		answer, rest := c.server.handler.begin(c.worker, query, append(c.out, 0, 0))
		if rest == nil {
			if answer != nil {
				binary.BigEndian.PutUint16(answer[held:], uint16(len(answer)-held-2))
				c.out = answer
			}
			c.done()
			continue
		}
		_ = c.flush() // an error shows when the next query is read
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			defer c.done()
			if answer := rest(ctx); answer != nil {
				_ = c.write(append(binary.BigEndian.AppendUint16(make([]byte, 0, len(answer)+2), uint16(len(answer))), answer...), time.Now())
			} // the reader sees a broken connection
		})
	}
}

// mayAsk waits until the client's rate allows for another query: by TCP that
// slows down whoever asks too often, without an answer lost.
func (c *tcpConn) mayAsk(ctx context.Context) bool {
	limiter := c.server.handler.limiter
	if limiter == nil || limiter.allows(c.client.Addr(), c.worker.start) {
		return true
	}
	c.worker.counts.rateLimited.Add(1)
	if c.flush() != nil {
		return false
	}
	again := time.NewTicker(max(limiter.interval, time.Millisecond))
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-again.C:
			if c.worker.start = time.Now(); limiter.allows(c.client.Addr(), c.worker.start) {
				return true
			}
		}
	}
}

func (c *tcpConn) begun() { c.busy.Add(1) }

func (c *tcpConn) done() {
	c.active.Store(c.server.conns.clock.Add(1))
	c.busy.Add(-1)
}

// read returns the next query, which the one after that overwrites. Before it
// waits it sends what there is to send. Queries that came together began together.
func (c *tcpConn) read() ([]byte, error) {
	waits := !c.arrived()
	if waits || len(c.out) >= tcpFlush {
		if err := c.flush(); err != nil {
			return nil, err
		}
	}
	if err := c.await(); err != nil {
		return nil, err
	}
	length, err := c.reader.Peek(2)
	if err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint16(length))
	_, _ = c.reader.Discard(2)
	if size < wire.HeaderSize || size > maxQuery {
		return nil, fmt.Errorf("a query of %d bytes", size)
	}
	c.query = slices.Grow(c.query[:0], size)[:size]
	_, err = io.ReadFull(c.reader, c.query)
	if waits {
		c.worker.start = time.Now()
	}
	return c.query, err
}

// await waits for the first byte of the next query, and sets how long the rest
// may take. A query that came whole needs no time, and a deadline that is almost
// the right one no change: each costs as much as an answer.
func (c *tcpConn) await() error {
	if c.reader.Buffered() == 0 {
		idle := c.server.opts.TCPIdleTimeout
		if now := time.Now(); c.deadline.Before(now.Add(idle - idle/16)) {
			c.deadline = now.Add(idle)
			_ = c.SetReadDeadline(c.deadline)
		}
		if _, err := c.reader.Peek(1); err != nil {
			return err
		}
	}
	if !c.arrived() {
		c.deadline = time.Now().Add(tcpQueryTimeout)
		_ = c.SetReadDeadline(c.deadline)
	}
	return nil
}

// arrived reports whether a whole query is in the buffer.
func (c *tcpConn) arrived() bool {
	if c.reader.Buffered() < 2 {
		return false
	}
	length, err := c.reader.Peek(2)
	return err == nil && c.reader.Buffered() >= 2+int(binary.BigEndian.Uint16(length))
}

func (c *tcpConn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	now := time.Now()
	c.worker.settle(now)
	err := c.write(c.out, now)
	if c.out = c.out[:0]; cap(c.out) > 2*tcpFlush {
		c.out = nil // a large answer is seldom followed by another
	}
	return err
}

func (c *tcpConn) write(answers []byte, now time.Time) error {
	c.writeM.Lock()
	defer c.writeM.Unlock()
	if c.writeBy.Before(now.Add(tcpAnswerTimeout - tcpAnswerTimeout/16)) {
		c.writeBy = now.Add(tcpAnswerTimeout)
		_ = c.SetWriteDeadline(c.writeBy)
	}
	_, err := c.stream.Write(answers)
	if err != nil {
		c.Close()
	}
	return err
}
