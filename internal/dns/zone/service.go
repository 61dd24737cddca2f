package zone

import (
	"net/netip"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/wire"
	"fairway.dev/fairway/internal/model"
)

// findService is what stands below svc.<domain>; left is the number of labels
// left of "svc".
func (w *writer) findService(name *wire.Name, left, at int) node {
	switch left {
	case 0:
		w.found.Kind = KindZone
		return node{exists: true}
	case 1:
		return w.namespace(name.Label(0))
	}
	e, ok := w.ix.find(name.Label(left-1), name.Label(left-2))
	if !ok {
		return node{}
	}
	svc := e.service
	w.found.service = &svc.Key
	if left == 2 && e.plain && w.asksAddress() {
		w.found.Kind = KindService
		e.address(w, at)
		return node{exists: true}
	}
	if svc.Type == model.ExternalName {
		if left > 2 {
			return node{}
		}
		w.found.Kind = KindService
		w.alias = svc
		return node{exists: true, target: svc.ExternalName} // section 2.5
	}
	n := node{}
	switch left {
	case 2:
		w.found.Kind = KindService
		n.exists = w.service(svc, at)
	case 3:
		w.found.Kind = KindEndpoint
		if label := name.Label(0); label[0] == '_' {
			w.found.Kind = KindService
			n.exists = w.hasPort(svc, wanted{proto: label[1:], named: true})
		} else {
			n.exists = w.endpoint(svc, label, at)
		}
	case 4:
		port, proto := name.Label(0), name.Label(1)
		if port[0] != '_' || proto[0] != '_' || len(port) == 1 {
			break
		}
		w.found.Kind = KindService
		want := wanted{name: port[1:], proto: proto[1:], named: true}
		if n.exists = w.hasPort(svc, want); n.exists && w.qtype == dns.TypeSRV {
			w.srv(svc, want, at)
		}
	}
	if !n.exists {
		w.found.Kind = KindNone
	}
	return n
}

// aliasAt returns the ExternalName Service whose name this is; nil for none.
func (w *writer) aliasAt(name *wire.Name) *model.Service {
	left := name.Labels() - w.z.domain.Labels()
	if left != 3 || !name.EndsWith(&w.z.domain) || name.Label(2) != "svc" {
		return nil
	}
	svc, ok := w.ix.snap.Services.Get(model.Key{Namespace: name.Label(1), Name: name.Label(0)})
	if !ok || svc.Type != model.ExternalName {
		return nil
	}
	return svc
}

// service is the name of a Service: sections 2.3.1 and 2.4.1. Type SRV there
// lists all ports, also those without a name, as CoreDNS does.
func (w *writer) service(svc *model.Service, at int) bool {
	addrs := svc.ClusterIPs
	if svc.Headless {
		h := w.ix.hosts(svc.Key)
		switch addrs = h.addrs; w.qtype {
		case dns.TypeA:
			addrs = h.addrs[:h.ipv4]
		case dns.TypeAAAA:
			addrs = h.addrs[h.ipv4:]
		}
		if len(h.addrs) == 0 {
			return false // section 2.4.1: no ready endpoint, no name
		}
	}
	if len(addrs) == 0 && !svc.Headless {
		return false
	}
	if w.qtype == dns.TypeSRV {
		w.srv(svc, wanted{}, at)
		return true
	}
	w.addresses(at, addrs)
	return true
}

// endpoint is <hostname>.<service>, or the address with dashes in place of a
// hostname (section 2.4.1). As in CoreDNS, Services with a cluster IP have
// these names too.
func (w *writer) endpoint(svc *model.Service, label string, at int) bool {
	if h := w.ix.hosts(svc.Key).find(label); h != nil {
		w.addresses(at, h.addrs)
		return true
	}
	addr, ok := parseDashed(label)
	if !ok {
		return false
	}
	for _, e := range endpointsAt(w.ix.endpoints(svc.Key), addr) {
		if e.Ready && e.Hostname == "" {
			if w.asksAddress() && addr.Is4() == (w.qtype == dns.TypeA) {
				w.b.Address(at, w.ttl, addr)
			}
			return true
		}
	}
	return false
}

// wanted are the ports that an SRV name stands for; the zero value wants all.
type wanted struct {
	// name and proto are in lower case, without underscore; without a name any
	// port with a name will do.
	name, proto string
	named       bool
}

func (w wanted) takes(name string, proto model.Protocol) bool {
	if !w.named {
		return true
	}
	return name != "" && (w.name == "" || sameLabel(w.name, name)) && w.proto == protoLabel(proto)
}

// first reports whether port i is taken and no other before it makes the same
// record, as TCP and UDP of one number do (RFC 2181 section 5.5).
func (w wanted) first(ports []model.ServicePort, i int) bool {
	if !w.takes(ports[i].Name, ports[i].Protocol) {
		return false
	}
	for j := range ports[:i] {
		if ports[j].Port == ports[i].Port && w.takes(ports[j].Name, ports[j].Protocol) {
			return false
		}
	}
	return true
}

func protoLabel(p model.Protocol) string {
	switch p {
	case model.TCP:
		return "tcp"
	case model.UDP:
		return "udp"
	case model.SCTP:
		return "sctp"
	}
	return "unknown"
}

// sameLabel compares a label in lower case with one in any.
func sameLabel(label, other string) bool {
	if len(label) != len(other) {
		return false
	}
	for i := range len(other) {
		c := other[i]
		if c-'A' < 26 {
			c |= 0x20
		}
		if c != label[i] {
			return false
		}
	}
	return true
}

// hasPort reports whether the Service has such a port now: a headless Service
// has the ports of its ready endpoints.
func (w *writer) hasPort(svc *model.Service, want wanted) bool {
	if !svc.Headless {
		for i := range svc.Ports {
			if want.takes(svc.Ports[i].Name, svc.Ports[i].Protocol) {
				return true
			}
		}
		return false
	}
	h := w.ix.hosts(svc.Key)
	for i := range h.list {
		for j := range h.list[i].ports {
			if want.takes(h.list[i].ports[j].Name, h.list[i].ports[j].Protocol) {
				return true
			}
		}
	}
	return false
}

// srv writes the SRV records of the wanted ports and the addresses of their
// targets: sections 2.3.2 and 2.4.2.
func (w *writer) srv(svc *model.Service, want wanted, at int) {
	if svc.Headless {
		w.headlessSRV(svc.Key, want, at)
		return
	}
	n, target := 0, 0
	for i := range svc.Ports {
		if want.first(svc.Ports, i) {
			n++
		}
	}
	for i := range svc.Ports {
		if want.first(svc.Ports, i) {
			target = w.srvHead(at, n, svc.Ports[i].Port)
			w.serviceLabels(svc.Key)
			w.wholeDomain()
			w.b.Close()
		}
	}
	if n == 0 || w.b.Full() {
		return
	}
	w.b.Begin(wire.Additional)
	for _, a := range svc.ClusterIPs {
		w.b.Address(target, w.ttl, a)
	}
}

// srvHead writes an SRV record up to its target, whose place it returns. All n
// records share a weight of 100, as CoreDNS does it.
func (w *writer) srvHead(at, n int, port uint16) int {
	w.b.Open()
	w.b.Pointer(at)
	w.b.Head(dns.TypeSRV, w.ttl)
	w.b.Uint16(0)
	w.b.Uint16(uint16(max(1, 100/n)))
	w.b.Uint16(port)
	return w.b.Len()
}

// headlessSRV has a record for each host and port, in any order.
func (w *writer) headlessSRV(key model.Key, want wanted, at int) {
	hosts := w.ix.hosts(key).list
	n := 0
	for i := range hosts {
		n += hosts[i].count(want)
	}
	if n == 0 {
		return
	}
	w.b.Places = w.b.Places[:0]
	order := anyOrder(len(hosts))
	for o := order; o.left > 0 && !w.b.Full(); {
		h, target := &hosts[o.next()], 0
		for i := range h.ports {
			if !h.takes(i, want) {
				continue
			}
			place := w.srvHead(at, n, h.ports[i].Port)
			if target == 0 {
				target = place
			}
			w.hostLabel(h)
			w.serviceLabels(key)
			w.wholeDomain() // RFC 2782: a target is not compressed
			w.b.Close()
		}
		w.b.Places = append(w.b.Places, target)
	}
	w.b.Begin(wire.Additional)
	for o, i := order, 0; o.left > 0 && !w.b.Full(); i++ {
		h := &hosts[o.next()]
		if w.b.Places[i] == 0 {
			continue
		}
		for _, a := range h.addrs {
			w.b.Open()
			if wire.CanPoint(w.b.Places[i]) {
				w.b.Pointer(w.b.Places[i])
			} else {
				w.hostLabel(h)
				w.serviceLabels(key)
				w.domain()
			}
			w.b.AddressData(w.ttl, a)
			w.b.Close()
		}
	}
}

func (w *writer) hostLabel(h *host) {
	if h.label != "" {
		w.b.Label(h.label)
		return
	}
	w.dashedLabel(h.addrs[0])
}

// dashedLabel writes the label of an address: 10-0-0-1, fd00--1.
func (w *writer) dashedLabel(a netip.Addr) {
	var buf [48]byte
	w.b.LabelBytes(appendDashed(buf[:0], a))
}
