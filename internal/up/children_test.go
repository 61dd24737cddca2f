package up

import (
	"slices"
	"testing"
)

// The node roles get the flags of DNS; no other role does.
func TestDNSFlagsOfNodes(t *testing.T) {
	p := &plan{o: Options{DataDir: "/data", Dataplane: "nft", DNSFlags: []string{"--dns-log=all", "--dns-clients=192.0.2.0/24"}}, nodes: []Node{{Name: "node-1"}, {Name: "node-2"}}}
	for i := range p.nodes {
		args := p.nodeRole(i, "").args
		at := slices.Index(args, "--dns-log=all")
		if at < 0 || args[at+1] != "--dns-clients=192.0.2.0/24" {
			t.Errorf("node %d: %q", i, args)
		}
	}
	if args := p.controllerRole().args; slices.Contains(args, "--dns-log=all") {
		t.Errorf("controller: %q", args)
	}
}
