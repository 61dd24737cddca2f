package listener

import (
	"context"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/proxyproto"
	"fairway.dev/fairway/internal/gateway/upstream"
)

// dialTimeout limits the search for a backend, over all endpoints tried.
const dialTimeout = 15 * time.Second

// tcpPort accepts the connections of one port.
type tcpPort struct {
	streams *Streams
	door    *os.File // the socket that listens
	table   atomic.Pointer[table]
	open    atomic.Int64 // connections
}

func (s *Streams) openTCP(ctx context.Context, addr string, t *table) (port, error) {
	l, err := config().Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, describe(err)
	}
	doors, err := files([]net.Listener{l})
	_ = l.Close() // else it were told of each connection as well
	if err != nil {
		return nil, err
	}
	p := &tcpPort{streams: s, door: doors[0]}
	p.use(t)
	s.conns.Add(1) // by the loop itself, so that it may add while Run waits
	go func() {
		defer s.conns.Done()
		_ = accept(p.door, addrPort(l.Addr()).Port(), p.take, s.options.Logger) // none but that it is closed already
	}()
	return p, nil
}

func (p *tcpPort) use(t *table) { p.table.Store(t) }

func (p *tcpPort) Close() error { return p.door.Close() }

// take has a connection served.
func (p *tcpPort) take(sock *http1.Socket) {
	if refuse := p.streams.options.Refuse; refuse != nil && refuse() {
		sock.Reset()
		return
	}
	p.streams.conns.Add(1)
	p.open.Add(1)
	p.streams.crew.take(arrival{p, sock})
}

// arrival is a connection that a port has accepted.
type arrival struct {
	port *tcpPort
	sock *http1.Socket
}

// serve has a connection carried, and counted out at its end.
func (a arrival) serve() {
	a.port.serve(a.sock, func() {
		a.port.open.Add(-1)
		a.port.streams.conns.Done()
	})
}

// serve has one connection carried, and calls done at its end.
func (p *tcpPort) serve(sock *http1.Socket, done func()) {
	t := p.table.Load()
	var prefix []byte
	var client net.Conn = sock
	peer := sock.Peer()
	if t.all[0].ProxyIn {
		proxied := &proxyConn{Conn: sock}
		if proxied.header() != nil {
			done()
			return // it closed the connection
		}
		client, peer, prefix = proxied, addrPort(proxied.RemoteAddr()), proxied.rest
	}
	counted, ok := p.streams.options.Clients.enter(peer.Addr())
	if !ok {
		sock.Reset()
		done()
		return
	}
	route := t.all[0]
	if len(t.all) > 1 {
		// Only here do the client's bytes matter: with one route nobody waits
		// for a client whose protocol lets the server speak first.
		name, isTLS, read := peekServerName(client, firstByteWait)
		if proxied, ok := client.(*proxyConn); ok {
			prefix = proxied.rest
		}
		prefix = append(read, prefix...)
		if route = t.fallback; isTLS {
			route = t.forName(name)
		}
	}
	p.streams.carry(sock, client, prefix, route, func() {
		p.streams.options.Clients.leave(counted)
		done()
	})
}

// carry connects the client, who says by client what his ends are, to the route's
// backend. Once both are done, or cannot be connected, it tells of it and calls
// done, for which it does not wait. Prefix has come from the client.
func (s *Streams) carry(sock *http1.Socket, client net.Conn, prefix []byte, route *Stream, done func()) {
	backend, ticket, err := s.connect(route)
	if err != nil {
		sock.Reset() // it tells the client more than an empty answer
		s.options.OnConnection(&route.StreamRoute, err)
		done()
		return
	}
	version := route.Pool.Proxy()
	if version == 0 && route.ProxyOut {
		version = proxyproto.V1 // which every server that speaks the protocol understands
	}
	if version != 0 {
		prefix = append(version.Append(nil, addrPort(client.RemoteAddr()), addrPort(client.LocalAddr())), prefix...)
	}
	s.ferries.Carry(s.ctx, sock, backend.Conn, prefix, route.Pool.Idle(), func() {
		_ = backend.Close()
		ticket.Leave()
		s.options.OnConnection(&route.StreamRoute, nil)
		done()
	})
}

// connect connects to the route's backend. The ticket is to be left in the end.
func (s *Streams) connect(route *Stream) (*upstream.Conn, upstream.Ticket, error) {
	ticket, err := route.Pool.EnterConnection(dialTimeout)
	if err != nil {
		s.options.Logger.Debug("a connection is one too many", "route", route.Ref.String(), "error", err)
		return nil, ticket, err
	}
	ctx, cancel := context.WithTimeout(s.ctx, dialTimeout)
	defer cancel()
	backend, err := route.Pool.Dial(ctx, "tcp")
	if err != nil {
		ticket.Leave()
		s.options.Logger.Debug("no backend for a connection", "route", route.Ref.String(), "error", err)
	}
	return backend, ticket, err
}

func addrPort(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort()
	case *net.UDPAddr:
		return a.AddrPort()
	}
	return netip.AddrPort{}
}
