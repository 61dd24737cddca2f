package up

import (
	"slices"
	"strings"
	"testing"
)

// Every role that knows names of the cluster is told their domain.
func TestDomainOfRoles(t *testing.T) {
	p := &plan{o: Options{DataDir: "/data", Dataplane: "nft"}, nodes: []Node{{Name: "node-1"}}, ranges: Ranges{Domain: "k8s.example"}}
	for _, c := range []child{p.control(), p.kubelet(0, ""), p.nodeRole(0, ""), p.controllerRole(), p.gatewayRole()} {
		if at := slices.Index(c.args, "--cluster-domain"); at < 0 || c.args[at+1] != "k8s.example" {
			t.Errorf("%s: %q", c.role, c.args)
		}
	}
}

func TestCheckDomain(t *testing.T) {
	for domain, good := range map[string]bool{
		"cluster.local": true, "k8s": true, "a-1.example": true, strings.Repeat("a.", 60) + "a": true,
		"": false, "cluster.local.": false, ".local": false, "a..b": false, "K8s.example": false, "-a.example": false, "a_b.example": false,
		strings.Repeat("a", 64) + ".example": false, strings.Repeat("a.", 60) + "aa": false,
	} {
		if err := checkDomain(domain); (err == nil) != good {
			t.Errorf("%q: %v", domain, err)
		}
	}
}
