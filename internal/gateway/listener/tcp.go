package listener

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"fairway.dev/fairway/internal/gateway/proxyproto"
)

// dialTimeout limits the search for a backend, over all endpoints tried.
const dialTimeout = 15 * time.Second

// tcpPort accepts the connections of one port.
type tcpPort struct {
	streams  *Streams
	listener net.Listener
	table    atomic.Pointer[table]
	open     atomic.Int64 // connections
}

func (s *Streams) openTCP(ctx context.Context, addr string, t *table) (port, error) {
	l, err := config().Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, describe(err)
	}
	p := &tcpPort{streams: s, listener: l}
	p.use(t)
	s.conns.Add(1) // by the loop itself, so that it may add while Run waits
	go func() {
		defer s.conns.Done()
		p.accept()
	}()
	return p, nil
}

func (p *tcpPort) use(t *table) { p.table.Store(t) }

func (p *tcpPort) Close() error { return p.listener.Close() }

func (p *tcpPort) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			if isClosed(err) {
				return
			}
			// Out of file descriptors, or the like: others end meanwhile.
			p.streams.options.Logger.Warn("accept failed", "address", p.listener.Addr().String(), "error", err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if refuse := p.streams.options.Refuse; refuse != nil && refuse() {
			reset(c)
			continue
		}
		p.streams.conns.Add(1)
		go func() {
			defer p.streams.conns.Done()
			p.open.Add(1)
			defer p.open.Add(-1)
			p.serve(c)
		}()
	}
}

// serve carries one connection.
func (p *tcpPort) serve(client net.Conn) {
	t := p.table.Load()
	var prefix []byte
	raw := client
	if t.all[0].ProxyIn {
		proxied := &proxyConn{Conn: client}
		if proxied.header() != nil {
			return // it closed the connection
		}
		client, prefix = proxied, proxied.rest
	}
	counted, ok := p.streams.options.Clients.enter(addrPort(client.RemoteAddr()).Addr())
	if !ok {
		reset(raw)
		return
	}
	defer p.streams.options.Clients.leave(counted)
	route := t.all[0]
	if len(t.all) > 1 {
		// Only here do the client's bytes matter: with one route nobody waits
		// for a client whose protocol lets the server speak first.
		name, isTLS, read := peekServerName(client)
		if client != raw {
			prefix = client.(*proxyConn).rest
		}
		prefix = append(read, prefix...)
		if route = t.fallback; isTLS {
			route = t.forName(name)
		}
	}
	p.streams.options.OnConnection(&route.StreamRoute, p.carry(raw, client, prefix, route))
}

// carry connects the client to the route's backend until both are done.
func (p *tcpPort) carry(raw, client net.Conn, prefix []byte, route *Stream) error {
	ticket, err := route.Pool.EnterConnection(dialTimeout)
	if err != nil {
		reset(raw)
		p.streams.options.Logger.Debug("a connection is one too many", "route", route.Ref.String(), "error", err)
		return err
	}
	defer ticket.Leave()
	ctx, cancel := context.WithTimeout(p.streams.ctx, dialTimeout)
	backend, err := route.Pool.Dial(ctx, "tcp")
	cancel()
	if err != nil {
		reset(raw) // it tells the client more than an empty answer
		p.streams.options.Logger.Debug("no backend for a connection", "route", route.Ref.String(), "error", err)
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
	p.streams.ferries.Carry(p.streams.ctx, raw, backend.Conn, prefix)
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
