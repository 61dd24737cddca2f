package up

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"fairway.dev/fairway/internal/up/machine"
)

// resolvConf says which nameservers the machine uses.
const resolvConf = "/etc/resolv.conf"

// plan is everything decided before the machine is touched.
type plan struct {
	o      Options
	id     string
	ranges Ranges
	nodes  []Node
	dns    []netip.Addr
}

// newPlan looks at the machine and decides. It changes nothing.
func newPlan(o Options, node1 *machine.Namespace, remembered *Ranges) (*plan, error) {
	if err := checkOwner(node1, o.DataDir); err != nil {
		return nil, err
	}
	occupied, err := node1.Occupied(resolvConf)
	if err != nil {
		return nil, err
	}
	p := &plan{o: o, id: dir(o.DataDir).id()}
	if p.ranges, err = chooseRanges(o, remembered, occupied, node1.HasIPv6()); err != nil {
		return nil, err
	}
	if p.nodes, err = layout(o, p.ranges, p.id, node1.Primary()); err != nil {
		return nil, err
	}
	if p.dns, err = fixedAddresses(p.ranges, 10); err != nil {
		return nil, err
	}
	return p, node1.Do(func() error { return checkPorts(o) })
}

// alias is what our interfaces say about whose they are; see checkOwner.
func alias(dataDir string) string {
	const most = 255 // IFALIASZ - 1
	text := "fairway up --data-dir " + dataDir
	return text[:min(len(text), most)]
}

// checkOwner refuses a network namespace that another cluster lives in.
func checkOwner(node1 *machine.Namespace, dataDir string) error {
	owner, exists := node1.Owner()
	if !exists {
		return nil
	}
	other, ours := strings.CutPrefix(owner, alias(""))
	switch {
	case !ours:
		return fmt.Errorf("this network namespace has an interface %s that fairway up did not make: remove it with ip link del %s",
			machine.OwnInterface, machine.OwnInterface)
	case owner == alias(dataDir):
		return fmt.Errorf("this network namespace has an interface %s of a run on %s whose records are gone: remove it with ip link del %s",
			machine.OwnInterface, dataDir, machine.OwnInterface)
	}
	return fmt.Errorf("this network namespace already has a cluster, that with the data directory %s, and there can be one in each: "+
		"stop it with fairway down --data-dir %s, or start this one in a namespace of its own", other, shellWord(other))
}

// checkPorts refuses ports that somebody listens on. It runs in node 1's namespace.
func checkPorts(o Options) error {
	var errs []error
	for _, l := range o.ports() {
		socket, err := net.Listen("tcp", ":"+strconv.Itoa(l.port))
		if err != nil {
			errs = append(errs, fmt.Errorf("TCP port %d for %s is taken (%w): choose another with %s, or stop what listens there (ss -ltnp shows it)",
				l.port, l.what, err, l.flag))
			continue
		}
		socket.Close()
	}
	return errors.Join(errs...)
}

// udpTaken says why the gateway cannot serve HTTP/3, which nobody depends on; nil if it can. It runs in node 1's namespace.
func udpTaken(o Options) error {
	socket, err := net.ListenPacket("udp", ":"+strconv.Itoa(o.HTTPSPort))
	if err == nil {
		err = socket.Close()
	}
	return err
}

// addresses tells where the cluster will be reachable.
func (p *plan) addresses() Addresses {
	port := strconv.Itoa(p.o.APIPort)
	first := p.nodes[0]
	a := Addresses{DNS: p.dns, Nodes: map[string][]netip.Addr{}, API: []string{"https://127.0.0.1:" + port}}
	for _, addr := range first.Network.Addresses {
		a.API = append(a.API, "https://"+net.JoinHostPort(addr.String(), port))
	}
	for _, ip := range first.IPs {
		a.Gateway = append(a.Gateway, gatewayURL("http", 80, ip, p.o.HTTPPort), gatewayURL("https", 443, ip, p.o.HTTPSPort))
	}
	for _, node := range p.nodes {
		a.Nodes[node.Name] = node.IPs
	}
	a.Pool = strings.Split(p.ranges.poolFlag(), ",")
	return a
}

// gatewayURL leaves out the port that everybody assumes.
func gatewayURL(scheme string, usual int, ip netip.Addr, port int) string {
	if port != usual {
		return scheme + "://" + net.JoinHostPort(ip.String(), strconv.Itoa(port))
	}
	if ip.Is6() {
		return scheme + "://[" + ip.String() + "]"
	}
	return scheme + "://" + ip.String()
}

// network is what the machine is asked to build.
func (p *plan) network(journal machine.Journal) machine.Options {
	var nodes []machine.Node
	for _, n := range p.nodes {
		nodes = append(nodes, n.Network)
	}
	return machine.Options{
		Journal: journal, Alias: alias(p.o.DataDir), Nodes: nodes,
		PodCIDRs: p.ranges.Pod, NodeCIDRs: p.ranges.Node,
		ServiceCIDRs: append(append([]netip.Prefix{}, p.ranges.Service...), p.ranges.Pool...),
	}
}
