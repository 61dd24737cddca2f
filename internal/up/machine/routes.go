package machine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// KeepRoutes has node 1 reach the other nodes and their Pods from its Sources for as long as the machine has these
// addresses, and from its own else, until ctx ends. Linux takes every IPv4 route away with the address that it names as its
// source, as when a machine moves to another network; this puts them back at once. Whatever else removed one is made good
// within the given time.
func (n *Namespace) KeepRoutes(ctx context.Context, o Options, every time.Duration, logger *slog.Logger) {
	if len(o.Nodes) < 2 {
		return
	}
	updates := make(chan netlink.AddrUpdate, 64)
	err := netlink.AddrSubscribeWithOptions(updates, ctx.Done(), netlink.AddrSubscribeOptions{
		Namespace: &n.fd,
		ErrorCallback: func(err error) {
			if ctx.Err() == nil {
				logger.Warn("the machine's addresses are not followed any more; routes to other nodes are looked after now and then", "every", every, "error", err)
			}
		},
	})
	if err != nil {
		logger.Warn("the machine's addresses cannot be followed; routes to other nodes are looked after now and then", "every", every, "error", err)
		updates = nil
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		for _, node := range o.Nodes[1:] {
			if err := n.routeTo(o.Nodes[0], node); err != nil && ctx.Err() == nil {
				logger.Warn("the routes to another node cannot be put back", "node", node.Index, "error", err)
			}
		}
		if !waitForChange(ctx, o.Nodes[0].Sources, tick.C, &updates) {
			return
		}
	}
}

// waitForChange returns true when one of the addresses may have come or gone, or with the next tick.
func waitForChange(ctx context.Context, addrs []netip.Addr, tick <-chan time.Time, updates *chan netlink.AddrUpdate) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case <-tick:
			return true
		case u, open := <-*updates:
			if !open {
				*updates = nil
				continue
			}
			if addr, _ := netip.AddrFromSlice(u.LinkAddress.IP); slices.Contains(addrs, addr.Unmap()) {
				return true
			}
		}
	}
}

// routeTo leads from node 1, which n is, to another node and its Pods.
func (n *Namespace) routeTo(first, node Node) error {
	near, err := n.links.LinkByName(NodeInterface(node.Index))
	if err != nil {
		return fmt.Errorf("interface %s: %w", NodeInterface(node.Index), err)
	}
	for _, addr := range node.Addresses {
		route := netlink.Route{Dst: host(addr), Scope: netlink.SCOPE_LINK}
		if err := n.addRouteFrom(near, route, first, addr); err != nil {
			return err
		}
	}
	for _, prefix := range node.PodCIDRs {
		via := sourceFor(node.Addresses, prefix.Addr())
		route := netlink.Route{Dst: ipNet(prefix), Gw: via.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
		if err := n.addRouteFrom(near, route, first, prefix.Addr()); err != nil {
			return err
		}
	}
	return nil
}

// addRouteFrom adds a route whose packets come from the address that the node is known by, if it has it, and from its own
// stable one if not.
func (n *Namespace) addRouteFrom(link netlink.Link, route netlink.Route, node Node, to netip.Addr) error {
	if source := sourceFor(node.Sources, to); source.IsValid() {
		err := n.addRoute(link, route, source)
		if !errors.Is(err, unix.EINVAL) { // EINVAL: not an address of this namespace
			return err
		}
	}
	return n.addRoute(link, route, sourceFor(node.Addresses, to))
}
