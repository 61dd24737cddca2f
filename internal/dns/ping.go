package dns

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// pingSize is that of a packet by which the server is asked whether it goes on
// to answer. It is shorter than any query, and so costs queries nothing.
const pingSize = 8

// pong answers a ping of this machine's, and nobody else's: an answer to what is
// no query could go round in circles.
func pong(w *worker, packed, buf []byte) []byte {
	if w.tcp || len(packed) != pingSize || w.client.Addr().Unmap() != w.server.Addr() || w.client.Port() == w.server.Port() {
		return nil
	}
	return append(buf, packed...)
}

// Pinger asks a server by UDP, as its clients do, whether it goes on to answer.
type Pinger struct {
	server netip.AddrPort
	conn   net.Conn // nil until needed
}

// NewPinger returns one for a server at an address of this machine's.
func NewPinger(server netip.AddrPort) *Pinger { return &Pinger{server: server} }

// Ping returns nil once the server has answered, and an error when it has not
// within the timeout or ctx has ended.
func (p *Pinger) Ping(ctx context.Context, timeout time.Duration) (err error) {
	defer func() {
		if err != nil {
			// From another port the next one may reach another of the server's sockets.
			p.Close()
			err = fmt.Errorf("DNS server at %s: %w", p.server, err)
		}
	}()
	if p.conn == nil {
		// It may be an address of a route's only, which IPv6 does not let everybody have.
		d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.server.Addr(), 0)), Control: freebind}
		if p.conn, err = d.DialContext(ctx, "udp", p.server.String()); err != nil {
			return err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = p.conn.SetReadDeadline(time.Now()) })
	defer stop()
	if err := p.conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	var ping, answer [pingSize]byte
	_, _ = rand.Read(ping[:]) // never fails
	if _, err := p.conn.Write(ping[:]); err != nil {
		return err
	}
	for {
		n, err := p.conn.Read(answer[:])
		if err != nil {
			return errors.Join(ctx.Err(), err)
		}
		if bytes.Equal(answer[:n], ping[:]) {
			return nil
		} // else it is the answer to an earlier one
	}
}

// Close closes the socket; the next Ping opens another one.
func (p *Pinger) Close() {
	if p.conn != nil {
		_ = p.conn.Close() // there is nothing to lose
		p.conn = nil
	}
}
