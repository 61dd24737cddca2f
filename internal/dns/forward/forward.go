package forward

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"

	"fairway.dev/fairway/internal/dns/cache"
	"fairway.dev/fairway/internal/dns/wire"
)

// Options say whom to ask.
type Options struct {
	// Upstreams are the servers. Optional: where there is none, ResolvConf has them.
	Upstreams []Server
	// Policy is the order in which they are asked. Default [Sequential].
	Policy Policy
	// Stubs are domains that have servers of their own, asked by the same
	// policy; of two that a name lies in, the longer one counts. Optional.
	Stubs []Stub
	// TLSRoots verify servers by TLS. Default: those of the system.
	TLSRoots *x509.CertPool
	// ResolvConf is a file of resolv.conf(5), read again when it changes. Optional.
	ResolvConf string
	// Self are addresses that lead back here and are never asked. Optional.
	Self []netip.AddrPort
	// Own reports whether a name is answered by who asks here: what servers say
	// of it is left out of their answers. Default: none is.
	Own func(name string) bool
	// Cache remembers answers. Required.
	Cache *cache.Cache
	// Timeout bounds one question, over all servers. Default 2 s.
	Timeout time.Duration
	// MaxConcurrent bounds the different questions asked at a time; more get
	// an error at once. Default 1000.
	MaxConcurrent int
	// Registerer takes the metrics, in which Name stands for this server. Optional.
	Registerer prometheus.Registerer
	Name       string
	// Logger is required.
	Logger *slog.Logger
}

// Query is a question for other servers.
type Query struct {
	// Name is fully qualified; its case is kept in the answer.
	Name string
	Type uint16
	// Domain has the servers of that [Domain] asked, whatever the name; answers
	// are then not kept. Optional.
	Domain string
	// DNSSECOK and CheckingDisabled are the client's DO and CD bits.
	DNSSECOK, CheckingDisabled bool
}

func (q Query) key() (cache.Key, error) {
	var packed [256]byte
	n, err := dns.PackDomainName(strings.ToLower(q.Name), packed[:], 0, nil, false)
	if err != nil {
		return cache.Key{}, fmt.Errorf("%q: %w", q.Name, err)
	}
	return cache.Key{Name: string(packed[:n]), Type: q.Type, DNSSECOK: q.DNSSECOK, CheckingDisabled: q.CheckingDisabled}, nil
}

// keyOf is the key of a query as it came; its name is the query's own memory.
func keyOf(q *wire.Query) cache.Key {
	return cache.Key{Name: q.Name.PackedString(), Type: q.Type, DNSSECOK: q.EDNS.DO, CheckingDisabled: q.CD}
}

func (q Query) message(edns bool) *dns.Msg {
	m := &dns.Msg{
		MsgHdr: dns.MsgHdr{
			Id: uint16(rand.Uint32()), RecursionDesired: true, CheckingDisabled: q.CheckingDisabled,
			AuthenticatedData: true, // RFC 6840 section 5.7: we understand the AD bit
		},
		Question: []dns.Question{{Name: strings.ToLower(q.Name), Qtype: q.Type, Qclass: dns.ClassINET}},
	}
	if edns {
		m.SetEdns0(udpSize, q.DNSSECOK)
	}
	return m
}

// Origin tells where an answer is from.
type Origin struct {
	// Cached: from memory; Stale: past its TTL, because no server answers.
	Cached, Stale bool
	// Server is who said it just now; zero where it is cached.
	Server Server
}

// String returns the origin in a word or two.
func (o Origin) String() string {
	switch {
	case o.Stale:
		return "stale"
	case o.Cached:
		return "cache"
	}
	return "upstream " + o.Server.String()
}

// OriginOf is the origin of what [Forwarder.Cached] returned.
func OriginOf(hit *cache.Hit) Origin {
	return Origin{Cached: true, Stale: hit.Freshness == cache.StaleForNow || hit.Freshness == cache.Stale}
}

// said is what a server said.
type said struct {
	msg    *dns.Msg
	home   string // see [Forwarder.Home]
	server Server
}

// ErrNoUpstream is returned where there is no server to ask.
var ErrNoUpstream = errors.New("no upstream name server is known")

// ErrBusy is returned while too many questions are being asked.
var ErrBusy = errors.New("too many questions to upstream name servers at a time")

// Forwarder asks other servers. It is safe for concurrent use.
type Forwarder struct {
	opts    Options
	log     *slog.Logger
	metrics *metrics
	flights singleflight.Group
	servers atomic.Pointer[[]*upstream] // those of the options or of ResolvConf
	routes  atomic.Pointer[routes]
	search  atomic.Pointer[[]string]

	changing sync.Mutex // held by who changes routes
	running  atomic.Pointer[context.Context]

	probesMu sync.Mutex
	probes   map[string]*upstream
}

// New returns a forwarder that knows its servers.
func New(o Options) (*Forwarder, error) {
	if o.Cache == nil || o.Logger == nil {
		return nil, errors.New("forward: Cache and Logger are required")
	}
	if o.Timeout == 0 {
		o.Timeout = 2 * time.Second
	}
	if o.MaxConcurrent == 0 {
		o.MaxConcurrent = 1000
	}
	if o.Own == nil {
		o.Own = func(string) bool { return false }
	}
	switch o.Policy {
	case "", Sequential, RoundRobin, Random:
	default:
		return nil, fmt.Errorf("forward: policy %q: want sequential, round_robin or random", o.Policy)
	}
	m, err := newMetrics(o.Registerer, o.Cache, o.Name)
	if err != nil {
		return nil, fmt.Errorf("forward: metrics: %w", err)
	}
	f := &Forwarder{opts: o, log: o.Logger, metrics: m, probes: map[string]*upstream{}}
	if err := f.checkStubs(); err != nil {
		return nil, err
	}
	f.servers.Store(&[]*upstream{})
	if err := f.Configure(nil); err != nil {
		return nil, err
	}
	f.reload()
	return f, nil
}

// Search returns the search domains of ResolvConf, which Pods have behind those
// of the cluster. They are fully qualified and in lower case.
func (f *Forwarder) Search() []string {
	if s := f.search.Load(); s != nil {
		return *s
	}
	return nil
}

// Servers returns the servers that are asked for names of no domain of their own.
func (f *Forwarder) Servers() []Server {
	var list []Server
	d := f.routes.Load().domainOf(".")
	if d == nil {
		return nil
	}
	for _, g := range d.groups {
		if g.From != "." {
			continue
		}
		for _, u := range f.serversOf(g) {
			if !u.looped.Load() {
				list = append(list, u.server)
			}
		}
		break
	}
	return list
}

// Resolve answers q from memory or from the servers. What is behind an alias that
// leads to a name of our own is for the caller to add: see [Forwarder.Home]. The message is the
// caller's; of its header the rcode and the AD bit count. Where it fails
// (the client should be told SERVFAIL) it does so within the timeout.
func (f *Forwarder) Resolve(ctx context.Context, q Query) (*dns.Msg, Origin, error) {
	key, err := q.key()
	if err != nil {
		return nil, Origin{}, err
	}
	if q.Domain != "" {
		return f.resolveUncached(ctx, q, key)
	}
	hit := f.opts.Cache.Get(key)
	f.metrics.lookup(&hit)
	if hit.Freshness == cache.Expiring {
		f.prefetch(q, key)
	}
	if enough(hit.Freshness) {
		return unpack(&hit, q.Name)
	}
	select {
	case r := <-f.fetch(q, key):
		if r.Err != nil && hit.Freshness != cache.Stale {
			return nil, Origin{}, r.Err
		}
		if r.Err == nil {
			if a := r.Val.(said); good(a.msg) || hit.Freshness != cache.Stale {
				return withCase(a.msg.Copy(), q.Name), Origin{Server: a.server}, nil
			}
		}
		f.opts.Cache.Failed(key)
		f.metrics.staleServed.Inc()
		return unpack(&hit, q.Name)
	case <-ctx.Done():
		return nil, Origin{}, ctx.Err()
	}
}

// resolveUncached answers a query of a domain that its name does not lie in.
func (f *Forwarder) resolveUncached(ctx context.Context, q Query, key cache.Key) (*dns.Msg, Origin, error) {
	select {
	case r := <-f.fetch(q, key):
		if r.Err != nil {
			return nil, Origin{}, r.Err
		}
		a := r.Val.(said)
		return withCase(a.msg.Copy(), q.Name), Origin{Server: a.server}, nil
	case <-ctx.Done():
		return nil, Origin{}, ctx.Err()
	}
}

// Cached answers what needs no server, at once and without memory of its own;
// else it reports false, and [Forwarder.Resolve] is to be asked.
func (f *Forwarder) Cached(q *wire.Query) (cache.Hit, bool) {
	hit := f.opts.Cache.Get(keyOf(q))
	if !enough(hit.Freshness) {
		return cache.Hit{}, false // Resolve counts it
	}
	f.metrics.lookup(&hit)
	if hit.Freshness == cache.Expiring {
		again := Query{Name: q.Name.String(), Type: q.Type, DNSSECOK: q.EDNS.DO, CheckingDisabled: q.CD}
		if key, err := again.key(); err == nil {
			f.prefetch(again, key)
		}
	}
	return hit, true
}

// enough reports whether what the cache has is the answer.
func enough(fresh cache.Freshness) bool {
	return fresh == cache.Fresh || fresh == cache.StaleForNow || fresh == cache.Expiring
}

// prefetch fetches anew what is about to expire.
func (f *Forwarder) prefetch(q Query, key cache.Key) {
	f.metrics.prefetches.Inc()
	f.fetch(q, key)
}

func unpack(hit *cache.Hit, name string) (*dns.Msg, Origin, error) {
	msg, err := hit.Unpack()
	if err != nil {
		return nil, Origin{}, fmt.Errorf("answer in the cache for %s: %w", name, err)
	}
	return withCase(msg, name), OriginOf(hit), nil
}

// fetch asks the servers, once for all who want to know the same. The result is
// said, whose message is shared.
func (f *Forwarder) fetch(q Query, key cache.Key) <-chan singleflight.Result {
	name := key.Name + strconv.Itoa(int(key.Type)) + strconv.FormatBool(key.DNSSECOK) + strconv.FormatBool(key.CheckingDisabled) + q.Domain
	rs := f.routes.Load()
	name += strconv.FormatUint(rs.number, 16) // a question to servers of before is another
	return f.flights.DoChan(name, func() (any, error) {
		d, g, err := rs.find(q)
		if err != nil {
			return nil, err
		}
		select {
		case g.slots <- struct{}{}:
			defer func() { <-g.slots }()
		default:
			f.metrics.rejects.Inc()
			return nil, ErrBusy
		}
		a, err := f.ask(g, q)
		if err != nil {
			return nil, err
		}
		msg := a.msg
		if limits := d.limits(q.Name); limits != nil && q.Domain == "" {
			if a.home != "" {
				f.opts.Cache.PutAlias(limits, key, msg)
			} else {
				f.opts.Cache.PutWithin(limits, key, msg)
			}
			if f.routes.Load() != rs {
				f.opts.Cache.Forget(key) // what other servers said
			}
		}
		return a, nil
	})
}

// withCase gives records of the name that was asked for the case in which it was.
func withCase(msg *dns.Msg, name string) *dns.Msg {
	for _, rr := range msg.Answer {
		if h := rr.Header(); strings.EqualFold(h.Name, name) {
			h.Name = name
		}
	}
	return msg
}

// downBudget is how long servers that are all down may take: short enough to
// fail fast, long enough to find out that one is back.
const downBudget = 500 * time.Millisecond

// maxAttempts bounds the packets that one question becomes.
const maxAttempts = 4

// ask asks the servers in turn, healthy ones first. One that is slow is still
// listened to while the next is being asked.
func (f *Forwarder) ask(g *group, q Query) (said, error) {
	servers, budget := f.candidates(g)
	if len(servers) == 0 {
		return said{}, ErrNoUpstream
	}
	ctx, cancel := context.WithTimeout(context.Background(), budget)
	defer cancel()
	r := &race{f: f, q: q, ctx: ctx, results: make(chan outcome, len(servers))}
	return r.run(servers, budget/time.Duration(len(servers)+1))
}

// candidates returns whom to ask of a group, in order, and how long it may take.
func (f *Forwarder) candidates(g *group) ([]*upstream, time.Duration) {
	var up, down []*upstream
	for _, u := range f.serversOf(g) {
		switch {
		case u.looped.Load():
		case u.down():
			down = append(down, u)
		default:
			up = append(up, u)
		}
	}
	g.order(up)
	list, budget := append(up, down...), f.opts.Timeout
	if len(up) == 0 {
		if len(list) > 0 {
			f.metrics.allDown.Inc()
		}
		budget = min(budget, downBudget)
	}
	if len(list) == 1 {
		list = append(list, list[0]) // a packet may get lost
	}
	return list[:min(len(list), maxAttempts)], budget
}

// order puts the servers that are up into the order of the policy.
func (g *group) order(up []*upstream) {
	if len(up) < 2 {
		return
	}
	switch g.policy {
	case Random:
		rand.Shuffle(len(up), func(i, j int) { up[i], up[j] = up[j], up[i] })
	case RoundRobin:
		first := int(g.turn.Add(1)-1) % len(up)
		copy(up, slices.Concat(up[first:], up[:first]))
	}
}

// race is one question asked of several servers.
type race struct {
	f       *Forwarder
	q       Query
	ctx     context.Context
	results chan outcome
}

type outcome struct {
	server *upstream
	msg    *dns.Msg
	home   string
	err    error
}

// run starts the next attempt each interval, or at once when one failed, and
// returns the first good answer. An answer that only tells of trouble
// (SERVFAIL, REFUSED...) counts when nobody has a better one.
func (r *race) run(servers []*upstream, interval time.Duration) (said, error) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var trouble said
	var last error
	next, pending, firstPending := 0, 0, false
	for {
		select {
		case <-timer.C:
			if next < len(servers) {
				go r.attempt(servers[next])
				firstPending = firstPending || next == 0
				next, pending = next+1, pending+1
				timer.Reset(interval)
			}
			continue
		case o := <-r.results:
			pending--
			if o.server == servers[0] {
				firstPending = false
			}
			switch {
			case o.err != nil:
				last = o.err
				r.f.noteFailure(o.server, o.err)
			case good(o.msg):
				o.server.answered()
				if firstPending { // it had a head start
					r.f.noteFailure(servers[0], fmt.Errorf("%s answered before %s did", o.server.server, servers[0].server))
				}
				return said{o.msg, o.home, o.server.server}, nil
			default:
				o.server.answered()
				trouble = said{o.msg, "", o.server.server}
			}
		}
		switch {
		case next < len(servers):
			timer.Reset(0)
		case pending == 0 && trouble.msg != nil:
			return trouble, nil
		case pending == 0:
			return said{}, last
		}
	}
}

func (r *race) attempt(u *upstream) {
	start := time.Now()
	msg, err := u.exchange(r.ctx, r.q)
	home := ""
	if err == nil {
		r.f.metrics.exchanged(u.server, msg.Rcode, time.Since(start))
		var ok bool
		if home, ok = trim(msg, r.q, r.f.opts.Own); !ok {
			r.f.metrics.unrelated.Add(1)
			// Trouble, and no failure of the server: with a name that makes it say
			// so anybody could have it taken for down.
			msg.Rcode, msg.Ns, msg.Extra = dns.RcodeServerFailure, nil, nil
		}
	} else {
		err = fmt.Errorf("ask %s for %s: %w", u.server, r.q.Name, err)
	}
	r.results <- outcome{u, msg, home, err}
}

func good(m *dns.Msg) bool {
	return m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError
}

func (f *Forwarder) noteFailure(u *upstream, err error) {
	f.metrics.failed(u.server)
	if u.failed() {
		f.log.Warn("upstream name server does not answer", "server", u.server.String(), "err", err)
	}
}
