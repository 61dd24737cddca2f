package up

import (
	"slices"
	"strings"
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

func TestChildrenHaveAPath(t *testing.T) {
	for given, want := range map[string]string{
		"":                        systemPath,
		"/opt/bin:/usr/bin":       "/opt/bin:/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:/bin",
		systemPath + ":/snap/bin": systemPath + ":/snap/bin",
	} {
		t.Setenv("PATH", given)
		t.Setenv("KUBECONFIG", "/elsewhere")
		var got []string
		for _, v := range childEnv() {
			if strings.HasPrefix(v, "PATH=") || strings.HasPrefix(v, "KUBECONFIG=") {
				got = append(got, v)
			}
		}
		if len(got) != 1 || got[0] != "PATH="+want {
			t.Errorf("with PATH %q children have %q", given, got)
		}
	}
}
