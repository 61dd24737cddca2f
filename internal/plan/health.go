package plan

import (
	"net/netip"

	"fairway.dev/fairway/internal/model"
)

// HealthCheck is what a node answers at the healthCheckNodePort of a Service.
type HealthCheck struct {
	// Port is the port.
	Port uint16
	// Families are the address families that the Service has, IPv4 first.
	Families [2]FamilyHealth
}

// FamilyHealth is the part of a HealthCheck for clients of one address family.
type FamilyHealth struct {
	// Served is true when the Service has the family.
	Served bool
	// Ready is the number of addresses on this node with a ready endpoint. One
	// that terminates does not count, even where the fallback sends it what
	// still comes: load balancers shall go elsewhere (KEP-1669).
	Ready int
}

// Health returns the health check of a Service on a node, or false where it has
// none. eps may be nil.
func Health(svc *model.Service, eps *model.EndpointSet, node *model.Node) (HealthCheck, bool) {
	if svc.HealthCheckNodePort == 0 || svc.NotProxied {
		return HealthCheck{}, false
	}
	h := HealthCheck{Port: svc.HealthCheckNodePort}
	for _, a := range svc.ClusterIPs {
		h.Families[familyIndex(a)].Served = true
	}
	if eps == nil {
		return h, true
	}
	// Endpoints are in order of address, and one address may stand there more
	// than once, with other ports.
	var last netip.Addr
	for i := range eps.Endpoints {
		e := &eps.Endpoints[i]
		addr := e.Addr.Unmap()
		if e.Ready && !e.NotProxied && addr != last && unusable(addr) == "" && isOn(node, e.Node, addr) {
			h.Families[familyIndex(addr)].Ready++
			last = addr
		}
	}
	return h, true
}

func familyIndex(a netip.Addr) int {
	if a.Unmap().Is4() {
		return 0
	}
	return 1
}
