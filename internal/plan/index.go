package plan

import (
	"net/netip"
	"slices"

	"fairway.dev/fairway/internal/model"
)

// Index finds the Service behind the destination that a client dialled, for
// example as SO_ORIGINAL_DST tells it. It is not safe for concurrent use with
// Put and Delete. The zero Index is empty and ready.
type Index struct {
	services map[model.Key]Service
	claims   map[target][]Claim
}

// target is a frontend as a client sees it; NodePorts have an unspecified address.
type target struct {
	addr     netip.Addr
	protocol model.Protocol
	port     uint16
}

// Put adds or replaces a Service.
func (x *Index) Put(s Service) {
	x.Delete(s.Key)
	if x.services == nil {
		x.services, x.claims = map[model.Key]Service{}, map[target][]Claim{}
	}
	x.services[s.Key] = s
	for i := range s.Frontends {
		f := &s.Frontends[i]
		at := target{f.Addr, f.Protocol, f.Port}
		list := append(x.claims[at], s.Claim(f))
		slices.SortFunc(list, Claim.Compare)
		x.claims[at] = list
	}
}

// Delete removes a Service; it may be unknown.
func (x *Index) Delete(key model.Key) {
	s := x.services[key]
	delete(x.services, key)
	for i := range s.Frontends {
		f := &s.Frontends[i]
		at := target{f.Addr, f.Protocol, f.Port}
		list := slices.DeleteFunc(x.claims[at], func(c Claim) bool { return c.Key == key })
		if x.claims[at] = list; len(list) == 0 {
			delete(x.claims, at)
		}
	}
}

// Find returns the Service and frontend that a client which dialled dst
// reaches: the one with that very address, else a NodePort. That dst is an
// address of the node has to be known to the caller, as it is when the kernel
// redirected the connection.
func (x *Index) Find(dst netip.AddrPort, protocol model.Protocol) (Service, Frontend, bool) {
	addr := dst.Addr().Unmap()
	for _, at := range []target{{addr, protocol, dst.Port()}, {unspecified(addr), protocol, dst.Port()}} {
		if claims := x.claims[at]; len(claims) > 0 {
			s := x.services[claims[0].Key]
			i := slices.IndexFunc(s.Frontends, func(f Frontend) bool {
				return f.Addr == at.addr && f.Protocol == at.protocol && f.Port == at.port
			})
			return s, s.Frontends[i], true
		}
	}
	return Service{}, Frontend{}, false
}
