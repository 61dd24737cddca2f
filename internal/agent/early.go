package agent

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"time"

	"fairway.dev/fairway/internal/dns"
	"fairway.dev/fairway/internal/model"
)

const (
	// earlyAfter is how long a node that starts waits for its Node object before
	// it serves DNS without.
	earlyAfter = 500 * time.Millisecond
	// earlyEvery is how often the machine's addresses are looked up meanwhile.
	earlyEvery = time.Second
)

// private are the ranges that no client from the world has.
var private = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fc00::/7"),
}

// waitServing waits for this machine's Node, and serves DNS while that takes: names
// from elsewhere need no API, and a client that gets SERVFAIL for others does better
// than one that gets nothing. It returns nil when ctx ends before.
func (n *node) waitServing(ctx context.Context) (*model.Node, error) {
	early, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if wait(early, earlyAfter); early.Err() == nil {
			n.serveEarly(early)
		}
	}()
	self, err := waitForNode(ctx, n.Logger, n.store, n.NodeName)
	cancel()
	<-done // its sockets are those of what comes next
	return self, err
}

// serveEarly serves DNS and the state of readiness at all addresses of the machine
// until ctx ends, since only the Node object tells which is the node's. What fails
// is tried again: it must not keep the node from waiting.
func (n *node) serveEarly(ctx context.Context) {
	told := ""
	for ctx.Err() == nil {
		addrs := n.machineAddrs()
		if err := n.serveEarlyAt(ctx, addrs); err != nil && ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			n.Logger.Warn("cannot serve DNS before the Node object of this machine is known", "error", err)
		}
		wait(ctx, earlyEvery)
	}
}

// serveEarlyAt serves until the machine has other addresses than these.
func (n *node) serveEarlyAt(ctx context.Context, addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return nil // the network is not up yet
	}
	registry := newRegistry()
	var listen []netip.AddrPort
	for _, a := range addrs {
		listen = append(listen, netip.AddrPortFrom(a, uint16(n.DNSPort)))
	}
	o, err := n.dnsOptions(listen, registry)
	if err != nil {
		return err
	}
	if len(o.AllowFrom) == 0 {
		o.AllowFrom = private // some of these addresses may be the world's
	}
	server, err := dns.New(o)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	known := func() bool { return false } // else this would have ended
	waits := gates{{"the Kubernetes API", n.source.Synced}, {"the Node object of this machine", known}}
	return runAll(ctx, n.Logger, []part{
		{"DNS", server.Run},
		{"metrics", func(ctx context.Context) error {
			return serveMetrics(ctx, n.Logger, n.MetricsAddress, registry, waits)
		}},
		{"memory", func(ctx context.Context) error { return waits.saveMemory(ctx, n.settle) }}, // it may be for days
		{"addresses", func(ctx context.Context) error {
			for ctx.Err() == nil && slices.Equal(addrs, n.machineAddrs()) {
				wait(ctx, earlyEvery)
			}
			cancel()
			return nil
		}},
	})
}

// machineAddrs are the addresses of the machine that can be a node's, sorted.
func (n *node) machineAddrs() []netip.Addr {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var out []netip.Addr
	for _, a := range all {
		ipNet, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		addr, ok := netip.AddrFromSlice(ipNet.IP)
		if addr = addr.Unmap(); !ok || !addr.IsGlobalUnicast() || slices.ContainsFunc(n.ServiceCIDRs, func(p netip.Prefix) bool { return p.Contains(addr) }) {
			continue
		}
		out = append(out, addr)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}
