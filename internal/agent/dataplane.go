package agent

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"

	"github.com/cilium/ebpf/btf"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/dataplane/ebpf"
	"fairway.dev/fairway/internal/dataplane/nft"
	"fairway.dev/fairway/internal/sysctl"
)

// The data paths that can be asked for.
const (
	DataplaneAuto = "auto" // the best that works here
	DataplaneEBPF = "ebpf"
	DataplaneNFT  = "nft"
)

// BPFOptions are what the eBPF data path needs to know of the machine.
type BPFOptions struct {
	// Cgroup is a directory of cgroup v2: every socket below it is balanced.
	// Empty means that of the whole machine where the node has the machine's own
	// network, else none but what is in the node's network namespace.
	Cgroup string
	// Covered are prefixes of the names of interfaces with nobody behind whose
	// sockets are not balanced: packets from there need no program.
	Covered []string
	// Pins is a directory on a BPF file system; empty means ebpf.DefaultPins.
	Pins string
	// MaxFrontends and MaxBackends bound the maps; 0 means the defaults of ebpf.
	MaxFrontends, MaxBackends uint32

	dnsPort int // of Node
}

func checkDataplane(name string) error {
	switch name {
	case DataplaneAuto, DataplaneEBPF, DataplaneNFT:
		return nil
	}
	return fmt.Errorf("--dataplane %q: want %s, %s or %s", name, DataplaneAuto, DataplaneEBPF, DataplaneNFT)
}

// options completes the options by where processes are on this machine.
func (o BPFOptions) options(logger *slog.Logger) (ebpf.Options, error) {
	out := ebpf.Options{Logger: logger, Pins: o.Pins, ServerPort: uint16(o.dnsPort), Cgroup: o.Cgroup, Covered: o.Covered, MaxFrontends: o.MaxFrontends, MaxBackends: o.MaxBackends}
	root, err := ebpf.CgroupRoot()
	switch {
	case err != nil:
		return out, err
	case o.Cgroup == root:
	case o.Cgroup == "" && isMachinesNetwork():
		out.Cgroup = root
	default:
		out.HostCgroup = root
	}
	return out, nil
}

// isMachinesNetwork reports whether this is the network namespace of the
// machine's first process. If not, processes anywhere may belong to others.
func isMachinesNetwork() bool {
	own, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return false
	}
	first, err := os.Readlink("/proc/1/ns/net")
	return err == nil && own == first
}

// chosenDataplane is a data path and what is known of the choice.
type chosenDataplane struct {
	dataplane.Dataplane
	// name is DataplaneEBPF or DataplaneNFT, reason why, in words.
	name, reason string
	// packets has all or a part of it in nftables; bpf is nil without eBPF.
	packets *nft.Dataplane
	bpf     *ebpf.Dataplane
	// fresh is true where no earlier process has left anything that serves clients.
	fresh bool
}

// mode is the data path's name in kube-proxy's words.
func (c *chosenDataplane) mode() string {
	if c.name == DataplaneEBPF {
		return "ebpf"
	}
	return "nftables"
}

// chooseDataplane starts the data path that was asked for. With auto that is
// eBPF where it passes a trial, else nftables. Sockets may work where packets
// do not, which nftables serves then.
func chooseDataplane(ctx context.Context, logger *slog.Logger, want string, bpf BPFOptions, repairs *dataplane.RepairCounter) (*chosenDataplane, error) {
	c := &chosenDataplane{name: DataplaneNFT, reason: "--dataplane nft"}
	var o ebpf.Options
	if want != DataplaneNFT {
		var err error
		o, err = bpf.options(logger)
		o.Repairs, o.Types = repairs, btf.NewCache()
		if err == nil {
			err = ebpf.ProbeSockets(o)
		}
		if err == nil {
			c.name, c.reason = DataplaneEBPF, "sockets and packets pass their trial"
			if err := ebpf.ProbeIngress(ctx, o.Types); err != nil {
				c.reason = fmt.Sprintf("sockets pass their trial; packets are left to nftables: %v", err)
			} else {
				o.Ingress = true
			}
			c.bpf, err = ebpf.New(o)
		}
		switch {
		case err == nil:
		case want == DataplaneEBPF:
			return nil, fmt.Errorf("--dataplane ebpf: %w", err)
		default:
			c.name, c.reason = DataplaneNFT, err.Error()
		}
	}
	packets, err := nft.New(nft.Options{
		Logger: logger, Repairs: repairs,
		// What arrives at covered interfaces no program sees.
		OwnPackets: c.bpf != nil && o.Ingress && len(o.Covered) == 0,
	})
	if err != nil {
		if c.bpf != nil {
			err = errors.Join(err, c.bpf.Close())
		}
		return nil, err
	}
	c.fresh = !packets.Present() && (c.bpf == nil || c.bpf.Fresh())
	c.packets = packets
	switch {
	case c.bpf == nil:
		c.Dataplane = &dataplane.Successor{Dataplane: packets, Remove: func() error {
			return ebpf.Cleanup(ebpf.Options{Pins: bpf.Pins})
		}}
	case o.Ingress:
		c.Dataplane = dataplane.Stack{c.bpf, dataplane.Part{Dataplane: packets, Takes: ebpf.Remainder}}
	default:
		c.Dataplane = dataplane.Stack{c.bpf, packets}
	}
	logger.Info("data path", "is", c.name, "because", c.reason)
	return c, nil
}

// CleanupNode removes every packet rule, local route, program and map of the node role for
// this network namespace and puts back its kernel parameters. Of the options it
// needs Logger, BPF.Pins and RunDir, as the role had them. While one runs it
// changes nothing and fails.
func CleanupNode(o NodeOptions) error {
	return withoutNode(func() error {
		err := nft.Cleanup(nft.Options{Logger: o.Logger})
		if errors.Is(err, nft.ErrRuns) {
			return err
		}
		return errors.Join(
			err, ebpf.Cleanup(ebpf.Options{Pins: o.BPF.Pins}), localRoutes(nil), sysctl.Restore(o.RunDir),
		)
	})
}

// Disturbed implements dataplane.Glancer. All tables are nftables', also the one
// that eBPF needs.
func (c *chosenDataplane) Disturbed() (bool, error) {
	changed, disturbed, err := c.packets.Glance()
	if !changed || disturbed || err != nil || c.bpf == nil {
		return disturbed, err
	}
	return c.bpf.Disturbed()
}

// Traffic implements dataplane.TrafficCounter: eBPF counts, nftables does not.
func (c *chosenDataplane) Traffic() iter.Seq2[dataplane.TrafficPort, dataplane.Traffic] {
	return func(yield func(dataplane.TrafficPort, dataplane.Traffic) bool) {
		if c.bpf == nil {
			return
		}
		for p, n := range c.bpf.Traffic() {
			port := dataplane.TrafficPort{Service: p.Service, Name: p.Name, Protocol: p.Protocol, IPv6: p.IPv6}
			if !yield(port, dataplane.Traffic{Connections: n.Connections, Refused: n.Refused}) {
				return
			}
		}
	}
}
