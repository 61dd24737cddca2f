package agent

import "fmt"

// troubleTime is how these sentences say when something was.
const troubleTime = "2006-01-02 15:04:05 MST"

// troubles are sentences about what is wrong on this node, for fairway status.
func (n *node) troubles() []string {
	var list []string
	if n.problems != nil {
		list = n.problems.repairs()
	}
	if n.stateFailing != nil {
		if f := n.stateFailing(); f != nil {
			list = append(list, fmt.Sprintf("what this node knows cannot be written to --state-dir %s since %s, so that names of the cluster would fail should it start while the API is away: %v; free space there, or give another directory",
				n.StateDir, f.Since.UTC().Format(troubleTime), f.Err))
		}
	}
	if why := n.refused.Load(); why != nil {
		list = append(list, fmt.Sprintf("the Corefile cannot be read, and %s: %s", n.corefileStays(), *why))
	}
	if n.silent == nil {
		return list
	}
	for _, s := range n.silent() {
		const cure = "give others with --dns-upstream, in the Corefile or in /etc/resolv.conf of the machine"
		if s.Since.IsZero() {
			list = append(list, fmt.Sprintf("the upstream name server %s leads back to this node's DNS and is not asked any more; %s", s.Server, cure))
			continue
		}
		list = append(list, fmt.Sprintf("the upstream name server %s has not answered since %s, so that what is asked of it depends on others, or gets SERVFAIL; see that it runs and can be reached from the node, or %s",
			s.Server, s.Since.UTC().Format(troubleTime), cure))
	}
	return list
}
