package forward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// errCounts is an answer whose header counts other records than it has.
var errCounts = errors.New("the header of the answer counts more or fewer records than there are")

// unpackReply reads an answer. The library takes what there is where the header
// counts more, and leaves what follows where it counts fewer; what is missing then may
// be what mattered.
func unpackReply(packed []byte) (*dns.Msg, error) {
	m := new(dns.Msg)
	if err := m.Unpack(packed); err != nil {
		return m, fmt.Errorf("unpack answer: %w", err)
	}
	for i, n := range []int{len(m.Question), len(m.Answer), len(m.Ns), len(m.Extra)} {
		if int(binary.BigEndian.Uint16(packed[4+2*i:])) != n {
			return m, errCounts
		}
	}
	if end(packed, len(m.Question), len(m.Answer)+len(m.Ns)+len(m.Extra)) != len(packed) {
		return m, errCounts
	}
	return m, nil
}

// end returns where the last record of a message ends; -1 where it has fewer.
func end(packed []byte, questions, records int) int {
	at := 12
	name := func() {
		for at < len(packed) {
			switch n := int(packed[at]); {
			case n == 0:
				at++
				return
			case n >= 0xC0: // the rest stands elsewhere
				at += 2
				return
			default:
				at += 1 + n
			}
		}
	}
	for range questions {
		name()
		at += 4
	}
	for range records {
		name()
		if at += 10; at > len(packed) {
			return -1
		}
		at += int(binary.BigEndian.Uint16(packed[at-2:]))
	}
	return at
}

// maxAliases bounds the aliases that are followed within an answer.
const maxAliases = 16

// trim leaves in an answer what belongs to its question: records of the name,
// and of those that aliases lead to from there, which zones they are in, and
// addresses of hosts that these name. Names that own takes are answered here,
// whatever others say of them: of an alias that leads to one, which trim returns,
// that is all. It reports false where there were records in the answer and none
// belongs to the question: that is no answer.
func trim(m *dns.Msg, q Query, own func(string) bool) (home string, ok bool) {
	names, ancestors, home := chain(m.Answer, q.Name, q.Type, own)
	had := len(m.Answer) > 0
	m.Answer = slices.DeleteFunc(m.Answer, func(rr dns.RR) bool {
		h := rr.Header()
		alias := h.Rrtype == dns.TypeDNAME || covers(rr) == dns.TypeDNAME
		return h.Class != dns.ClassINET || !among(names, h.Name) && !(alias && among(ancestors, h.Name))
	})
	if home != "" {
		m.Rcode, m.Ns, m.Extra = dns.RcodeSuccess, nil, nil // are about the name that is ours
	}
	above := func(zone string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return dns.IsSubDomain(zone, n) })
	}
	var denials []string // owners of NSEC and NSEC3 that a zone above a name has signed
	for _, rr := range m.Ns {
		if s, ok := rr.(*dns.RRSIG); ok && denies(s.TypeCovered) && above(s.SignerName) && dns.IsSubDomain(s.SignerName, s.Hdr.Name) {
			denials = append(denials, s.Hdr.Name)
		}
	}
	m.Ns = slices.DeleteFunc(m.Ns, func(rr dns.RR) bool {
		h, kind := rr.Header(), covers(rr)
		switch {
		case h.Class != dns.ClassINET:
			return true
		case kind == dns.TypeSOA, kind == dns.TypeNS:
			return !above(h.Name)
		case denies(kind):
			return !among(denials, h.Name)
		}
		return true
	})
	hosts := map[string]bool{}
	for _, section := range [][]dns.RR{m.Answer, m.Ns} {
		for _, rr := range section {
			if host := hostOf(rr); host != "" {
				hosts[strings.ToLower(host)] = true
			}
		}
	}
	for host := range hosts {
		if own(host) {
			delete(hosts, host)
		}
	}
	m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool {
		h := rr.Header()
		switch covers(rr) {
		case dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeSVCB, dns.TypeHTTPS:
			return h.Class != dns.ClassINET || !hosts[strings.ToLower(h.Name)]
		}
		return true // OPT and TSIG too, which are between two servers
	})
	return home, !had || len(m.Answer) > 0
}

// Home returns the name of our own that the aliases of an answer lead to; "" for
// none. What stands there is no part of answers of others.
func (f *Forwarder) Home(answer []dns.RR, name string, qtype uint16) string {
	_, _, home := chain(answer, name, qtype, f.opts.Own)
	return home
}

// chain returns the names that an answer is about, the one asked for first, the
// owners of the DNAMEs that lead from one to the next, and the first name behind
// them that own takes.
func chain(answer []dns.RR, name string, qtype uint16, own func(string) bool) (names, ancestors []string, home string) {
	names = []string{name}
	for range maxAliases {
		next, below := "", ""
		for _, rr := range answer {
			h := rr.Header()
			if h.Class != dns.ClassINET {
				continue
			}
			switch rr := rr.(type) {
			case *dns.CNAME:
				if next == "" && strings.EqualFold(h.Name, name) {
					next = rr.Target
				}
			case *dns.DNAME:
				if !strings.EqualFold(h.Name, name) && dns.IsSubDomain(h.Name, name) && below == "" {
					ancestors = append(ancestors, h.Name)
					labels := dns.SplitDomainName(name)
					below = dns.Fqdn(strings.Join(append(labels[:len(labels)-dns.CountLabel(h.Name)], strings.TrimSuffix(rr.Target, ".")), "."))
				}
			}
		}
		if next == "" { // servers make the CNAME of a DNAME; without it, it is clear all the same
			next = below
		}
		if next == "" || qtype == dns.TypeCNAME || qtype == dns.TypeANY || among(names, next) {
			break
		}
		if own(next) {
			return names, ancestors, next
		}
		name = next
		names = append(names, name)
	}
	return names, ancestors, ""
}

func among(names []string, name string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, name) })
}

// covers is the type of a record, or the one that a signature is for.
func covers(rr dns.RR) uint16 {
	if s, ok := rr.(*dns.RRSIG); ok {
		return s.TypeCovered
	}
	return rr.Header().Rrtype
}

func denies(kind uint16) bool { return kind == dns.TypeNSEC || kind == dns.TypeNSEC3 }

// hostOf is the name whose addresses come along with a record; "" for none.
func hostOf(rr dns.RR) string {
	switch rr := rr.(type) {
	case *dns.SRV:
		return rr.Target
	case *dns.MX:
		return rr.Mx
	case *dns.NS:
		return rr.Ns
	case *dns.NAPTR:
		return rr.Replacement
	case *dns.SVCB:
		return serviceHost(rr.Target, rr.Hdr.Name)
	case *dns.HTTPS:
		return serviceHost(rr.Target, rr.Hdr.Name)
	}
	return ""
}

// serviceHost is the target of an SVCB record: "." is the owner (RFC 9460 section 2.5).
func serviceHost(target, owner string) string {
	if target == "." {
		return owner
	}
	return target
}
