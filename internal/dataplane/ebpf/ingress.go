package ebpf

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
)

// ingress serves packets that arrive: programs on interfaces, which read the
// maps, and the table that they need.
type ingress struct {
	log       *slog.Logger
	netfilter netfilter
	programs  map[role]*ebpf.Program
	stop      func() // of following interfaces

	mu         sync.Mutex // of what follows
	interfaces *interfaces
	pods       []string // prefixes of interfaces that lead to Pods of this node
	live       bool     // whether programs are attached
}

type ingressOptions struct {
	log     *slog.Logger
	netns   int
	pins    pins
	covered []string // prefixes of interfaces that need no program
	types   *btf.Cache
}

// newIngress loads the programs on the given maps. Where an earlier process
// has served by the same maps, its programs are replaced at once; else there
// are none before start. The table is made at once: it changes nothing for
// packets that no program has marked, and has the kernel load the modules that
// the programs call.
func newIngress(o ingressOptions, maps map[string]*ebpf.Map) (*ingress, error) {
	g := &ingress{log: o.log, netfilter: netfilter{o.netns}, stop: func() {}}
	if err := g.open(o, maps); err != nil {
		g.close()
		return nil, fmt.Errorf("packet path: %w", err)
	}
	return g, nil
}

func (g *ingress) open(o ingressOptions, maps map[string]*ebpf.Map) error {
	if err := g.netfilter.ensure(nil); err != nil {
		return err
	}
	spec, err := loadIngress()
	if err != nil {
		return err
	}
	used := map[string]*ebpf.Map{}
	for name := range spec.Maps {
		m := maps[name]
		if m == nil {
			continue
		}
		used[name], spec.Maps[name].MaxEntries = m, m.MaxEntries()
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: used, Cache: o.types})
	if err != nil {
		return fmt.Errorf("ingress programs: %w", err)
	}
	defer c.Close()
	g.programs = map[role]*ebpf.Program{
		roleUplink: c.DetachProgram(ingressProgFairwayUplink), rolePod: c.DetachProgram(ingressProgFairwayPod),
	}
	handle, err := netlinkAt(o.netns)
	if err != nil {
		return fmt.Errorf("interfaces: %w", err)
	}
	g.interfaces = &interfaces{
		netns: o.netns, handle: handle, dir: filepath.Join(string(o.pins), linksDir), covered: o.covered,
		programs: g.programs, attached: map[int]attachedProgram{},
	}
	ours, err := mapID(maps[ingressMapFrontends])
	if err != nil {
		return err
	}
	if g.live, err = g.interfaces.live(ours); err != nil {
		return err
	}
	if err := g.sync(nil); err != nil {
		return err
	}
	g.stop = followInterfaces(o.netns, o.log, g.interfacesChanged)
	return nil
}

// netlinkAt opens a socket to the kernel in a network namespace; 0 is the caller's own.
func netlinkAt(fd int) (*netlink.Handle, error) {
	if fd == 0 {
		return netlink.NewHandle(unix.NETLINK_ROUTE)
	}
	return netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_ROUTE)
}

// start has the programs on all interfaces from now on.
func (g *ingress) start(fixed dataplane.Repairs) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.live = true
	return g.sync(fixed)
}

// sync is without effect before everything is known.
func (g *ingress) sync(fixed dataplane.Repairs) error {
	if !g.live {
		return nil
	}
	return g.interfaces.sync(g.pods, fixed)
}

// setPods tells which interfaces lead to Pods of this node.
func (g *ingress) setPods(prefixes []string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pods = prefixes
	return g.sync(nil)
}

// verify repairs the table and the attachments.
func (g *ingress) verify(fixed dataplane.Repairs) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return errors.Join(g.netfilter.ensure(fixed), g.sync(fixed))
}

// interfacesChanged is called when interfaces came or went.
func (g *ingress) interfacesChanged() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.sync(nil); err != nil {
		g.log.Warn("eBPF: not every interface has its program, trying again with the next check", "error", err)
	}
}

// close gives up what the process holds; the kernel keeps on serving.
func (g *ingress) close() {
	g.stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.interfaces != nil {
		g.interfaces.close()
	}
	for _, p := range g.programs {
		_ = p.Close()
	}
}

// removeIngress removes the programs that are pinned, and the table.
func removeIngress(fd int, p pins) error {
	return errors.Join(removePinnedIngress(filepath.Join(string(p), linksDir)), netfilter{fd}.remove())
}

// Remainder reports whether sockets and packets that arrive are not all that a
// frontend needs: the node's own packets to it need a packet path beside, for a
// socket's client is not known when it connects, TLS is to be found by what the
// connection was, datagrams are refused by a reply, and silence is not to be
// taken for an address that no Service has. A server that answers directly is
// spared connection tracking by rules of the packet path.
func Remainder(f *plan.Frontend) bool {
	return f.Restricted || f.OwnServer || f.Internal.Action != plan.Forward || f.Protocol == model.SCTP
}

// Disturbed reports whether the nftables table that the packet path needs is not
// whole. It is to be asked when somebody has changed any nftables rules.
func (d *Dataplane) Disturbed() (bool, error) {
	if d.ingress == nil {
		return false, nil
	}
	return d.ingress.disturbed()
}

func (g *ingress) disturbed() (bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.live {
		return false, nil
	}
	conn, err := g.netfilter.conn()
	if err != nil {
		return false, err
	}
	intact, err := g.netfilter.intact(conn)
	return err == nil && !intact, err
}
