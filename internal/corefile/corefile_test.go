package corefile

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"fairway.dev/fairway/internal/model"
)

const kubeadm = `.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
`

func server(s string) model.DNSServer { return model.DNSServer{Addr: netip.MustParseAddrPort(s)} }

func env(name string) (string, bool) {
	v, ok := map[string]string{"UP": "192.0.2.1", "TWO": "192.0.2.1 192.0.2.2", "SELF": "{$SELF}", "EMPTY": ""}[name]
	return v, ok
}

var files = map[string]string{
	"NodeHosts":     "# nodes\n198.51.100.1 node-1 # first\n198.51.100.2\tnode-2 node-2.lan\nrubbish\n",
	"stub.server":   "corp.example {\n forward . 192.0.2.9\n}\n",
	"other.server":  "lab.example {\n forward . 192.0.2.8\n}\n",
	"log.override":  "log\n",
	"loop.override": "import loop.override\n",
}

func parse(text string) (*model.DNSConfig, []Note, error) {
	return Parse(Options{Name: "Corefile", Text: text, Files: FilesOf(files, nil), Env: env, Self: []netip.Addr{netip.MustParseAddr("10.96.0.10")}})
}

// root is a configuration with one block, for all names.
func root(edit func(*model.DNSConfig, *model.DNSBlock)) *model.DNSConfig {
	c := &model.DNSConfig{Blocks: []model.DNSBlock{{Zones: []string{"."}}}}
	edit(c, &c.Blocks[0])
	return c
}

func rewrites(list ...model.DNSRewrite) *model.DNSConfig {
	return root(func(_ *model.DNSConfig, b *model.DNSBlock) { b.Rewrites = list })
}

func forwards(list ...model.DNSForward) *model.DNSConfig {
	return root(func(_ *model.DNSConfig, b *model.DNSBlock) { b.Forwards = list })
}

func hosts(h model.DNSHosts) *model.DNSConfig {
	if h.Zones == nil {
		h.Zones = []string{"."}
	}
	if h.TTL == 0 {
		h.TTL = time.Hour
	}
	return root(func(_ *model.DNSConfig, b *model.DNSBlock) { b.Hosts = &h })
}

func cached(k model.DNSCache) *model.DNSConfig {
	return root(func(_ *model.DNSConfig, b *model.DNSBlock) { b.Cache = &k })
}

func host(name, addr string) model.DNSHost {
	return model.DNSHost{Name: name, Addr: netip.MustParseAddr(addr)}
}

func TestParse(t *testing.T) {
	random := func(servers ...model.DNSServer) model.DNSForward {
		return model.DNSForward{From: ".", Policy: "random", Servers: servers}
	}
	empty := root(func(*model.DNSConfig, *model.DNSBlock) {})
	for name, tt := range map[string]struct {
		text  string
		want  *model.DNSConfig
		notes []string // parts of each, in order
	}{
		"kubeadm's": {kubeadm, root(func(c *model.DNSConfig, b *model.DNSBlock) {
			c.TTL = 30 * time.Second
			b.Cache = &model.DNSCache{MaxTTL: 30 * time.Second, MaxNegativeTTL: 30 * time.Second, NoSuccess: []string{"cluster.local."}, NoDenial: []string{"cluster.local."}}
			b.Forwards = []model.DNSForward{{From: ".", Policy: "random", NodeServers: true, MaxConcurrent: 1000}}
		}), nil},
		"comments":         {"# a\n. { # b\n  errors # c\n}\n#d", empty, nil},
		"no braces":        {".\nforward . 192.0.2.1\nerrors", forwards(random(server("192.0.2.1:53"))), nil},
		"one line":         {". {\n forward . 192.0.2.1 { policy sequential }\n}", forwards(model.DNSForward{From: ".", Policy: "sequential", Servers: []model.DNSServer{server("192.0.2.1:53")}}), nil},
		"byte order mark":  {"\ufeff. {\n}\n", empty, nil},
		"carriage returns": {". {\r\n  forward . 192.0.2.1\r\n}\r\n", forwards(random(server("192.0.2.1:53"))), nil},
		"quotes":           {". {\n  rewrite name regex \"(.*) b\\\"\" \"{1}.c\"\n}", rewrites(model.DNSRewrite{Match: "regex", From: `(.*) b"`, To: "{1}.c."}), nil},

		"stub zones": {". {\n forward . 192.0.2.1\n}\ncorp.example:53, Lab.Example {\n forward . 192.0.2.9 192.0.2.8:5353\n cache 10\n}\n", &model.DNSConfig{Blocks: []model.DNSBlock{
			{Zones: []string{"."}, Forwards: []model.DNSForward{random(server("192.0.2.1:53"))}},
			{Zones: []string{"corp.example.", "lab.example."}, Cache: &model.DNSCache{MaxTTL: 10 * time.Second, MaxNegativeTTL: 10 * time.Second},
				Forwards: []model.DNSForward{random(server("192.0.2.9:53"), server("192.0.2.8:5353"))}},
		}}, nil},
		"reverse zones": {"10.1.0.0/16 192.0.2.0/25 2001:db8::/32 {\n}\n", &model.DNSConfig{Blocks: []model.DNSBlock{{Zones: append(
			[]string{"1.10.in-addr.arpa."}, append(quarter(0, 128), "8.b.d.0.1.0.0.2.ip6.arpa.")...)}}}, nil},
		"other ports":         {".:53 {\n}\n.:5353 {\n errors\n}\ntls://. {\n}\n", empty, []string{"line 3: block .:5353", "line 6: block tls://."}},
		"a port that is none": {".:1053 {\n}\ncorp.example:1053 {\n}", &model.DNSConfig{Blocks: []model.DNSBlock{{Zones: []string{"."}}, {Zones: []string{"corp.example."}}}}, nil},

		"kubernetes": {". {\n kubernetes cluster.local other.zone 10.in-addr.arpa {\n pods disabled\n ttl 0\n fallthrough\n namespaces a\n endpoint http://x\n }\n}", root(func(c *model.DNSConfig, _ *model.DNSBlock) {
			c.NoPods, c.TTL = true, time.Second
		}), []string{"line 2: kubernetes other.zone", "line 4: kubernetes ttl 0", "line 5: kubernetes fallthrough", "line 6: kubernetes namespaces", "line 7: kubernetes endpoint"}},
		"pods verified":      {". {\n kubernetes {\n pods verified\n }\n autopath @kubernetes\n}", root(func(c *model.DNSConfig, _ *model.DNSBlock) { c.Autopath = true }), []string{"line 3: kubernetes pods verified"}},
		"autopath of a file": {". {\n autopath /etc/resolv.conf\n}", empty, []string{"line 2: autopath /etc/resolv.conf"}},
		"left out":           {". {\n log\n template IN A {\n answer \"{{ .Name }} 60 IN A 192.0.2.1\"\n }\n loadbalance weighted f\n}", empty, []string{"line 2: log is ignored: give fairway node --dns-log", "line 3: template", "line 6: loadbalance weighted"}},

		"forward": {". {\n forward . tls://9.9.9.9%dns.quad9.net tls://[2001:db8::1]:8853 dns://192.0.2.1:54 2001:db8::2 {\n except corp.example 10.0.0.0/8\n policy round_robin\n max_concurrent 10\n health_check 5s domain Example.org\n max_fails 0\n force_tcp\n prefer_udp\n expire 20s\n }\n}",
			forwards(model.DNSForward{
				From: ".", Except: []string{"corp.example.", "10.in-addr.arpa."}, Policy: "round_robin", MaxConcurrent: 10, TCP: true,
				HealthCheck: 5 * time.Second, HealthDomain: "example.org.", MaxFails: -1,
				Servers: []model.DNSServer{
					{Addr: netip.MustParseAddrPort("9.9.9.9:853"), TLS: true, Name: "dns.quad9.net"},
					{Addr: netip.MustParseAddrPort("[2001:db8::1]:8853"), TLS: true},
					server("192.0.2.1:54"), server("[2001:db8::2]:53"),
				},
			}), []string{"line 10: forward expire"}},
		"forward with a name for certificates": {". {\n forward . tls://9.9.9.9 {\n tls_servername dns.quad9.net\n health_check 0.5s no_rec\n tls\n }\n}", forwards(model.DNSForward{
			From: ".", Policy: "random", HealthCheck: 500 * time.Millisecond, Servers: []model.DNSServer{{Addr: netip.MustParseAddrPort("9.9.9.9:853"), TLS: true, Name: "dns.quad9.net"}},
		}), []string{"no_rec"}},
		"several forwards":          {". {\n forward corp.example 192.0.2.1\n forward . /run/systemd/resolve/resolv.conf 192.0.2.2\n}", forwards(model.DNSForward{From: "corp.example.", Policy: "random", Servers: []model.DNSServer{server("192.0.2.1:53")}}, model.DNSForward{From: ".", Policy: "random", NodeServers: true, Servers: []model.DNSServer{server("192.0.2.2:53")}}), nil},
		"servers that are left out": {". {\n forward . dns.example.com https://192.0.2.1 192.0.2.2\n}", forwards(random(server("192.0.2.2:53"))), []string{"forward to dns.example.com", "forward to https://192.0.2.1"}},

		"blocks in the cluster": {". {\n forward . 192.0.2.1\n forward X.cluster.local 192.0.2.1\n}\ncluster.local:53 {\n forward . 192.0.2.1\n}\nT.svc.cluster.local {\n errors\n forward . 192.0.2.1\n}\nu.cluster.local {\n rewrite name a.u.cluster.local b.example\n forward . 192.0.2.1\n}\nxcluster.local local {\n forward . 192.0.2.1\n}\n", &model.DNSConfig{Blocks: []model.DNSBlock{
			{Zones: []string{"."}, Forwards: []model.DNSForward{random(server("192.0.2.1:53")), {From: "x.cluster.local.", Policy: "random", Servers: []model.DNSServer{server("192.0.2.1:53")}}}},
			{Zones: []string{"cluster.local."}, Forwards: []model.DNSForward{random(server("192.0.2.1:53"))}},
			{Zones: []string{"t.svc.cluster.local."}, Forwards: []model.DNSForward{random(server("192.0.2.1:53"))}},
			{Zones: []string{"u.cluster.local."}, Forwards: []model.DNSForward{random(server("192.0.2.1:53"))}, Rewrites: []model.DNSRewrite{{Match: "exact", From: "a.u.cluster.local.", To: "b.example.", Auto: true}}},
			{Zones: []string{"xcluster.local.", "local."}, Forwards: []model.DNSForward{random(server("192.0.2.1:53"))}},
		}}, []string{
			"line 3: forward x.cluster.local. is ignored: names of cluster.local. are answered from the cluster and never asked of others; give hosts for single names, or take a domain outside of it",
			"line 6: forward in block cluster.local. is ignored", "line 10: forward in block t.svc.cluster.local. is ignored",
		}},

		"itself and others": {". {\n forward . 10.96.0.10:53 192.0.2.1 10.96.0.10:5353\n}\n", forwards(random(server("192.0.2.1:53"), server("10.96.0.10:5353"))), []string{"line 2: forward to 10.96.0.10:53"}},
		"no server can be asked": {". {\n forward corp.example dns.example.com\n}\nlab.example x.example {\n forward . https://192.0.2.1\n}", &model.DNSConfig{Blocks: []model.DNSBlock{
			{Zones: []string{"."}, Forwards: []model.DNSForward{{From: "corp.example.", Policy: "random"}}},
			{Zones: []string{"lab.example.", "x.example."}, Forwards: []model.DNSForward{random()}},
		}}, []string{"line 2: forward to dns.example.com", "line 2: forward corp.example. is ignored: it has no server that can be asked, so that all names of corp.example. fail; give", "line 5: forward to https", "line 5: forward . is ignored: it has no server that can be asked, so that all names of lab.example., x.example. fail; give"}},

		"hosts": {". {\n hosts {\n 192.0.2.1 A.example b.example\n 2001:db8::1 a.example\n ttl 60\n no_reverse\n reload 10s\n fallthrough\n }\n}", hosts(model.DNSHosts{
			TTL: time.Minute, NoReverse: true, Fallthrough: []string{"."},
			Entries: []model.DNSHost{host("a.example.", "192.0.2.1"), host("b.example.", "192.0.2.1"), host("a.example.", "2001:db8::1")},
		}), nil},
		"hosts of some zones": {". {\n hosts NodeHosts lan {\n 192.0.2.1 a.lan a.other *.w.lan\n fallthrough lan\n }\n}", hosts(model.DNSHosts{
			Zones: []string{"lan."}, Fallthrough: []string{"lan."}, Entries: []model.DNSHost{host("node-2.lan.", "198.51.100.2"), host("a.lan.", "192.0.2.1"), host("*.w.lan.", "192.0.2.1")},
		}), nil},
		"hosts of a file": {". {\n hosts /etc/coredns/NodeHosts {\n fallthrough\n }\n}", hosts(model.DNSHosts{
			Fallthrough: []string{"."}, Entries: []model.DNSHost{host("node-1.", "198.51.100.1"), host("node-2.", "198.51.100.2"), host("node-2.lan.", "198.51.100.2")},
		}), nil},
		"hosts of a file elsewhere": {". {\n hosts /etc/custom {\n fallthrough\n }\n}", hosts(model.DNSHosts{Fallthrough: []string{"."}}), []string{"line 2: hosts /etc/custom is ignored: there is no such file beside the Corefile; put it into the same ConfigMap as a key custom"}},

		"cache": {". {\n cache 60 corp.example {\n success 1000 300 10\n denial 500 20\n prefetch 5 1m 20%\n serve_stale 2h immediate\n disable denial\n servfail 5s\n }\n}", cached(model.DNSCache{
			Zones: []string{"corp.example."}, MaxTTL: 300 * time.Second, MinTTL: 10 * time.Second, MaxNegativeTTL: 20 * time.Second, Entries: 1500,
			Prefetch: 5, PrefetchPercent: 20, StaleFor: 2 * time.Hour, NoDenial: []string{"."},
		}), []string{"line 6: cache serve_stale immediate", "line 8: cache servfail"}},
		"cache by default": {". {\n cache\n}", cached(model.DNSCache{MaxTTL: time.Hour, MaxNegativeTTL: 30 * time.Minute}), nil},
		"cache of a zone":  {". {\n cache corp.example {\n prefetch 0\n serve_stale\n }\n}", cached(model.DNSCache{Zones: []string{"corp.example."}, MaxTTL: time.Hour, MaxNegativeTTL: 30 * time.Minute, Prefetch: -1, StaleFor: time.Hour}), nil},

		"rewrite": {". {\n rewrite name A.example b.example.\n rewrite stop name exact a b\n rewrite continue name suffix .a.example .b.example answer auto\n rewrite name prefix a b\n rewrite name substring a.b c.d\n}", rewrites(
			model.DNSRewrite{Match: "exact", From: "a.example.", To: "b.example.", Auto: true},
			model.DNSRewrite{Match: "exact", From: "a.", To: "b.", Auto: true},
			model.DNSRewrite{Match: "suffix", From: ".a.example.", To: ".b.example.", Auto: true, Continue: true},
			model.DNSRewrite{Match: "prefix", From: "a.", To: "b."},
			model.DNSRewrite{Match: "substring", From: "a.b.", To: "c.d."},
		), nil},
		"rewrite in braces": {". {\n rewrite stop {\n name regex (.*)\\.my\\.example {1}.default.svc.cluster.local\n answer name (.*)\\.default\\.svc\\.cluster\\.local {1}.my.example\n answer value (.*)\\.x {1}.y\n }\n}", rewrites(
			model.DNSRewrite{Match: "regex", From: `(.*)\.my\.example`, To: "{1}.default.svc.cluster.local.", Answers: []model.DNSAnswerRewrite{
				{From: `(.*)\.default\.svc\.cluster\.local`, To: "{1}.my.example."}, {Value: true, From: `(.*)\.x`, To: "{1}.y."},
			}},
		), nil},
		"rewrite of other things": {". {\n rewrite ttl example.org 30\n rewrite type ANY HINFO\n rewrite name regex a b metadata\n}", empty, []string{"line 2: rewrite ttl", "line 3: rewrite type", "line 4: rewrite name ... metadata"}},

		"snippet":          {"(a) {\n cache 10\n}\n. {\n import a\n errors\n}\ncorp.example {\n import a\n}", &model.DNSConfig{Blocks: []model.DNSBlock{{Zones: []string{"."}, Cache: &model.DNSCache{MaxTTL: 10 * time.Second, MaxNegativeTTL: 10 * time.Second}}, {Zones: []string{"corp.example."}, Cache: &model.DNSCache{MaxTTL: 10 * time.Second, MaxNegativeTTL: 10 * time.Second}}}}, nil},
		"snippet twice":    {"(a) { rewrite name a b }\n. {\n import a\n import a\n}", rewrites(model.DNSRewrite{Match: "exact", From: "a.", To: "b.", Auto: true}, model.DNSRewrite{Match: "exact", From: "a.", To: "b.", Auto: true}), nil},
		"snippet in hosts": {"(h) {\n 192.0.2.1 a\n}\n. {\n hosts {\n import h\n 192.0.2.2 b\n }\n}", hosts(model.DNSHosts{Entries: []model.DNSHost{host("a.", "192.0.2.1"), host("b.", "192.0.2.2")}}), nil},
		"imported files":   {". {\n import /etc/coredns/custom/log.override\n}\nimport /etc/coredns/custom/*.server\n", &model.DNSConfig{Blocks: []model.DNSBlock{{Zones: []string{"."}}, {Zones: []string{"lab.example."}, Forwards: []model.DNSForward{random(server("192.0.2.8:53"))}}, {Zones: []string{"corp.example."}, Forwards: []model.DNSForward{random(server("192.0.2.9:53"))}}}}, []string{"log.override, line 1: log"}},
		"nothing to import": {". {\n import conf/*.no\n import custom/one.no\n import custom/*.other\n errors\n}", empty, []string{
			"line 2: import conf/*.no is ignored: there is no such snippet", "line 3: import custom/one.no is ignored: there is no such snippet",
		}},
		"variables": {". {\n forward . {$UP} {%UP%}:5353 {$EMPTY}192.0.2.3\n forward {$NONE}a.example 192.0.2.4\n}", forwards(random(server("192.0.2.1:53"), server("192.0.2.1:5353"), server("192.0.2.3:53")), model.DNSForward{From: "a.example.", Policy: "random", Servers: []model.DNSServer{server("192.0.2.4:53")}}), []string{"line 3: {$NONE} is ignored"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, notes, err := parse(tt.text)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			if len(notes) != len(tt.notes) {
				t.Fatalf("notes %q, want %q", notes, tt.notes)
			}
			for i, n := range notes {
				if !strings.Contains(n.String(), tt.notes[i]) || n.Why == "" {
					t.Errorf("note %q, want %q", n, tt.notes[i])
				}
			}
		})
	}
}

// quarter are the zones of the addresses from a to b in 192.0.2.0/24.
func quarter(a, b int) []string {
	var list []string
	for i := a; i < b; i++ {
		list = append(list, netip.AddrFrom4([4]byte{byte(i), 2, 0, 192}).String()+".in-addr.arpa.")
	}
	return list
}

// TestErrors: what cannot be read names its line and says what to do.
func TestErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                                       "line 1: no block that serves DNS",
		"\n# a comment\n":                        "line 1: no block that serves DNS",
		"(a) {\n errors\n}":                      "line 1: no block that serves DNS",
		"import none.server":                     "line 1: no block that serves DNS",
		"tls://. {\n forward . 192.0.2.1\n}":     "line 1: no block that serves DNS",
		". {\n errors\n":                         "line 1: the brace of block . is never closed",
		"}":                                      "line 1: a closing brace",
		". {\n}\n}":                              "line 3: a closing brace",
		"{\n}":                                   "line 1: a block without zones",
		". {\n {\n}\n}":                          "line 2: a brace without a directive",
		". {\n errors }\n}":                      "line 2: a closing brace on the line of errors",
		"., {\n}":                                "line 1: a comma promises",
		".,":                                     "line 1: a comma promises",
		"a b/c {\n}":                             `line 1: "b/c" is no name of a zone`,
		". {\n}\n.:53 {\n}":                      "line 3: zone . has a block already, in Corefile, line 1",
		"(a) {\n errors\n":                       "line 1: the brace of snippet (a) is never closed",
		"(a)\nerrors":                            "line 1: snippet (a) needs its lines in braces",
		"(a) {\n}\n(a) {\n}":                     "line 3: snippet (a) stands there twice",
		". {\n import\n}":                        "line 2: import of nothing",
		". {\n import a b\n}":                    "line 2: import takes one",
		". {\n import [\n}":                      "line 2: import [: not a pattern",
		"(a) {\n import a\n}\n. {\n import a\n}": "more than 200 imports; does a import itself?",
		"(a) {\n import b\n import b\n}\n(b) {\n import a\n import a\n}\n. {\n import a\n}": "imports",
		". {\n import loop.override\n}":                    "",
		". {\n cache\n cache\n}":                           "line 3: cache stands twice",
		". {\n forward . \n}":                              "line 2: forward takes a zone and its servers",
		". {\n forward . 192.0.2.1 {\n policy last\n }\n}": "line 3: policy last: want random",
		". {\n forward . 192.0.2.1:0\n}":                   "line 2: forward to \"192.0.2.1:0\"",
		". {\n forward . /etc/hosts\n}":                    "line 2: forward to \"/etc/hosts\"",
		". {\n forward . 1.1.1.1 1.1.1.1 1.1.1.1 1.1.1.1 1.1.1.1 1.1.1.1 1.1.1.1 1.1.1.1 1.1.1.1 1.1.1.1 1.1.1.1 1.1.1.1 1.1.1.1 1.1.1.1 1.1.1.1 1.1.1.1\n}": "at most 15",
		". {\n forward . 192.0.2.1 {\n max_concurrent x\n }\n}":         "line 3: max_concurrent \"x\": want a number",
		". {\n forward . 192.0.2.1 {\n health_check\n }\n}":             "line 3: health_check takes a time",
		". {\n forward . 192.0.2.1 {\n health_check x\n }\n}":           "line 3: health_check \"x\": want a time",
		". {\n forward . 192.0.2.1 {\n health_check 1s y\n }\n}":        "line 3: health_check y",
		". {\n forward . tls://192.0.2.1%a {\n tls_servername b\n }\n}": "line 2: tls://192.0.2.1%a names its certificate",
		". {\n hosts {\n nonsense\n }\n}":                               "line 3: hosts nonsense: want ADDRESS NAME",
		". {\n hosts { 999.1.1.1 bad.test }\n}":                         "line 2: hosts: 999.1.1.1 is no IP address; correct it, or take the line away",
		". {\n hosts {\n 2001:db8::g a\n }\n}":                          "line 3: hosts: 2001:db8::g is no IP address",
		". {\n hosts {\n ttl 0\n }\n}":                                  "line 3: ttl \"0\": want a number of 1 to 65535",
		". {\n cache 0\n}":                                              "line 2: cache \"0\": want a number",
		". {\n cache -1\n}":                                             "line 2: cache \"-1\": want a number",
		". {\n cache {\n success\n }\n}":                                "line 3: success takes CAPACITY",
		". {\n cache {\n success 1 2 3\n }\n}":                          "line 2: cache: the least TTL",
		". {\n cache {\n prefetch 1 1m 10\n }\n}":                       "line 3: prefetch 10: want a percentage",
		". {\n cache {\n prefetch 1 1m 5%\n }\n}":                       "want a number of 10 to 90",
		". {\n cache {\n serve_stale x\n }\n}":                          "line 3: serve_stale \"x\": want a time",
		". {\n cache {\n serve_stale 1h maybe\n }\n}":                   "line 3: serve_stale maybe",
		". {\n cache {\n disable all\n }\n}":                            "line 3: disable all",
		". {\n kubernetes {\n pods some\n }\n}":                         "line 3: pods some",
		". {\n kubernetes {\n ttl 4000\n }\n}":                          "line 3: ttl \"4000\"",
		". {\n rewrite name a b {\n answer auto\n }\n}":                 "line 2: rewrite stands on one line",
		". {\n rewrite\n}":                                              "line 2: rewrite of nothing",
		". {\n rewrite name a\n}":                                       "line 2: rewrite name takes",
		". {\n rewrite nam a b\n}":                                      "line 2: rewrite nam",
		". {\n rewrite name nearly a b\n}":                              "line 2: rewrite name nearly",
		". {\n rewrite name regex ( b\n}":                               "line 2: error parsing regexp",
		". {\n rewrite name regex (a) {2}\n}":                           "line 2: {2} uses group {2}, but (a) has 1",
		". {\n rewrite name exact a b c\n}":                             "line 2: rewrite name: \"c\" is too much",
		". {\n rewrite name exact a b answer\n}":                        "line 2: rewrite name: answer takes",
		". {\n rewrite name exact a b answer name x\n}":                 "line 2: rewrite name: answer name takes",
		". {\n rewrite name suffix a b answer auto answer name x y\n}":  "line 2: rewrite name: answer auto and",
		". {\n rewrite name exact a b answer what\n}":                   "line 2: rewrite name: answer what",
	} {
		c, notes, err := parse(text)
		if want == "" {
			if err != nil {
				t.Errorf("%q: %v", text, err)
			}
			continue
		}
		var where *Error
		if err == nil || !strings.Contains(err.Error(), want) || !errors.As(err, &where) || where.Line < 1 || c != nil || notes != nil {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// TestWaysOut: a Corefile whose block for all names was meant to have servers and has
// none is refused as a whole; one that is meant to have none is not.
func TestWaysOut(t *testing.T) {
	for text, want := range map[string]string{
		". {\n forward . 10.96.0.10\n}":                                                "line 2: forward . has no server that can be asked (10.96.0.10; names, ",
		". {\n forward . not-an-ip dns.example\n}":                                     "line 2: forward . has no server that can be asked (not-an-ip dns.example; ",
		"lab.example {\n errors\n}\ncorp.example . {\n forward . https://192.0.2.1\n}": "line 5: forward . has no server",
		". {\n kubernetes\n forwad . 192.0.2.1\n}":                                     "line 3: there is no directive forwad, and the block has no forward . either",
		". {\n Forward . 192.0.2.1\n forward corp.example 192.0.2.2\n}":                "line 2: there is no directive Forward",

		". {\n forwad . 192.0.2.1\n forward . 192.0.2.2\n}":                   "",
		". {\n forward . 10.96.0.10 192.0.2.2\n}":                             "",
		". {\n kubernetes\n log\n template ANY ANY {\n rcode NXDOMAIN\n }\n}": "",
		". {\n forward corp.example 192.0.2.2\n}":                             "",
		"corp.example {\n forwad . 192.0.2.2\n}":                              "",
		"corp.example {\n forward . dns.example\n}":                           "",
	} {
		c, _, err := parse(text)
		if want == "" && (err != nil || c == nil) || want != "" && (err == nil || c != nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// TestOwnServers: a node's own server is not forwarded to, and a Corefile with no other refused.
func TestOwnServers(t *testing.T) {
	own := func(a netip.AddrPort) bool { return a.Port() == 10053 && a.Addr().IsLoopback() }
	read := func(text string) (*model.DNSConfig, []Note, error) {
		return Parse(Options{Name: "Corefile", Text: text, Own: own})
	}
	c, notes, err := read(". {\n forward . 127.0.0.1:10053 127.0.0.1:5353\n}")
	if err != nil || len(c.Blocks[0].Forwards[0].Servers) != 1 || len(notes) != 1 || !strings.Contains(notes[0].String(), "line 2: forward to 127.0.0.1:10053 is ignored: it is a node's own DNS") {
		t.Errorf("%+v, %v, %v", c, notes, err)
	}
	if _, _, err := read(". {\n forward . 127.0.0.1:10053\n}"); err == nil || !strings.Contains(err.Error(), "no server that can be asked (127.0.0.1:10053; ") {
		t.Error(err)
	}
}

// TestMessagesAreBounded: of words without end a message has the beginning, and
// all of the reason and of the cure.
func TestMessagesAreBounded(t *testing.T) {
	long := strings.Repeat("ä", 400<<10)
	for text, want := range map[string]string{
		long:                          "LONG/", // a block without a body
		". {\n hosts {\n LONG\n }\n}": "want ADDRESS NAME..., fallthrough, ttl, no_reverse or reload",
		". {\n forward . /LONG\n}":    "want an address, with a port if it is not 53, or /etc/resolv.conf",
		". {\n forward . 192.0.2.1 {\n policy LONG\n }\n}": "want random, round_robin or sequential",
		". {\n cache LONG\n}":                              "is no name of a zone",
		". {\n LONG":                                       "is never closed",
		". {\n rewrite name regex (LONG b\n}":              "at most 1000",
		". {\n LONG x\n forward . 192.0.2.1\n}":            "is ignored: Fairway's DNS does not have it",
		". {\n import LONG\n}":                             "is ignored: there is no such snippet",
		". {\n forward . 192.0.2.1 LONG.example\n}":        "want an address",
		". {\n errors }LONG {\n":                           "",
		"LONG/ {\n}":                                       "is no name of a zone",
	} {
		_, notes, err := parse(strings.ReplaceAll(text, "LONG", long))
		said := fmt.Sprint(err)
		if err == nil {
			said = fmt.Sprint(notes)
		}
		if len(said) > 600 || text != long && !strings.Contains(said, want) || !utf8.ValidString(said) {
			t.Errorf("%.40s: %d bytes, %.400s, want %q", text, len(said), said, want)
		}
	}
}

// TestVariablesAreNotReadAgain: a value that names a variable is not looked up.
func TestVariablesAreNotReadAgain(t *testing.T) {
	if _, _, err := parse(". {\n forward . {$SELF}\n}"); err == nil || !strings.Contains(err.Error(), "{$SELF}") {
		t.Error(err)
	}
	// A value with a space is one word, as in CoreDNS.
	if _, _, err := parse(". {\n forward . {$TWO}\n}"); err == nil {
		t.Error("two servers of one variable")
	}
}

// FuzzParse: any text is read or refused, twice the same, and quickly.
func FuzzParse(f *testing.F) {
	f.Add(kubeadm)
	f.Add("(a) {\n import a\n}\nimport a\n. {\n import *\n hosts { 1.2.3.4 a }\n}")
	f.Add(". 10.0.0.0/9 {\n rewrite name regex \"(a\" {1}{2} answer value a b\n forward . tls://[::1%x]:1 {$UP\n}")
	f.Add(". {\n cache 1 { success 1 2 3 4\n prefetch 1 1 %\n}\n}\n,,{")
	f.Fuzz(func(t *testing.T, text string) {
		c, notes, err := parse(text)
		again, notesAgain, errAgain := parse(text)
		if (err == nil) != (errAgain == nil) || !reflect.DeepEqual(c, again) || !reflect.DeepEqual(notes, notesAgain) {
			t.Fatalf("read as %v, %v, then as %v, %v", c, err, again, errAgain)
		}
		var where *Error
		if err != nil && !errors.As(err, &where) {
			t.Fatalf("an error without a place: %v", err)
		}
		if err == nil {
			for _, b := range c.Blocks {
				if len(b.Zones) == 0 {
					t.Fatal("a block without zones")
				}
			}
		}
	})
}
