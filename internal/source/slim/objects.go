package slim

import (
	"bytes"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// list reads the list of a kind.
func list[T any](data []byte, about *metav1.ListMeta, items *[]T, item func([]byte, *T) error) error {
	f := fields{rest: data}
	for f.next() {
		var err error
		switch f.tag {
		case 1<<3 | lengthDelimited:
			err = about.Unmarshal(f.bytes)
		case 2<<3 | lengthDelimited:
			*items = append(*items, *new(T))
			err = item(f.bytes, &(*items)[len(*items)-1])
		}
		if err != nil {
			return err
		}
	}
	return f.err
}

// service reads a Service. Its spec and status are read as generated, for they
// are short, and hold what matters.
func (d *decoder) service(data []byte, o *corev1.Service) error {
	f := fields{rest: data}
	for f.next() {
		var err error
		switch f.tag {
		case 1<<3 | lengthDelimited:
			err = d.meta(f.bytes, &o.ObjectMeta, nil)
		case 2<<3 | lengthDelimited:
			err = o.Spec.Unmarshal(f.bytes)
		case 3<<3 | lengthDelimited:
			status := fields{rest: f.bytes}
			for status.next() && err == nil {
				if status.tag == 1<<3|lengthDelimited {
					err = o.Status.LoadBalancer.Unmarshal(status.bytes)
				}
			}
			if err == nil {
				err = status.err
			}
		}
		if err != nil {
			return err
		}
	}
	return f.err
}

// meta reads what is read of metadata. With wanted, only labels and annotations
// are kept whose names it says yes to.
func (d *decoder) meta(data []byte, o *metav1.ObjectMeta, wanted func(name []byte) bool) error {
	f := fields{rest: data}
	for f.next() {
		var err error
		switch f.tag {
		case 1<<3 | lengthDelimited:
			o.Name = string(f.bytes)
		case 3<<3 | lengthDelimited:
			o.Namespace = *d.often(f.bytes)
		case 5<<3 | lengthDelimited:
			o.UID = types.UID(f.bytes)
		case 6<<3 | lengthDelimited:
			o.ResourceVersion = string(f.bytes)
		case 8<<3 | lengthDelimited:
			err = o.CreationTimestamp.Unmarshal(f.bytes)
		case 11<<3 | lengthDelimited:
			err = d.entry(f.bytes, &o.Labels, wanted)
		case 12<<3 | lengthDelimited:
			err = d.entry(f.bytes, &o.Annotations, wanted)
		}
		if err != nil {
			return err
		}
	}
	return f.err
}

// entry reads a label or an annotation.
func (d *decoder) entry(data []byte, into *map[string]string, wanted func(name []byte) bool) error {
	var name, value []byte
	f := fields{rest: data}
	for f.next() {
		switch f.tag {
		case 1<<3 | lengthDelimited:
			name = f.bytes
		case 2<<3 | lengthDelimited:
			value = f.bytes
		}
	}
	if f.err != nil || string(name) == corev1.LastAppliedConfigAnnotation || wanted != nil && !wanted(name) {
		return f.err
	}
	if *into == nil {
		*into = map[string]string{}
	}
	(*into)[*d.often(name)] = string(value)
	return nil
}

// ofSlices reports whether a label or annotation of an EndpointSlice is one that
// tells a service proxy, or the client of the watch itself, something. Others are
// those of the Service, which the controller copies to every slice.
func ofSlices(name []byte) bool {
	domain, _, _ := bytes.Cut(name, []byte("/"))
	switch string(domain) {
	case "kubernetes.io", "k8s.io", "service.kubernetes.io", "endpoints.kubernetes.io", "fairway.dev":
		return true
	}
	return false
}

// slice reads an EndpointSlice.
func (d *decoder) slice(data []byte, o *discoveryv1.EndpointSlice) error {
	d.text, d.ends, d.counts = d.text[:0], d.ends[:0], d.counts[:0]
	endpoints, ports := 0, 0
	f := fields{rest: data}
	for f.next() {
		switch f.tag {
		case 2<<3 | lengthDelimited:
			endpoints++
		case 3<<3 | lengthDelimited:
			ports++
		}
	}
	if endpoints > 0 {
		o.Endpoints = make([]discoveryv1.Endpoint, 0, endpoints)
	}
	if ports > 0 {
		o.Ports = make([]discoveryv1.EndpointPort, 0, ports)
	}
	f = fields{rest: data}
	for f.next() {
		var err error
		switch f.tag {
		case 1<<3 | lengthDelimited:
			err = d.meta(f.bytes, &o.ObjectMeta, ofSlices)
		case 2<<3 | lengthDelimited:
			o.Endpoints = o.Endpoints[:len(o.Endpoints)+1]
			err = d.endpoint(f.bytes, &o.Endpoints[len(o.Endpoints)-1])
		case 3<<3 | lengthDelimited:
			o.Ports = o.Ports[:len(o.Ports)+1]
			err = o.Ports[len(o.Ports)-1].Unmarshal(f.bytes)
		case 4<<3 | lengthDelimited:
			o.AddressType = discoveryv1.AddressType(*d.often(f.bytes))
		}
		if err != nil {
			return err
		}
	}
	d.addresses(o.Endpoints)
	return f.err
}

// addresses hands out what d.text holds: one allocation for the addresses of all
// endpoints, since those live and die together.
func (d *decoder) addresses(endpoints []discoveryv1.Endpoint) {
	if len(d.ends) == 0 {
		return
	}
	text, all, from := string(d.text), make([]string, len(d.ends)), 0
	for i, end := range d.ends {
		all[i], from = text[from:end], end
	}
	for i := range endpoints {
		if n := d.counts[i]; n > 0 {
			endpoints[i].Addresses, all = all[:n:n], all[n:]
		}
	}
}

// The values of conditions, for all objects.
var yes, no = true, false

func condition(f *fields) *bool {
	if f.number != 0 {
		return &yes
	}
	return &no
}

// endpoint reads an endpoint, but for its addresses, which are left in d.text.
func (d *decoder) endpoint(data []byte, e *discoveryv1.Endpoint) error {
	addresses := 0
	f := fields{rest: data}
	for f.next() {
		var err error
		switch f.tag {
		case 1<<3 | lengthDelimited:
			d.text = append(d.text, f.bytes...)
			d.ends = append(d.ends, len(d.text))
			addresses++
		case 2<<3 | lengthDelimited:
			err = conditions(f.bytes, &e.Conditions)
		case 3<<3 | lengthDelimited:
			name := string(f.bytes)
			e.Hostname = &name
		case 4<<3 | lengthDelimited:
			if d.about {
				if e.TargetRef == nil {
					e.TargetRef = &corev1.ObjectReference{}
				}
				err = e.TargetRef.Unmarshal(f.bytes)
			}
		case 6<<3 | lengthDelimited:
			e.NodeName = d.often(f.bytes)
		case 7<<3 | lengthDelimited:
			if d.about {
				e.Zone = d.often(f.bytes)
			}
		case 8<<3 | lengthDelimited:
			if e.Hints == nil {
				e.Hints = &discoveryv1.EndpointHints{}
			}
			err = e.Hints.Unmarshal(f.bytes)
		}
		if err != nil {
			return err
		}
	}
	d.counts = append(d.counts, addresses)
	return f.err
}

func conditions(data []byte, c *discoveryv1.EndpointConditions) error {
	f := fields{rest: data}
	for f.next() {
		switch f.tag {
		case 1<<3 | varint:
			c.Ready = condition(&f)
		case 2<<3 | varint:
			c.Serving = condition(&f)
		case 3<<3 | varint:
			c.Terminating = condition(&f)
		}
	}
	return f.err
}

// most bounds how many strings a decoder keeps: nodes and zones, namespaces and
// names of labels are few, and those of yesterday need not be kept.
const most = 4096

// often returns a string that comes again and again; one copy of it is made.
func (d *decoder) often(text []byte) *string {
	if s, ok := d.seen[string(text)]; ok {
		return s
	}
	if len(d.seen) >= most {
		clear(d.seen)
	}
	s := string(text)
	d.seen[s] = &s
	return &s
}
