package upstream

import (
	"context"
	"iter"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"fairway.dev/fairway/internal/gateway/proxyproto"
	"fairway.dev/fairway/internal/gateway/shed"
	"fairway.dev/fairway/internal/model"
)

// maxTries is how many endpoints are tried for one request or connection, as
// proxy_next_upstream_tries in ingress-nginx.
const maxTries = 3

// Key names a pool: a Service port of a transport protocol.
type Key struct {
	Service  model.Key
	Port     model.PortRef
	Protocol model.Protocol
}

// PortText returns port and protocol as people write them, such as http/TCP.
func (k Key) PortText() string {
	name := k.Port.Name
	if name == "" {
		name = strconv.Itoa(int(k.Port.Number))
	}
	return name + "/" + k.Protocol.String()
}

// Pool is the endpoints of a Service port.
type Pool struct {
	key       Key
	members   atomic.Pointer[members]
	turn      atomic.Uint64 // counts tries
	again     atomic.Uint64 // counts those of them that are a request's second or third
	budget    budget
	gate      gate
	growing   sync.Mutex // held to count connections by HTTP/2 and add one, where they are limited
	onFailure func(key Key, why, endpoint string)
	onTLS     func(key Key, by *TLSSettings, err *TLSError)
	checkTLS  atomic.Pointer[TLS] // by which health checks are made
	held      *shed.Held          // may be nil
}

// members are the endpoints as of one moment; never changed.
type members struct {
	endpoints []*endpoint
	// others can serve, but get only requests of sessions that they have: those
	// that other zones are to use, and those that drain.
	others []*endpoint
	// draining are those of others whose Pods are about to end.
	draining    []*endpoint
	uid         string // the Service's
	tag         uint32 // of the pool, in cookies
	appProtocol string
	slowStart   time.Duration         // how long new endpoints warm up; 0 for not
	limits      *model.UpstreamLimits // nil for none
	proxy       proxyproto.Version    // that endpoints expect; 0 for none
	idle        time.Duration         // of TCP and UDP ports; 0 for the default
	err         error                 // why there are no endpoints
}

// Key returns what the pool is for.
func (p *Pool) Key() Key { return p.key }

// Err says why the pool cannot serve: [ErrNoService], [ErrNoPort] or
// [ErrNoEndpoints], wrapped with the object's key; nil if it can.
func (p *Pool) Err() error { return p.members.Load().err }

// Conn is a connection to an endpoint that counts as under way until it is closed.
type Conn struct {
	net.Conn
	endpoint *endpoint
	closed   atomic.Bool
}

// Close closes the connection.
func (c *Conn) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.endpoint.release()
	}
	return c.Conn.Close()
}

// Removed reports whether the endpoint has left its pool since: what has a
// choice should go to another one.
func (c *Conn) Removed() bool { return c.endpoint.removed.Load() }

// Dial opens a connection to an endpoint, trying others if that fails. Network
// is "tcp" or "udp".
func (p *Pool) Dial(ctx context.Context, network string) (*Conn, error) {
	if network == "tcp" {
		network = asSocket
	}
	var err error
	var space [maxTries]*endpoint
	tried := space[:0]
	for len(tried) < maxTries {
		now := time.Now()
		e, pickErr := p.pick(&Choice{Repeatable: true}, tried, now)
		if pickErr != nil {
			return nil, pickErr
		}
		if e == nil {
			break
		}
		tried = append(tried, e)
		e.acquire()
		var conn net.Conn
		if conn, err = e.connect(ctx, network); err == nil {
			e.succeeded()
			return &Conn{Conn: conn, endpoint: e}, nil
		}
		e.release()
		if ctx.Err() != nil {
			return nil, err
		}
		p.blame(e, err, now)
		if final(err) {
			break
		}
	}
	return nil, err
}

// all yields the endpoints that can serve.
func (m *members) all() iter.Seq[*endpoint] {
	return func(yield func(*endpoint) bool) {
		for _, e := range m.endpoints {
			if !yield(e) {
				return
			}
		}
		for _, e := range m.others {
			if !yield(e) {
				return
			}
		}
	}
}

// update makes m the endpoints, keeping those that stay.
func (p *Pool) update(m *members) {
	old := p.members.Swap(m)
	if old == nil {
		return
	}
	stays := make(map[*endpoint]struct{}, len(m.endpoints)+len(m.others))
	for e := range m.all() {
		stays[e] = struct{}{}
	}
	for _, e := range m.draining {
		// A server that shuts down may wait for its connections: none are kept.
		delete(stays, e)
	}
	for e := range old.all() {
		if _, ok := stays[e]; !ok {
			e.remove()
		}
	}
}

// drop ends what is kept for a pool that no route goes to any more. Who has been
// sent to it by one that did is served all the same: between the two a request or
// connection may be on its way.
func (p *Pool) drop() {
	for e := range p.members.Load().all() {
		e.remove()
	}
}
