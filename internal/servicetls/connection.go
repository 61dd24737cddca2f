package servicetls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"fairway.dev/fairway/internal/plan"
)

// keepAlive finds peers that are gone, also behind a half-closed connection.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 60 * time.Second, Interval: 15 * time.Second, Count: 4}

// maxDials bounds the endpoints that are tried for one connection.
const maxDials = 4

// serve does all for one connection and returns what became of it.
func (p *Proxy) serve(ctx context.Context, conn *net.TCPConn) string {
	client := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
	r, backends, err := p.route(conn, client.Addr())
	if err != nil {
		p.log.Debug("TLS connection is refused", "client", client, "err", err)
		reset(conn)
		return resultRefused
	}
	front, err := p.handshake(ctx, conn, r.tls.server)
	if err != nil {
		p.log.Debug("TLS handshake failed", "client", client, "service", r.service, "err", err)
		return resultHandshake
	}
	back, err := p.dial(ctx, r, client.Addr(), backends)
	if err != nil {
		p.log.Debug("no endpoint could be reached", "client", client, "service", r.service, "err", err)
		reset(conn)
		return resultBackend
	}
	defer back.Close()
	stop := context.AfterFunc(ctx, func() { back.Close() })
	defer stop()
	relay(stream{front, conn}, back)
	return resultServed
}

// route returns where the connection goes and the endpoints to choose from.
func (p *Proxy) route(conn *net.TCPConn, client netip.Addr) (route, []plan.Backend, error) {
	dst, err := originalDestination(conn)
	if err != nil {
		return route{}, nil, err
	}
	r, err := p.table.find(dst)
	if err != nil {
		return route{}, nil, fmt.Errorf("%s: %w", dst, err)
	}
	f := &r.frontend
	if f.Restricted && !slices.ContainsFunc(f.SourceRanges, func(s netip.Prefix) bool { return s.Contains(client) }) {
		return route{}, nil, fmt.Errorf("%s: client is outside of the Service's source ranges", dst)
	}
	pool := f.Internal
	if f.Split() && !p.inside(client) {
		pool = f.External
	}
	if pool.Action != plan.Redirect {
		return route{}, nil, fmt.Errorf("%s: %w", dst, errNoEndpoint)
	}
	return r, pool.Backends, nil
}

// inside reports whether the client is a Pod or on this node.
func (p *Proxy) inside(client netip.Addr) bool {
	if client.IsLoopback() || slices.ContainsFunc(p.opts.Cluster, func(r netip.Prefix) bool { return r.Contains(client) }) || p.table.isNode(client) {
		return true
	}
	addrs, err := net.InterfaceAddrs() // addresses that the Node object does not have
	if err != nil {
		return false
	}
	return slices.ContainsFunc(addrs, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.Equal(client.AsSlice())
	})
}

func (p *Proxy) handshake(ctx context.Context, conn *net.TCPConn, config *tls.Config) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.opts.HandshakeTimeout)
	defer cancel()
	start := time.Now()
	front := tls.Server(conn, config)
	err := front.HandshakeContext(ctx)
	if err == nil {
		p.metrics.handshakes.Observe(time.Since(start).Seconds())
		return front, nil
	}
	if plain, ok := errors.AsType[tls.RecordHeaderError](err); ok && isHTTP(plain.RecordHeader) {
		answerHTTP(conn)
	}
	return nil, err
}

// answerHTTP tells a client that speaks plain HTTP what is wrong. It takes in
// the rest of the request: to close on unread data would be a reset, which
// may overtake the answer.
func answerHTTP(conn *net.TCPConn) {
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	_, _ = io.WriteString(conn, "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nThis port speaks TLS: use https.\n")
	_ = conn.CloseWrite()
	_, _ = io.CopyN(io.Discard, conn, 64<<10)
}

// isHTTP reports whether a client began to speak plain HTTP.
func isHTTP(start [5]byte) bool {
	switch s := string(start[:]); s {
	case "GET /", "HEAD ", "POST ", "PUT /", "DELET", "OPTIO", "PATCH":
		return true
	default:
		return strings.HasPrefix(s, "PRI ")
	}
}

// dial reaches one of the endpoints: that of the client's last connection
// where the Service has affinity, else any.
func (p *Proxy) dial(ctx context.Context, r route, client netip.Addr, backends []plan.Backend) (stream, error) {
	order := make([]netip.AddrPort, len(backends))
	for i, j := range rand.Perm(len(backends)) {
		order[i] = backends[j].AddrPort
	}
	timeout := r.frontend.AffinityTimeout
	who := stuck{r.service, r.frontend.ServicePort.Port, client}
	if timeout > 0 {
		if last, ok := p.affinity.get(who); ok {
			if i := slices.Index(order, last); i > 0 {
				order[0], order[i] = order[i], order[0]
			}
		}
	}
	var errs []error
	for _, addr := range order[:min(len(order), maxDials)] {
		s, err := p.dialOne(ctx, addr, r.tls.client)
		if err == nil {
			if timeout > 0 {
				p.affinity.set(who, addr, timeout)
			}
			return s, nil
		}
		p.metrics.dialFailures.Inc()
		errs = append(errs, fmt.Errorf("%s: %w", addr, err))
	}
	return stream{}, errors.Join(errs...)
}

func (p *Proxy) dialOne(ctx context.Context, addr netip.AddrPort, config *tls.Config) (stream, error) {
	ctx, cancel := context.WithTimeout(ctx, p.opts.DialTimeout)
	defer cancel()
	dialer := net.Dialer{KeepAliveConfig: keepAlive}
	conn, err := dialer.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return stream{}, err
	}
	tcp := conn.(*net.TCPConn)
	if config == nil {
		return stream{tcp, tcp}, nil
	}
	back := tls.Client(tcp, config)
	if err := back.HandshakeContext(ctx); err != nil {
		tcp.Close()
		return stream{}, fmt.Errorf("TLS: %w", err)
	}
	return stream{back, tcp}, nil
}

// halfCloser is a *tls.Conn or *net.TCPConn.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// stream is a connection with the TCP connection that it runs on, which may be
// the same.
type stream struct {
	halfCloser
	tcp *net.TCPConn
}

// closeWrite ends this direction, at both layers, so that the peer learns of
// it whether it reads or only polls its socket.
func (s stream) closeWrite() error {
	return errors.Join(s.CloseWrite(), s.tcp.CloseWrite())
}

// relay copies both ways until both have ended. An end is passed on as an end
// and lets the other direction go on; a failure ends both with a reset, lest
// one side takes half of a message for the whole.
func relay(a, b stream) {
	var wg sync.WaitGroup
	one := func(dst, src stream) {
		_, err := io.Copy(dst, src)
		// Many clients close without close_notify. They mean the end.
		if err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
			_ = dst.closeWrite()
			return
		}
		reset(a.tcp)
		reset(b.tcp)
	}
	wg.Go(func() { one(a, b) })
	wg.Go(func() { one(b, a) })
	wg.Wait()
}

// reset closes a connection so that the peer sees an error, not an end.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	c.Close()
}
