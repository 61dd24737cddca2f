package upstream

import (
	"context"
	"net"
	"net/netip"
	"time"

	"fairway.dev/fairway/internal/gateway/proxyproto"
)

// Ends are the ends of a client's connection: its own address, and the one that
// it connected to.
type Ends struct{ Client, Local netip.AddrPort }

// headerTimeout limits writing a PROXY header, which an empty buffer takes at once.
const headerTimeout = 5 * time.Second

// once returns the endpoint for one request of a client whose connections begin
// with a PROXY header. That makes a connection the client's own, so none is kept
// for others: for what keeps connections it is an endpoint that has left. What
// is learned of its health is learned of e.
func (e *endpoint) once(v proxyproto.Version, ends Ends) *endpoint {
	o := newEndpoint(e.addr, withHeader(e.dial, func(b []byte, _ net.Conn) []byte { return v.Append(b, ends.Client, ends.Local) }), e.mark)
	o.origin = e
	o.removed.Store(true)
	return o
}

// self is the endpoint that lasts.
func (e *endpoint) self() *endpoint {
	if e.origin != nil {
		return e.origin
	}
	return e
}

// withHeader has connections begin with a header.
func withHeader(dial dialFunc, header func(b []byte, conn net.Conn) []byte) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		_ = conn.SetWriteDeadline(time.Now().Add(headerTimeout))
		if _, err := conn.Write(header(nil, conn)); err != nil {
			_ = conn.Close()
			return nil, err
		}
		_ = conn.SetWriteDeadline(time.Time{})
		return conn, nil
	}
}

// ownHeader has the connections of health checks begin with a header.
func ownHeader(dial dialFunc, v proxyproto.Version) dialFunc {
	if v == 0 {
		return dial
	}
	return withHeader(dial, func(b []byte, conn net.Conn) []byte {
		from, _ := conn.LocalAddr().(*net.TCPAddr)
		to, _ := conn.RemoteAddr().(*net.TCPAddr)
		return v.Own(b, from.AddrPort(), to.AddrPort())
	})
}

// Proxy returns the version of the PROXY protocol that the pool's endpoints
// expect; 0 for none. Connections by Dial do not begin with it: that is for the caller.
func (p *Pool) Proxy() proxyproto.Version { return p.members.Load().proxy }
