package model

import (
	"net/netip"
	"time"
)

// EndpointSlice is one discovery.k8s.io EndpointSlice.
type EndpointSlice struct {
	Key
	// Service names the Service it belongs to.
	Service   Key
	Endpoints []Endpoint
	// Triggered is when what led to the slice's last change happened, as the
	// endpoints controller says; zero where not known.
	Triggered time.Time
}

// EndpointSet is all endpoints of one Service, merged from its slices:
// ordered by address, an address and port list stands once.
type EndpointSet struct {
	Key
	Endpoints []Endpoint
	// Triggered is the latest one of the slices.
	Triggered time.Time
}

// Endpoint is one address behind a Service. There may be 100,000 of them, so
// keep it small; a test asserts its size.
type Endpoint struct {
	Addr netip.Addr
	// Ports are shared by all endpoints of one slice. Do not modify.
	Ports []EndpointPort
	// Ready, Serving and Terminating are the conditions of the EndpointSlice
	// API with its defaults applied. publishNotReadyAddresses is already part of Ready.
	Ready, Serving, Terminating bool
	// NotProxied is true when a label of the EndpointSlice, one of those that
	// do so on a Service, tells service proxies to leave it alone. Those of
	// headless Services have one.
	NotProxied bool
	// Node tells where the endpoint is; empty where not known.
	Node string
	// Hints are the zones and nodes that should use this endpoint; nil for none.
	Hints *Hints
	// Hostname is the endpoint's DNS label; empty where it has none.
	Hostname string
	// About is what only people are told; nil where nobody asked for it, for
	// agents do well without. Do not modify.
	About *EndpointAbout
}

// EndpointAbout is what nothing but an explanation has a use for.
type EndpointAbout struct {
	// Zone tells where the endpoint is; empty where not known.
	Zone string
	// Pod is the Pod behind it (targetRef); zero where there is none.
	Pod Key
}

// EndpointPort is one port of an endpoint; Name matches the Service port's name.
type EndpointPort struct {
	Name        string
	Protocol    Protocol
	Port        uint16
	AppProtocol string
}

// Hints say who should use an endpoint (EndpointSlice hints, KEP-2433 and KEP-3015).
type Hints struct {
	Zones []string
	Nodes []string
}

// Port returns the endpoint's port for the Service port of that name and protocol.
func (e *Endpoint) Port(name string, p Protocol) (uint16, bool) {
	for i := range e.Ports {
		if e.Ports[i].Name == name && e.Ports[i].Protocol == p {
			return e.Ports[i].Port, true
		}
	}
	return 0, false
}
