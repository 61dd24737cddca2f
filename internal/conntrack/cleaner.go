package conntrack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

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

// Cleaner removes stale UDP flows from the kernel. Its methods may be called side
// by side.
type Cleaner struct {
	netns int

	mu     sync.Mutex
	claims claims
	// suspects are frontends whose flows have still to be looked at.
	suspects map[frontend]struct{}
}

// New returns a cleaner, or an error where the kernel has no conntrack by netlink.
func New(o Options) (*Cleaner, error) {
	c := &Cleaner{netns: o.NetNS, claims: newClaims(), suspects: map[frontend]struct{}{}}
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
// after they have been programmed, or clients would come back as they were. What
// fails is tried again with the next call, which may be one without changes.
//
// A frontend that several Services claim is the first one's ([plan.Claim]), so
// Services that go without it are to be told of as well. What they were before
// Changed knows from the calls before.
func (c *Cleaner) Changed(ctx context.Context, changes []reconcile.Change[model.Key, plan.Service]) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.claims.update(changes) {
		c.suspects[f] = struct{}{}
	}
	if len(c.suspects) == 0 {
		return nil
	}
	conn, err := c.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	var errs []error
	for _, q := range questions(c.suspects) {
		if err := c.clean(ctx, conn, q); err != nil {
			errs = append(errs, err)
			continue
		}
		maps.DeleteFunc(c.suspects, func(f frontend, _ struct{}) bool { return q.about(f) })
	}
	return errors.Join(errs...)
}

// clean removes the stale ones among the flows that a question selects.
func (c *Cleaner) clean(ctx context.Context, conn *netlink.Conn, q question) error {
	flows, err := list(conn, q)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range flows {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if f.stale(c.serving) {
			errs = append(errs, f.remove(conn))
		}
	}
	return errors.Join(errs...)
}

// serving returns the endpoints that flows of a frontend may lead to; false for
// one whose flows are not to be looked at.
func (c *Cleaner) serving(f frontend) ([]netip.AddrPort, bool) {
	if _, ok := c.suspects[f]; !ok {
		return nil, false
	}
	first, _ := c.claims.first(f)
	return first.serving, true
}

// question selects flows: of one frontend, or with a zero port all of a family.
type question struct {
	ipv6 bool
	of   frontend
}

// about reports whether the flows of a frontend are among the answers.
func (q question) about(f frontend) bool {
	return q.of == f || q.of.port == 0 && q.ipv6 == f.addr.Is6()
}

// questions asks for each frontend, or for everything where that is less work.
func questions(suspects map[frontend]struct{}) []question {
	var each []question
	families := map[bool]bool{}
	for f := range suspects {
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
func (f *flow) stale(serving func(frontend) ([]netip.AddrPort, bool)) bool {
	if f.protocol != unix.IPPROTO_UDP {
		return false
	}
	if to, ok := serving(frontend{f.to.Addr(), f.to.Port()}); ok {
		return !slices.Contains(to, f.answers)
	}
	unspecified := netip.IPv6Unspecified()
	if f.to.Addr().Is4() {
		unspecified = netip.IPv4Unspecified()
	}
	to, ok := serving(frontend{unspecified, f.to.Port()})
	return ok && f.answers != f.to && !slices.Contains(to, f.answers)
}
