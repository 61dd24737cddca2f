package plan

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairway.dev/fairway/internal/model"
)

// show writes a frontend in one line.
func show(f Frontend) string {
	s := fmt.Sprintf("%s %s/%s -> %s", f.Kind, netip.AddrPortFrom(f.Addr, f.Port), f.Protocol, showPool(f.Internal))
	if f.Split() {
		s += " | " + showPool(f.External)
	}
	if f.Restricted {
		s += fmt.Sprint(" from ", f.SourceRanges)
	}
	if len(f.Serving) > 0 {
		s += fmt.Sprint(" serving ", f.Serving)
	}
	if f.AffinityTimeout > 0 {
		s += " sticky " + f.AffinityTimeout.String()
	}
	return s
}

func showPool(p Pool) string {
	s := p.Action.String()
	for _, b := range p.Backends {
		s += " " + b.String()
	}
	return s
}

func TestCompile(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	both := []string{"10.0.0.1 ready local", "fd00::1 ready"}
	tests := []struct {
		name      string
		edit      func(s *model.Service, in *Input)
		endpoints []string
		want      []string
		problems  []string
	}{{
		name:      "cluster IP and node port",
		endpoints: both,
		want:      []string{"ClusterIP 10.96.0.7:80/TCP -> forward 10.0.0.1:80", "NodePort 0.0.0.0:30080/TCP -> forward 10.0.0.1:80"},
	}, {
		name: "dual stack: each family its own endpoints",
		edit: func(s *model.Service, in *Input) {
			s.ClusterIPs = append(s.ClusterIPs, addr("fd00:96::7"))
		},
		endpoints: both,
		want: []string{
			"ClusterIP 10.96.0.7:80/TCP -> forward 10.0.0.1:80", "NodePort 0.0.0.0:30080/TCP -> forward 10.0.0.1:80",
			"ClusterIP [fd00:96::7]:80/TCP -> forward [fd00::1]:80", "NodePort [::]:30080/TCP -> forward [fd00::1]:80",
		},
	}, {
		name: "one family without endpoints is rejected",
		edit: func(s *model.Service, in *Input) {
			s.ClusterIPs = append(s.ClusterIPs, addr("fd00:96::7"))
			s.Ports[0].NodePort = 0
		},
		endpoints: []string{"10.0.0.1 ready"},
		want:      []string{"ClusterIP 10.96.0.7:80/TCP -> forward 10.0.0.1:80", "ClusterIP [fd00:96::7]:80/TCP -> reject"},
	}, {
		name: "load balancer: VIPs only, of the Service's families, usable ones",
		edit: func(s *model.Service, in *Input) {
			s.Ports[0].NodePort = 0
			s.LoadBalancer.Ingress = []model.LoadBalancerIngress{
				{Addr: addr("192.0.2.1")}, {Addr: addr("192.0.2.2"), Proxy: true}, {Addr: addr("2001:db8::1")}, {Addr: addr("::ffff:192.0.2.3")}, {Addr: addr("127.0.0.1")},
			}
		},
		endpoints: both,
		want: []string{
			"ClusterIP 10.96.0.7:80/TCP -> forward 10.0.0.1:80",
			"LoadBalancer 192.0.2.1:80/TCP -> forward 10.0.0.1:80",
			"LoadBalancer 192.0.2.3:80/TCP -> forward 10.0.0.1:80",
		},
		problems: []string{
			"Service ns/svc: status.loadBalancer.ingress: the Service has no cluster IP of family IPv6, that of 2001:db8::1 (spec.ipFamilyPolicy), so that it is not served; have the load balancer that wrote it give another one",
			"Service ns/svc: status.loadBalancer.ingress: 127.0.0.1 is a loopback address, so that it is not served; have the load balancer that wrote it give another one",
		},
	}, {
		name: "external IPs that cannot be are left out and said, each",
		edit: func(s *model.Service, in *Input) {
			s.Ports[0].NodePort = 0
			for _, a := range []string{"127.0.0.9", "169.254.0.1", "224.0.0.1", "0.0.0.0", "0.0.0.1", "255.255.255.255", "192.0.2.9"} {
				s.ExternalIPs = append(s.ExternalIPs, addr(a))
			}
			in.Options.ExternalIPs = true
		},
		endpoints: both,
		want:      []string{"ClusterIP 10.96.0.7:80/TCP -> forward 10.0.0.1:80", "ExternalIP 192.0.2.9:80/TCP -> forward 10.0.0.1:80"},
		problems: []string{
			"Service ns/svc: spec.externalIPs: 127.0.0.9 is a loopback address, so that it is not served; write an address that is routed to the nodes",
			"Service ns/svc: spec.externalIPs: 169.254.0.1 is a link-local address, so that it is not served; write an address that is routed to the nodes",
			"Service ns/svc: spec.externalIPs: 224.0.0.1 is a multicast address, so that it is not served; write an address that is routed to the nodes",
			"Service ns/svc: spec.externalIPs: 0.0.0.0 is the unspecified address, so that it is not served; write an address that is routed to the nodes",
			"Service ns/svc: spec.externalIPs: 0.0.0.1 is of 0.0.0.0/8, which no packet is sent to, so that it is not served; write an address that is routed to the nodes",
			"Service ns/svc: spec.externalIPs: 255.255.255.255 is the broadcast address, so that it is not served; write an address that is routed to the nodes",
		},
	}, {
		name:      "no ports",
		edit:      func(s *model.Service, in *Input) { s.Ports = nil },
		endpoints: both,
		problems:  []string{"Service ns/svc: spec.ports: the Service has no port that can be served, so that nothing is served; give it at least one port, or make it headless (clusterIP: None)"},
	}, {
		name:      "no ports, headless: fine",
		edit:      func(s *model.Service, in *Input) { s.Ports, s.Headless, s.ClusterIPs = nil, true, nil },
		endpoints: both,
	}, {
		name: "external traffic policy Local",
		edit: func(s *model.Service, in *Input) {
			s.ExternalLocal = true
			s.LoadBalancer.Ingress = []model.LoadBalancerIngress{{Addr: addr("192.0.2.1")}}
			s.ExternalIPs = []netip.Addr{addr("192.0.2.9"), addr("2001:db8::9")}
			in.Options.ExternalIPs = true
		},
		endpoints: []string{"10.0.0.1 ready local", "10.0.0.2 ready"},
		want: []string{
			"ClusterIP 10.96.0.7:80/TCP -> forward 10.0.0.1:80 10.0.0.2:80",
			"NodePort 0.0.0.0:30080/TCP -> forward 10.0.0.1:80 10.0.0.2:80 | forward 10.0.0.1:80",
			"LoadBalancer 192.0.2.1:80/TCP -> forward 10.0.0.1:80 10.0.0.2:80 | forward 10.0.0.1:80",
			"ExternalIP 192.0.2.9:80/TCP -> forward 10.0.0.1:80 10.0.0.2:80 | forward 10.0.0.1:80",
		},
		problems: []string{"Service ns/svc: spec.externalIPs: the Service has no cluster IP of family IPv6, that of 2001:db8::9 (spec.ipFamilyPolicy), so that it is not served; write an address that is routed to the nodes"},
	}, {
		name: "both policies Local, nobody here",
		edit: func(s *model.Service, in *Input) {
			s.ExternalLocal, s.InternalLocal = true, true
		},
		endpoints: []string{"10.0.0.2 ready"},
		want: []string{
			"ClusterIP 10.96.0.7:80/TCP -> drop",
			"NodePort 0.0.0.0:30080/TCP -> forward 10.0.0.2:80 | drop",
		},
	}, {
		name: "external IPs switched off are said",
		edit: func(s *model.Service, in *Input) {
			s.Ports[0].NodePort = 0
			s.ExternalIPs = []netip.Addr{addr("192.0.2.9")}
		},
		endpoints: both,
		want:      []string{"ClusterIP 10.96.0.7:80/TCP -> forward 10.0.0.1:80"},
		problems:  []string{"Service ns/svc: spec.externalIPs: external IPs are switched off on this cluster; use type LoadBalancer, or have the administrator switch them on"},
	}, {
		name: "same number, two protocols",
		edit: func(s *model.Service, in *Input) {
			s.Ports = []model.ServicePort{{Name: "a", Protocol: model.TCP, Port: 53}, {Name: "b", Protocol: model.UDP, Port: 53}}
			in.Endpoints.Endpoints[0].Ports = []model.EndpointPort{{Name: "a", Protocol: model.TCP, Port: 53}, {Name: "b", Protocol: model.UDP, Port: 5353}}
		},
		endpoints: both,
		want:      []string{"ClusterIP 10.96.0.7:53/TCP -> forward 10.0.0.1:53", "ClusterIP 10.96.0.7:53/UDP -> forward 10.0.0.1:5353 serving [10.0.0.1:5353]"},
	}, {
		name: "UDP flows may go on to whoever serves",
		edit: func(s *model.Service, in *Input) {
			s.Ports = []model.ServicePort{{Protocol: model.UDP, Port: 53}}
			s.InternalLocal = true
			for i := range in.Endpoints.Endpoints {
				in.Endpoints.Endpoints[i].Ports = []model.EndpointPort{{Protocol: model.UDP, Port: 53}}
			}
		},
		endpoints: []string{"10.0.0.4 serving terminating", "10.0.0.1 ready local", "10.0.0.2 ready", "10.0.0.3", "10.0.0.5 terminating"},
		want:      []string{"ClusterIP 10.96.0.7:53/UDP -> forward 10.0.0.1:53 serving [10.0.0.1:53 10.0.0.2:53 10.0.0.4:53]"},
	}, {
		name: "named target port that differs per Pod",
		edit: func(s *model.Service, in *Input) {
			s.Ports[0].NodePort = 0
			in.Endpoints.Endpoints[1].Ports = []model.EndpointPort{{Protocol: model.TCP, Port: 8080}}
		},
		endpoints: []string{"10.0.0.1 ready", "10.0.0.2 ready"},
		want:      []string{"ClusterIP 10.96.0.7:80/TCP -> forward 10.0.0.1:80 10.0.0.2:8080"},
	}, {
		name: "SCTP without the kernel's help",
		edit: func(s *model.Service, in *Input) {
			s.Ports = []model.ServicePort{{Name: "sig", Protocol: model.SCTP, Port: 7}, {Name: "", Protocol: model.TCP, Port: 80}, {Protocol: model.SCTP, Port: 8}}
		},
		endpoints: both,
		want:      []string{"ClusterIP 10.96.0.7:80/TCP -> forward 10.0.0.1:80"},
		problems: []string{
			"Service ns/svc: spec.ports[sig]: port 7 is not served: this node's kernel has no SCTP; use TCP or UDP, or load the modules sctp and nf_conntrack",
			"Service ns/svc: spec.ports[8]: port 8 is not served: this node's kernel has no SCTP; use TCP or UDP, or load the modules sctp and nf_conntrack",
		},
	}, {
		name: "SCTP with the kernel's help",
		edit: func(s *model.Service, in *Input) {
			s.Ports = []model.ServicePort{{Name: "sig", Protocol: model.SCTP, Port: 7}}
			in.Endpoints.Endpoints[0].Ports = []model.EndpointPort{{Name: "sig", Protocol: model.SCTP, Port: 9}}
			in.Options.SCTP = true
		},
		endpoints: both,
		want:      []string{"ClusterIP 10.96.0.7:7/SCTP -> forward 10.0.0.1:9"},
	}, {
		name: "affinity",
		edit: func(s *model.Service, in *Input) {
			s.AffinityTimeout = time.Hour
		},
		endpoints: both,
		want:      []string{"ClusterIP 10.96.0.7:80/TCP -> forward 10.0.0.1:80 sticky 1h0m0s", "NodePort 0.0.0.0:30080/TCP -> forward 10.0.0.1:80 sticky 1h0m0s"},
	}, {
		name:      "bad endpoint addresses are left out and said",
		endpoints: []string{"0.0.0.0 ready", "127.0.0.1 ready", "169.254.1.1 ready", "224.0.0.1 ready", "255.255.255.255 ready", "10.0.0.1 ready", "fe80::1 ready"},
		want:      []string{"ClusterIP 10.96.0.7:80/TCP -> forward 10.0.0.1:80", "NodePort 0.0.0.0:30080/TCP -> forward 10.0.0.1:80"},
		problems: []string{"Service ns/svc: endpoints are left out: 0.0.0.0 is the unspecified address, 127.0.0.1 is a loopback address, 169.254.1.1 is a link-local address" +
			" and 3 more; correct the addresses in the Service's EndpointSlices"},
	}, {
		name: "an endpoint without an address",
		edit: func(s *model.Service, in *Input) {
			s.Ports[0].NodePort = 0
			in.Endpoints.Endpoints[0].Addr = netip.Addr{}
		},
		endpoints: []string{"10.0.0.1 ready"},
		want:      []string{"ClusterIP 10.96.0.7:80/TCP -> reject"},
		problems:  []string{"Service ns/svc: endpoints are left out: invalid IP is not an IP address; correct the addresses in the Service's EndpointSlices"},
	}, {
		name: "TLS with a certificate",
		edit: func(s *model.Service, in *Input) {
			s.TLS = &model.ServiceTLS{Ports: []model.PortRef{{Number: 80}}}
			s.Ports = append(s.Ports, model.ServicePort{Name: "plain", Protocol: model.TCP, Port: 81})
			in.Endpoints.Endpoints[0].Ports = []model.EndpointPort{{Protocol: model.TCP, Port: 80}, {Name: "plain", Protocol: model.TCP, Port: 81}}
			in.CertificateReady = true
			in.Options.TLSProxy = []netip.AddrPort{netip.MustParseAddrPort("10.245.0.1:10443")}
			s.ExternalLocal = true
		},
		endpoints: both,
		want: []string{
			"ClusterIP 10.96.0.7:80/TCP -> redirect 10.0.0.1:80", "NodePort 0.0.0.0:30080/TCP -> redirect 10.0.0.1:80 | redirect 10.0.0.1:80",
			"ClusterIP 10.96.0.7:81/TCP -> forward 10.0.0.1:81",
		},
	}, {
		name: "TLS without a certificate",
		edit: func(s *model.Service, in *Input) {
			s.TLS = &model.ServiceTLS{}
			in.Options.TLSProxy = []netip.AddrPort{netip.MustParseAddrPort("10.245.0.1:10443")}
		},
		endpoints: both,
		want:      []string{"ClusterIP 10.96.0.7:80/TCP -> reject", "NodePort 0.0.0.0:30080/TCP -> reject"},
	}, {
		name: "TLS without a proxy in the family",
		edit: func(s *model.Service, in *Input) {
			s.TLS = &model.ServiceTLS{}
			in.CertificateReady = true
			in.Options.TLSProxy = []netip.AddrPort{netip.MustParseAddrPort("[fd00::f]:10443")}
		},
		endpoints: both,
		want:      []string{"ClusterIP 10.96.0.7:80/TCP -> reject", "NodePort 0.0.0.0:30080/TCP -> reject"},
	}, {
		name: "TLS with nobody behind it",
		edit: func(s *model.Service, in *Input) {
			s.TLS, in.CertificateReady, s.ExternalLocal = &model.ServiceTLS{}, true, true
			in.Options.TLSProxy = []netip.AddrPort{netip.MustParseAddrPort("10.245.0.1:10443")}
		},
		endpoints: []string{"10.0.0.2 ready"},
		want:      []string{"ClusterIP 10.96.0.7:80/TCP -> redirect 10.0.0.2:80", "NodePort 0.0.0.0:30080/TCP -> redirect 10.0.0.2:80 | drop"},
	}, {
		name: "source ranges of the family, merged, with the node's own way",
		edit: func(s *model.Service, in *Input) {
			s.Ports[0].NodePort = 0
			s.LoadBalancer.Ingress = []model.LoadBalancerIngress{{Addr: addr("192.0.2.1")}}
			s.LoadBalancer.SourceRanges = []netip.Prefix{prefix("203.0.113.0/24"), prefix("203.0.113.7/32"), prefix("10.1.2.3/8"), prefix("2001:db8::/32")}
			in.Node.Addrs = []netip.Addr{addr("10.245.0.1")}
		},
		endpoints: both,
		want: []string{
			"ClusterIP 10.96.0.7:80/TCP -> forward 10.0.0.1:80",
			"LoadBalancer 192.0.2.1:80/TCP -> forward 10.0.0.1:80 from [10.0.0.0/8 192.0.2.1/32 203.0.113.0/24]",
		},
	}, {
		name: "a range of everything is no restriction",
		edit: func(s *model.Service, in *Input) {
			s.Ports[0].NodePort = 0
			s.LoadBalancer.Ingress = []model.LoadBalancerIngress{{Addr: addr("192.0.2.1")}}
			s.LoadBalancer.SourceRanges = []netip.Prefix{prefix("10.0.0.0/8"), prefix("0.0.0.0/0")}
		},
		endpoints: both,
		want:      []string{"ClusterIP 10.96.0.7:80/TCP -> forward 10.0.0.1:80", "LoadBalancer 192.0.2.1:80/TCP -> forward 10.0.0.1:80"},
	}, {
		name: "ranges of the other family allow nobody",
		edit: func(s *model.Service, in *Input) {
			s.Ports[0].NodePort = 0
			s.LoadBalancer.Ingress = []model.LoadBalancerIngress{{Addr: addr("192.0.2.1")}}
			s.LoadBalancer.SourceRanges = []netip.Prefix{prefix("2001:db8::/32")}
		},
		endpoints: both,
		want:      []string{"ClusterIP 10.96.0.7:80/TCP -> forward 10.0.0.1:80", "LoadBalancer 192.0.2.1:80/TCP -> forward 10.0.0.1:80 from []"},
	}, {
		name: "two port names with one target", edit: func(s *model.Service, in *Input) {
			in.Endpoints.Endpoints = append(in.Endpoints.Endpoints, in.Endpoints.Endpoints[0])
			s.Ports[0].NodePort = 0
		},
		endpoints: both,
		want:      []string{"ClusterIP 10.96.0.7:80/TCP -> forward 10.0.0.1:80"},
	}, {
		name:      "headless",
		edit:      func(s *model.Service, in *Input) { s.Headless = true },
		endpoints: both,
	}, {
		name:      "ExternalName",
		edit:      func(s *model.Service, in *Input) { s.Type = model.ExternalName },
		endpoints: both,
	}, {
		name:      "left to another proxy",
		edit:      func(s *model.Service, in *Input) { s.NotProxied = true },
		endpoints: both,
	}, {
		name:      "endpoints left to another proxy",
		edit:      func(_ *model.Service, in *Input) { in.Endpoints.Endpoints[0].NotProxied = true },
		endpoints: []string{"10.0.0.1 ready local", "10.0.0.2 ready"},
		want:      []string{"ClusterIP 10.96.0.7:80/TCP -> forward 10.0.0.2:80", "NodePort 0.0.0.0:30080/TCP -> forward 10.0.0.2:80"},
	}, {
		name: "no endpoint set at all",
		edit: func(s *model.Service, in *Input) { in.Endpoints = nil },
		want: []string{"ClusterIP 10.96.0.7:80/TCP -> reject", "NodePort 0.0.0.0:30080/TCP -> reject"},
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := Input{Service: service(), Endpoints: endpoints(t, tt.endpoints...), Node: &model.Node{Name: "node-1"}}
			if tt.edit != nil {
				tt.edit(in.Service, &in)
			}
			out := Compile(in)
			var got, problems []string
			for _, f := range out.Frontends {
				got = append(got, show(f))
			}
			for _, p := range out.Problems {
				problems = append(problems, p.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tt.problems, problems); diff != "" {
				t.Error(diff)
			}
			if !out.Equal(Compile(in)) {
				t.Error("two runs differ")
			}
		})
	}
}

func TestEqual(t *testing.T) {
	in := Input{Service: service(), Endpoints: endpoints(t, "10.0.0.1 ready local"), Node: &model.Node{Name: "node-1"}}
	base := Compile(in)
	edits := map[string]func(*Service){
		"backend":  func(s *Service) { s.Frontends[0].Internal.Backends[0].Local = false },
		"action":   func(s *Service) { s.Frontends[1].External.Action = Drop },
		"serving":  func(s *Service) { s.Frontends[1].Serving = []netip.AddrPort{{}} },
		"affinity": func(s *Service) { s.Frontends[1].AffinityTimeout = 1 },
		"ranges":   func(s *Service) { s.Frontends[1].SourceRanges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} },
		"created":  func(s *Service) { s.Created = time.Unix(1, 0) },
		"fewer":    func(s *Service) { s.Frontends = s.Frontends[:1] },
		"problems": func(s *Service) { s.Problems = model.Problems{{Reason: "X"}} },
	}
	for name, edit := range edits {
		t.Run(name, func(t *testing.T) {
			changed := Compile(in)
			if !base.Equal(changed) {
				t.Fatal("equal plans differ")
			}
			edit(&changed)
			if base.Equal(changed) {
				t.Error("the change is not seen")
			}
		})
	}
}

func TestIndex(t *testing.T) {
	plan := func(name string, created int64, edit func(*model.Service)) Service {
		svc := service()
		svc.Name, svc.Created = name, time.Unix(created, 0)
		edit(svc)
		return Compile(Input{Service: svc, Endpoints: endpoints(t, "10.0.0.1 ready"), Node: &model.Node{Name: "node-1"}, Options: Options{ExternalIPs: true}})
	}
	ip := netip.MustParseAddr
	var x Index
	x.Put(plan("young", 9, func(s *model.Service) {
		s.ClusterIPs, s.Ports[0].NodePort = []netip.Addr{ip("10.96.0.1")}, 0
		s.ExternalIPs = []netip.Addr{ip("192.0.2.1"), ip("10.96.0.2")}
	}))
	x.Put(plan("old", 1, func(s *model.Service) {
		s.ClusterIPs = []netip.Addr{ip("10.96.0.2")}
		s.ExternalIPs = []netip.Addr{ip("192.0.2.1")}
	}))
	x.Put(plan("twin", 1, func(s *model.Service) {
		s.ClusterIPs, s.Ports[0].NodePort = []netip.Addr{ip("10.96.0.3")}, 0
		s.ExternalIPs = []netip.Addr{ip("192.0.2.1")}
	}))
	find := func(dst string, p model.Protocol) string {
		s, f, ok := x.Find(netip.MustParseAddrPort(dst), p)
		if !ok {
			return "none"
		}
		return strings.Join([]string{s.Key.Name, f.Kind.String()}, " ")
	}
	steps := []struct {
		name, dst string
		protocol  model.Protocol
		want      string
	}{
		{"cluster IP", "10.96.0.1:80", model.TCP, "young ClusterIP"},
		{"mapped address", "[::ffff:10.96.0.1]:80", model.TCP, "young ClusterIP"},
		{"a cluster IP beats an external IP", "10.96.0.2:80", model.TCP, "old ClusterIP"},
		{"the older Service has the external IP", "192.0.2.1:80", model.TCP, "old ExternalIP"},
		{"node port on any address", "192.168.1.1:30080", model.TCP, "old NodePort"},
		{"other port", "10.96.0.1:81", model.TCP, "none"},
		{"other protocol", "10.96.0.1:80", model.UDP, "none"},
		{"other family", "[fd00::1]:30080", model.TCP, "none"},
	}
	for _, tt := range steps {
		t.Run(tt.name, func(t *testing.T) {
			if got := find(tt.dst, tt.protocol); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
	x.Delete(model.Key{Namespace: "ns", Name: "old"})
	x.Delete(model.Key{Namespace: "ns", Name: "unknown"})
	for dst, want := range map[string]string{"192.0.2.1:80": "twin ExternalIP", "10.96.0.2:80": "young ExternalIP", "192.168.1.1:30080": "none"} {
		if got := find(dst, model.TCP); got != want {
			t.Errorf("after the older Service went: %s: got %s, want %s", dst, got, want)
		}
	}
	x.Put(plan("twin", 1, func(s *model.Service) { s.ClusterIPs = []netip.Addr{ip("10.96.0.9")} }))
	if got := find("192.0.2.1:80", model.TCP); got != "young ExternalIP" {
		t.Errorf("after a change: got %s", got)
	}
}
