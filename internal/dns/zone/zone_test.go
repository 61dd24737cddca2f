package zone

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func key(s string) model.Key {
	ns, name, _ := strings.Cut(s, "/")
	return model.Key{Namespace: ns, Name: name}
}

func endpoint(addr, hostname string, ready bool, ports ...model.EndpointPort) model.Endpoint {
	return model.Endpoint{Addr: netip.MustParseAddr(addr), Hostname: hostname, Ready: ready, Ports: ports}
}

func slice(name, service string, list ...model.Endpoint) *model.EndpointSlice {
	return &model.EndpointSlice{Key: key(name), Service: key(service), Endpoints: list}
}

// cluster is a store with one Service of each kind.
func cluster() *state.Store {
	http := model.EndpointPort{Name: "http", Protocol: model.TCP, Port: 8080}
	admin := model.EndpointPort{Name: "admin", Protocol: model.TCP, Port: 9090}
	dnsUDP := model.EndpointPort{Name: "dns", Protocol: model.UDP, Port: 5353}
	unnamed := model.EndpointPort{Protocol: model.TCP, Port: 5432}
	s := state.New()
	s.Update(func(tx *state.Tx) {
		for _, ns := range []string{"default", "kube-system", "empty"} {
			tx.PutNamespace(&model.Namespace{Name: ns})
		}
		tx.PutService(&model.Service{Key: key("kube-system/kube-dns"), ClusterIPs: addrs("10.96.0.10", "fd00:96::a"), Ports: []model.ServicePort{
			{Name: "dns", Protocol: model.UDP, Port: 53}, {Name: "dns-tcp", Protocol: model.TCP, Port: 53},
		}})
		tx.PutService(&model.Service{Key: key("default/web"), ClusterIPs: addrs("10.96.0.20"), Ports: []model.ServicePort{
			{Name: "http", Protocol: model.TCP, Port: 80}, {Name: "https", Protocol: model.TCP, Port: 443},
		}})
		tx.PutSlice(slice("default/web-1", "default/web", endpoint("10.244.0.5", "", true, http), endpoint("10.244.0.6", "", false, http)))
		tx.PutService(&model.Service{Key: key("default/dual"), ClusterIPs: addrs("10.96.0.21", "fd00:96::21"), Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}}})
		tx.PutService(&model.Service{Key: key("default/six"), ClusterIPs: addrs("fd00:96::22")})
		tx.PutService(&model.Service{Key: key("default/pending")})
		tx.PutService(&model.Service{Key: key("default/1234"), ClusterIPs: addrs("10.96.0.23")})

		tx.PutService(&model.Service{Key: key("default/db"), Headless: true, Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}})
		tx.PutSlice(slice("default/db-1", "default/db",
			endpoint("10.244.0.10", "db-0", true, http, dnsUDP), endpoint("10.244.0.11", "DB-1", true, http, dnsUDP), endpoint("10.244.0.12", "db-2", false, admin)))
		tx.PutSlice(slice("default/db-2", "default/db",
			endpoint("fd00:244::10", "db-0", true, http), endpoint("10.244.1.10", "db-0", true, http), endpoint("10.244.1.20", "", true, http), endpoint("fd00:244::20", "", true, http)))
		tx.PutService(&model.Service{Key: key("default/plain"), Headless: true})
		tx.PutSlice(slice("default/plain-1", "default/plain", endpoint("10.244.0.30", "", true, unnamed)))
		tx.PutService(&model.Service{Key: key("default/asleep"), Headless: true})
		tx.PutSlice(slice("default/asleep-1", "default/asleep", endpoint("10.244.0.31", "a", false, http)))
		tx.PutService(&model.Service{Key: key("default/lonely"), Headless: true})
		tx.PutSlice(slice("default/orphan-1", "default/orphan", endpoint("10.244.0.40", "o", true, http)))

		tx.PutService(&model.Service{Key: key("default/out"), Type: model.ExternalName, ExternalName: "www.example.com"})
		tx.PutService(&model.Service{Key: key("default/in"), Type: model.ExternalName, ExternalName: "web.default.svc.cluster.local"})
		tx.PutService(&model.Service{Key: key("default/twice"), Type: model.ExternalName, ExternalName: "in.default.svc.cluster.local"})
		tx.PutService(&model.Service{Key: key("default/dangling"), Type: model.ExternalName, ExternalName: "gone.default.svc.cluster.local"})
		tx.PutService(&model.Service{Key: key("default/snake"), Type: model.ExternalName, ExternalName: "snake.default.svc.cluster.local"})
		tx.PutService(&model.Service{Key: key("default/home"), Type: model.ExternalName, ExternalName: "localhost"})
		tx.SetSynced()
	})
	return s
}

func newZone(t testing.TB, s *state.Store) *Zone {
	t.Helper()
	z, err := New(Options{
		Domain: "cluster.local", Settings: Settings{TTL: 5 * time.Second}, DNSService: key("kube-system/kube-dns"),
		ReverseRanges: []netip.Prefix{
			netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:96::/108"),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	z.Update(s.Snapshot())
	return z
}

// render is an answer in a few words: "rcode; name type data...; +additional",
// sorted, with "->name" for a target outside.
func render(a Answer) string {
	section := func(prefix string, rrs []dns.RR) []string {
		var out []string
		for _, rr := range rrs {
			fields := strings.Fields(rr.String())
			out = append(out, prefix+strings.Join(append([]string{fields[0]}, fields[3:]...), " "))
		}
		slices.Sort(out)
		return out
	}
	parts := []string{dns.RcodeToString[a.Rcode]}
	parts = append(parts, section("", a.Answer)...)
	for _, rr := range a.Authority {
		parts = append(parts, "!"+rr.Header().Name+" "+dns.TypeToString[rr.Header().Rrtype])
	}
	parts = append(parts, section("+", a.Additional)...)
	if a.Target != "" {
		parts = append(parts, "->"+a.Target)
	}
	return strings.Join(parts, "\n")
}

func lines(list ...string) string { return strings.Join(list, "\n") }

const (
	nodata   = "NOERROR\n!cluster.local. SOA"
	nxdomain = "NXDOMAIN\n!cluster.local. SOA"
	forward  = "not ours"
	db       = "db.default.svc.cluster.local."
	web      = "web.default.svc.cluster.local."
)

// The sections are those of the Kubernetes DNS specification 1.1.0.
var specification = []struct {
	name, qname, qtype, want string
}{
	{"2.1 names are compared without case and answered in the case asked", "WEB.Default.svc.Cluster.LOCAL.", "A", "NOERROR\nWEB.Default.svc.Cluster.LOCAL. A 10.96.0.20"},
	{"2.2 version", "dns-version.cluster.local.", "TXT", "NOERROR\ndns-version.cluster.local. TXT \"1.1.0\""},
	{"2.2 version has no address", "dns-version.cluster.local.", "A", nodata},
	{"2.3.1 cluster IP", web, "A", "NOERROR\n" + web + " A 10.96.0.20"},
	{"2.3.1 cluster IP of the other family only", web, "AAAA", nodata},
	{"2.3.1 dual stack A", "dual.default.svc.cluster.local.", "A", "NOERROR\ndual.default.svc.cluster.local. A 10.96.0.21"},
	{"2.3.1 dual stack AAAA", "dual.default.svc.cluster.local.", "AAAA", "NOERROR\ndual.default.svc.cluster.local. AAAA fd00:96::21"},
	{"2.3.1 IPv6 only", "six.default.svc.cluster.local.", "A", nodata},
	{"2.3.1 name of digits", "1234.default.svc.cluster.local.", "A", "NOERROR\n1234.default.svc.cluster.local. A 10.96.0.23"},
	{"2.3.1 cluster IP not allocated", "pending.default.svc.cluster.local.", "A", nxdomain},
	{"2.3.2 SRV of a named port", "_http._tcp." + web, "SRV", lines("NOERROR", "_http._tcp."+web+" SRV 0 100 80 "+web, "+"+web+" A 10.96.0.20")},
	{"2.3.2 SRV by UDP, dual stack", "_dns._udp.kube-dns.kube-system.svc.cluster.local.", "SRV", lines("NOERROR",
		"_dns._udp.kube-dns.kube-system.svc.cluster.local. SRV 0 100 53 kube-dns.kube-system.svc.cluster.local.",
		"+kube-dns.kube-system.svc.cluster.local. A 10.96.0.10", "+kube-dns.kube-system.svc.cluster.local. AAAA fd00:96::a")},
	{"2.3.2 SRV of the wrong protocol", "_http._udp." + web, "SRV", nxdomain},
	{"2.3.2 SRV of no such port", "_ftp._tcp." + web, "SRV", nxdomain},
	{"2.3.2 SRV of a port without name", "_._tcp.dual.default.svc.cluster.local.", "SRV", nxdomain},
	{"2.3.2 SRV name has no address", "_http._tcp." + web, "A", nodata},
	{"2.3.2 protocol is a name between", "_tcp." + web, "SRV", nodata},
	{"2.3.2 protocol without ports", "_udp." + web, "SRV", nxdomain},
	{"2.3.2 without underscore", "http.tcp." + web, "SRV", nxdomain},
	{"2.3.2 SRV of the Service names a port of both protocols once (RFC 2181 section 5.5)", "kube-dns.kube-system.svc.cluster.local.", "SRV", lines("NOERROR",
		"kube-dns.kube-system.svc.cluster.local. SRV 0 100 53 kube-dns.kube-system.svc.cluster.local.",
		"+kube-dns.kube-system.svc.cluster.local. A 10.96.0.10", "+kube-dns.kube-system.svc.cluster.local. AAAA fd00:96::a")},
	{"2.3.2 SRV of the Service has all ports, as in CoreDNS", web, "SRV", lines("NOERROR", web+" SRV 0 50 443 "+web, web+" SRV 0 50 80 "+web, "+"+web+" A 10.96.0.20")},
	{"2.3.3 PTR of a cluster IP", "20.0.96.10.in-addr.arpa.", "PTR", "NOERROR\n20.0.96.10.in-addr.arpa. PTR " + web},
	{"2.3.3 PTR of an IPv6 cluster IP", "1.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa.", "PTR",
		"NOERROR\n1.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa. PTR dual.default.svc.cluster.local."},
	{"2.3.3 PTR without case", "1.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.D.F.IP6.ARPA.", "PTR",
		"NOERROR\n1.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.D.F.IP6.ARPA. PTR dual.default.svc.cluster.local."},
	{"2.4.1 headless: ready endpoints", db, "A", lines("NOERROR", db+" A 10.244.0.10", db+" A 10.244.0.11", db+" A 10.244.1.10", db+" A 10.244.1.20")},
	{"2.4.1 headless AAAA", db, "AAAA", lines("NOERROR", db+" AAAA fd00:244::10", db+" AAAA fd00:244::20")},
	{"2.4.1 headless, none ready", "asleep.default.svc.cluster.local.", "A", nxdomain},
	{"2.4.1 headless, no endpoints", "lonely.default.svc.cluster.local.", "A", nxdomain},
	{"2.4.1 headless with one family", "plain.default.svc.cluster.local.", "AAAA", nodata},
	{"2.4.1 hostname with all its addresses", "db-0." + db, "A", lines("NOERROR", "db-0."+db+" A 10.244.0.10", "db-0."+db+" A 10.244.1.10")},
	{"2.4.1 hostname AAAA", "db-0." + db, "AAAA", "NOERROR\ndb-0." + db + " AAAA fd00:244::10"},
	{"2.4.1 hostname without case", "dB-1." + db, "A", "NOERROR\ndB-1." + db + " A 10.244.0.11"},
	{"2.4.1 hostname of an endpoint not ready", "db-2." + db, "A", nxdomain},
	{"2.4.1 no such hostname", "db-9." + db, "A", nxdomain},
	{"2.4.1 address with dashes", "10-244-1-20." + db, "A", "NOERROR\n10-244-1-20." + db + " A 10.244.1.20"},
	{"2.4.1 IPv6 address with dashes", "fd00-244--20." + db, "AAAA", "NOERROR\nfd00-244--20." + db + " AAAA fd00:244::20"},
	{"2.4.1 address with dashes, other family", "10-244-1-20." + db, "AAAA", nodata},
	{"2.4.1 address with dashes has a hostname instead", "10-244-0-10." + db, "A", nxdomain},
	{"2.4.1 address of no endpoint", "10-244-9-9." + db, "A", nxdomain},
	{"2.4.1 endpoint names below a cluster IP, as in CoreDNS", "10-244-0-5." + web, "A", "NOERROR\n10-244-0-5." + web + " A 10.244.0.5"},
	{"2.4.1 not ready below a cluster IP", "10-244-0-6." + web, "A", nxdomain},
	{"2.4.1 endpoints without a Service", "orphan.default.svc.cluster.local.", "A", nxdomain},
	{"2.4.2 headless SRV", "_http._tcp." + db, "SRV", lines("NOERROR",
		"_http._tcp."+db+" SRV 0 25 8080 10-244-1-20."+db, "_http._tcp."+db+" SRV 0 25 8080 db-0."+db,
		"_http._tcp."+db+" SRV 0 25 8080 db-1."+db, "_http._tcp."+db+" SRV 0 25 8080 fd00-244--20."+db,
		"+10-244-1-20."+db+" A 10.244.1.20", "+db-0."+db+" A 10.244.0.10", "+db-0."+db+" A 10.244.1.10",
		"+db-0."+db+" AAAA fd00:244::10", "+db-1."+db+" A 10.244.0.11", "+fd00-244--20."+db+" AAAA fd00:244::20")},
	{"2.4.2 headless SRV of another port", "_dns._udp." + db, "SRV", lines("NOERROR",
		"_dns._udp."+db+" SRV 0 50 5353 db-0."+db, "_dns._udp."+db+" SRV 0 50 5353 db-1."+db,
		"+db-0."+db+" A 10.244.0.10", "+db-0."+db+" A 10.244.1.10", "+db-0."+db+" AAAA fd00:244::10", "+db-1."+db+" A 10.244.0.11")},
	{"2.4.2 headless SRV where only unready endpoints have the port", "_admin._tcp." + db, "SRV", nxdomain},
	{"2.4.2 headless SRV where none is ready", "_http._tcp.asleep.default.svc.cluster.local.", "SRV", nxdomain},
	{"2.4.2 headless protocol between", "_udp." + db, "A", nodata},
	{"2.4.3 PTR of an endpoint with hostname", "10.0.244.10.in-addr.arpa.", "PTR", "NOERROR\n10.0.244.10.in-addr.arpa. PTR db-0." + db},
	{"2.4.3 PTR of an endpoint without hostname, as in CoreDNS", "20.1.244.10.in-addr.arpa.", "PTR", "NOERROR\n20.1.244.10.in-addr.arpa. PTR 10-244-1-20." + db},
	{"2.4.3 PTR of an endpoint not ready", "12.0.244.10.in-addr.arpa.", "PTR", "NXDOMAIN\n!244.10.in-addr.arpa. SOA"},
	{"2.4.3 PTR of an endpoint outside of our ranges", "0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.4.2.0.0.0.d.f.ip6.arpa.", "PTR", "NOERROR\n0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.4.2.0.0.0.d.f.ip6.arpa. PTR db-0." + db},
	{"2.4.3 PTR of nobody outside of our ranges", "9.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.4.2.0.0.0.d.f.ip6.arpa.", "PTR", forward},
	{"2.5 ExternalName", "out.default.svc.cluster.local.", "CNAME", "NOERROR\nout.default.svc.cluster.local. CNAME www.example.com."},
	{"2.5 ExternalName A", "out.default.svc.cluster.local.", "A", lines("NOERROR", "out.default.svc.cluster.local. CNAME www.example.com.", "->www.example.com.")},
	{"2.5 ExternalName MX", "OUT.default.svc.cluster.local.", "MX", lines("NOERROR", "OUT.default.svc.cluster.local. CNAME www.example.com.", "->www.example.com.")},
	{"2.5 below an ExternalName", "a.out.default.svc.cluster.local.", "A", nxdomain},
	{"2.5 ExternalName in the zone", "in.default.svc.cluster.local.", "A", lines("NOERROR", "in.default.svc.cluster.local. CNAME "+web, web+" A 10.96.0.20")},
	{"2.5 ExternalName of an ExternalName", "twice.default.svc.cluster.local.", "A", lines("NOERROR",
		"in.default.svc.cluster.local. CNAME "+web, "twice.default.svc.cluster.local. CNAME in.default.svc.cluster.local.", web+" A 10.96.0.20")},
	{"2.5 ExternalName in the zone without that type", "in.default.svc.cluster.local.", "AAAA", lines("NOERROR", "in.default.svc.cluster.local. CNAME "+web, "!cluster.local. SOA")},
	{"2.5 ExternalName of nothing", "dangling.default.svc.cluster.local.", "A", lines("NXDOMAIN", "dangling.default.svc.cluster.local. CNAME gone.default.svc.cluster.local.", "!cluster.local. SOA")},
	{"2.5 ExternalName of localhost", "home.default.svc.cluster.local.", "A", lines("NOERROR", "home.default.svc.cluster.local. CNAME localhost.", "localhost. A 127.0.0.1")},

	{"Pod", "10-244-0-5.default.pod.cluster.local.", "A", "NOERROR\n10-244-0-5.default.pod.cluster.local. A 10.244.0.5"},
	{"Pod AAAA", "fd00-244--5.default.pod.cluster.local.", "AAAA", "NOERROR\nfd00-244--5.default.pod.cluster.local. AAAA fd00:244::5"},
	{"Pod in full form", "fd00-244-0-0-0-0-0-5.default.pod.cluster.local.", "AAAA", "NOERROR\nfd00-244-0-0-0-0-0-5.default.pod.cluster.local. AAAA fd00:244::5"},
	{"Pod without that family", "10-244-0-5.default.pod.cluster.local.", "AAAA", nodata},
	{"Pod that is no address", "10-244-0.default.pod.cluster.local.", "A", nxdomain},
	{"Pod too large", "10-244-0-256.default.pod.cluster.local.", "A", nxdomain},
	{"Pod in no namespace", "10-244-0-5.nowhere.pod.cluster.local.", "A", nxdomain},
	{"below a Pod", "a.10-244-0-5.default.pod.cluster.local.", "A", nxdomain},
	{"pod namespace", "default.pod.cluster.local.", "A", nodata},
	{"pod", "pod.cluster.local.", "A", nodata},

	{"apex SOA", "Cluster.Local.", "SOA", "NOERROR\nCluster.Local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"},
	{"apex NS", "cluster.local.", "NS", lines("NOERROR", "cluster.local. NS ns.dns.cluster.local.", "+ns.dns.cluster.local. A 10.96.0.10", "+ns.dns.cluster.local. AAAA fd00:96::a")},
	{"name server", "ns.dns.cluster.local.", "A", "NOERROR\nns.dns.cluster.local. A 10.96.0.10"},
	{"above the name server", "dns.cluster.local.", "A", nodata},
	{"beside the name server", "ns2.dns.cluster.local.", "A", nxdomain},
	{"apex A", "cluster.local.", "A", nodata},
	{"svc", "svc.cluster.local.", "A", nodata},
	{"namespace", "default.svc.cluster.local.", "A", nodata},
	{"namespace without Services", "empty.svc.cluster.local.", "TXT", nodata},
	{"no namespace", "nowhere.svc.cluster.local.", "A", nxdomain},
	{"no Service", "nothing.default.svc.cluster.local.", "A", nxdomain},
	{"search path on an outside name", "example.com.default.svc.cluster.local.", "A", nxdomain},
	{"search path on a Service's name", "web.default.svc.cluster.local.default.svc.cluster.local.", "A", nxdomain},
	{"beside svc", "web.default.cluster.local.", "A", nxdomain},
	{"a wildcard is a name as any other", "*.default.svc.cluster.local.", "A", nxdomain},
	{"a wildcard port", "*._tcp." + web, "SRV", nxdomain},
	{"escaped dot in a label", "web\\.default.svc.cluster.local.", "A", nxdomain},
	{"ANY", web, "ANY", "NOERROR\n" + web + " HINFO \"RFC8482\" \"\""},
	{"ANY of nothing", "nothing.default.svc.cluster.local.", "ANY", nxdomain},
	{"another type", web, "MX", nodata},
	{"a name that ends alike", "xcluster.local.", "A", forward},
	{"a name outside", "example.com.", "A", forward},
	{"the root", ".", "NS", forward},

	{"localhost", "localhost.", "A", "NOERROR\nlocalhost. A 127.0.0.1"},
	{"localhost AAAA", "LocalHost.", "AAAA", "NOERROR\nLocalHost. AAAA ::1"},
	{"below localhost", "a.localhost.", "A", "NOERROR\na.localhost. A 127.0.0.1"},
	{"localhost of another type", "localhost.", "MX", "NOERROR\n!localhost. SOA"},
	{"PTR of localhost", "1.0.0.127.in-addr.arpa.", "PTR", "NOERROR\n1.0.0.127.in-addr.arpa. PTR localhost."},
	{"localhost in the search path", "localhost.default.svc.cluster.local.", "A", nxdomain},

	{"reverse: free address of ours", "99.0.96.10.in-addr.arpa.", "PTR", "NXDOMAIN\n!96.10.in-addr.arpa. SOA"},
	{"reverse: another part of an odd range", "1.1.111.10.in-addr.arpa.", "PTR", "NXDOMAIN\n!111.10.in-addr.arpa. SOA"},
	{"reverse: beyond the range", "1.1.112.10.in-addr.arpa.", "PTR", forward},
	{"reverse: another type", "20.0.96.10.in-addr.arpa.", "A", "NOERROR\n!96.10.in-addr.arpa. SOA"},
	{"reverse: ANY", "20.0.96.10.in-addr.arpa.", "ANY", "NOERROR\n20.0.96.10.in-addr.arpa. HINFO \"RFC8482\" \"\""},
	{"reverse: name between", "0.96.10.in-addr.arpa.", "PTR", "NOERROR\n!96.10.in-addr.arpa. SOA"},
	{"reverse: apex", "96.10.in-addr.arpa.", "SOA", "NOERROR\n96.10.in-addr.arpa. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"},
	{"reverse: apex NS", "96.10.in-addr.arpa.", "NS", "NOERROR\n96.10.in-addr.arpa. NS ns.dns.cluster.local."},
	{"reverse: above", "10.in-addr.arpa.", "NS", forward},
	{"reverse: leading zero", "020.0.96.10.in-addr.arpa.", "PTR", forward},
	{"reverse: too long", "1.20.0.96.10.in-addr.arpa.", "PTR", forward},
	{"reverse: no number", "x.0.96.10.in-addr.arpa.", "PTR", forward},
	{"reverse: other people's address", "8.8.8.8.in-addr.arpa.", "PTR", forward},
}

func TestSpecification(t *testing.T) {
	z := newZone(t, cluster())
	for _, tt := range specification {
		t.Run(tt.name, func(t *testing.T) {
			a, ok := z.Answer(dns.Question{Name: tt.qname, Qtype: dns.StringToType[tt.qtype], Qclass: dns.ClassINET})
			got := forward
			if ok {
				got = render(a)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("%s %s (-want +got):\n%s", tt.qname, tt.qtype, diff)
			}
			for _, rr := range append(append(a.Answer, a.Authority...), a.Additional...) {
				if rr.Header().Ttl != 5 || rr.Header().Class != dns.ClassINET {
					t.Errorf("TTL or class of %v", rr)
				}
			}
		})
	}
}

func TestExternalNameLoop(t *testing.T) {
	z := newZone(t, cluster())
	a, ok := z.Answer(dns.Question{Name: "snake.default.svc.cluster.local.", Qtype: dns.TypeA})
	if !ok || a.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %s", render(a))
	}
}

func TestBeforeSync(t *testing.T) {
	s := state.New()
	s.Update(func(tx *state.Tx) {
		tx.PutService(&model.Service{Key: key("default/web"), ClusterIPs: addrs("10.96.0.20")})
	})
	z := newZone(t, s)
	for name, want := range map[string]string{
		"web.default.svc.cluster.local.":  "SERVFAIL",
		"gone.default.svc.cluster.local.": "SERVFAIL",
		"svc.cluster.local.":              "SERVFAIL",
		"99.0.96.10.in-addr.arpa.":        "SERVFAIL",
		"example.com.":                    forward,
		"8.8.8.8.in-addr.arpa.":           forward,
	} {
		a, ok := z.Answer(dns.Question{Name: name, Qtype: dns.TypeA})
		got := forward
		if ok {
			got = render(a)
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if z.Synced() {
		t.Error("synced before the sources are")
	}
	s.Update(func(tx *state.Tx) { tx.SetSynced() })
	z.Update(s.Snapshot())
	if a, _ := z.Answer(dns.Question{Name: "gone.default.svc.cluster.local.", Qtype: dns.TypeA}); a.Rcode != dns.RcodeNameError {
		t.Errorf("after sync: %s", render(a))
	}
}

func TestAddressesComeInRandomOrder(t *testing.T) {
	z := newZone(t, cluster())
	first := map[string]bool{}
	for range 200 {
		a, _ := z.Answer(dns.Question{Name: db, Qtype: dns.TypeA})
		first[a.Answer[0].(*dns.A).A.String()] = true
	}
	if len(first) != 4 {
		t.Errorf("only %v ever came first, of 4 addresses", first)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, o := range map[string]Options{
		"no domain":   {},
		"the root":    {Domain: "."},
		"no name":     {Domain: "a..b"},
		"TTL too low": {Domain: "cluster.local", Settings: Settings{TTL: time.Millisecond}},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
