package zone

import (
	"net/netip"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/model"
)

// shortKey is a Service's key in one piece of memory, as it stands in names.
type shortKey struct {
	name, namespace uint8 // lengths
	text            [shortest]byte
}

// shortest is the longest pair of names that fits. Most do; together with an entry it
// is one and a half of the processor's cache lines.
const shortest = 46

// shortKeyOf reports false where the names are too long.
func shortKeyOf(namespace, name string) (k shortKey, ok bool) {
	if len(name)+len(namespace) > shortest {
		return k, false
	}
	k.name, k.namespace = uint8(copy(k.text[:], name)), uint8(len(namespace))
	copy(k.text[len(name):], namespace)
	return k, true
}

// entry is what most queries want to know of a Service. It stands beside its key:
// with many Services the memory of the Service itself, its names and its addresses
// is in no cache of the processor, and to get at that costs more than all else.
type entry struct {
	service *model.Service
	// plain: its addresses are those below, of each family at most one.
	plain, has4, has6 bool
	ip4               [4]byte
	ip6               [16]byte
}

func entryOf(s *model.Service) entry {
	e := entry{service: s, plain: !s.Headless && s.Type != model.ExternalName && len(s.ClusterIPs) > 0}
	for _, a := range s.ClusterIPs {
		switch {
		case a.Zone() != "" || a.Is4() && e.has4 || !a.Is4() && e.has6:
			e.plain = false
		case a.Is4():
			e.has4, e.ip4 = true, a.As4()
		default:
			e.has6, e.ip6 = true, a.As16()
		}
	}
	return e
}

// address writes the record of a plain entry's address, if it has one of the type.
func (e *entry) address(w *writer, at int) {
	switch {
	case w.qtype == dns.TypeA && e.has4:
		w.b.Address(at, w.ttl, netip.AddrFrom4(e.ip4))
	case w.qtype == dns.TypeAAAA && e.has6:
		w.b.Address(at, w.ttl, netip.AddrFrom16(e.ip6))
	}
}

// find returns the entry of a Service.
func (ix *Index) find(namespace, name string) (entry, bool) {
	if k, ok := shortKeyOf(namespace, name); ok {
		return ix.byName.Get(k)
	}
	s, ok := ix.snap.Services.Get(model.Key{Namespace: namespace, Name: name})
	if !ok {
		return entry{}, false
	}
	return entryOf(s), true
}

// name notes a Service, or that it has gone: nil.
func (e *indexEditor) name(key model.Key, s *model.Service) {
	k, ok := shortKeyOf(key.Namespace, key.Name)
	switch {
	case !ok:
	case s == nil:
		e.byName.Delete(k)
	default:
		e.byName.Set(k, entryOf(s))
	}
}
