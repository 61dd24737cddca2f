package ipam

import (
	"fmt"
	"net/netip"
	"strings"

	"fairway.dev/fairway/internal/model"
)

// Class is the loadBalancerClass of Services that are Fairway's; those without
// a class are as well.
const Class = "fairway.dev/lb"

// FlagPool is the name of the pool that the flag --lb-pool gives.
const FlagPool = "default"

// Mode is where addresses come from.
type Mode uint8

// The modes.
const (
	// FromPools takes addresses from pools.
	FromPools Mode = iota
	// FromNodes gives the nodes' own addresses, told apart by port, as the
	// ServiceLB of k3s does. Services that name a pool still get theirs from it.
	FromNodes
	// Off leaves Services to another controller.
	Off
)

// PortKey is a port with its protocol.
type PortKey struct {
	Protocol model.Protocol
	Port     uint16
}

// String returns, for example, "80/TCP".
func (p PortKey) String() string { return fmt.Sprintf("%d/%s", p.Port, p.Protocol) }

// Options configure an [Allocator].
type Options struct {
	// Mode is where addresses come from; default FromPools.
	Mode Mode
	// Pool holds addresses to use beside the pools of the snapshot; optional.
	Pool *model.Pool
	// Reserved are ports that something else serves at the nodes' addresses,
	// such as the gateway, and by whom; optional, for FromNodes only.
	Reserved map[PortKey]string
}

// ParseFlag reads the flag --lb-pool: "node", "none", or addresses as CIDRs or
// first-last, separated by commas; empty means that only the pools of the
// snapshot are used.
func ParseFlag(s string) (Options, error) {
	switch s = strings.TrimSpace(s); s {
	case "":
		return Options{}, nil
	case "node":
		return Options{Mode: FromNodes}, nil
	case "none":
		return Options{Mode: Off}, nil
	}
	// The first and last address of a range from a flag are those of a network,
	// which some clients will not talk to.
	pool := &model.Pool{Key: model.Key{Name: FlagPool}, AutoAssign: true, AvoidBuggy: true}
	for part := range strings.SplitSeq(s, ",") {
		r, err := parseRange(strings.TrimSpace(part))
		if err != nil {
			return Options{}, fmt.Errorf("load balancer pool: %w", err)
		}
		if found, ok := newReservations(special()).of(r.First); ok && found.Contains(r.Last) {
			return Options{}, fmt.Errorf("load balancer pool: %s is no range for Services: %s is %s; give addresses of your network", rangeText(r), r.First, found.what)
		}
		pool.Ranges = append(pool.Ranges, r)
	}
	return Options{Pool: pool}, nil
}

func parseRange(s string) (model.AddrRange, error) {
	if first, last, ok := strings.Cut(s, "-"); ok {
		f, errFirst := netip.ParseAddr(strings.TrimSpace(first))
		l, errLast := netip.ParseAddr(strings.TrimSpace(last))
		if errFirst == nil && errLast == nil && f.Is4() == l.Is4() && f.Compare(l) <= 0 {
			return model.AddrRange{First: f, Last: l}, nil
		}
	} else if p, err := netip.ParsePrefix(s); err == nil {
		return model.RangeOf(p), nil
	} else if a, err := netip.ParseAddr(s); err == nil {
		return model.AddrRange{First: a, Last: a}, nil
	}
	return model.AddrRange{}, fmt.Errorf("%q is no range of addresses: write 192.0.2.0/24 or 192.0.2.10-192.0.2.20, node, or none", s)
}
