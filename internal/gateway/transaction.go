package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"fairway.dev/fairway/internal/gateway/filter"
	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/request"
	"fairway.dev/fairway/internal/gateway/router"
	"fairway.dev/fairway/internal/gateway/shed"
	"fairway.dev/fairway/internal/gateway/tracing"
	"fairway.dev/fairway/internal/gateway/upstream"
	"fairway.dev/fairway/internal/model"
)

// statusClientGone is nginx's code for a client that did not wait; it only
// shows in logs and metrics.
const statusClientGone = 499

// client is the side of an exchange that asked: an engine's view of it.
type client interface {
	// answer sends an answer of the gateway's own. It is called once at most,
	// and not after proxy has begun to answer.
	answer(t *transaction, status int, header []http1.Field, body string)
	// proxy sends the request to a backend and its answer to the client. It
	// calls proxyFailed if that fails.
	proxy(t *transaction, b *backend)
	// sent returns the status and the length of the body sent so far.
	sent() (status int, bytes int64)
	// closeAfter makes the answer the last one of the client's connection,
	// where connections carry one request at a time.
	closeAfter()
	// leave ends the client's connection, once what is under way is done: it needs
	// another one.
	leave()
	// left reports whether it does not wait for the answer any more.
	left() bool
	// cut reports whether it was given up because memory is short.
	cut() bool
	// bodyFailed notes that the rest of the request's body will not come, so that
	// where a connection carries one request at a time no other can follow.
	bodyFailed()
}

// transaction is one request on its way through the gateway, whichever engine
// read it.
type transaction struct {
	g      *Gateway
	client client
	start  time.Time
	over   time.Time // when the answer had been sent; zero until somebody has asked
	view   request.View
	queued bool // it may have waited since start
	// target is the request target, and protocol the version, as the client
	// sent them.
	target, protocol string
	bodyLength       int64 // -1 if it is not known yet
	upgrade          bool  // the client may switch to another protocol
	grpc             bool

	id       string
	idSpace  [32]byte
	rule     *router.Rule
	site     *site
	config   *config // that it is from
	pool     *upstream.Pool
	session  upstream.Session
	cookie   *router.Rule // whose path the session's cookie has
	exchange filter.Exchange
	span     *tracing.Span // nil for none
	endpoint string        // that answered
	failure  string        // why the gateway answered itself, for the log
	status   int           // what the log and metrics should tell; 0 for what was sent
}

// begin readies a transaction for a request, of which the engine has filled in
// what it knows.
func (t *transaction) begin() {
	t.start = t.g.clock.now()
	t.g.metrics.inFlight.Inc()
	t.g.trust.Resolve(&t.view)
	var ok bool
	if t.id, ok = filter.RequestID(&t.view); !ok {
		filter.NewRequestID(&t.idSpace)
		t.id = http1.Text(t.idSpace[:])
	}
}

// renew readies a transaction for another request, with the memory of the one
// before.
func (t *transaction) renew(g *Gateway, c client) {
	headers := t.exchange.Header[:0]
	*t = transaction{g: g, client: c}
	t.exchange.Header = headers
}

// ends are the two ends of a client's connection, in words as well: those are
// made anew only where the connection is another.
type ends struct {
	peer, port string
	at         netip.AddrPort
	local      uint16
}

func (e *ends) are(peer netip.AddrPort, port uint16) {
	if e.at != peer {
		e.at, e.peer = peer, peer.Addr().WithZone("").String()
	}
	if e.local != port {
		e.local, e.port = port, strconv.Itoa(int(port))
	}
}

// done counts the request, also one that ends by a fault, which the engine
// logs.
func (t *transaction) done() {
	p := recover()
	if p != nil {
		t.fault()
	}
	t.finished()
	if p != nil {
		panic(p)
	}
}

// fault notes that the gateway itself has failed.
func (t *transaction) fault() {
	t.status, t.failure = http.StatusInternalServerError, "a fault in the gateway"
}

// finished counts and logs a request that is done.
func (t *transaction) finished() {
	t.g.metrics.inFlight.Dec()
	if t.over.IsZero() {
		t.over = t.g.clock.now()
	}
	took := t.over.Sub(t.start)
	status, bytes := t.client.sent()
	if t.status != 0 {
		status = t.status
	} else if status == 0 {
		status = http.StatusOK
	}
	t.g.metrics.request(t, status, took)
	if t.g.access.wants(t, status) {
		t.g.access.write(t, status, bytes, took)
	}
	if t.span != nil {
		t.endSpan(status, bytes, took)
	}
}

func (t *transaction) serve() {
	if t.g.shed.Active() {
		t.g.shed.Shed()
		t.g.metrics.shed.Inc()
		t.client.closeAfter()
		t.fail(http.StatusServiceUnavailable, "the gateway is short of memory")
		return
	}
	if c := t.admit(); c != nil {
		t.forward(c)
	}
}

// admit finds the rule for the request and runs its filters. It returns nil if
// the request has got its answer by that.
func (t *transaction) admit() *config {
	c := t.g.config.Load()
	if c == nil {
		t.fail(http.StatusServiceUnavailable, "the gateway is starting and does not know its routes yet")
		return nil
	}
	if t.view.Method == http.MethodConnect || t.view.Method == http.MethodTrace {
		// What TRACE shows of a request was added on its way, and is not for the
		// client to see. A proxy that opens connections for clients is none of
		// Ingress' business.
		t.failure = t.view.Method + " is not supported"
		t.answer(http.StatusMethodNotAllowed, t.failure, http1.Field{Name: "Allow", Value: "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"})
		return nil
	}
	if err := t.normalise(); err != nil {
		t.fail(http.StatusBadRequest, err.Error())
		return nil
	}
	match, ok := c.router.Match(&t.view)
	if !ok {
		if clients := c.clients.Load(); clients != nil {
			if a := clients.Refuse(&t.view); a != nil {
				t.give(a)
				return nil
			}
		}
		t.fail(http.StatusNotFound, "no route for this host and path")
		return nil
	}
	if t.mistakable(c, match.Rule) {
		t.fail(http.StatusBadRequest, "without what stands behind a semicolon the path is another route's, and backends differ about that")
		return nil
	}
	t.rule = match.Rule
	t.site, t.config = &c.sites[match.Rule.ID], c
	t.exchange = filter.Exchange{
		View: &t.view, Match: match, BodyLength: t.bodyLength, RequestID: t.id,
		Path: t.view.Path, Query: t.view.Query, Header: t.exchange.Header[:0],
	}
	a := t.site.chain.Apply(&t.exchange)
	if t.g.tracer != nil && !t.exchange.TraceOff {
		t.beginSpan()
	}
	if a != nil {
		t.give(a)
		return nil
	}
	if s := t.exchange.Session; s != nil {
		t.session = upstream.NewSession(t.exchange.SessionCookie, s.Persistent, s.ChangeOnFailure, t.view.Client)
		t.cookie = t.rule
	}
	return c
}

// mistakable reports whether a path would lead to another route's rule if its
// parameters were left out. Many backends in Java leave them out: who may not
// have "/admin" would get it as "/admin;x", which is a path of "/" for the router.
func (t *transaction) mistakable(c *config, rule *router.Rule) bool {
	path, ok := request.WithoutParameters(t.view.Path)
	if !ok || rule.NamesParameters() {
		return false
	}
	bare := t.view
	bare.Path = path
	other, ok := c.router.Match(&bare)
	return ok && other.Rule.Route != rule.Route
}

// forward sends the request to a backend of the rule, or of one of its canaries.
func (t *transaction) forward(c *config) {
	if t.site.canaries != nil {
		if canary := t.canary(c); canary != nil {
			t.rule = canary
			t.site = &c.sites[canary.ID]
		}
	}
	b := t.site.pick()
	if b == nil {
		t.fail(http.StatusServiceUnavailable, noBackend)
		return
	}
	t.pool = b.pool
	protocol := b.protocol
	if t.upgrade {
		protocol = model.BackendHTTP // in which it takes a connection, whatever others are carried by
	}
	ticket, err := b.pool.EnterRequest(protocol, cmp.Or(t.exchange.Connect, t.g.options.ConnectTimeout, upstream.DefaultConnectTimeout), t.client.left)
	if err != nil {
		t.limited(err)
		return
	}
	defer ticket.Leave()
	t.queued = ticket != upstream.Ticket{}
	filter.Forward(&t.exchange)
	t.client.proxy(t, b)
}

// limited answers for a Service that has as much under way as it may.
func (t *transaction) limited(err error) {
	if errors.Is(err, http1.ErrGone) {
		// Who only closed its sending side gets an answer: the next one that it
		// asked for must not be taken for this one's.
		t.fail(http.StatusServiceUnavailable, "the client did not wait")
		t.status = statusClientGone
		return
	}
	var limit *upstream.LimitError
	if errors.As(err, &limit) {
		t.g.metrics.limited(limit)
		t.failure = err.Error()
		t.answer(http.StatusServiceUnavailable, t.failure,
			http1.Field{Name: "Retry-After", Value: "1"}, http1.Field{Name: "X-Fairway-Limit", Value: limit.Limit})
	}
}

// noBackend is why a rule without backends answers 503.
const noBackend = "the route has no backend"

// canary returns the canary that takes the request; nil for the rule itself.
func (t *transaction) canary(c *config) *router.Rule {
	if held := t.held(c); held != nil {
		return held
	}
	return t.site.canaries.Choose(&t.view)
}

// held returns the rule or canary that the request's session began with, where
// it stays whatever headers and weights say; nil for none.
func (t *transaction) held(c *config) *router.Rule {
	if s := t.exchange.Session; s == nil || s.LegacyCanary {
		return nil
	}
	if t.site.has(&t.session) {
		return t.rule
	}
	for _, canary := range t.rule.Canaries {
		if c.sites[canary.ID].has(&t.session) {
			return canary
		}
	}
	return nil
}

// normalise reads method, host and path from what the client sent. net/http's
// own reading of the path is not used: it decodes %2F.
func (t *transaction) normalise() error {
	if err := request.CheckMethod(t.view.Method); err != nil {
		return err
	}
	target := t.target
	if !strings.HasPrefix(target, "/") {
		scheme, rest, ok := strings.Cut(target, "://") // absolute form (RFC 9112, 3.2.2)
		if !ok {
			return errors.New("request target is not a path")
		}
		if !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
			return fmt.Errorf("scheme %q of the request target is neither http nor https", scheme)
		}
		i := strings.IndexAny(rest, "/?")
		authority := rest
		switch {
		case i < 0:
			target = "/"
		case rest[i] == '/':
			authority, target = rest[:i], rest[i:]
		default:
			authority, target = rest[:i], "/"+rest[i:]
		}
		t.view.Authority = authority // goes before the Host header
	}
	var err error
	if t.view.Host, _, err = request.ParseHost(t.view.Authority); err != nil {
		return err
	}
	path, query, _ := strings.Cut(target, "?")
	t.view.Query = request.ParseQuery(query)
	t.view.Path, err = request.ParsePath(path)
	return err
}

// altSvc tells a client that comes by TLS that HTTP/3 is served as well: at the
// port that it asked for, whatever maps that to the gateway's (RFC 7838). For a
// trusted proxy in between that is not ours to say.
func (t *transaction) altSvc() (http1.Field, bool) {
	if !t.g.http3 || !t.view.TLS || t.view.Trusted || t.view.Host == "" || t.protocol == protocolHTTP3 {
		return http1.Field{}, false
	}
	port := t.view.Authority[strings.LastIndexByte(t.view.Authority, ']')+1:]
	if _, digits, ok := strings.Cut(port, ":"); ok && digits != "" {
		return http1.Field{Name: "Alt-Svc", Value: `h3=":` + digits + `"; ma=86400`}, true
	}
	return http1.Field{Name: "Alt-Svc", Value: `h3=":443"; ma=86400`}, true
}

// maxExtra is how many fields extra may add.
const maxExtra = 2

// extra adds what the gateway says in a backend's answer.
func (t *transaction) extra(list []http1.Field) []http1.Field {
	if alt, ok := t.altSvc(); ok {
		list = append(list, alt)
	}
	if x := &t.exchange; x.Session != nil {
		if value, ok := t.session.Renewed(); ok {
			list = append(list, http1.Field{Name: "Set-Cookie", Value: filter.SetCookie(x.Session, t.cookie, t.view.Scheme, value, time.Now())})
		}
	}
	return list
}

// addExtra does so in a header of net/http's, beside the backend's own cookies.
func (t *transaction) addExtra(header http.Header) {
	if t.protocol == protocolHTTP3 {
		header.Del("Alt-Svc") // a backend's, which tells of other ports than the gateway's
	}
	var space [maxExtra]http1.Field
	for _, f := range t.extra(space[:0]) {
		if f.Name != "Set-Cookie" {
			header.Del(f.Name)
		}
		header.Add(f.Name, f.Value)
	}
}

// protocolHTTP3 is how quic-go names its protocol.
const protocolHTTP3 = "HTTP/3.0"

// give answers for a filter.
func (t *transaction) give(a *filter.Answer) {
	if a.Leave {
		t.client.leave()
	}
	if a.Location == "" {
		t.fail(a.Status, a.Reason)
		return
	}
	t.answer(a.Status, "", http1.Field{Name: "Location", Value: a.Location})
}

// fail answers with an error, in a line of plain text.
func (t *transaction) fail(status int, reason string) {
	t.failure = reason
	if status == http.StatusServiceUnavailable {
		t.answer(status, reason, http1.Field{Name: "Retry-After", Value: "1"})
		return
	}
	t.answer(status, reason)
}

func (t *transaction) answer(status int, reason string, header ...http1.Field) {
	header = append(header, http1.Field{Name: "X-Request-Id", Value: t.id})
	if alt, ok := t.altSvc(); ok {
		header = append(header, alt)
	}
	if t.grpc && status >= 400 {
		t.answerGRPC(status, reason, header)
		return
	}
	header = append(header, http1.Field{Name: "Content-Type", Value: "text/plain; charset=utf-8"}, http1.Field{Name: "X-Content-Type-Options", Value: "nosniff"})
	line := fmt.Sprintf("%d %s", status, http.StatusText(status))
	if reason != "" {
		line += ": " + reason
	}
	t.client.answer(t, status, header, fmt.Sprintf("%s\nrequest id %s\n", line, t.id))
}

func isGRPC(contentType string) bool { return strings.HasPrefix(contentType, "application/grpc") }

// grpcCode is the gRPC status for a status of HTTP's, by the table in grpc's
// http-grpc-status-mapping.md.
func grpcCode(status int) string {
	switch status {
	case http.StatusBadRequest:
		return "13" // INTERNAL
	case http.StatusForbidden:
		return "7" // PERMISSION_DENIED
	case http.StatusNotFound:
		return "12" // UNIMPLEMENTED
	case http.StatusRequestEntityTooLarge:
		return "8" // RESOURCE_EXHAUSTED
	case http.StatusBadGateway, http.StatusServiceUnavailable:
		return "14" // UNAVAILABLE
	case http.StatusGatewayTimeout:
		return "4" // DEADLINE_EXCEEDED
	}
	return "2" // UNKNOWN
}

// answerGRPC answers with a gRPC status in headers only ("Trailers-Only" of the
// gRPC protocol).
func (t *transaction) answerGRPC(status int, reason string, header []http1.Field) {
	t.status = status
	t.client.answer(t, http.StatusOK, append(header,
		http1.Field{Name: "Content-Type", Value: "application/grpc"},
		http1.Field{Name: "Grpc-Status", Value: grpcCode(status)},
		http1.Field{Name: "Grpc-Message", Value: t.grpcMessage(reason)}), "")
}

func (t *transaction) grpcMessage(reason string) string {
	return fmt.Sprintf("%s (request id %s)", reason, t.id)
}

// call is how the exchange is sent.
func (t *transaction) call(b *backend) upstream.Call {
	x := &t.exchange
	c := upstream.Call{
		Protocol: b.protocol, ConnectTimeout: x.Connect, HeaderTimeout: t.g.options.AnswerTimeout,
		ReadTimeout: x.Read, SendTimeout: x.Send, Silence: max(t.g.options.SilenceTimeout, x.Read, x.Send),
		Choice: upstream.Choice{Balance: x.Balance, Hash: x.Hash, Hashed: x.Hashed, Repeatable: t.bodyLength == 0 && http1.Safe(t.view.Method), TLS: b.tls}, Span: t.span,
	}
	if !t.queued {
		c.Now = t.start
	}
	if x.Session != nil {
		c.Choice.Session = &t.session
	}
	if b.pool.Proxy() != 0 {
		c.Choice.Ends = t.ends()
	}
	if x.Total > 0 {
		c.Deadline = t.start.Add(x.Total)
	}
	return c
}

// ends are those of the client's connection. Behind a trusted proxy only the
// client's address is known.
func (t *transaction) ends() upstream.Ends {
	v := &t.view
	client := netip.AddrPortFrom(v.Client, 0)
	if v.Client == v.Peer {
		client = netip.AddrPortFrom(v.Client, v.PeerPort)
	}
	ends := upstream.Ends{Client: client}
	if v.Local != nil {
		ends.Local = netip.AddrPortFrom(addrOf(v.Local.LocalAddr()), v.Port)
	}
	return ends
}

// proxyFailed answers for a backend that did not.
func (t *transaction) proxyFailed(err error) {
	if errors.As(err, new(*upstream.LimitError)) {
		t.limited(err)
		return
	}
	var timeout net.Error
	var dial *upstream.DialError
	status, _ := t.client.sent()
	switch {
	case errors.Is(err, http1.ErrBodyTooLarge):
		t.fail(http.StatusRequestEntityTooLarge, fmt.Sprintf("the request body is larger than %d bytes", t.exchange.MaxBody))
	case t.client.cut():
		t.failure, t.status = shed.ErrFull.Error(), http.StatusServiceUnavailable
	case status != 0:
		t.failure = err.Error() // the answer has begun; it is cut off
	case errors.Is(err, shed.ErrFull):
		t.fail(http.StatusServiceUnavailable, err.Error())
	case errors.Is(err, http1.ErrGone):
		t.failure = "the client did not wait"
		t.status = statusClientGone
	case errors.Is(err, http1.ErrClient):
		t.client.bodyFailed()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.fail(http.StatusRequestTimeout, "the request body did not come in time")
		} else {
			t.fail(http.StatusBadRequest, "the request body broke off")
		}
	case errors.Is(err, upstream.ErrNoService), errors.Is(err, upstream.ErrNoPort), errors.Is(err, upstream.ErrNoEndpoints):
		t.fail(http.StatusServiceUnavailable, err.Error())
	case errors.As(err, new(*upstream.TLSError)):
		t.fail(http.StatusBadGateway, "no trusted connection to the backend")
		t.failure = err.Error() // which is for whoever runs it
	case errors.As(err, &dial) && dial.Short():
		t.failure = "the gateway can open no more connections"
		t.answer(http.StatusServiceUnavailable, t.failure, http1.Field{Name: "Retry-After", Value: "1"})
	case dial != nil:
		t.fail(http.StatusBadGateway, "no connection to the backend")
	case errors.Is(err, upstream.ErrTimeout), errors.As(err, &timeout) && timeout.Timeout():
		t.fail(http.StatusGatewayTimeout, "the backend did not answer in time")
	default:
		t.fail(http.StatusBadGateway, "the backend broke off or did not speak its protocol")
	}
	if t.status != 0 {
		status = t.status
	} else {
		status, _ = t.client.sent()
	}
	t.g.metrics.upstreamFailed(t.pool.Key().Service, status)
	t.g.logger.Debug("request failed", "requestId", t.id, "route", t.rule.Ref().String(), "service", t.pool.Key().Service.String(), "error", err)
}
