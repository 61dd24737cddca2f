package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
)

// Options configure a [Cleaner].
type Options struct {
	// NetNS is a file descriptor of the network namespace to work in; 0 means
	// the one of the calling thread.
	NetNS int
}

// Cleaner removes stale UDP flows from the kernel.
type Cleaner struct {
	netns int
}

// New returns a cleaner, or an error where the kernel has no conntrack by netlink.
func New(o Options) (*Cleaner, error) {
	c := &Cleaner{netns: o.NetNS}
	conn, err := c.dial()
	if err != nil {
		return nil, err
	}
	return c, conn.Close()
}

func (c *Cleaner) dial() (*netlink.Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: c.netns})
	if err != nil {
		return nil, fmt.Errorf("conntrack: %w", err)
	}
	return conn, nil
}

// frontend is where clients send; NodePorts have an unspecified address.
type frontend struct {
	addr netip.Addr
	port uint16
}

// frontendsAtOnce is the number of changed frontends up to which the kernel is
// asked for the flows of each.
const frontendsAtOnce = 8

// Changed removes the flows that changes have made stale. It is to be called
// after they have been programmed, or clients would come back as they were.
func (c *Cleaner) Changed(ctx context.Context, changes []reconcile.Change[model.Key, plan.Service]) error {
	serving := affected(changes)
	if len(serving) == 0 {
		return nil
	}
	conn, err := c.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	var errs []error
	for _, q := range questions(serving) {
		flows, err := list(conn, q)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, f := range flows {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if f.stale(serving) {
				errs = append(errs, f.remove(conn))
			}
		}
	}
	return errors.Join(errs...)
}

// affected returns the UDP frontends that may have stale flows, with the
// endpoints that serve behind each: those that are new, those that went, and
// those that lost an endpoint or got their first.
func affected(changes []reconcile.Change[model.Key, plan.Service]) map[frontend][]netip.AddrPort {
	out := map[frontend][]netip.AddrPort{}
	for _, c := range changes {
		before, now := udp(c.Old), udp(c.New)
		for f, was := range before {
			is, still := now[f]
			lost := slices.ContainsFunc(was, func(a netip.AddrPort) bool { return !slices.Contains(is, a) })
			if !still || lost || len(was) == 0 && len(is) > 0 {
				out[f] = is
			}
		}
	}
	// Last, for a Service may have what another one gave up with the same changes,
	// in whatever order they are.
	for _, c := range changes {
		before := udp(c.Old)
		for f, is := range udp(c.New) {
			if _, had := before[f]; !had {
				out[f] = is
			}
		}
	}
	return out
}

func udp(s plan.Service) map[frontend][]netip.AddrPort {
	out := map[frontend][]netip.AddrPort{}
	for i := range s.Frontends {
		if f := &s.Frontends[i]; f.Protocol == model.UDP {
			out[frontend{f.Addr, f.Port}] = f.Serving
		}
	}
	return out
}

// question selects flows: of one frontend, or with a zero port all of a family.
type question struct {
	ipv6 bool
	of   frontend
}

// questions asks for each frontend, or for everything where that is less work.
func questions(serving map[frontend][]netip.AddrPort) []question {
	var each []question
	families := map[bool]bool{}
	for f := range serving {
		each = append(each, question{f.addr.Is6(), f})
		families[f.addr.Is6()] = true
	}
	if len(each) <= frontendsAtOnce {
		return each
	}
	var all []question
	for ipv6 := range families {
		all = append(all, question{ipv6: ipv6})
	}
	return all
}

// stale reports whether a flow of a frontend leads to nobody who serves. A
// flow to a NodePort counts only when it was translated, since the same port
// number of other hosts is no business of ours.
func (f *flow) stale(serving map[frontend][]netip.AddrPort) bool {
	if f.protocol != unix.IPPROTO_UDP {
		return false
	}
	if to, ok := serving[frontend{f.to.Addr(), f.to.Port()}]; ok {
		return !slices.Contains(to, f.answers)
	}
	unspecified := netip.IPv6Unspecified()
	if f.to.Addr().Is4() {
		unspecified = netip.IPv4Unspecified()
	}
	to, ok := serving[frontend{unspecified, f.to.Port()}]
	return ok && f.answers != f.to && !slices.Contains(to, f.answers)
}
