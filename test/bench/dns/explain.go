package main

import (
	"slices"
	"strings"

	"github.com/miekg/dns"

	"fairway.dev/fairway/test/bench/dns/world"
)

// pair is a question with both answers.
type pair struct {
	question
	fairway, coredns *dns.Msg
	// external is what the Service asked for stands for, if it is an ExternalName.
	external string
}

// reason is a known difference: docs/features/dns.md has a line for each.
type reason struct {
	why string
	is  func(p pair) bool
}

// reasons are tried in order. Each checks what Fairway answers, too, so that
// nothing else hides behind it.
var reasons = []reason{
	{"names that Fairway makes are in lower case, CoreDNS repeats the question's", func(p pair) bool {
		return alike(p.fairway, p.coredns, sameCase)
	}},
	{"CoreDNS keeps what others say 30 s, and 5 s behind an ExternalName; Fairway as long as they say, up to an hour", func(p pair) bool {
		outside := p.kind == "external" || p.kind == "reverse of nothing" || strings.HasSuffix(p.external, "example.com")
		return outside && alike(p.fairway, p.coredns, sameCase, sameTTL)
	}},
	{"dns-version has the TTL of all other names, not 30 s", func(p pair) bool {
		return p.name == "dns-version.cluster.local." && alike(p.fairway, p.coredns, sameTTL)
	}},
	{"weights of SRV share 100 among the records; CoreDNS counts a Service once for each of its addresses", func(p pair) bool {
		return p.qtype == dns.TypeSRV && alike(p.fairway, p.coredns, sameCase, sameWeight)
	}},
	{"a type other than A and AAAA of an ExternalName: Fairway gives the alias (RFC 1034 section 3.6.2), CoreDNS nothing", func(p pair) bool {
		return p.external != "" && p.qtype != dns.TypeA && p.qtype != dns.TypeAAAA && len(p.coredns.Answer) == 0 && p.coredns.Rcode == dns.RcodeSuccess &&
			len(p.fairway.Answer) > 0 && p.fairway.Answer[0].Header().Rrtype == dns.TypeCNAME
	}},
	{"an ExternalName that leads to no name: Fairway says NXDOMAIN (RFC 6604), CoreDNS NOERROR", func(p pair) bool {
		return p.external != "" && p.fairway.Rcode == dns.RcodeNameError && p.coredns.Rcode == dns.RcodeSuccess && len(p.fairway.Answer) > 0 && len(p.fairway.Ns) == 1
	}},
	{"an ExternalName that leads to a name without such a record: Fairway gives the alias with the SOA, CoreDNS leaves the alias out", func(p pair) bool {
		return p.external != "" && p.fairway.Rcode == dns.RcodeSuccess && p.coredns.Rcode == dns.RcodeSuccess &&
			len(p.coredns.Answer) == 0 && len(p.fairway.Answer) > 0 && len(p.fairway.Ns) == 1
	}},
	{"SRV at the name of an endpoint or a Pod: no such record in the specification; CoreDNS makes one, of a Pod with port 0", func(p pair) bool {
		return slices.Contains([]string{"endpoint", "hostname", "pod"}, p.kind) && p.qtype == dns.TypeSRV && nodata(p.fairway) && len(p.coredns.Answer) > 0
	}},
	{"addresses at the name of a port: no such record in the specification, CoreDNS gives the Service's", func(p pair) bool {
		return p.kind == "port" && p.qtype != dns.TypeSRV && nodata(p.fairway) && len(p.coredns.Answer) > 0
	}},
	{"a port without a name (_.tcp): not in the specification, CoreDNS takes it for all ports", func(p pair) bool {
		return p.kind == "any port" && p.fairway.Rcode == dns.RcodeNameError && p.coredns.Rcode == dns.RcodeSuccess
	}},
	{"a name with names below it exists (RFC 8020): _tcp.<service>, CoreDNS says NXDOMAIN", func(p pair) bool {
		return p.kind == "protocol" && nodata(p.fairway) && p.coredns.Rcode == dns.RcodeNameError
	}},
	{"a name that exists without such a record is NOERROR (RFC 2308), whatever the type; CoreDNS says NXDOMAIN for some", func(p pair) bool {
		return (p.kind == "namespace" || p.kind == "zone") && nodata(p.fairway) && p.coredns.Rcode == dns.RcodeNameError
	}},
	{"a name that is not there is NXDOMAIN, whatever the type; CoreDNS says NOERROR to SOA", func(p pair) bool {
		return p.qtype == dns.TypeSOA && p.fairway.Rcode == dns.RcodeNameError && p.coredns.Rcode == dns.RcodeSuccess && len(p.coredns.Answer) == 0
	}},
	{"a label before a Pod's name is another name, and is not there; CoreDNS looks over it", func(p pair) bool {
		return p.kind == "below a pod" && p.fairway.Rcode == dns.RcodeNameError
	}},
	{"reverse names within the ranges of Services and Pods stay in the cluster; CoreDNS asks upstream for those that it does not know", func(p pair) bool {
		return strings.HasPrefix(p.kind, "reverse") && p.fairway.Authoritative && !p.coredns.Authoritative &&
			(len(p.fairway.Answer) == 0 && len(p.fairway.Ns) == 1 || p.qtype == dns.TypeNS)
	}},
	{"ANY gets one HINFO record (RFC 8482), from CoreDNS none", func(p pair) bool {
		return p.qtype == dns.TypeANY && len(p.fairway.Answer) == 1 && p.fairway.Answer[0].Header().Rrtype == dns.TypeHINFO
	}},
	{"the zone's name server has the addresses of the DNS Service; CoreDNS that is in no Service gives its own", func(p pair) bool {
		return strings.HasPrefix(p.name, "ns.dns.") || p.qtype == dns.TypeNS && strings.EqualFold(p.name, "cluster.local.") && len(p.fairway.Answer) == 1
	}},
	{"localhost is answered (RFC 6761)", func(p pair) bool {
		return p.kind == "localhost" && len(p.fairway.Answer) == 1
	}},
}

// explain returns why the answers differ, or nothing.
func explain(w *world.World, q question, fairway, coredns *dns.Msg) string {
	p := pair{question: q, fairway: fairway, coredns: coredns}
	if labels := dns.SplitDomainName(strings.ToLower(q.name)); len(labels) == 5 && labels[2] == "svc" {
		for _, s := range w.Services {
			if s.Name == labels[0] && s.Namespace == labels[1] {
				p.external = strings.ToLower(s.Spec.ExternalName)
			}
		}
	}
	for _, r := range reasons {
		if r.is(p) {
			return r.why
		}
	}
	return ""
}

// nodata: the name exists, without such a record, says the zone.
func nodata(m *dns.Msg) bool {
	return m.Rcode == dns.RcodeSuccess && len(m.Answer) == 0 && len(m.Ns) == 1 && m.Ns[0].Header().Rrtype == dns.TypeSOA
}

func sameTTL(rr dns.RR) { rr.Header().Ttl = 0 }

func sameWeight(rr dns.RR) {
	if s, ok := rr.(*dns.SRV); ok {
		s.Weight = 0
	}
}

func sameCase(rr dns.RR) {
	rr.Header().Name = strings.ToLower(rr.Header().Name)
	switch r := rr.(type) {
	case *dns.SRV:
		r.Target = strings.ToLower(r.Target)
	case *dns.CNAME:
		r.Target = strings.ToLower(r.Target)
	case *dns.SOA:
		r.Ns, r.Mbox = strings.ToLower(r.Ns), strings.ToLower(r.Mbox)
	}
}

// alike reports whether two answers are the same once records are made so.
func alike(a, b *dns.Msg, make ...func(dns.RR)) bool {
	clean := func(m *dns.Msg) *dns.Msg {
		c := m.Copy()
		for _, section := range [][]dns.RR{c.Answer, c.Ns, c.Extra} {
			for _, rr := range section {
				for _, f := range make {
					f(rr)
				}
			}
		}
		return c
	}
	return len(differences(clean(a), clean(b))) == 0
}
