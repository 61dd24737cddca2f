package nft

import (
	"encoding/json"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
)

// everyShape returns settings and Services that together make every fixed
// chain, every kind of picking chain and elements in every set.
func everyShape() (dataplane.Node, []plan.Service) {
	settings := dataplane.Node{
		Cluster:       prefixes("10.244.0.0/16", "fd00:10:244::/56"),
		LocalPods:     prefixes("10.244.0.0/24", "fd00:10:244::/64"),
		Services:      prefixes("10.96.0.0/16", "fd00:10:96::/112"),
		NodePorts:     prefixes("192.0.2.0/24", "2001:db8::/64"),
		PodInterfaces: []string{"cali", "veth"},
		TLSProxy:      []netip.AddrPort{netip.MustParseAddrPort("10.245.0.1:8443"), netip.MustParseAddrPort("[fd00:10:245::1]:8443")},
	}
	endpoint := func(addr, node string) model.Endpoint {
		return model.Endpoint{
			Addr: netip.MustParseAddr(addr), Ready: true, Serving: true, Node: node,
			Ports: []model.EndpointPort{{Name: "web", Protocol: model.TCP, Port: 8080}, {Name: "dns", Protocol: model.UDP, Port: 53}},
		}
	}
	all := []model.Endpoint{
		endpoint("10.244.0.2", "node-1"), endpoint("10.244.0.3", "node-1"), endpoint("10.244.1.2", "node-2"),
		endpoint("fd00:10:244::2", "node-1"), endpoint("fd00:10:244::3", "node-1"), endpoint("fd00:10:244:1::2", "node-2"),
	}
	own := []netip.AddrPort{netip.MustParseAddrPort("10.244.0.2:53"), netip.MustParseAddrPort("[fd00:10:244::2]:53")}
	hinted := func(e model.Endpoint) model.Endpoint {
		e.Hints = &model.Hints{Nodes: []string{e.Node}}
		return e
	}
	service := func(i byte, edit func(*model.Service), endpoints ...model.Endpoint) plan.Service {
		v6 := netip.MustParseAddr("fd00:10:96::").As16()
		v6[15] = i
		svc := &model.Service{
			Key: model.Key{Namespace: "ns", Name: string('a' + rune(i))}, Type: model.LoadBalancer, IPv4: true, IPv6: true,
			ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, i}), netip.AddrFrom16(v6)},
			Ports: []model.ServicePort{
				{Name: "web", Protocol: model.TCP, Port: 80, NodePort: 30000 + uint16(i)},
				{Name: "dns", Protocol: model.UDP, Port: 53, NodePort: 30100 + uint16(i)},
			},
		}
		v6[4] = 1
		for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{198, 51, 100, i}), netip.AddrFrom16(v6)} {
			svc.LoadBalancer.Ingress = append(svc.LoadBalancer.Ingress, model.LoadBalancerIngress{Addr: a})
		}
		if edit != nil {
			edit(svc)
		}
		return plan.Compile(plan.Input{
			Service: svc, Endpoints: &model.EndpointSet{Key: svc.Key, Endpoints: endpoints}, Node: &model.Node{Name: "node-1"},
			CertificateReady: svc.TLS != nil, Options: plan.Options{ExternalIPs: true, TLSProxy: settings.TLSProxy, OwnServer: own},
		})
	}
	local := func(s *model.Service) { s.ExternalLocal, s.InternalLocal = true, true }
	return settings, []plan.Service{
		service(1, nil, all...),
		service(2, nil),
		service(3, local, all...),
		service(4, local, all[2], all[5]),
		service(5, func(s *model.Service) { s.AffinityTimeout = 3 * time.Hour; s.ExternalLocal = true }, all...),
		service(6, func(s *model.Service) {
			s.LoadBalancer.SourceRanges = prefixes("203.0.113.0/24", "0.0.0.0/1", "2001:db8:9::/48")
		}, all[0], all[3]),
		service(7, func(s *model.Service) { s.TLS = &model.ServiceTLS{} }, all...),
		service(8, func(s *model.Service) { s.ExternalIPs = []netip.Addr{netip.MustParseAddr("192.0.2.8")} }, all...),
		service(9, nil, hinted(all[0]), hinted(all[2]), hinted(all[3]), hinted(all[5])),
	}
}

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

// TestListing has programs of others list our tables next to somebody else's:
// libnftables (nft, firewalld) gives up on all tables of a network namespace if
// it cannot make sense of one rule.
func TestListing(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("there is no nft program (Debian package nftables)")
	}
	n := newNode(t)
	n.ns.Run("nft", "add table inet others; add chain inet others c; add rule inet others c tcp dport 4711 counter drop")
	settings, services := everyShape()
	if err := n.dp.SetNode(t.Context(), settings); err != nil {
		t.Fatal(err)
	}
	n.put(services...)
	direct := []netip.AddrPort{netip.MustParseAddrPort("10.96.0.9:10053"), netip.MustParseAddrPort("[fd00:10:96::9]:10053")}
	if err := n.dp.Pulse(time.Hour, nil, direct); err != nil {
		t.Fatal(err)
	}
	have := n.kernel()
	for _, f := range []fam{v4, v6} {
		for id := range setCount {
			filled := false
			for e := range have {
				filled = filled || e.fam == f && e.set == id
			}
			if !filled && !id.packets() {
				t.Errorf("set %s of %s is empty", id, n.dp.kernel.families[f].label())
			}
		}
	}
	for _, command := range []string{
		"nft list tables", "nft list ruleset", "nft -a -n -y list ruleset", "nft -j list ruleset", "nft -s list chains", "nft list maps",
		"nft list table ip fairway", "nft list table ip6 fairway",
		"nft list table ip fairway-own-server", "nft list map ip fairway frontends", "nft list chain ip6 fairway postrouting",
		"iptables-nft-save", "ip6tables-nft-save", "iptables-nft -t nat -S",
	} {
		t.Run(command, func(t *testing.T) {
			words := strings.Fields(command)
			if _, err := exec.LookPath(words[0]); err != nil {
				t.Skip("there is no " + words[0])
			}
			var stderr strings.Builder
			cmd := n.ns.Command(words[0], words[1:]...)
			cmd.Stderr = &stderr
			printed, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, &stderr)
			}
			out := string(printed)
			// nft 1.0.6 has no JSON for a statement that updates a map, and says so.
			isJSON := strings.HasPrefix(command, "nft -j")
			if stderr.Len() > 0 && !isJSON {
				t.Errorf("it says: %s", &stderr)
			}
			if bad := regexp.MustCompile(`(?i).{0,40}(error|unknown|\[invalid|mismatch|assert).{0,40}`).FindAllString(out, -1); len(bad) > 0 {
				t.Errorf("it does not understand: %q", bad)
			}
			if strings.HasSuffix(command, "ruleset") {
				for _, want := range []string{"4711", "fairway", "2001:db8::", untrackedQueries} {
					if !strings.Contains(out, want) {
						t.Errorf("the listing lacks %s", want)
					}
				}
			}
			if isJSON && !json.Valid([]byte(out)) {
				t.Errorf("not JSON: %s", out)
			}
		})
	}
}
