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

	"fairway.dev/fairway/internal/listen"
)

// pingSize is that of a packet by which the server is asked whether it goes on
// to answer. It is shorter than any query, and so costs queries nothing. The
// answer is the same, with the last two bytes telling which of how many sockets it
// came to: the kernel chooses by addresses and ports.
const (
	pingSize = 8
	pingRoom = pingSize - 2
)

// pong answers a ping of this machine's, and nobody else's: an answer to what is
// no query could go round in circles.
func pong(w *worker, packed, buf []byte) []byte {
	if w.tcp || len(packed) != pingSize || w.client.Addr().Unmap() != w.server.Addr() || w.client.Port() == w.server.Port() {
		return nil
	}
	return append(append(buf, packed[:pingRoom]...), w.socket, w.sockets)
}

// Pinger asks a server by UDP, as its clients do, whether it goes on to answer: each
// of its sockets, so that one whose loop hangs is found.
type Pinger struct {
	server netip.AddrPort
	// conns are by the socket that they lead to; empty until needed. all is how many
	// sockets there are.
	conns map[uint8]net.Conn
	all   int
}

// NewPinger returns one for a server at an address of this machine's.
func NewPinger(server netip.AddrPort) *Pinger {
	return &Pinger{server: server, conns: map[uint8]net.Conn{}}
}

// pingerTries is how many ports are tried at a time for each socket: with as many, one
// of several is missed once in 3000 times. It is then looked for with the next Ping.
const pingerTries = 8

// Ping returns nil once all sockets have answered, and an error when one has not
// within the timeout or ctx has ended.
func (p *Pinger) Ping(ctx context.Context, timeout time.Duration) (err error) {
	defer func() {
		if err != nil {
			p.Close() // the next one may be another server, with other sockets
			err = fmt.Errorf("DNS server at %s: %w", p.server, err)
		}
	}()
	deadline := time.Now().Add(timeout)
	pings := map[uint8][]byte{}
	for socket, c := range p.conns { // all at once, then all answers
		if pings[socket], err = send(c); err != nil {
			return err
		}
	}
	moved := false
	for socket, c := range p.conns {
		at, _, err := answer(ctx, c, pings[socket], deadline)
		if err != nil {
			return err
		}
		moved = moved || at != socket
	}
	if moved { // the server has others than before
		p.Close()
	}
	for try := 0; len(p.conns) == 0 || len(p.conns) < p.all && try < pingerTries*p.all; try++ {
		c, err := p.dial(ctx)
		if err != nil {
			return err
		}
		ping, err := send(c)
		if err == nil {
			var socket uint8
			socket, p.all, err = answer(ctx, c, ping, deadline)
			if _, known := p.conns[socket]; err == nil && !known {
				p.conns[socket] = c
				continue
			}
		}
		_ = c.Close() // there is nothing to lose
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *Pinger) dial(ctx context.Context) (net.Conn, error) {
	// It may be an address of a route's only, which IPv6 does not let everybody have.
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.server.Addr(), 0)), Control: listen.Freebind}
	return d.DialContext(ctx, "udp", p.server.String())
}

// send sends a ping and returns it.
func send(c net.Conn) ([]byte, error) {
	ping := make([]byte, pingSize)
	_, _ = rand.Read(ping[:pingRoom]) // never fails
	_, err := c.Write(ping)
	return ping, err
}

// answer waits for the answer to a ping, and returns which of how many sockets it is from.
func answer(ctx context.Context, c net.Conn, ping []byte, deadline time.Time) (socket uint8, all int, err error) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Now()) })
	defer stop()
	if err := c.SetReadDeadline(deadline); err != nil {
		return 0, 0, err
	}
	for {
		var b [pingSize]byte
		n, err := c.Read(b[:])
		if err != nil {
			return 0, 0, errors.Join(ctx.Err(), err)
		}
		if n == pingSize && bytes.Equal(b[:pingRoom], ping[:pingRoom]) {
			return b[pingRoom], int(b[pingRoom+1]), nil
		} // else it is the answer to an earlier one
	}
}

// Close closes the sockets; the next Ping opens others.
func (p *Pinger) Close() {
	for socket, c := range p.conns {
		_ = c.Close() // there is nothing to lose
		delete(p.conns, socket)
	}
}
