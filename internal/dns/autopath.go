package dns

import (
	"context"
	"strings"

	"github.com/miekg/dns"
)

// searched is what a resolver with a Pod's search path was asked for, as far
// as one query tells it.
type searched struct {
	// name is what stands before the Pod's first search domain, with a final dot.
	name string
	// domains are the search domains that come after it.
	domains []string
}

// searched reads a name of the zone that does not exist as the first step of a
// walk along a Pod's search path. The first domain of the path of every Pod is
// that of its namespace, so that the name itself tells the path. It reports
// false where the name may have been meant as it is: below a Service that there
// is, of a namespace that there is not, with an underscore as in SRV names, or
// of one label, for those are Services.
func (h *handler) searched(asked string) (searched, bool) {
	domain := h.zone.Domain()
	labels := dns.SplitDomainName(strings.TrimSuffix(strings.ToLower(asked), "svc."+domain))
	if !dns.IsSubDomain("svc."+domain, strings.ToLower(asked)) || len(labels) < 3 {
		return searched{}, false
	}
	namespace, words := labels[len(labels)-1], labels[:len(labels)-1]
	if !h.zone.HasNamespace(namespace) || h.zone.HasService(namespace, words[len(words)-1]) {
		return searched{}, false
	}
	for _, w := range words {
		if w[0] == '_' {
			return searched{}, false
		}
	}
	return searched{
		name:    strings.Join(words, ".") + ".",
		domains: append([]string{"svc." + domain, domain}, h.forward.Search()...),
	}, true
}

// goesAlong reports whether search paths are walked in the place of clients.
func (h *handler) goesAlong() bool { return h.autopath || h.config.Load().autopath }

// walk goes the rest of the search path in place of the client, and answers
// with an alias to the first name that exists. Where none does, or it cannot be
// told, the answer is the zone's own, reply, and the client goes on by itself.
func (h *handler) walk(ctx context.Context, r *request, s searched, reply *dns.Msg) []byte {
	q := r.msg.Question[0]
	none := func() []byte {
		r.origin = originZone
		return h.pack(r, reply)
	}
	for _, domain := range append(s.domains, ".") {
		name := s.name
		if domain != "." {
			name += domain
		}
		if _, ok := dns.IsDomainName(name); !ok {
			continue // too long
		}
		found := h.newReply(r, dns.RcodeSuccess)
		target := name
		if a, ours := h.zone.Answer(dns.Question{Name: name, Qtype: q.Qtype, Qclass: q.Qclass}); ours {
			if a.Rcode == dns.RcodeNameError {
				continue
			}
			if a.Rcode != dns.RcodeSuccess {
				return none()
			}
			found.Answer, found.Ns, target = a.Answer, a.Authority, a.Target
		}
		if target != "" {
			m, err := h.lookup(ctx, r, dns.Fqdn(target), 1)
			if err != nil {
				return none()
			}
			if m.Rcode == dns.RcodeNameError && len(found.Answer) == 0 {
				continue
			}
			if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
				return none()
			}
			found.Rcode = m.Rcode
			found.Answer, found.Ns = append(found.Answer, m.Answer...), append(found.Ns, m.Ns...)
		}
		ttl := h.zone.TTL()
		for _, rr := range found.Answer {
			ttl = min(ttl, rr.Header().Ttl)
		}
		alias := &dns.CNAME{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: ttl}, Target: name}
		found.Answer = append([]dns.RR{alias}, found.Answer...)
		h.metrics.autopath.WithLabelValues(serverLabel(r.server)).Inc()
		return h.pack(r, found)
	}
	return none()
}
