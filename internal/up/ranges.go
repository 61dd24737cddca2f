package up

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"fairway.dev/fairway/internal/up/machine"
)

const (
	// poolNode lets LoadBalancers share the nodes' own addresses by port; poolNone gives them none.
	poolNode = "node"
	poolNone = "none"
)

// Ranges are the addresses a cluster lives on, and the domain of its names. A data directory remembers them: objects in it
// refer to them.
type Ranges struct {
	Service []netip.Prefix `json:"service"`
	Pod     []netip.Prefix `json:"pod"`
	Node    []netip.Prefix `json:"node"`
	// Pool holds the addresses of LoadBalancers. PoolMode is "node" or "none" when there is no such pool.
	Pool     []netip.Prefix `json:"pool,omitempty"`
	PoolMode string         `json:"poolMode,omitempty"`
	// Domain is empty for DefaultClusterDomain.
	Domain string `json:"clusterDomain,omitempty"`
}

// domain is that of the cluster's names.
func (r Ranges) domain() string { return cmp.Or(r.Domain, DefaultClusterDomain) }

// rangeKind is what the four kinds of range have of their own.
type rangeKind struct {
	what, flag string
	// candidates for when nothing is asked for, best first.
	candidates []netip.Prefix
	// mayBeOnLink: it is useful inside a local network of the machine, if asked for.
	mayBeOnLink bool
	// minBits4 and minBits6 are the shortest prefixes that make sense, maxBits4 and maxBits6 the longest.
	minBits4, maxBits4, minBits6, maxBits6 int
}

func prefixes(text ...string) []netip.Prefix {
	all := make([]netip.Prefix, len(text))
	for i, t := range text {
		all[i] = netip.MustParsePrefix(t)
	}
	return all
}

// kinds lists service, pod, node and pool. The limits of the service range are the API server's (at most 20 host bits for
// IPv4, and ours that address 10 exists), those of the Pods leave room for a /24 and a /64 per node.
func kinds() (service, pod, node, pool rangeKind) {
	service = rangeKind{
		what: "service range", flag: "--service-cidr", minBits4: 12, maxBits4: 28, minBits6: 108, maxBits6: 124,
		candidates: prefixes("10.96.0.0/16", "172.29.0.0/16", "172.26.0.0/16", "fd00:10:96::/112", "fd66:6169:7277:96::/112"),
	}
	pod = rangeKind{
		what: "Pod range", flag: "--pod-cidr", minBits4: 8, maxBits4: 24, minBits6: 16, maxBits6: 64,
		candidates: prefixes("10.244.0.0/16", "172.28.0.0/16", "172.25.0.0/16", "fd00:10:244::/48", "fd66:6169:7244::/48"),
	}
	node = rangeKind{
		what: "range of the nodes' own addresses", flag: "--node-cidr", minBits4: 8, maxBits4: 30, minBits6: 16, maxBits6: 126,
		candidates: prefixes("10.245.0.0/24", "172.27.245.0/24", "192.168.245.0/24", "fd00:10:245::/112", "fd66:6169:7277:245::/112"),
	}
	pool = rangeKind{
		what: "address pool", flag: "--lb-pool", minBits4: 8, maxBits4: 32, minBits6: 16, maxBits6: 128, mayBeOnLink: true,
		candidates: prefixes("172.30.253.0/24", "172.24.253.0/24", "172.23.253.0/24", "172.22.253.0/24",
			"192.168.253.0/24", "192.168.243.0/24", "192.168.233.0/24", "10.253.253.0/24", "fd00:10:97::/112", "fd66:6169:7277:97::/112"),
	}
	return service, pod, node, pool
}

// chooseRanges decides on all ranges: what a flag asks for, else what the data directory remembers, else what is free. It
// fails when what is asked for or remembered is taken, or when a flag contradicts what the objects of the data directory
// were made with.
func chooseRanges(o Options, remembered *Ranges, occupied []machine.Occupant, ipv6 bool) (Ranges, error) {
	domain := cmp.Or(o.ClusterDomain, DefaultClusterDomain)
	if remembered == nil {
		remembered = &Ranges{}
	} else if domain = cmp.Or(o.ClusterDomain, remembered.domain()); domain != remembered.domain() {
		return Ranges{}, fmt.Errorf("--cluster-domain %s: this data directory was made with %s, and what is in it refers to that; leave the flag out, or take another --data-dir",
			domain, remembered.domain())
	}
	service, pod, node, pool := kinds()
	var chosen Ranges
	var err error
	if domain != DefaultClusterDomain {
		chosen.Domain = domain
	}
	if chosen.Service, err = choose(service, o.ServiceCIDR, remembered.Service, true, occupied, ipv6); err != nil {
		return Ranges{}, err
	}
	if chosen.Pod, err = choose(pod, o.PodCIDR, remembered.Pod, true, occupied, ipv6); err != nil {
		return Ranges{}, err
	}
	if chosen.Node, err = choose(node, o.NodeCIDR, remembered.Node, false, occupied, ipv6); err != nil {
		return Ranges{}, err
	}
	switch {
	case o.LBPool == poolNode || o.LBPool == poolNone:
		chosen.PoolMode = o.LBPool
	case o.LBPool == "" && remembered.PoolMode != "":
		chosen.PoolMode = remembered.PoolMode
	default:
		if chosen.Pool, err = choose(pool, o.LBPool, remembered.Pool, false, occupied, ipv6); err != nil {
			return Ranges{}, err
		}
	}
	return chosen, chosen.checkDisjoint()
}

// choose decides on one kind of range.
func choose(k rangeKind, asked string, remembered []netip.Prefix, fixed bool, occupied []machine.Occupant, ipv6 bool) ([]netip.Prefix, error) {
	want := remembered
	if asked != "" {
		flag, err := parseCIDRs(k.flag, asked)
		if err != nil {
			return nil, err
		}
		if fixed && len(remembered) > 0 && !slices.Equal(flag, remembered) {
			return nil, fmt.Errorf("%s %s: this data directory was made with %s, and its objects refer to that; leave the flag out, or take another --data-dir",
				k.flag, asked, join(remembered))
		}
		want = flag
	}
	for _, p := range want {
		if err := k.checkLength(p); err != nil {
			return nil, err
		}
	}
	if len(want) == 0 {
		for _, is4 := range []bool{true, false} {
			if !is4 && !ipv6 {
				continue
			}
			free := machine.FirstFree(k.family(is4), occupied)
			if !free.IsValid() {
				free = k.family(is4)[0] // let the check below say what is in the way
			}
			want = append(want, free)
		}
	}
	if !ipv6 {
		want = slices.DeleteFunc(slices.Clone(want), func(p netip.Prefix) bool { return p.Addr().Is6() })
	}
	if len(want) == 0 {
		return nil, fmt.Errorf("%s: only an IPv6 range, but this kernel has IPv6 disabled: give an IPv4 range as well", k.flag)
	}
	return want, machine.CheckFree(k.ranges(want, occupied), occupied)
}

// family returns the candidates of one family.
func (k rangeKind) family(is4 bool) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(k.candidates), func(p netip.Prefix) bool { return p.Addr().Is4() != is4 })
}

func (k rangeKind) checkLength(p netip.Prefix) error {
	low, high := k.minBits4, k.maxBits4
	if p.Addr().Is6() {
		low, high = k.minBits6, k.maxBits6
	}
	if p.Bits() < low || p.Bits() > high {
		return fmt.Errorf("%s %s: the length of this %s must be from /%d to /%d", k.flag, p, k.what, low, high)
	}
	return nil
}

func (k rangeKind) ranges(want []netip.Prefix, occupied []machine.Occupant) []machine.Range {
	var all []machine.Range
	for _, p := range want {
		all = append(all, machine.Range{
			Prefix: p, What: k.what, Flag: k.flag, MayBeOnLink: k.mayBeOnLink,
			Instead: machine.FirstFree(k.family(p.Addr().Is4()), occupied),
		})
	}
	return all
}

// check refuses remembered ranges that are not as they were written.
func (r Ranges) check() error {
	for _, list := range []struct {
		key    string
		ranges []netip.Prefix
	}{{"service", r.Service}, {"pod", r.Pod}, {"node", r.Node}, {"pool", r.Pool}} {
		if len(list.ranges) == 0 && list.key != "pool" {
			return fmt.Errorf("%q is missing", list.key)
		}
		for i, p := range list.ranges {
			switch {
			case !p.IsValid() || p != p.Masked():
				return fmt.Errorf("%q: item %d is not a range such as 10.96.0.0/16", list.key, i+1)
			case slices.ContainsFunc(list.ranges[:i], func(o netip.Prefix) bool { return o.Addr().Is4() == p.Addr().Is4() }):
				return fmt.Errorf("%q has two ranges of one family", list.key)
			}
		}
	}
	if r.Domain != "" {
		if err := checkDomain(r.Domain); err != nil {
			return fmt.Errorf("\"clusterDomain\" is %q: it %w", r.Domain, err)
		}
	}
	switch {
	case r.PoolMode != "" && r.PoolMode != poolNode && r.PoolMode != poolNone:
		return fmt.Errorf("\"poolMode\" is %q, must be %s or %s", r.PoolMode, poolNode, poolNone)
	case len(r.Pool) == 0 && r.PoolMode == "":
		return errors.New(`both "pool" and "poolMode" are missing`)
	case len(r.Pool) > 0 && r.PoolMode != "":
		return errors.New(`both "pool" and "poolMode" are there`)
	}
	return nil
}

// checkDisjoint refuses ranges that overlap each other.
func (r Ranges) checkDisjoint() error {
	service, pod, node, pool := kinds()
	type named struct {
		flag string
		p    netip.Prefix
	}
	var all []named
	for _, group := range []struct {
		flag string
		list []netip.Prefix
	}{{service.flag, r.Service}, {pod.flag, r.Pod}, {node.flag, r.Node}, {pool.flag, r.Pool}} {
		for _, p := range group.list {
			for _, other := range all {
				if p.Overlaps(other.p) {
					return fmt.Errorf("%s %s overlaps %s %s: choose ranges that do not overlap", group.flag, p, other.flag, other.p)
				}
			}
			all = append(all, named{group.flag, p})
		}
	}
	return nil
}

// poolFlag is the pool as the controller's --lb-pool takes it.
func (r Ranges) poolFlag() string {
	if r.PoolMode != "" {
		return r.PoolMode
	}
	return join(r.Pool)
}

// join writes things as a flag takes them, with commas between.
func join[T fmt.Stringer](things []T) string {
	text := make([]string, len(things))
	for i, t := range things {
		text[i] = t.String()
	}
	return strings.Join(text, ",")
}

// offset is the address n after the first of p.
func offset(p netip.Prefix, n uint64) (netip.Addr, error) {
	b := p.Masked().Addr().AsSlice()
	for i := len(b) - 1; i >= 0 && n > 0; i-- {
		n += uint64(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok || n > 0 || !p.Contains(a) {
		return netip.Addr{}, errors.New("range is too small")
	}
	return a, nil
}

// subnet is the n-th prefix of that length in p.
func subnet(p netip.Prefix, bits int, n uint64) (netip.Prefix, error) {
	if bits < p.Bits() {
		return netip.Prefix{}, errors.New("range is too small")
	}
	b := p.Masked().Addr().AsSlice()
	// Add n at bit position bits-1, byte by byte towards the front.
	shift := uint((8 - bits%8) % 8)
	carry := n << shift
	for i := (bits+7)/8 - 1; i >= 0 && carry > 0; i-- {
		carry += uint64(b[i])
		b[i] = byte(carry)
		carry >>= 8
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok || carry > 0 || !p.Contains(a) {
		return netip.Prefix{}, errors.New("range is too small")
	}
	return netip.PrefixFrom(a, bits), nil
}
