package up

import (
	"cmp"
	"fmt"
	"net/url"
	"strconv"

	"fairway.dev/fairway/internal/up/machine"
)

// Nodes lets other programs look at the nodes of a running cluster.
type Nodes struct {
	state *State
}

// OpenNodes returns the nodes of the cluster that runs with the data directory,
// or nil when none does.
func OpenNodes(dataDir string) (*Nodes, error) {
	state, err := dir(dataDir).readState()
	if err != nil || state == nil || len(state.Nodes) == 0 {
		return nil, err
	}
	return &Nodes{state}, nil
}

// First returns the name of the first node, which lives where fairway up was started.
func (n *Nodes) First() string { return n.state.Nodes[0].Name }

// GatewayPort returns the port that the gateway has for a scheme, http or https.
func (n *Nodes) GatewayPort(scheme string) (uint16, error) {
	for _, address := range n.state.Addresses.Gateway {
		u, err := url.Parse(address)
		if err != nil || u.Scheme != scheme {
			continue
		}
		if u.Port() == "" {
			return map[string]uint16{"http": 80, "https": 443}[scheme], nil
		}
		port, err := strconv.ParseUint(u.Port(), 10, 16)
		return uint16(port), err
	}
	return 0, fmt.Errorf("the record of the run names no address of the gateway for %s", scheme)
}

// Domain returns the domain of the cluster's names.
func (n *Nodes) Domain() string { return cmp.Or(n.state.ClusterDomain, DefaultClusterDomain) }

// Do runs f in the network namespace of a node.
func (n *Nodes) Do(node string, f func() error) error {
	for i, candidate := range n.state.Nodes {
		if candidate.Name != node {
			continue
		}
		var ns *machine.Namespace
		var err error
		if i == 0 {
			ns, err = machine.Find(n.state.NamespaceInode)
		} else {
			ns, err = machine.OpenPath("/run/netns/" + namespaceName(n.state.ID, node))
		}
		if err != nil {
			return fmt.Errorf("network namespace of %s: %w", node, err)
		}
		if ns == nil {
			return fmt.Errorf("the network namespace of %s is gone", node)
		}
		defer ns.Close()
		return ns.Do(f)
	}
	return fmt.Errorf("node %s is none of this machine's", node)
}

// namespaceName is what the network namespace of a further node is called.
func namespaceName(id, node string) string { return fmt.Sprintf("fairway-%s-%s", id, node) }
