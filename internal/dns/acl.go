package dns

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"fairway.dev/fairway/internal/state"
)

// localRefresh is how old the list of the machine's addresses may be.
const localRefresh = time.Second

// acl decides who may ask.
type acl struct {
	// ranges are those of Options.AllowFrom; with none everybody may.
	ranges []netip.Prefix
	// nodes are the addresses of all nodes, as of snapshot.
	nodes    atomic.Pointer[map[netip.Addr]struct{}]
	snapshot *state.Snapshot // of the last update

	mu        sync.Mutex
	local     []netip.Addr
	localRead time.Time
}

func newACL(ranges []netip.Prefix) *acl {
	a := &acl{ranges: ranges, snapshot: &state.Snapshot{}}
	a.nodes.Store(&map[netip.Addr]struct{}{})
	return a
}

// update takes the nodes' addresses from snap. It has one caller at a time.
func (a *acl) update(snap *state.Snapshot) {
	changed := false
	for range state.Diff(a.snapshot.Nodes, snap.Nodes) {
		changed = true
		break
	}
	a.snapshot = snap
	if !changed {
		return
	}
	nodes := map[netip.Addr]struct{}{}
	for _, n := range snap.Nodes.All() {
		for _, addr := range n.Addrs {
			nodes[addr] = struct{}{}
		}
	}
	a.nodes.Store(&nodes)
}

// allows reports whether a client may ask.
func (a *acl) allows(client netip.Addr) bool {
	if len(a.ranges) == 0 {
		return true
	}
	client = client.Unmap().WithZone("")
	if slices.ContainsFunc(a.ranges, func(p netip.Prefix) bool { return p.Contains(client) }) {
		return true
	}
	if _, ok := (*a.nodes.Load())[client]; ok {
		return true
	}
	return a.onNode(client)
}

// onNode reports whether the client is on this machine, at an address that its
// Node object may not have.
func (a *acl) onNode(client netip.Addr) bool {
	client = client.Unmap().WithZone("")
	if client.IsLoopback() {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.localRead) > localRefresh {
		addrs, err := net.InterfaceAddrs()
		if err != nil {
			return false
		}
		a.local, a.localRead = a.local[:0], time.Now()
		for _, addr := range addrs {
			if n, ok := addr.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok {
					a.local = append(a.local, ip.Unmap())
				}
			}
		}
	}
	return slices.Contains(a.local, client)
}
