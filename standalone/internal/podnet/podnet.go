package podnet

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Options configure the Pod network of a node.
type Options struct {
	// Dir keeps the allocator's memory across restarts. Required.
	Dir string
	// Owner tells this node's links from those of another one in the same
	// network namespace: a few lower-case characters or digits. Required.
	Owner string
	// PodCIDRs are the ranges of the node's Pods, at most one per IP family,
	// the primary family first. Required.
	PodCIDRs []netip.Prefix
	// ClusterCIDRs are all ranges inside of the cluster, such as the other
	// nodes' Pods and addresses, Services and load balancers: what Pods send
	// there keeps its source address. Optional.
	ClusterCIDRs []netip.Prefix
	// NodeIPs are the addresses that the node talks to its Pods from, if they
	// are assigned to it. Optional.
	NodeIPs []netip.Addr
	// Logger receives what needs attention. Required.
	Logger *slog.Logger
	// VerifyEvery is how often the kernel's packet rules are compared with what
	// they should be, and put back. Default 15 s.
	VerifyEvery time.Duration
}

// Network is the Pod network of one node, in one network namespace.
type Network struct {
	opts  Options
	mtu   int
	alloc *allocator
	rules *rules

	mu   sync.Mutex
	pods map[string]*attachment

	closing chan struct{} // closed by close
	close   func()
	keeper  sync.WaitGroup
}

// attachment is what a Pod has.
type attachment struct {
	link      string
	addresses []netip.Addr
	ports     []Port
}

// Port forwards a port of the node to one of the Pod.
type Port struct {
	// Protocol is unix.IPPROTO_TCP, IPPROTO_UDP or IPPROTO_SCTP.
	Protocol uint8
	// HostIP limits it to one address of the node; the zero Addr or an
	// unspecified one means all.
	HostIP   netip.Addr
	HostPort uint16
	PodPort  uint16
}

// Pod is what Attach needs to know.
type Pod struct {
	// ID is unique over the life of the node.
	ID string
	// Name is for people: it becomes the link's alias.
	Name string
	// Namespace is the Pod's network namespace, with nothing but lo in it.
	Namespace *os.File
	// Ports are the Pod's host ports.
	Ports []Port
}

// New readies the network namespace that it is called in: it removes what an
// earlier run left, turns on forwarding and makes the table, which it puts back
// from then on when somebody else takes from it.
func New(opts Options) (*Network, error) {
	n := &Network{opts: opts, pods: map[string]*attachment{}, closing: make(chan struct{})}
	n.close = sync.OnceFunc(func() { close(n.closing) })
	if !hasIPv6() {
		n.opts.PodCIDRs = onlyIPv4(opts.PodCIDRs)
		if len(n.opts.PodCIDRs) < len(opts.PodCIDRs) {
			opts.Logger.Warn("the kernel has no IPv6: Pods get IPv4 addresses only")
		}
	}
	if len(n.opts.PodCIDRs) == 0 {
		return nil, errors.New("pod network: no Pod CIDR that the kernel supports")
	}
	var err error
	if n.alloc, err = newAllocator(opts.Dir, n.opts.PodCIDRs); err != nil {
		return nil, err
	}
	if err := removeLinks(linkPrefix(opts.Owner)); err != nil {
		return nil, err
	}
	if err := enableForwarding(n.opts.PodCIDRs); err != nil {
		return nil, err
	}
	if err := loopbackUp(); err != nil {
		return nil, err
	}
	if err := warnAboutFirewall(opts.Logger); err != nil {
		return nil, err
	}
	n.mtu = uplinkMTU()
	if n.rules, err = newRules(n.opts.PodCIDRs, opts.ClusterCIDRs); err != nil {
		return nil, err
	}
	every := opts.VerifyEvery
	if every == 0 {
		every = verifyEvery
	}
	n.keeper.Go(func() { n.keepRules(every) })
	if err := n.followAddresses(); err != nil {
		return nil, errors.Join(fmt.Errorf("following the node's addresses: %w", err), n.Close())
	}
	return n, nil
}

// Attach connects a Pod and returns its addresses, the primary one first.
func (n *Network) Attach(pod Pod) ([]netip.Addr, error) {
	addresses, err := n.alloc.take(pod.ID)
	if err != nil {
		return nil, err
	}
	a := &attachment{link: linkName(n.opts.Owner, pod.ID), addresses: addresses, ports: pod.Ports}
	n.mu.Lock()
	n.pods[pod.ID] = a
	err = n.connect(pod, a)
	n.mu.Unlock()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("network of Pod %s: %w", pod.Name, err), n.Detach(pod.ID))
	}
	return addresses, nil
}

func (n *Network) connect(pod Pod, a *attachment) error {
	if err := n.link(pod, a); err != nil {
		return err
	}
	return n.applyPorts(a)
}

// applyPorts makes the kernel know the host ports of a Pod that came or went.
func (n *Network) applyPorts(a *attachment) error {
	if len(a.ports) == 0 {
		return nil
	}
	err := n.rules.setPorts(n.pods)
	if errors.Is(err, unix.ENOENT) { // somebody took the table or a set away
		err = n.repair()
	}
	if err != nil {
		return err
	}
	return forgetConnections(a.ports, hasFamily(a.addresses, netip.Addr.Is6))
}

// Detach removes a Pod's link, host ports and addresses. It does nothing for a
// Pod that is not attached.
func (n *Network) Detach(id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	a, ok := n.pods[id]
	if !ok {
		return nil
	}
	if err := removeLink(a.link); err != nil {
		return err
	}
	delete(n.pods, id)
	n.alloc.release(id)
	return n.applyPorts(a)
}

// Usage is what went over a Pod's link, seen from the Pod.
type Usage struct {
	ReceivedBytes, ReceiveErrors, SentBytes, SendErrors uint64
}

// Usage returns the counters of a Pod's link.
func (n *Network) Usage(id string) (Usage, error) {
	n.mu.Lock()
	a, ok := n.pods[id]
	n.mu.Unlock()
	if !ok {
		return Usage{}, fmt.Errorf("sandbox %s is not attached", id)
	}
	link, err := netlink.LinkByName(a.link)
	if err != nil {
		return Usage{}, err
	}
	s := link.Attrs().Statistics
	if s == nil {
		return Usage{}, nil
	}
	// The node's end sends what the Pod receives.
	return Usage{ReceivedBytes: s.TxBytes, ReceiveErrors: s.TxErrors, SentBytes: s.RxBytes, SendErrors: s.RxErrors}, nil
}

// Close removes all links and the table. The forwarding sysctls stay: others
// may rely on them by now.
func (n *Network) Close() error {
	n.close()
	n.keeper.Wait() // it must not put back what is removed here
	n.mu.Lock()
	defer n.mu.Unlock()
	for id := range n.pods {
		n.alloc.release(id)
	}
	clear(n.pods)
	return errors.Join(removeLinks(linkPrefix(n.opts.Owner)), n.rules.remove())
}

func onlyIPv4(prefixes []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range prefixes {
		if p.Addr().Is4() {
			out = append(out, p)
		}
	}
	return out
}
