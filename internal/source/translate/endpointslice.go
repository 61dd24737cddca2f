package translate

import (
	"fmt"
	"slices"
	"time"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"fairway.dev/fairway/internal/model"
)

// EndpointSlice translates an EndpointSlice. It returns nil for a slice that
// belongs to no Service.
func EndpointSlice(o *discoveryv1.EndpointSlice) (*model.EndpointSlice, model.Problems) {
	service := o.Labels[discoveryv1.LabelServiceName]
	if service == "" {
		return nil, nil
	}
	r := newReport("EndpointSlice", o)
	s := &model.EndpointSlice{
		Key:     keyOf(o),
		Service: model.Key{Namespace: o.Namespace, Name: service},
	}
	// The controller writes it for measuring; what cannot be read says nothing.
	if t, err := time.Parse(time.RFC3339Nano, o.Annotations[corev1.EndpointsLastChangeTriggerTime]); err == nil {
		s.Triggered = t
	}
	var wantV4 bool
	switch o.AddressType {
	case discoveryv1.AddressTypeIPv4:
		wantV4 = true
	case discoveryv1.AddressTypeIPv6:
	case discoveryv1.AddressTypeFQDN:
		r.add(ReasonUnsupported, "addressType", "FQDN endpoints are not supported, here as in every service proxy; use a Service of type ExternalName, or addresses")
		return s, r.problems
	default:
		r.invalid("addressType", "%q is no address type; use IPv4 or IPv6", o.AddressType)
		return s, r.problems
	}
	ports, left := endpointPorts(r, o.Ports), notProxied(o.Labels)
	s.Endpoints = make([]model.Endpoint, 0, len(o.Endpoints)) // the API allows one address each today
	for i := range o.Endpoints {
		e := &o.Endpoints[i]
		row := endpoint(e, ports)
		row.NotProxied = left
		for j, text := range e.Addresses {
			a, ok := address(text)
			if !ok || a.Is4() != wantV4 {
				r.invalid(fmt.Sprintf("endpoints[%d].addresses[%d]", i, j), "%q is no %s address; the endpoint gets no traffic", text, o.AddressType)
				continue
			}
			row.Addr = a
			s.Endpoints = append(s.Endpoints, row)
		}
	}
	if len(s.Endpoints) == 0 {
		s.Endpoints = nil
	}
	// In the order of a Service's endpoints, so that a Service with one slice can share them.
	slices.SortStableFunc(s.Endpoints, func(a, b model.Endpoint) int { return a.Addr.Compare(b.Addr) })
	return s, r.problems
}

// endpoint translates all but the address. Conditions default as the API says
// ("nil should be interpreted as"): ready, serving as ready, not terminating.
func endpoint(e *discoveryv1.Endpoint, ports []model.EndpointPort) model.Endpoint {
	c := e.Conditions
	row := model.Endpoint{Ports: ports, Ready: c.Ready == nil || *c.Ready}
	row.Serving = row.Ready
	if c.Serving != nil {
		row.Serving = *c.Serving
	}
	row.Terminating = c.Terminating != nil && *c.Terminating
	if e.NodeName != nil {
		row.Node = canonical(*e.NodeName)
	}
	if e.Hostname != nil {
		row.Hostname = *e.Hostname
	}
	about := model.EndpointAbout{}
	if e.Zone != nil {
		about.Zone = canonical(*e.Zone)
	}
	if t := e.TargetRef; t != nil && t.Kind == "Pod" {
		about.Pod = model.Key{Namespace: canonical(t.Namespace), Name: t.Name}
	}
	if about != (model.EndpointAbout{}) {
		row.About = &about
	}
	row.Hints = hints(e.Hints)
	return row
}

func hints(h *discoveryv1.EndpointHints) *model.Hints {
	if h == nil || len(h.ForZones) == 0 && len(h.ForNodes) == 0 {
		return nil
	}
	out := &model.Hints{}
	for _, z := range h.ForZones {
		out.Zones = append(out.Zones, canonical(z.Name))
	}
	for _, n := range h.ForNodes {
		out.Nodes = append(out.Nodes, canonical(n.Name))
	}
	return out
}

func endpointPorts(r *report, ports []discoveryv1.EndpointPort) []model.EndpointPort {
	var out []model.EndpointPort
	for i, p := range ports {
		field := fmt.Sprintf("ports[%d]", i)
		row := model.EndpointPort{Protocol: model.TCP}
		if p.Protocol != nil {
			protocol, ok := protocolOf(*p.Protocol)
			if !ok {
				r.invalid(field+".protocol", "%q is no protocol of a port; use TCP, UDP or SCTP", *p.Protocol)
				continue
			}
			row.Protocol = protocol
		}
		if p.Port == nil {
			r.add(ReasonUnsupported, field+".port", "a port without number stands for all ports, which a Service cannot use; give the number")
			continue
		}
		if row.Port = port16(r, field+".port", *p.Port); row.Port == 0 {
			continue
		}
		if p.Name != nil {
			row.Name = canonical(*p.Name)
		}
		if p.AppProtocol != nil {
			row.AppProtocol = canonical(*p.AppProtocol)
		}
		out = append(out, row)
	}
	return out
}

// canonical returns one copy of equal strings: there are few nodes and zones,
// and many endpoints that name them.
func canonical(s string) string { return unique.Make(s).Value() }
