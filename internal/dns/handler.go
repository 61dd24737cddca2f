package dns

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/cache"
	"fairway.dev/fairway/internal/dns/forward"
	"fairway.dev/fairway/internal/dns/wire"
	"fairway.dev/fairway/internal/dns/zone"
)

const (
	// minUDPSize is what every client takes by UDP (RFC 1035 section 4.2.1).
	minUDPSize = 512
	// maxWaiting bounds the queries that wait for other servers.
	maxWaiting = 10000
)

// Where answers are from, beside servers; as [forward.Origin] says it.
const (
	originZone  = "zone"
	originCache = "cache"
	originStale = "stale"
	originHosts = "hosts"
)

// handler turns a packed query into a packed answer. It knows no sockets:
// whoever reads them calls begin, and later where begin asks for it.
type handler struct {
	zone       *zone.Zone
	forward    *forward.Forwarder
	metrics    *metrics
	log        *slog.Logger
	maxUDPSize int
	acl        *acl
	limiter    *limiter // by UDP; connections wait by themselves
	waiting    chan struct{}
	autopath   bool
	config     atomic.Pointer[config]
	queries    *queryLog // nil logs none
}

// worker is what it takes to answer one query after the other. It has one
// user at a time.
type worker struct {
	// server is the address that was asked, tcp the protocol, and counts where
	// that is counted.
	server netip.AddrPort
	tcp    bool
	counts *counts
	// socket is which of sockets it serves, those by UDP at one address.
	socket, sockets uint8

	// client and start are of the query at hand. Queries that came together
	// have one start.
	client netip.AddrPort
	start  time.Time
	// answered are answers, by zone, whose time is not counted yet.
	answered [2]uint64

	query  wire.Query
	answer wire.Builder
	text   []byte // of the query's name, where rules look at it

	unlogged bool // its queries are none of clients
}

// newWorker returns one for queries at the server's address.
func (h *handler) newWorker(server netip.AddrPort, tcp bool, counts *counts) *worker {
	return &worker{server: server, tcp: tcp, counts: counts, answer: wire.Builder{UDPSize: uint16(h.maxUDPSize)}}
}

// settle counts how long the answers took that begin has given since start, or
// since settle was called: whoever sends them together asks once for the time,
// which costs as much as to find an answer.
func (w *worker) settle(now time.Time) {
	for z, n := range w.answered {
		if n > 0 {
			w.counts.took(z, now.Sub(w.start), n)
		}
	}
	w.answered = [2]uint64{}
}

// request is one query that other servers have a part in.
type request struct {
	server, client netip.AddrPort
	tcp            bool
	counts         *counts
	start          time.Time
	size           int
	msg            *dns.Msg
	edns           *dns.OPT // nil where the client does not speak EDNS
	inZone         bool
	explain        bool
	origin         string // see wire.Builder
	failure        string // why others gave no answer, where explain asks for it
	rules          []byte // of the configuration that applied, where explain asks for it
}

// later finishes an answer that other servers have a part in.
type later func(context.Context) []byte

// begin answers a query at once where that needs nobody else: the answer is
// behind what buf holds, or nil where none is due. Otherwise it returns the
// rest of the work, which must be called. It does not keep packed, and
// allocates nothing for an answer from the zone for which buf has room. Whoever
// sends the answer calls settle before.
func (h *handler) begin(w *worker, packed, buf []byte) (answer []byte, rest later) {
	defer h.recovered(w, buf, &answer)
	err := w.query.Parse(packed)
	if err == wire.ErrNoQuery {
		return pong(w, packed, buf), nil // to answer answers would make loops
	}
	if w.query.EDNS.Explain && !h.acl.onNode(w.client.Addr()) {
		w.query.EDNS.Explain = false // whom we ask is nobody else's affair
	}
	w.answer.Reset(buf, &w.query, h.limit(w))
	inZone, rcode := false, rcodeOf(err)
	if err == nil {
		rcode = h.check(w)
	}
	if rcode == dns.RcodeSuccess && !w.tcp && !h.limiter.allows(w.client.Addr(), w.start) {
		w.counts.rateLimited.Add(1)
		return nil, nil
	}
	if rcode == dns.RcodeSuccess {
		if c := h.config.Load(); len(c.blocks) > 0 && c.concerns(&w.query, &w.text) != nil {
			return behind(buf)(h.handConfigured(w, packed))
		}
		r := h.zone.Write(&w.query, &w.answer)
		w.answer.Origin = originZone
		if inZone = r.Ours; !inZone {
			hit, ok := h.forward.Cached(&w.query)
			if !ok || hit.Alias() || !w.copy(&hit) {
				return behind(buf)(h.hand(w, packed, r, hit))
			}
		} else if r.Target != "" {
			return behind(buf)(h.hand(w, packed, r, cache.Hit{}))
		}
		if inZone && h.goesAlong() && w.answer.Rcode == dns.RcodeNameError && !w.query.EDNS.DO && (w.query.Type == dns.TypeA || w.query.Type == dns.TypeAAAA) {
			if s, ok := h.searched(w.query.Name.String()); ok {
				return behind(buf)(h.handSearch(w, packed, s))
			}
		}
	} else {
		w.answer.Rcode = rcode
	}
	answer = w.answer.Finish()
	w.counts.add(sample{
		inZone: inZone, tcp: w.tcp, do: w.query.EDNS.DO, origin: w.answer.Origin, client: w.client.Addr(), qtype: w.qtype(), rcode: w.answer.Rcode,
		asked: len(packed), answered: len(answer) - len(buf),
	})
	w.answered[number(inZone)]++
	if !w.unlogged && h.queries.wants(w.answer.Rcode) {
		l := logged{client: w.client, tcp: w.tcp, rcode: w.answer.Rcode, took: time.Since(w.start), origin: w.answer.Origin}
		if w.query.Asks() {
			l.name, l.qtype = w.query.Name.String(), w.query.Type
		}
		h.queries.add(l)
	}
	return answer, nil
}

// copy answers with what the cache has. It reports false where that is more than
// the client takes: the library cuts that.
func (w *worker) copy(hit *cache.Hit) bool {
	if !w.answer.Copy(hit.Message()) {
		return false
	}
	hit.Age(w.answer.Message())
	w.answer.Origin = originCache
	if hit.Freshness == cache.StaleForNow {
		w.answer.Origin = originStale
	}
	w.answer.Authentic = hit.Authentic() && (w.query.AD || w.query.EDNS.DO) // RFC 6840 section 5.8
	return true
}

func (w *worker) qtype() uint16 {
	if w.query.Asks() {
		return w.query.Type
	}
	return dns.TypeNone
}

func rcodeOf(err error) int {
	switch err {
	case nil:
		return dns.RcodeSuccess
	case wire.ErrOpcode:
		return dns.RcodeNotImplemented
	}
	return dns.RcodeFormatError
}

// limit is the size that an answer may have.
func (h *handler) limit(w *worker) int {
	switch {
	case w.tcp:
		return wire.MaxSize
	case w.query.EDNS.Present:
		return min(max(int(w.query.EDNS.UDPSize), minUDPSize), h.maxUDPSize)
	}
	return minUDPSize
}

// check returns the rcode to refuse the query with, or NOERROR.
func (h *handler) check(w *worker) int {
	q := &w.query
	switch {
	case q.EDNS.Version != 0:
		return dns.RcodeBadVers
	case !h.acl.allows(w.client.Addr()):
		return dns.RcodeRefused
	}
	switch q.Type {
	case dns.TypeNone, dns.TypeOPT, dns.TypeTSIG, dns.TypeTKEY:
		return dns.RcodeFormatError
	case dns.TypeAXFR, dns.TypeIXFR, dns.TypeMAILA, dns.TypeMAILB:
		return dns.RcodeRefused
	}
	if q.Class != dns.ClassINET {
		return dns.RcodeRefused
	}
	return dns.RcodeSuccess
}

// behind puts an answer that is there already behind what buf holds.
func behind(buf []byte) func(answer []byte, rest later) ([]byte, later) {
	return func(answer []byte, rest later) ([]byte, later) {
		if answer != nil {
			answer = append(buf, answer...)
		}
		return answer, rest
	}
}

// hand passes a query on to the part that works with the library's messages
// and may wait for other servers. What the zone had to say so far is kept; of
// other names, hit is what the cache has, if anything.
func (h *handler) hand(w *worker, packed []byte, result zone.Result, hit cache.Hit) ([]byte, later) {
	r := &request{
		server: w.server, client: w.client, tcp: w.tcp, counts: w.counts, start: w.start, size: len(packed),
		msg: new(dns.Msg), inZone: result.Ours, explain: w.query.EDNS.Explain,
	}
	if err := r.msg.Unpack(packed); err != nil || len(r.msg.Question) != 1 {
		r.msg = &dns.Msg{MsgHdr: dns.MsgHdr{Id: w.query.ID, RecursionDesired: w.query.RD}}
		return h.refuse(r, dns.RcodeFormatError), nil
	}
	r.edns = r.msg.IsEdns0()
	if result.Ours {
		written := new(dns.Msg)
		if err := written.Unpack(w.answer.Message()); err != nil {
			return h.refuse(r, dns.RcodeServerFailure), nil
		}
		reply := h.newReply(r, written.Rcode)
		reply.Authoritative, reply.Answer, reply.Ns = written.Authoritative, written.Answer, written.Ns
		return nil, h.wait(r, func(ctx context.Context) []byte { return h.chase(ctx, r, reply, dns.Fqdn(result.Target)) })
	}
	if h.forward.Looped(r.msg.Question[0].Name) {
		return h.refuse(r, dns.RcodeRefused), nil
	}
	if hit.Freshness != cache.Miss {
		m, err := hit.Unpack()
		if err != nil {
			return h.refuse(r, dns.RcodeServerFailure), nil
		}
		r.from(forward.OriginOf(&hit))
		if hit.Alias() {
			return nil, h.wait(r, func(ctx context.Context) []byte { return h.pass(ctx, r, m) })
		}
		return h.pass(context.Background(), r, m), nil
	}
	return nil, h.wait(r, func(ctx context.Context) []byte { return h.ask(ctx, r) })
}

// handSearch is hand for a name that looks like a step along a search path.
func (h *handler) handSearch(w *worker, packed []byte, s searched) ([]byte, later) {
	r := &request{
		server: w.server, client: w.client, tcp: w.tcp, counts: w.counts, start: w.start, size: len(packed),
		msg: new(dns.Msg), inZone: true, explain: w.query.EDNS.Explain, origin: originZone,
	}
	written := new(dns.Msg)
	if r.msg.Unpack(packed) != nil || len(r.msg.Question) != 1 || written.Unpack(w.answer.Message()) != nil {
		r.msg = &dns.Msg{MsgHdr: dns.MsgHdr{Id: w.query.ID, RecursionDesired: w.query.RD}}
		return h.refuse(r, dns.RcodeServerFailure), nil
	}
	r.edns = r.msg.IsEdns0()
	reply := h.newReply(r, written.Rcode)
	reply.Authoritative, reply.Answer, reply.Ns = written.Authoritative, written.Answer, written.Ns
	return nil, h.wait(r, func(ctx context.Context) []byte { return h.walk(ctx, r, s, reply) })
}

// wait bounds the work that waits for other servers.
func (h *handler) wait(r *request, work later) later {
	select {
	case h.waiting <- struct{}{}:
	default:
		return func(context.Context) []byte { return h.refuse(r, dns.RcodeServerFailure) }
	}
	return func(ctx context.Context) (answer []byte) {
		defer func() { <-h.waiting }()
		defer func() {
			if p := recover(); p != nil {
				h.mistake(p, r.msg.Question[0].Name)
				answer = h.refuse(r, dns.RcodeServerFailure)
			}
		}()
		return work(ctx)
	}
}

// ask answers with what other servers say.
func (h *handler) ask(ctx context.Context, r *request) []byte {
	q := r.msg.Question[0]
	m, origin, err := h.forward.Resolve(ctx, h.query(r, q.Name))
	r.from(origin)
	switch {
	case errors.Is(err, forward.ErrNoDomain):
		return h.refuse(r, dns.RcodeRefused)
	case err != nil:
		h.log.Debug("no answer from upstream name servers", "name", q.Name, "err", err)
		h.failed(r, q.Name, err)
		return h.refuse(r, dns.RcodeServerFailure)
	}
	return h.pass(ctx, r, m)
}

// pass answers with what others have said.
func (h *handler) pass(ctx context.Context, r *request, m *dns.Msg) []byte {
	q := r.msg.Question[0]
	if err := h.complete(ctx, r, q.Name, m, 0); err != nil {
		h.log.Debug("no answer to a name that others have an alias to", "alias", q.Name, "err", err)
		h.failed(r, q.Name, err)
		m.Rcode = dns.RcodeServerFailure
	}
	reply := h.newReply(r, m.Rcode)
	reply.AuthenticatedData = m.AuthenticatedData && (r.msg.AuthenticatedData || r.dnssecOK()) // RFC 6840 section 5.8
	reply.Answer, reply.Ns, reply.Extra = m.Answer, m.Ns, m.Extra
	return h.pack(r, reply)
}

// chase completes a reply that ends in a CNAME to target with what other
// servers say of that. Where they say nothing the reply fails as a whole, lest
// the client believe that target has no address; it keeps the CNAME, for people.
func (h *handler) chase(ctx context.Context, r *request, reply *dns.Msg, target string) []byte {
	m, err := h.lookup(ctx, r, target, 1)
	if err != nil {
		h.log.Debug("no answer from upstream name servers", "name", target, "alias", r.msg.Question[0].Name, "err", err)
		h.failed(r, target, err)
		reply.Rcode = dns.RcodeServerFailure
		return h.pack(r, reply)
	}
	reply.Rcode = m.Rcode // RFC 6604 section 3
	reply.Answer = append(reply.Answer, m.Answer...)
	reply.Ns = append(reply.Ns, m.Ns...)
	return h.pack(r, reply)
}

func (h *handler) query(r *request, name string) forward.Query {
	return forward.Query{
		Name: name, Type: r.msg.Question[0].Qtype, DNSSECOK: r.dnssecOK(), CheckingDisabled: r.msg.CheckingDisabled,
	}
}

// failed notes for whoever wants it explained which zone's servers gave no answer.
func (h *handler) failed(r *request, name string, err error) {
	if r.explain {
		r.failure = wire.ExplainNone + h.forward.DomainOf(name) + ": " + err.Error()
	}
}

// from notes where the answer is from.
func (r *request) from(o forward.Origin) {
	if o != (forward.Origin{}) {
		r.origin = o.String()
	}
}

func (r *request) dnssecOK() bool { return r.edns != nil && r.edns.Do() }

// newReply is an empty answer. The question is the client's own, case
// included, as some check it (DNS 0x20).
func (h *handler) newReply(r *request, rcode int) *dns.Msg {
	reply := &dns.Msg{
		MsgHdr: dns.MsgHdr{
			Id: r.msg.Id, Response: true, Opcode: r.msg.Opcode, Rcode: rcode,
			RecursionDesired: r.msg.RecursionDesired, RecursionAvailable: true, CheckingDisabled: r.msg.CheckingDisabled,
		},
		Compress: true,
	}
	if len(r.msg.Question) > 0 {
		reply.Question = r.msg.Question[:1]
	}
	return reply
}

func (h *handler) refuse(r *request, rcode int) []byte { return h.pack(r, h.newReply(r, rcode)) }

// pack adds EDNS where the client speaks it, cuts the reply to what the client
// takes, and counts it.
func (h *handler) pack(r *request, reply *dns.Msg) []byte {
	limit := dns.MaxMsgSize
	if !r.tcp {
		limit = minUDPSize
		if r.edns != nil {
			limit = min(max(int(r.edns.UDPSize()), minUDPSize), h.maxUDPSize)
		}
	}
	if r.edns != nil {
		opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
		opt.SetUDPSize(uint16(h.maxUDPSize))
		if r.edns.Do() {
			opt.SetDo() // RFC 3225 section 3
		}
		if told := cmp.Or(r.failure, r.origin); r.explain && told != "" {
			opt.Option = append(opt.Option, &dns.EDNS0_LOCAL{Code: wire.OptionExplain, Data: append([]byte(strings.ReplaceAll(told, wire.ExplainRule, "; ")), r.rules...)})
		}
		reply.Extra = append(reply.Extra, opt)
	}
	reply.Truncate(limit)
	packed, err := reply.Pack()
	if err != nil {
		h.log.Error("cannot pack an answer", "question", reply.Question, "err", err)
		reply.Rcode, reply.Answer, reply.Ns, reply.Extra = dns.RcodeServerFailure, nil, nil, nil
		if packed, err = reply.Pack(); err != nil {
			return nil
		}
	}
	qtype := dns.TypeNone
	if len(reply.Question) > 0 {
		qtype = reply.Question[0].Qtype
	}
	r.counts.add(sample{
		inZone: r.inZone, tcp: r.tcp, do: r.dnssecOK(), origin: r.origin, client: r.client.Addr(), qtype: qtype, rcode: reply.Rcode,
		asked: r.size, answered: len(packed),
	})
	r.counts.took(number(r.inZone), time.Since(r.start), 1)
	if h.queries.wants(reply.Rcode) {
		l := logged{client: r.client, tcp: r.tcp, qtype: qtype, rcode: reply.Rcode, took: time.Since(r.start), origin: r.origin}
		if len(reply.Question) > 0 {
			l.name = strings.ToLower(reply.Question[0].Name)
		}
		h.queries.add(l)
	}
	return packed
}

// recovered answers SERVFAIL in place of ending the process: one query that
// trips over a mistake of ours must not take the node's DNS with it.
func (h *handler) recovered(w *worker, buf []byte, answer *[]byte) {
	p := recover()
	if p == nil {
		return
	}
	h.mistake(p, w.query.Name.String())
	w.answer.Reset(buf, &w.query, wire.MaxSize)
	w.answer.Rcode = dns.RcodeServerFailure
	*answer = w.answer.Finish()
}

func (h *handler) mistake(p any, name string) {
	h.metrics.panics.Inc()
	h.log.Error("answering a DNS query failed; please report this", "panic", p, "name", name, "stack", string(debug.Stack()))
}
