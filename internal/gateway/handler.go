package gateway

import (
	"net/http"
	"time"

	"fairway.dev/fairway/internal/gateway/filter"
	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/request"
)

// http1Client is a client that speaks HTTP/1, as its engine shows it. It lives
// as long as the connection, and with it all that a request needs.
type http1Client struct {
	transaction
	conn *http1.Conn
	head []byte                // of the request to the backend
	own  [maxExtra]http1.Field // of the answer
	ends
}

// ServeHTTP1 implements http1.Handler.
func (g *Gateway) ServeHTTP1(c *http1.Conn) {
	h := g.http1Client(c)
	r := &c.Request
	h.view = request.View{
		Method: r.Method, Authority: r.Host, Header: r, TLS: c.Secure,
		Peer: c.Peer.Addr(), Port: c.Port, PeerText: h.peer, PortText: h.port,
		PeerPort: c.Peer.Port(), Local: c,
	}
	h.target, h.bodyLength, h.protocol, h.upgrade = r.Target, r.Length, "HTTP/1.1", mayUpgrade(r.Upgrade)
	if r.Minor == 0 {
		h.protocol = "HTTP/1.0"
	}
	h.begin()
	defer h.done()
	h.serve()
}

// Refused implements http1.Handler's other half: what is no request gets an
// answer of the gateway's own as well, and a line in the log.
func (g *Gateway) Refused(c *http1.Conn, err *http1.Error) {
	h := g.http1Client(c)
	h.view = request.View{Header: &c.Request, TLS: c.Secure, Peer: c.Peer.Addr(), Port: c.Port}
	h.target, h.bodyLength, h.protocol = "", 0, "HTTP/1.1"
	h.begin()
	h.fail(err.Status, err.Reason)
	h.finished()
}

// Failed implements http1.Handler's third part: a request gets its answer also
// where the gateway itself has failed. It is counted already.
func (g *Gateway) Failed(c *http1.Conn) {
	if h, ok := c.Scratch.(*http1Client); ok {
		h.fail(http.StatusInternalServerError, "a fault in the gateway")
	}
}

func (g *Gateway) http1Client(c *http1.Conn) *http1Client {
	h, ok := c.Scratch.(*http1Client)
	if !ok {
		h = &http1Client{conn: c}
		c.Scratch = h
	}
	// The Conn, and what is with it, may have been another connection's before.
	h.ends.are(c.Peer, c.Port)
	h.renew(g, h)
	return h
}

// answer implements client.
func (h *http1Client) answer(_ *transaction, status int, header []http1.Field, body string) {
	h.conn.Answer(status, header, body)
}

// sent implements client.
func (h *http1Client) sent() (int, int64) { return h.conn.Status, h.conn.Bytes }

// closeAfter implements client.
func (h *http1Client) closeAfter() { h.conn.Last() }

// leave implements client.
func (h *http1Client) leave() { h.conn.Last() }

// bodyFailed implements client.
func (h *http1Client) bodyFailed() { h.conn.Last() }

// left implements client. One that has only closed its sending side still has
// a second to get its answer.
func (h *http1Client) left() bool { return time.Since(h.start) > time.Second && h.conn.Left() }

// cut implements client.
func (h *http1Client) cut() bool { return false }

// proxy implements client. Where the backend speaks HTTP/1.1 as well, bytes go
// straight from connection to connection.
func (h *http1Client) proxy(t *transaction, b *backend) {
	c, x := h.conn, &t.exchange
	upgrade := t.upgrade
	call := t.call(b)
	call.Choice.Repeatable = call.Choice.Repeatable && !upgrade
	if !b.pool.HTTP1(b.protocol, upgrade) {
		h.adapt(t, b)
		return
	}
	call.Streamed = !c.Body.Here()
	c.Body.Limit = x.MaxBody
	forward := http1.Forward{Path: x.Path, Query: x.Query, Host: t.view.Authority, Set: x.Header, Drop: filter.Spoofs, Upgrade: upgrade}
	if !upgrade {
		c.Request.Upgrade = ""
	}
	h.head = c.AppendHead(h.head[:0], &forward)
	lease, err := b.pool.Send(c, h.head, call)
	if err != nil {
		t.proxyFailed(err)
		return
	}
	over := false
	defer func() {
		if !over {
			b.pool.Drop(lease)
		}
	}()
	t.endpoint = lease.Endpoint
	if lease.Response.Status == 101 {
		err = c.Tunnel(lease.Backend, t.extra(h.own[:0]))
	} else {
		err = c.Relay(lease.Backend, t.extra(h.own[:0]))
	}
	over = true
	t.over = t.g.clock.now()
	b.pool.Done(lease, err, t.over)
	if err != nil {
		t.proxyFailed(err)
	}
}

// adapt reaches backends that speak HTTP/2 through net/http's types.
func (h *http1Client) adapt(t *transaction, b *backend) {
	a := h.conn.Adapt()
	n := &netClient{request: a.Request, answers: &recorder{ResponseWriter: a}, gone: a.Gone}
	ok := false
	defer func() {
		cut := recover() // the proxy panics with http.ErrAbortHandler to cut an answer off
		a.Close(ok && cut == nil)
		if cut != nil && cut != http.ErrAbortHandler {
			panic(cut) // a fault, which is the engine's
		}
		if cut != nil && t.failure == "" {
			t.failure = "the answer was cut off"
		}
	}()
	t.client = n
	n.proxy(t, b)
	t.client = h
	ok = true
}
