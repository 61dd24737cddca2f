package dns

import (
	"context"
	"errors"
	"strings"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/forward"
	"fairway.dev/fairway/internal/dns/wire"
)

// maxLookups bounds the names that one answer goes through by aliases and rewrites.
const maxLookups = 8

// handConfigured answers a query that the configuration has rules for.
func (h *handler) handConfigured(w *worker, packed []byte) ([]byte, later) {
	r := &request{
		server: w.server, client: w.client, tcp: w.tcp, counts: w.counts, start: w.start, size: len(packed),
		msg: new(dns.Msg), explain: w.query.EDNS.Explain,
	}
	if err := r.msg.Unpack(packed); err != nil || len(r.msg.Question) != 1 {
		r.msg = &dns.Msg{MsgHdr: dns.MsgHdr{Id: w.query.ID, RecursionDesired: w.query.RD}}
		return h.refuse(r, dns.RcodeFormatError), nil
	}
	r.edns = r.msg.IsEdns0()
	return nil, h.wait(r, func(ctx context.Context) []byte {
		q := r.msg.Question[0]
		m, err := h.lookup(ctx, r, q.Name, 0)
		switch {
		case errors.Is(err, forward.ErrNoDomain):
			return h.refuse(r, dns.RcodeRefused)
		case err != nil:
			h.log.Debug("no answer to a name that the configuration has rules for", "name", q.Name, "err", err)
			h.failed(r, q.Name, err)
			return h.refuse(r, dns.RcodeServerFailure)
		}
		for _, rr := range m.Answer {
			if strings.EqualFold(rr.Header().Name, q.Name) {
				rr.Header().Name = q.Name
			}
		}
		reply := h.newReply(r, m.Rcode)
		reply.Authoritative = m.Authoritative
		reply.AuthenticatedData = m.AuthenticatedData && (r.msg.AuthenticatedData || r.dnssecOK()) // RFC 6840 section 5.8
		reply.Answer, reply.Ns, reply.Extra = m.Answer, m.Ns, m.Extra
		return h.pack(r, reply)
	})
}

var (
	errRewrite = errors.New("what a name is rewritten to is no name")
	errDepth   = errors.New("the name leads to too many others")
)

// lookup returns what anybody would be told who asks for a name of the type in
// the request: by the rules of the configuration, from the
// cluster, or from other servers. The message is the caller's.
func (h *handler) lookup(ctx context.Context, r *request, name string, depth int) (*dns.Msg, error) {
	if depth > maxLookups {
		return nil, errDepth
	}
	b := h.config.Load().blockOf(name)
	to, rules := name, []answerRule(nil)
	if b != nil {
		var note func(rule *rewriteRule, from, to string)
		if r.explain {
			note = r.applied
		}
		if changed, back := b.rewrite(strings.ToLower(name), note); back != nil || !strings.EqualFold(changed, name) {
			if _, ok := dns.IsDomainName(changed); !ok {
				return nil, errRewrite
			}
			to, rules = changed, back
		}
	}
	m, err := h.lookupAs(ctx, r, b, name, to, depth)
	if err == nil {
		revert(m, rules)
	}
	return m, err
}

// maxRules bounds what is told of rules that applied.
const maxRules = 1024

// applied notes that a rule had another name looked up, for who wants it explained.
func (r *request) applied(rule *rewriteRule, from, to string) {
	if len(r.rules) < maxRules {
		r.rules = append(r.rules, wire.ExplainRule+from+wire.ExplainName+to+wire.ExplainName+rule.String()...)
	}
}

// lookupAs looks up a name that stands for another.
func (h *handler) lookupAs(ctx context.Context, r *request, b *configBlock, name, to string, depth int) (*dns.Msg, error) {
	q := dns.Question{Name: dns.Fqdn(to), Qtype: r.msg.Question[0].Qtype, Qclass: dns.ClassINET}
	m := new(dns.Msg)
	if b != nil && b.hosts != nil && b.hosts.answer(q, m) {
		r.origin = originHosts
		return m, nil
	}
	if a, ours := h.zone.Answer(q); ours {
		r.inZone, r.origin = depth == 0 || r.inZone, originZone
		m.Rcode, m.Authoritative, m.Answer, m.Ns, m.Extra = a.Rcode, true, a.Answer, a.Authority, a.Additional
		if a.Target == "" {
			return m, nil
		}
		rest, err := h.lookup(ctx, r, a.Target, depth+1)
		if err != nil {
			return nil, err
		}
		m.Rcode = rest.Rcode // RFC 6604 section 3
		m.Answer, m.Ns = append(m.Answer, rest.Answer...), append(m.Ns, rest.Ns...)
		return m, nil
	}
	query := h.query(r, q.Name)
	if to != name {
		// A name that was rewritten is asked of the servers of the block that did it.
		if own := h.forward.DomainOf(name); own != h.forward.DomainOf(q.Name) {
			query.Domain = own
		}
	}
	m, origin, err := h.forward.Resolve(ctx, query)
	r.from(origin)
	if err == nil {
		err = h.complete(ctx, r, q.Name, m, depth)
	}
	return m, err
}

// complete adds to what others have said of a name what is known here of the one
// that their aliases lead to, where that is for us to answer. Clients would not ask
// for it themselves.
func (h *handler) complete(ctx context.Context, r *request, name string, m *dns.Msg, depth int) error {
	home := h.forward.Home(m.Answer, name, r.msg.Question[0].Qtype)
	if home == "" {
		return nil
	}
	origin := r.origin
	rest, err := h.lookup(ctx, r, home, depth+1)
	r.origin = origin // that of the alias
	if err != nil {
		return err
	}
	m.AuthenticatedData = false
	m.Rcode = rest.Rcode // RFC 6604 section 3
	m.Answer, m.Ns, m.Extra = append(m.Answer, rest.Answer...), rest.Ns, rest.Extra
	return nil
}
