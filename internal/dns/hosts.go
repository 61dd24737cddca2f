package dns

import (
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/wire"
	"fairway.dev/fairway/internal/model"
)

// hostTable is a [model.DNSHosts]. Its keys are names as they stand in messages,
// in lower case.
type hostTable struct {
	names, wild map[string][]model.DNSHost // wild without the asterisk
	reverse     map[string][]string
	zones       []wire.Name
	through     []wire.Name
	ttl         uint32
}

func newHostTable(h *model.DNSHosts) *hostTable {
	t := &hostTable{names: map[string][]model.DNSHost{}, wild: map[string][]model.DNSHost{}, reverse: map[string][]string{}, ttl: uint32(h.TTL / time.Second)}
	parse := func(list []string) (names []wire.Name) {
		for _, z := range list {
			var n wire.Name
			if setName(&n, z) {
				names = append(names, n)
			}
		}
		return names
	}
	t.zones, t.through = parse(h.Zones), parse(h.Fallthrough)
	for _, e := range h.Entries {
		text, to := e.Name, t.names
		wild := strings.HasPrefix(text, "*.")
		if wild {
			text, to = text[2:], t.wild
		}
		var n wire.Name
		if !setName(&n, text) {
			continue
		}
		key := string(n.Packed())
		to[key] = append(to[key], e)
		if name, err := dns.ReverseAddr(e.Addr.String()); err == nil && !wild && !h.NoReverse && setName(&n, name) {
			key := string(n.Packed())
			t.reverse[key] = append(t.reverse[key], e.Name)
		}
	}
	return t
}

// find returns the entries of a name.
func (t *hostTable) find(n *wire.Name) []model.DNSHost {
	if list := t.names[n.PackedString()]; list != nil || len(t.wild) == 0 || n.Labels() == 0 {
		return list
	}
	return t.wild[n.PackedString()[n.Offset(1):]]
}

func below(n *wire.Name, zones []wire.Name) bool {
	for i := range zones {
		if n.EndsWith(&zones[i]) {
			return true
		}
	}
	return false
}

// concerns reports whether a query is answered here.
func (t *hostTable) concerns(q *wire.Query) bool {
	if q.Type == dns.TypePTR && t.reverse[q.Name.PackedString()] != nil {
		return true
	}
	if q.Type == dns.TypePTR || !below(&q.Name, t.zones) {
		return false
	}
	return t.find(&q.Name) != nil || !below(&q.Name, t.through)
}

// answer answers a question into m as far as it is answered here. Names in its zones
// that it does not have and does not let through fail, as in CoreDNS: without a
// SOA nobody may be told that there is none.
func (t *hostTable) answer(q dns.Question, m *dns.Msg) bool {
	packed, err := (&dns.Msg{Question: []dns.Question{q}}).Pack()
	var asked wire.Query
	if err != nil || asked.Parse(packed) != nil || !t.concerns(&asked) {
		return false
	}
	head := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: t.ttl}
	if q.Qtype == dns.TypePTR {
		m.Authoritative = true
		for _, name := range t.reverse[asked.Name.PackedString()] {
			m.Answer = append(m.Answer, &dns.PTR{Hdr: head, Ptr: name})
		}
		return true
	}
	list := t.find(&asked.Name)
	if list == nil {
		m.Rcode = dns.RcodeServerFailure
		return true
	}
	m.Authoritative = true
	var addrs []dns.RR
	for _, e := range list {
		switch {
		case q.Qtype == dns.TypeA && e.Addr.Is4():
			addrs = append(addrs, &dns.A{Hdr: head, A: e.Addr.AsSlice()})
		case q.Qtype == dns.TypeAAAA && e.Addr.Is6():
			addrs = append(addrs, &dns.AAAA{Hdr: head, AAAA: e.Addr.AsSlice()})
		}
	}
	addrs = slices.CompactFunc(addrs, func(a, b dns.RR) bool { return a.String() == b.String() })
	m.Answer = append(m.Answer, addrs...)
	return true
}
