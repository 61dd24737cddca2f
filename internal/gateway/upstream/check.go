package upstream

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"fairway.dev/fairway/internal/model"
)

// maxCheckAnswer is how much of an answer to a check is read.
const maxCheckAnswer = 64 << 10

// firstCheck is the time over which the first checks of endpoints are spread.
const firstCheck = time.Second

// checks are the health checks of a set. Each endpoint in use whose Service
// asks for them has one, which lives as long as the endpoint: no change of
// routes or of other endpoints begins it anew.
type checks struct {
	ctx        context.Context
	stop       context.CancelFunc
	slots      *slots
	transports [protocols]*http.Transport
	onCheck    func(pool Key, endpoint string, err error)
	onHealth   func(pool Key, endpoint string, err error)
}

func newChecks(o *Options) *checks {
	c := &checks{slots: newSlots(), onCheck: o.OnCheck, onHealth: o.OnHealth}
	c.ctx, c.stop = context.WithCancel(context.Background())
	for p := range protocols {
		t := newTransport(p)
		var application []string // by ALPN
		if p == h2 {
			application = []string{"h2"}
		}
		t.DisableKeepAlives = true // that a new connection gets an answer is what is to be known
		t.MaxResponseHeaderBytes = maxCheckAnswer
		t.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return ctx.Value(checkedKey{}).(checked).connect(ctx, network)
		}
		t.DialTLSContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return ctx.Value(checkedKey{}).(checked).connectTLS(ctx, network, application)
		}
		c.transports[p] = t
	}
	return c
}

// checkedKey carries what is checked to the dialer.
type checkedKey struct{}

// checked is where an endpoint is asked.
type checked struct {
	dial dialFunc
	addr string
	tls  *TLSSettings // nil for the gateway's own
}

func (c checked) connect(ctx context.Context, network string) (net.Conn, error) {
	conn, err := c.dial(ctx, network, c.addr)
	if err != nil {
		return nil, &DialError{c.addr, err}
	}
	return conn, nil
}

func (c checked) connectTLS(ctx context.Context, network string, application []string) (net.Conn, error) {
	conn, err := c.connect(ctx, network)
	if err != nil {
		return nil, err
	}
	_, secure, err := handshake(ctx, conn, c.tls, c.addr, application)
	if err != nil {
		return nil, err
	}
	return secure, nil
}

// check is the health check of one endpoint.
type check struct {
	checks   *checks
	pool     *Pool
	endpoint *endpoint

	mu        sync.Mutex
	spec      *model.HealthCheck
	proto     protocol
	timer     *time.Timer
	stopped   bool
	good, bad int   // in a row
	err       error // of the last one
}

// watch makes the checks of a pool those that its Service asks for.
func (s *Set) watch(e *entry) {
	m := e.pool.members.Load()
	var spec *model.HealthCheck
	if e.service != nil && e.service.Upstream != nil && e.pool.key.Protocol == model.TCP {
		spec = e.service.Upstream.Health
	}
	if spec == nil && len(e.checks) == 0 {
		return
	}
	wanted := map[*endpoint]*check{}
	if spec != nil {
		proto := checkProtocol(spec, m.appProtocol)
		for _, ep := range m.endpoints {
			c := e.checks[ep]
			if c == nil {
				c = &check{checks: s.checks, pool: e.pool, endpoint: ep}
			}
			wanted[ep] = c
			c.use(spec, proto)
		}
	}
	for ep, c := range e.checks {
		if wanted[ep] == nil {
			c.end()
		}
	}
	e.checks = wanted
}

// checkProtocol is how an endpoint is asked by HTTP or gRPC: as requests go to
// it where the check itself does not say it.
func checkProtocol(spec *model.HealthCheck, appProtocol string) protocol {
	p := protocolOf(model.BackendAuto, appProtocol)
	if spec.Kind == model.CheckGRPC && !p.http2() {
		p += h2c - h1
	}
	if spec.TLS && p.scheme() != "https" {
		p++ // each is followed by itself over TLS
	}
	return p
}

// use makes a check go by spec. One that is new runs soon, at a time of its own:
// all gateways learn of an endpoint at once.
func (c *check) use(spec *model.HealthCheck, proto protocol) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.spec != nil && c.proto == proto && reflect.DeepEqual(c.spec, spec) {
		return
	}
	c.spec, c.proto = spec, proto
	soon := rand.N(min(firstCheck, spec.Interval))
	if c.timer == nil {
		c.timer = time.AfterFunc(soon, c.run)
	} else {
		c.timer.Reset(soon)
	}
}

// end stops a check for good; what it said of the endpoint no longer counts.
func (c *check) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	c.timer.Stop()
	c.endpoint.down.Store(false)
	c.endpoint.downUnreached.Store(false)
}

func (c *check) run() {
	namespace := c.pool.key.Service.Namespace
	if !c.checks.slots.take(c.checks.ctx, namespace) {
		return
	}
	defer c.checks.slots.give(namespace)
	c.mu.Lock()
	spec, proto, stopped := c.spec, c.proto, c.stopped
	c.mu.Unlock()
	if stopped {
		return
	}
	ctx, cancel := context.WithTimeout(c.checks.ctx, spec.Timeout)
	err := c.checks.ask(ctx, c.endpoint, spec, proto, c.pool)
	if ctx.Err() == context.DeadlineExceeded && !isDialError(err) {
		err = fmt.Errorf("no answer within %s", spec.Timeout)
	}
	cancel()
	if c.checks.ctx.Err() == nil {
		c.ended(err)
	}
}

// next sets the time of the next check. A tenth of the time to and fro keeps the
// checks of many apart.
func (c *check) next() {
	tenth := c.spec.Interval / 10
	c.timer.Reset(c.spec.Interval - tenth + rand.N(2*tenth+1))
}

// ended notes how a check went, and sets the time of the next one.
func (c *check) ended(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return
	}
	if isShort(err) {
		c.next() // the endpoint was not asked
		return
	}
	e := c.endpoint
	if c.err = err; err == nil {
		c.good, c.bad = c.good+1, 0
	} else {
		c.good, c.bad = 0, c.bad+1
	}
	if c.checks.onCheck != nil {
		c.checks.onCheck(c.pool.key, e.addr, err)
	}
	down := e.down.Load()
	e.downUnreached.Store(isDialError(err) && (down || c.bad >= c.spec.UnhealthyAfter))
	switch {
	case down && c.good >= c.spec.HealthyAfter:
		e.since.Store(time.Now().UnixNano())
		e.down.Store(false)
		c.tell(nil)
	case !down && c.bad >= c.spec.UnhealthyAfter:
		e.down.Store(true)
		c.tell(err)
	}
	c.next()
}

func (c *check) tell(err error) {
	if c.checks.onHealth != nil {
		c.checks.onHealth(c.pool.key, c.endpoint.addr, err)
	}
}

// ask asks an endpoint once.
func (c *checks) ask(ctx context.Context, e *endpoint, spec *model.HealthCheck, proto protocol, p *Pool) error {
	addr := e.addr
	if spec.Port != 0 {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return err
		}
		addr = net.JoinHostPort(host, strconv.Itoa(int(spec.Port)))
	}
	at := checked{ownHeader(e.dial, p.Proxy()), addr, p.checkSettings()}
	if spec.Kind == model.CheckTCP {
		conn, err := at.connect(ctx, "tcp")
		if err != nil {
			return err
		}
		return conn.Close()
	}
	req := &http.Request{
		Method: http.MethodGet, Host: spec.Host,
		URL:    &url.URL{Scheme: proto.scheme(), Host: addr, Opaque: spec.Path},
		Header: http.Header{"User-Agent": {"fairway-health-check"}},
	}
	if spec.Kind == model.CheckGRPC {
		asGRPC(req, spec.Service)
	}
	resp, err := c.transports[proto].RoundTrip(req.WithContext(context.WithValue(ctx, checkedKey{}, at)))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if spec.Kind == model.CheckGRPC {
		return readGRPC(resp)
	}
	for _, r := range spec.Status {
		if resp.StatusCode >= r.Low && resp.StatusCode <= r.High {
			_, err := io.CopyN(io.Discard, resp.Body, maxCheckAnswer)
			if err == io.EOF {
				err = nil
			}
			return err
		}
	}
	return fmt.Errorf("status %d", resp.StatusCode)
}

// asGRPC makes a request a call of grpc.health.v1.Health/Check, whose message
// has one field. A client of grpc's own would keep its connections and its
// own mind about them.
func asGRPC(req *http.Request, service string) {
	var message []byte
	if service != "" {
		message = protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), service)
	}
	body := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
	req.Method, req.URL.Opaque = http.MethodPost, "/grpc.health.v1.Health/Check"
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
}

// healthServing is grpc.health.v1's SERVING.
const healthServing = 1

func readGRPC(resp *http.Response) error {
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxCheckAnswer))
	if err != nil {
		return err
	}
	code := resp.Trailer.Get("Grpc-Status")
	if code == "" {
		code = resp.Header.Get("Grpc-Status")
	}
	if code != "0" {
		return fmt.Errorf("gRPC status %q", code)
	}
	if len(body) < 5 || body[0] != 0 || int(binary.BigEndian.Uint32(body[1:])) != len(body)-5 {
		return errors.New("the answer is no message of gRPC")
	}
	var status uint64
	for b := body[5:]; len(b) > 0; {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if number == 1 && kind == protowire.VarintType {
			status, n = protowire.ConsumeVarint(b)
		} else {
			n = protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
	}
	if status != healthServing {
		return fmt.Errorf("not serving (%d)", status)
	}
	return nil
}
