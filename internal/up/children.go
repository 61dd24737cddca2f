package up

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"fairway.dev/fairway/internal/up/machine"
	"fairway.dev/fairway/internal/up/supervise"
)

// Roles of processes, as status shows them.
const (
	roleSupervisor = "supervisor"
	roleControl    = "control"
	roleKubelet    = "kubelet"
	roleNode       = "node"
	roleGateway    = "gateway"
	roleController = "controller"
)

// How long a process may take to end. The standalone ones have a limit of 15 s of their own.
const (
	standaloneGrace = 17 * time.Second
	roleGrace       = 10 * time.Second
)

// child is a process to be started: its role, its node, and its command line.
type child struct {
	role  string
	node  int // index in the list of nodes
	bin   string
	args  []string
	grace time.Duration
}

func (p *plan) control() child {
	first := p.nodes[0].Network
	return child{role: roleControl, bin: "fairway-standalone", grace: standaloneGrace, args: []string{
		"control",
		"--data-dir", p.o.DataDir,
		"--advertise-address", join(first.Addresses),
		"--secure-port", strconv.Itoa(p.o.APIPort),
		"--service-cidr", join(p.ranges.Service),
		"--cluster-domain", p.ranges.domain(),
	}}
}

// podCgroup is the cgroup of a node's Pods. The kubelet comes and goes, it stays: the data path has its programs on it.
func (p *plan) podCgroup(i int, cluster supervise.Cgroup) supervise.Cgroup {
	return cluster.Sub("pods-" + p.nodes[i].Name)
}

// kubelet puts the Pods' cgroups beside its own, so that ending ours ends them, however the kubelet itself ended.
func (p *plan) kubelet(i int, cgroup supervise.Cgroup) child {
	node := p.nodes[i]
	args := []string{
		"node",
		"--data-dir", p.o.DataDir,
		"--node-name", node.Name,
		"--kubeconfig", dir(p.o.DataDir).nodeKubeconfig(),
		"--node-ip", join(node.IPs),
		"--pod-cidr", join(node.Network.PodCIDRs),
		"--cluster-cidr", join(slices.Concat(p.ranges.Pod, p.ranges.Service, p.ranges.Node, p.ranges.Pool)),
		"--cluster-dns", join(p.dns),
		"--cluster-domain", p.ranges.domain(),
	}
	if cgroup != "" {
		args = append(args, "--cgroup-parent", filepath.Join(filepath.Base(string(cgroup)), filepath.Base(string(p.podCgroup(i, cgroup)))))
	}
	if node.Zone != "" {
		args = append(args, "--zone", node.Zone)
	}
	for _, image := range p.o.Images {
		args = append(args, "--image", image)
	}
	for _, files := range p.o.ImageFiles {
		args = append(args, "--image-files", files)
	}
	return child{role: roleKubelet, node: i, bin: "fairway-standalone", grace: standaloneGrace, args: args}
}

// role is one of Fairway's own, run as in any cluster. Its ready file appears when it serves, and its time is kept new.
func (p *plan) role(name string, i int, args ...string) child {
	d := dir(p.o.DataDir)
	all := append([]string{name, "--kubeconfig", d.nodeKubeconfig()}, args...)
	all = append(all, "--ready-file", d.ready(name, p.nodes[i].Name))
	return child{role: name, node: i, bin: "fairway", grace: roleGrace, args: all}
}

func (p *plan) nodeRole(i int, cgroup supervise.Cgroup) child {
	args := []string{
		"--node-name", p.nodes[i].Name,
		"--cluster-cidr", join(p.ranges.Pod),
		"--service-cidr", join(p.ranges.Service),
		"--cluster-domain", p.ranges.domain(),
		"--dns-address", join(p.dns),
		"--dns-clients", join(p.ranges.Node), // node 1 speaks to the others from an address that its Node object lacks
		"--dataplane", p.o.Dataplane,
		"--bpf-dir", bpfDir(p.id),
		"--state-dir", dir(p.o.DataDir).nodeState(p.nodes[i].Name),
		"--run-dir", dir(p.o.DataDir).path("run"),
	}
	args = append(args, p.o.DNSFlags...)
	if cgroup != "" {
		args = append(args, "--cgroup", string(p.podCgroup(i, cgroup)), "--covered-interfaces", podInterfaces)
	}
	return p.role(roleNode, i, args...)
}

// podInterfaces is what the names of the interfaces to Pods begin with.
const podInterfaces = "fwp"

// bpfDir is where the nodes pin their programs and maps.
func bpfDir(id string) string { return "/sys/fs/bpf/fairway-" + id }

func (p *plan) gatewayRole() child {
	return p.role(roleGateway, 0,
		"--http-port", strconv.Itoa(p.o.HTTPPort),
		"--https-port", strconv.Itoa(p.o.HTTPSPort),
		"--node-name", p.nodes[0].Name,
		"--publish-address", join(p.nodes[0].IPs),
		"--state-dir", dir(p.o.DataDir).gatewayState(),
		"--cluster-domain", p.ranges.domain(),
	)
}

func (p *plan) controllerRole() child {
	return p.role(roleController, 0,
		"--lb-pool", p.ranges.poolFlag(),
		"--dns-address", join(p.dns),
		"--cluster-domain", p.ranges.domain(),
		"--gateway-port", fmt.Sprintf("%d,%d", p.o.HTTPPort, p.o.HTTPSPort),
		"--install-crds",
	)
}

// process makes a child's supervised process. onChange gets its status, also before the first start.
func (c *Cluster) process(ch child, ns *machine.Namespace, onChange func(supervise.Status)) (*supervise.Process, error) {
	d := dir(c.o.DataDir)
	name := c.plan.nodes[ch.node].Name
	cgroup := c.cgroup
	if cgroup != "" {
		cgroup = cgroup.Sub(file(ch.role, name))
	}
	ready := d.ready(ch.role, name)
	heartbeat := ""
	if ch.bin == "fairway" { // the standalone processes have no such file
		heartbeat = ready
	}
	return supervise.New(supervise.Options{
		Role: ch.role, Node: name,
		Path: filepath.Join(c.o.BinDir, ch.bin), Args: ch.args, Env: childEnv(),
		Log:    d.log(ch.role, name),
		Cgroup: cgroup,
		Launch: func(start func() error) error {
			// What the last run of it said is no longer true. A missing file is the usual case.
			_ = os.Remove(ready)
			return ns.Do(start)
		},
		Grace: ch.grace, Force: c.o.Force, Heartbeat: heartbeat,
		OnChange: onChange,
		Logger:   c.o.Logger,
	})
}

// systemPath are the directories in which kubelets look for mount and umount, and Pods for their commands.
const systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// childEnv is our environment without what would lead a child to another cluster, and with a PATH that has the machine's
// programs: cron and others start us with a poor one, or none.
func childEnv() []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "KUBECONFIG=") || strings.HasPrefix(v, "PATH=")
	})
	path := filepath.SplitList(os.Getenv("PATH"))
	for _, dir := range filepath.SplitList(systemPath) {
		if !slices.Contains(path, dir) {
			path = append(path, dir)
		}
	}
	return append(env, "PATH="+strings.Join(path, string(filepath.ListSeparator)))
}
