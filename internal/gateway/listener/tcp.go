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

// serve carries a connection, and counts it out.
func (a arrival) serve() {
	defer a.port.streams.conns.Done()
	defer a.port.open.Add(-1)
	a.port.serve(a.sock)
}

// serve carries one connection.
func (p *tcpPort) serve(sock *http1.Socket) {
	t := p.table.Load()
	var prefix []byte
	var client net.Conn = sock
	peer := sock.Peer()
	if t.all[0].ProxyIn {
		proxied := &proxyConn{Conn: sock}
		if proxied.header() != nil {
			return // it closed the connection
		}
		client, peer, prefix = proxied, addrPort(proxied.RemoteAddr()), proxied.rest
	}
	counted, ok := p.streams.options.Clients.enter(peer.Addr())
	if !ok {
		sock.Reset()
		return
	}
	defer p.streams.options.Clients.leave(counted)
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
	p.streams.carry(sock, client, prefix, route)
}

// carry connects the client, who says by client what his ends are, to the route's
// backend until both are done, and tells of it. Prefix has come from the client.
func (s *Streams) carry(sock *http1.Socket, client net.Conn, prefix []byte, route *Stream) {
	s.options.OnConnection(&route.StreamRoute, s.connect(sock, client, prefix, route))
}

func (s *Streams) connect(sock *http1.Socket, client net.Conn, prefix []byte, route *Stream) error {
	ticket, err := route.Pool.EnterConnection(dialTimeout)
	if err != nil {
		sock.Reset()
		s.options.Logger.Debug("a connection is one too many", "route", route.Ref.String(), "error", err)
		return err
	}
	defer ticket.Leave()
	ctx, cancel := context.WithTimeout(s.ctx, dialTimeout)
	backend, err := route.Pool.Dial(ctx, "tcp")
	cancel()
	if err != nil {
		sock.Reset() // it tells the client more than an empty answer
		s.options.Logger.Debug("no backend for a connection", "route", route.Ref.String(), "error", err)
		return err
	}
	defer backend.Close()
	version := route.Pool.Proxy()
	if version == 0 && route.ProxyOut {
		version = proxyproto.V1 // which every server that speaks the protocol understands
	}
	if version != 0 {
		prefix = append(version.Append(nil, addrPort(client.RemoteAddr()), addrPort(client.LocalAddr())), prefix...)
	}
	s.ferries.Carry(s.ctx, sock, backend.Conn, prefix, route.Pool.Idle())
	return nil
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
