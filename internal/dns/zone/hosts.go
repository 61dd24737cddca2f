package zone

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// hosts are the names below one Service, of its ready endpoints. They are made
// when the Service or its endpoints change, so that a query need not look at
// all of thousands of endpoints.
type hosts struct {
	// addrs are the addresses, each once, the first ipv4 of them IPv4; only of
	// headless Services.
	addrs []netip.Addr
	ipv4  int
	// list has the hosts with a hostname, ordered by that, and then, only of
	// headless Services, one for each address without.
	list  []host
	named int
}

var noHosts hosts

// host is one name below a Service.
type host struct {
	// label is the hostname in lower case; empty where the address stands in for it.
	label string
	// addrs are its addresses, each once.
	addrs []netip.Addr
	// ports are the ports there, ordered by number, each once.
	ports []model.EndpointPort
}

// find returns the host with a hostname; nil for none.
func (h *hosts) find(label string) *host {
	i, found := slices.BinarySearchFunc(h.list[:h.named], label, func(h host, label string) int { return strings.Compare(h.label, label) })
	if !found {
		return nil
	}
	return &h.list[i]
}

// takes reports whether the port at i makes an SRV record: a number that is
// wanted under several names makes one.
func (h *host) takes(i int, want wanted) bool {
	if !want.takes(h.ports[i].Name, h.ports[i].Protocol) {
		return false
	}
	for j := i - 1; j >= 0 && h.ports[j].Port == h.ports[i].Port; j-- {
		if want.takes(h.ports[j].Name, h.ports[j].Protocol) {
			return false
		}
	}
	return true
}

func (h *host) count(want wanted) int {
	n := 0
	for i := range h.ports {
		if h.takes(i, want) {
			n++
		}
	}
	return n
}

// hostsOf returns the hosts of a Service; nil where a query can do without.
func hostsOf(snap *state.Snapshot, key model.Key) *hosts {
	svc, ok := snap.Services.Get(key)
	if !ok || svc.Type == model.ExternalName {
		return nil
	}
	set, ok := snap.Endpoints.Get(key)
	if !ok {
		return nil
	}
	h := hosts{list: hostsWithName(set.Endpoints)}
	h.named = len(h.list)
	if svc.Headless {
		h.addAddresses(set.Endpoints)
	}
	if len(h.list) == 0 {
		return nil
	}
	for i := range h.list {
		h.list[i].ports = inOrder(h.list[i].ports)
	}
	h.list = slices.Clip(h.list)
	return &h
}

// hostsWithName gathers the ready endpoints of each hostname.
func hostsWithName(list []model.Endpoint) []host {
	var out []host
	index := map[string]int{}
	for i := range list {
		e := &list[i]
		if !e.Ready || e.Hostname == "" {
			continue
		}
		label := strings.ToLower(e.Hostname)
		at, known := index[label]
		if !known {
			at = len(out)
			index[label] = at
			out = append(out, host{label: label})
		}
		h := &out[at]
		if n := len(h.addrs); n == 0 || h.addrs[n-1] != e.Addr { // the list is ordered by address
			h.addrs = append(h.addrs, e.Addr)
		}
		h.ports = gather(h.ports, e.Ports)
	}
	slices.SortFunc(out, func(a, b host) int { return strings.Compare(a.label, b.label) })
	return out
}

// addAddresses adds what only headless Services have.
func (h *hosts) addAddresses(list []model.Endpoint) {
	ready := 0
	for i := range list {
		if list[i].Ready {
			ready++
		}
	}
	h.addrs = make([]netip.Addr, 0, ready) // never moved, as hosts share it
	unnamed := -1                          // in h.list, the host of the last address
	for i := range list {
		e := &list[i]
		if !e.Ready {
			continue
		}
		if n := len(h.addrs); n == 0 || h.addrs[n-1] != e.Addr {
			h.addrs = append(h.addrs, e.Addr)
			unnamed = -1
			if e.Addr.Is4() {
				h.ipv4++
			}
		}
		if e.Hostname != "" {
			continue
		}
		if unnamed < 0 {
			unnamed = len(h.list)
			h.list = append(h.list, host{addrs: h.addrs[len(h.addrs)-1:][:1:1]})
		}
		h.list[unnamed].ports = gather(h.list[unnamed].ports, e.Ports)
	}
}

// gather adds ports to those of a host, which stay those of a slice that many
// hosts share where there is nothing to add.
func gather(have, more []model.EndpointPort) []model.EndpointPort {
	switch {
	case len(more) == 0, len(have) == len(more) && &have[0] == &more[0]:
		return have
	case len(have) == 0:
		return slices.Clip(more)
	}
	return append(have, more...)
}

// inOrder returns ports ordered, each once; mostly they are already.
func inOrder(ports []model.EndpointPort) []model.EndpointPort {
	for i := 1; i < len(ports); i++ {
		if comparePorts(ports[i-1], ports[i]) >= 0 {
			ports = slices.Clone(ports)
			slices.SortFunc(ports, comparePorts)
			return slices.CompactFunc(ports, func(a, b model.EndpointPort) bool { return comparePorts(a, b) == 0 })
		}
	}
	return ports
}

func comparePorts(a, b model.EndpointPort) int {
	return cmp.Or(cmp.Compare(a.Port, b.Port), strings.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol))
}
