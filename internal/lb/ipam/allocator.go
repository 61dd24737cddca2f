package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// The reasons of problems, as they stand in Events.
const (
	ReasonPoolExhausted = "PoolExhausted"
	ReasonPoolMissing   = "PoolMissing"
	ReasonPoolRefused   = "PoolRefused"
	ReasonConflict      = "AddressConflict"
	ReasonNotInPool     = "AddressNotInPool"
	ReasonPortConflict  = "PortConflict"
	ReasonReserved      = "AddressReserved"
	ReasonPoolOverlap   = "PoolOverlap"
	ReasonPoolName      = "PoolNameTaken"
)

// Result is what a [Allocator.Sync] decided.
type Result struct {
	// Addrs are the addresses of every Service that Fairway gives addresses
	// to, IPv4 before IPv6; empty where there are none to give.
	Addrs map[model.Key][]netip.Addr
	// Problems are those of Services that lack an address, and of pools with
	// addresses that cannot be given, by object without UID.
	Problems map[model.Ref]model.Problems
}

// Allocator remembers what it gave. It is not safe for concurrent use.
type Allocator struct {
	options Options
	held    map[model.Key]holding
}

// holding is what a Service got last time.
type holding struct {
	uid     string
	service *model.Service // nil where only the addresses are known
	addrs   []netip.Addr
}

// New returns an allocator that has given nothing yet.
func New(o Options) *Allocator {
	return &Allocator{options: o, held: map[model.Key]holding{}}
}

// Remember tells what a Service has, as read from the API just now. A snapshot
// may lag behind, and who takes over from another allocator must not give the
// last of its addresses again.
func (a *Allocator) Remember(service model.Key, uid string, addrs []netip.Addr) {
	a.held[service] = holding{uid: uid, addrs: addrs}
}

// Sync decides for all Services of a snapshot. The snapshot must be synced:
// from an incomplete one, addresses would be given twice. The same snapshot
// always gives the same result, and so does a new Allocator once the result
// stands in the Services' status.
func (a *Allocator) Sync(snap *state.Snapshot) Result {
	result := Result{Addrs: map[model.Key][]netip.Addr{}, Problems: map[model.Ref]model.Problems{}}
	if a.options.Mode == Off || !snap.Synced {
		return result
	}
	r := &round{
		options: &a.options, snap: snap, pools: a.pools(snap), reserved: reservationsOf(snap),
		used: map[netip.Addr][]*model.Service{}, cursors: map[cursorKey]cursor{}, exhausted: map[cursorKey]bool{},
		ports: map[PortKey]*model.Service{}, result: result,
	}
	r.keepStray = slices.ContainsFunc(r.pools, r.isDamaged)
	r.reviewPools()
	services := a.services(snap)
	// What is in use stays in use; only then come wishes for more. Of those
	// who share an address, one that changed since yields to those who did not.
	for _, changed := range []bool{false, true} {
		for _, s := range services {
			if a.changed(s) == changed {
				r.keep(s, a.wanted(s))
			}
		}
	}
	for _, s := range services {
		r.complete(s)
	}
	a.held = make(map[model.Key]holding, len(services))
	for _, s := range services {
		addrs := r.result.Addrs[s.Key]
		if !r.fromNodes(s) {
			slices.SortFunc(addrs, netip.Addr.Compare)
		}
		a.held[s.Key] = holding{uid: s.UID, service: s, addrs: addrs}
	}
	return r.result
}

// services are the Services that are ours, the older ones first.
func (a *Allocator) services(snap *state.Snapshot) []*model.Service {
	var out []*model.Service
	for _, s := range snap.Services.All() {
		if s.Type == model.LoadBalancer && (s.LoadBalancer.Class == "" || s.LoadBalancer.Class == Class) {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, byAge)
	return out
}

func byAge(x, y *model.Service) int {
	if n := x.Created.Compare(y.Created); n != 0 {
		return n
	}
	return x.Key.Compare(y.Key)
}

// changed reports whether a Service differs from last time in what decides
// about sharing an address.
func (a *Allocator) changed(s *model.Service) bool {
	h, ok := a.held[s.Key]
	if !ok || h.service == nil || h.service == s {
		return false
	}
	was := h.service
	return was.LoadBalancer.SharingKey != s.LoadBalancer.SharingKey || was.ExternalLocal != s.ExternalLocal ||
		!slices.Equal(was.Ports, s.Ports)
}

// wanted are the addresses that a Service had: those given last time, or after
// a restart those in its status.
func (a *Allocator) wanted(s *model.Service) []netip.Addr {
	if h, ok := a.held[s.Key]; ok && h.uid == s.UID {
		return h.addrs
	}
	var out []netip.Addr
	for _, in := range s.LoadBalancer.Ingress {
		out = append(out, in.Addr)
	}
	return out
}

// pools are all pools, by priority and then by name.
func (a *Allocator) pools(snap *state.Snapshot) []*model.Pool {
	var out []*model.Pool
	if a.options.Pool != nil {
		out = append(out, a.options.Pool)
	}
	for _, p := range snap.Pools.All() {
		out = append(out, p)
	}
	slices.SortFunc(out, func(x, y *model.Pool) int {
		if x.Priority != y.Priority {
			return x.Priority - y.Priority
		}
		return x.Key.Compare(y.Key)
	})
	return out
}

// round is one Sync.
type round struct {
	options *Options
	snap    *state.Snapshot
	pools   []*model.Pool
	// reserved are addresses not to give, whatever pool they are in.
	reserved reservations
	// keepStray lets Services keep addresses that are in no pool.
	keepStray bool
	used      map[netip.Addr][]*model.Service
	cursors   map[cursorKey]cursor
	exhausted map[cursorKey]bool
	ports     map[PortKey]*model.Service // of the nodes' addresses
	result    Result
}

func (r *round) problem(s *model.Service, reason, format string, args ...any) {
	ref := model.Ref{Kind: "Service", Key: s.Key}
	r.result.Problems[ref] = append(r.result.Problems[ref], model.Problem{
		Object: model.Ref{Kind: "Service", Key: s.Key, UID: s.UID}, Reason: reason, Message: fmt.Sprintf(format, args...),
	})
}

// isDamaged reports whether a pool could not be read in full. Addresses that
// seem to be in no pool may be in that one then, and a typing mistake must not
// take them away from Services.
func (r *round) isDamaged(p *model.Pool) bool {
	_, ok := r.snap.Problems.Get(model.Ref{Kind: poolKind, Key: p.Key})
	return ok
}

// fromNodes reports whether the Service gets the nodes' addresses.
func (r *round) fromNodes(s *model.Service) bool {
	return r.options.Mode == FromNodes && s.LoadBalancer.Pool == "" && len(s.LoadBalancer.Requested) == 0
}

// keep lets a Service keep what it had, where it still may.
func (r *round) keep(s *model.Service, had []netip.Addr) {
	r.result.Addrs[s.Key] = nil
	if r.fromNodes(s) {
		if len(had) > 0 {
			r.claimPorts(s)
		}
		return
	}
	for _, addr := range had {
		if r.mayKeep(s, addr) && r.conflict(s, addr) == "" {
			r.give(s, addr)
		}
	}
}

func (r *round) mayKeep(s *model.Service, addr netip.Addr) bool {
	if !hasFamily(s, addr.Is4()) || r.has(s, addr.Is4()) {
		return false
	}
	if _, ok := r.reserved.of(addr); ok {
		return false
	}
	if wishes := s.LoadBalancer.Requested; len(wishes) > 0 {
		return slices.Contains(wishes, addr) && (r.poolOf(s, addr) != nil || r.keepStray && !r.inAnyPool(addr))
	}
	// An address from a pool that is not given out without asking stays only
	// with those who ask for it.
	return slices.ContainsFunc(r.candidates(s), func(p *model.Pool) bool { return inPool(p, addr) }) ||
		r.keepStray && !r.inAnyPool(addr)
}

// complete gives a Service what it lacks.
func (r *round) complete(s *model.Service) {
	switch {
	case r.fromNodes(s):
		r.giveNodes(s)
	case len(s.LoadBalancer.Requested) > 0:
		for _, addr := range s.LoadBalancer.Requested {
			r.giveRequested(s, addr)
		}
	default:
		r.givePools(s)
	}
}

func (r *round) give(s *model.Service, addr netip.Addr) {
	// In one order, whoever came first: problems name the same owner every time.
	i, _ := slices.BinarySearchFunc(r.used[addr], s, byAge)
	r.used[addr] = slices.Insert(r.used[addr], i, s)
	r.result.Addrs[s.Key] = append(r.result.Addrs[s.Key], addr)
}

// has reports whether the Service has an address of that family already.
func (r *round) has(s *model.Service, v4 bool) bool {
	return slices.ContainsFunc(r.result.Addrs[s.Key], func(a netip.Addr) bool { return a.Is4() == v4 })
}

// hasFamily reports whether the Service is of that family.
func hasFamily(s *model.Service, v4 bool) bool {
	if v4 {
		return s.IPv4
	}
	return s.IPv6
}

// conflict says why a Service cannot have an address that others may have;
// empty when it can. The rules of sharing are MetalLB's: the same key, other
// ports, and no policy that binds the address to some nodes.
func (r *round) conflict(s *model.Service, addr netip.Addr) string {
	for _, other := range r.used[addr] {
		switch {
		case other.Key == s.Key:
		case s.LoadBalancer.SharingKey == "" || s.LoadBalancer.SharingKey != other.LoadBalancer.SharingKey:
			return fmt.Sprintf("belongs to Service %s; ask for another address, or give both the same annotation fairway.dev/allow-shared-ip", other.Key)
		case s.ExternalLocal || other.ExternalLocal:
			return fmt.Sprintf("cannot be shared with Service %s because of externalTrafficPolicy: Local; set it to Cluster on both", other.Key)
		default:
			if p, ok := commonPort(s, other); ok {
				return fmt.Sprintf("has port %s taken by Service %s; use another port or address", p, other.Key)
			}
		}
	}
	return ""
}

func commonPort(a, b *model.Service) (PortKey, bool) {
	for _, x := range a.Ports {
		for _, y := range b.Ports {
			if x.Protocol == y.Protocol && x.Port == y.Port {
				return PortKey{x.Protocol, x.Port}, true
			}
		}
	}
	return PortKey{}, false
}

// giveRequested gives an address that the Service names.
func (r *round) giveRequested(s *model.Service, addr netip.Addr) {
	if !hasFamily(s, addr.Is4()) {
		r.problem(s, ReasonNotInPool, "address %s is of a family that the Service does not have; add it to spec.ipFamilies, or ask for another address", addr)
		return
	}
	if r.has(s, addr.Is4()) {
		return
	}
	if found, ok := r.reserved.of(addr); ok {
		r.problem(s, ReasonReserved, "address %s is %s, which is never given to a Service; ask for another address", addr, found.what)
		return
	}
	if r.poolOf(s, addr) == nil {
		in := ""
		if s.LoadBalancer.Pool != "" {
			in = fmt.Sprintf(" %q", s.LoadBalancer.Pool)
		}
		r.problem(s, ReasonNotInPool, "address %s is in no pool%s that the Service may use; ask for one of: %s", addr, in, r.poolText())
		return
	}
	if why := r.conflict(s, addr); why != "" {
		r.problem(s, ReasonConflict, "address %s %s", addr, why)
		return
	}
	r.give(s, addr)
}

func familyName(v4 bool) string {
	if v4 {
		return "IPv4"
	}
	return "IPv6"
}

func (r *round) poolText() string {
	var out []string
	for _, p := range r.pools {
		out = append(out, describe(p))
	}
	if len(out) == 0 {
		return "there is none; start the controller with --lb-pool, or create an IPAddressPool"
	}
	return strings.Join(out, "; ")
}

func describe(p *model.Pool) string {
	var ranges []string
	for _, r := range p.Ranges {
		ranges = append(ranges, fmt.Sprintf("%s-%s", r.First, r.Last))
	}
	return fmt.Sprintf("pool %q (%s)", p.Name, strings.Join(ranges, ", "))
}
