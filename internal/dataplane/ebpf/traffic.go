package ebpf

import (
	"fmt"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
)

// Port names a Service's port in one address family.
type Port struct {
	Service  model.Key
	Name     string // of the port; may be empty
	Protocol model.Protocol
	IPv6     bool
}

// PortOf returns the port that a frontend of a Service is of.
func PortOf(service model.Key, f *plan.Frontend) Port {
	return Port{service, f.ServicePort.Name, f.Protocol, f.Addr.Is6()}
}

// Counts are what programs have counted, since the Service was first served.
type Counts struct {
	// Connections are TCP connections and UDP sockets that got a backend; an
	// unconnected UDP socket counts once for each backend.
	Connections uint64
	// Refused are TCP connections that were refused since nobody serves.
	Refused uint64
}

// Traffic returns the counts of all ports of Services that had any. It reads
// every one from the kernel.
func (d *Dataplane) Traffic() map[Port]Counts {
	d.mu.Lock()
	ports := map[uint32]Port{}
	for _, o := range d.owners {
		for i := range o.want.frontends {
			f := &o.want.frontends[i]
			ports[f.value.ID] = Port{o.key, f.port.port, f.port.protocol, f.port.is6}
		}
	}
	d.mu.Unlock()
	out := map[Port]Counts{}
	var id uint32
	var perCPU []Counts
	all := d.maps[socketMapTraffic].Iterate()
	for all.Next(&id, &perCPU) {
		port, ok := ports[id]
		if !ok {
			continue
		}
		sum := out[port]
		for _, c := range perCPU {
			sum.Connections += c.Connections
			sum.Refused += c.Refused
		}
		out[port] = sum
	}
	if err := all.Err(); err != nil {
		d.log.Warn("eBPF: reading traffic", "error", fmt.Errorf("map %s: %w", socketMapTraffic, err))
	}
	return out
}
