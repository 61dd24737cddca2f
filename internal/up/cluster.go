package up

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"fairway.dev/fairway/internal/up/machine"
	"fairway.dev/fairway/internal/up/supervise"
)

// verifyEvery is how often our packet rules are compared with what they should be.
const verifyEvery = 15 * time.Second

// Cluster is a standalone cluster. It runs once.
type Cluster struct {
	o      Options
	plan   *plan
	state  *stateFile
	cgroup supervise.Cgroup
	nodes  []*machine.Namespace
	// groups of processes in the order of starting; they are ended in the reverse order.
	groups []*group
}

// group are processes that are ended together.
type group struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	errs   []error
}

// New returns a cluster that Run starts. Nothing is touched before.
func New(o Options) (*Cluster, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	return &Cluster{o: o}, nil
}

// AlreadyRunningError says that the data directory is in use by a run of fairway.
type AlreadyRunningError struct {
	DataDir string
	PID     int
}

func (e *AlreadyRunningError) Error() string {
	return fmt.Sprintf("fairway is already running on %s (pid %d): see it with fairway status --data-dir %s, stop it with fairway down --data-dir %s",
		e.DataDir, e.PID, shellWord(e.DataDir), shellWord(e.DataDir))
}

// Run starts everything, calls OnReady, keeps everything running until ctx is done, and takes it all away again. It
// returns nil if it became ready and was ended by ctx.
func (c *Cluster) Run(ctx context.Context) error {
	if err := machine.Check(); err != nil {
		return err
	}
	d := dir(c.o.DataDir)
	if err := d.make(); err != nil {
		return err
	}
	release, err := d.acquire()
	if errors.Is(err, errLocked) {
		return &AlreadyRunningError{DataDir: c.o.DataDir, PID: d.holder().PID}
	}
	if err != nil {
		return err
	}
	defer release()
	if err := clearCrashed(ctx, d, c.o.Progress); err != nil {
		return fmt.Errorf("clearing what a run before left behind: %w", err)
	}
	if err := d.checkSpace(); err != nil {
		return err
	}
	node1, err := machine.Current()
	if err != nil {
		return err
	}
	defer node1.Close()
	began := time.Now()
	err = c.start(ctx, node1)
	if err == nil {
		c.announce(time.Since(began))
		network := c.plan.network(c.state)
		var keepers sync.WaitGroup
		keepers.Go(func() { node1.KeepRoutes(ctx, network, verifyEvery, c.o.Logger) })
		keepers.Go(func() { node1.KeepMasquerade(ctx, network, verifyEvery, c.o.Logger) })
		keepers.Wait()
	} else if ctx.Err() != nil {
		err = errors.New("interrupted before everything was ready")
	}
	return errors.Join(err, c.stop())
}

// start brings everything up in order. What it made before an error is in the state file, for stop.
func (c *Cluster) start(ctx context.Context, node1 *machine.Namespace) error {
	done := c.o.Progress.Step("preparing the machine")
	err := c.prepare(node1)
	if err != nil {
		done("")
		return err
	}
	done("machine prepared")
	c.warnOfFirewall(node1)
	if err := node1.Do(func() error { return udpTaken(c.o) }); err != nil {
		c.o.Progress.Note("HTTP/3 is not served, as UDP port %d for the gateway is taken (%v): stop what has it (ss -lunp shows it), or choose another with --https-port", c.o.HTTPSPort, err)
	}

	d := dir(c.o.DataDir)
	control := c.newGroup()
	if err := c.startAndWait(ctx, control, c.plan.control(), "kubernetes API", c.apiReady(d.kubeconfig())); err != nil {
		return err
	}
	if err := c.forgetNodes(ctx, d.kubeconfig()); err != nil {
		return err
	}
	kubelets, roles := c.newGroup(), c.newGroup()
	together, ctx := errgroup.WithContext(ctx)
	for i, node := range c.plan.nodes {
		together.Go(func() error {
			ready := c.nodeReady(d.kubeconfig(), node.Name, time.Now())
			return c.startAndWait(ctx, kubelets, c.plan.kubelet(i, c.cgroup), node.Name, ready)
		})
		together.Go(func() error {
			return c.startAndWait(ctx, roles, c.plan.nodeRole(i, c.cgroup), "services on "+node.Name, fileExists(d.ready(roleNode, node.Name)))
		})
	}
	first := c.plan.nodes[0].Name
	together.Go(func() error {
		return c.startAndWait(ctx, roles, c.plan.controllerRole(), "controller", fileExists(d.ready(roleController, first)))
	})
	together.Go(func() error {
		return c.startAndWait(ctx, roles, c.plan.gatewayRole(), "gateway", fileExists(d.ready(roleGateway, first)))
	})
	return together.Wait()
}

// prepare decides on everything, writes the state file and builds the network.
func (c *Cluster) prepare(node1 *machine.Namespace) error {
	d := dir(c.o.DataDir)
	remembered, err := d.readRanges()
	if err != nil {
		return err
	}
	if c.plan, err = newPlan(c.o, node1, remembered); err != nil {
		return err
	}
	if err := d.writeRanges(c.plan.ranges); err != nil {
		return err
	}
	self, err := supervise.Identify(os.Getpid())
	if err != nil {
		return err
	}
	c.cgroup = makeCgroup(c.plan.id)
	if c.cgroup == "" {
		c.o.Logger.Warn("cgroups cannot be made here; processes that leave their parents will not be found when they are ended")
	}
	for i := range c.plan.nodes {
		if c.cgroup == "" {
			break
		}
		if err := c.plan.podCgroup(i, c.cgroup).Make(); err != nil {
			return fmt.Errorf("cgroup of the Pods of %s: %w", c.plan.nodes[i].Name, err)
		}
	}
	state := &stateFile{path: d.state()}
	err = state.update(func(s *State) {
		*s = State{
			Version: stateVersion, ID: c.plan.id, DataDir: c.o.DataDir, Phase: Starting, Started: time.Now(),
			Supervisor: self, BootID: bootID(), NamespaceInode: node1.Inode(), Cgroup: c.cgroup, BinDir: c.o.BinDir,
			Nodes: c.plan.nodes, Addresses: c.plan.addresses(), ClusterDomain: c.plan.ranges.domain(),
		}
	})
	if err != nil {
		return err
	}
	c.state = state
	if c.nodes, err = machine.Build(node1, c.plan.network(c.state)); err != nil {
		return err
	}
	// A kubelet that is killed cannot take this away; in the other nodes' namespaces it goes with them.
	return c.state.Record(machine.Thing{Kind: machine.KindTable, Name: podNetworkTable})
}

// podNetworkTable is the nftables table of the nodes' Pod network.
const podNetworkTable = "fairway-podnet"

// warnOfFirewall tells of what may lose the Pods' packets. It is not ours to change.
func (c *Cluster) warnOfFirewall(node1 *machine.Namespace) {
	droppers, err := node1.ForwardDroppers()
	if err != nil {
		c.o.Logger.Warn("the machine's firewall cannot be read", "error", err)
	}
	for _, d := range droppers {
		c.o.Progress.Note("the firewall (nftables %s) drops forwarded packets by default: let those from and to the interfaces fairway* and fwp* pass, else Pods cannot talk", d)
	}
}

// makeCgroup returns the cgroup for all children, or "" where none can be made.
func makeCgroup(id string) supervise.Cgroup {
	cgroup := supervise.Cgroup(machine.CgroupRoot()).Sub("fairway-" + id)
	if err := cgroup.Make(); err != nil {
		return ""
	}
	return cgroup
}

func (c *Cluster) newGroup() *group {
	g := &group{}
	c.groups = append(c.groups, g)
	return g
}

// launch starts a child in the group and records its state from then on.
func (c *Cluster) launch(g *group, ch child) (*supervise.Process, error) {
	index := -1
	onChange := func(status supervise.Status) {
		err := c.state.update(func(s *State) {
			if index < 0 {
				index = len(s.Processes)
				s.Processes = append(s.Processes, status)
				return
			}
			s.Processes[index] = status
		})
		if err != nil {
			c.o.Logger.Error("state of a process not recorded", "role", status.Role, "node", status.Node, "error", err)
		}
	}
	p, err := c.process(ch, c.nodes[ch.node], onChange)
	if err != nil {
		return nil, err
	}
	g.run(p)
	return p, nil
}

// run starts the process in the background.
func (g *group) run(p *supervise.Process) {
	g.mu.Lock()
	defer g.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	earlier := g.cancel
	g.cancel = func() {
		cancel()
		if earlier != nil {
			earlier()
		}
	}
	g.wg.Go(func() {
		if err := p.Run(ctx); err != nil {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.errs = append(g.errs, fmt.Errorf("ending %s: %w", p.Name(), err))
		}
	})
}

// stop ends the group's processes and waits for them.
func (g *group) stop() error {
	g.mu.Lock()
	cancel := g.cancel
	g.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	g.wg.Wait()
	return errors.Join(g.errs...)
}

// stop takes everything away that start made, in the reverse order.
func (c *Cluster) stop() error {
	if c.state == nil {
		return nil // nothing was made
	}
	errs := []error{c.state.update(func(s *State) { s.Phase = Stopping })}
	if len(c.groups) > 0 {
		done := c.o.Progress.Step("stopping")
		for i := len(c.groups) - 1; i >= 0; i-- {
			errs = append(errs, c.groups[i].stop())
		}
		done("processes stopped")
	}
	// Their threads must not end before the children that were started from them.
	for i := 1; i < len(c.nodes); i++ {
		c.nodes[i].Close()
	}
	state := c.state.snapshot()
	done := c.o.Progress.Step("restoring the machine")
	notes, err := clean(context.Background(), dir(c.o.DataDir), &state)
	for _, note := range notes {
		c.o.Progress.Note("%v", note)
	}
	if err := errors.Join(append(errs, err)...); err != nil {
		done("")
		return err
	}
	done("machine restored")
	return nil
}
