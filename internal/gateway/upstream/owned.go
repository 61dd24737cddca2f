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

// Limits on what is kept for clients of endpoints that expect a PROXY header:
// how long without use, which is short because the client's connection may have
// ended meanwhile; for how many of an endpoint's clients; and how many
// connections for one, of which HTTP/2 needs several to reach HTTP/1.1.
const (
	ownIdleTimeout = 10 * time.Second
	maxOwned       = 2048
	maxOwnIdle     = 8
)

// owner is what a PROXY header says: connections that began with the same one
// can serve the same requests.
type owner struct {
	version proxyproto.Version
	ends    Ends
}

// owned returns the endpoint for a client whose connections begin with a PROXY
// header: what they are kept in is the client's own, for as long as it goes on
// asking. What is learned of the endpoint's health is learned of e.
func (e *endpoint) owned(v proxyproto.Version, ends Ends, now time.Time) *endpoint {
	key := owner{v, ends}
	e.mu.Lock()
	defer e.mu.Unlock()
	if o := e.owners[key]; o != nil {
		o.used.Store(now.UnixNano())
		return o
	}
	o := newEndpoint(e.addr, withHeader(e.dial, func(b []byte, _ net.Conn) []byte { return v.Append(b, ends.Client, ends.Local) }), e.mark)
	o.origin, o.secured, o.mostIdle, o.patience = e, e.secured, maxOwnIdle, e.patience
	o.used.Store(now.UnixNano())
	if e.removed.Load() || len(e.owners) >= maxOwned {
		o.removed.Store(true) // it serves one request, and keeps nothing
		return o
	}
	if e.owners == nil {
		e.owners = map[owner]*endpoint{}
	}
	e.owners[key] = o
	if e.ownReaper == nil {
		e.ownReaper = time.AfterFunc(ownIdleTimeout, e.reapOwned)
	}
	return o
}

// reapOwned ends what is kept for clients that have not asked for long.
func (e *endpoint) reapOwned() {
	old := e.dropOwned(func(o *endpoint) bool {
		return o.inflight.Load() == 0 && time.Now().UnixNano()-o.used.Load() >= int64(ownIdleTimeout)
	})
	for _, o := range old {
		o.remove()
	}
}

// dropOwned forgets what is kept for some clients, and returns it.
func (e *endpoint) dropOwned(which func(*endpoint) bool) (dropped []*endpoint) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for key, o := range e.owners {
		if which(o) {
			dropped = append(dropped, o)
			delete(e.owners, key)
		}
	}
	if e.ownReaper != nil {
		e.ownReaper.Stop()
		e.ownReaper = nil
	}
	if len(e.owners) > 0 {
		e.ownReaper = time.AfterFunc(ownIdleTimeout/2, e.reapOwned)
	}
	return dropped
}

// self is the endpoint that is everybody's.
func (e *endpoint) self() *endpoint {
	for e.origin != nil {
		e = e.origin
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

// Idle returns for how long connections and sessions of TCP and UDP ports may carry
// nothing; 0 if the Service does not say.
func (p *Pool) Idle() time.Duration { return p.members.Load().idle }
