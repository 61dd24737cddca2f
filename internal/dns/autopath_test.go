package dns

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/dnstest"
	"fairway.dev/fairway/internal/dns/forward"
)

func TestAutopath(t *testing.T) {
	up := dnstest.New(t, func(q *dns.Msg, _ string) [][]byte {
		name := q.Question[0].Name
		switch {
		case q.Question[0].Qtype == dns.TypeA && (name == "www.example.com." || name == "intra.net.corp.example." || name == "db-9.db."):
			return dnstest.Reply(t, q, nil, name+" 60 IN A 192.0.2.1")
		case name == "www.example.com.":
			return dnstest.Reply(t, q, nil, "example.com. 60 IN SOA ns. mail. 1 2 3 4 60")
		case strings.HasPrefix(name, "broken."):
			return dnstest.Reply(t, q, func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure })
		}
		return dnstest.Reply(t, q, func(m *dns.Msg) { m.Rcode = dns.RcodeNameError }, ". 60 IN SOA ns. mail. 1 2 3 4 60")
	})
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("search Corp.example\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	options := Options{Upstreams: forward.Plain(up.Addr), ResolvConf: conf, UpstreamTimeout: time.Second, Autopath: true}
	s := newServer(t, options)
	const first, nx = ".default.svc.cluster.local.", "NXDOMAIN"
	for _, tt := range []struct {
		name  string
		qtype uint16
		// want is the alias and the last record, or the rcode without any.
		want string
	}{
		{"www.example.com" + first, dns.TypeA, "www.example.com. 192.0.2.1"},
		{"WWW.example.com" + first, dns.TypeA, "www.example.com. 192.0.2.1"},
		{"www.example.com" + first, dns.TypeAAAA, "www.example.com. NOERROR"},
		{"intra.net" + first, dns.TypeA, "intra.net.corp.example. 192.0.2.1"},
		{"web.default" + first, dns.TypeA, "web.default.svc.cluster.local. 10.96.0.20"},
		{"web.default.svc" + first, dns.TypeA, "web.default.svc.cluster.local. 10.96.0.20"},
		{"web.default.svc.cluster.local" + first, dns.TypeA, "web.default.svc.cluster.local. 10.96.0.20"},
		{"web.default.svc.cluster.local" + first, dns.TypeAAAA, "web.default.svc.cluster.local. fd00:96::20"},
		{"gone.default" + first, dns.TypeA, nx},
		{"gone.example.org" + first, dns.TypeA, nx},
		{"broken.example.org" + first, dns.TypeA, nx}, // the client goes on by itself, and finds out
		{"db-9.db" + first, dns.TypeA, nx},            // below a Service: never anybody else's name
		{"gone" + first, dns.TypeA, nx},
		{"www.example.com" + first, dns.TypeTXT, nx},
		{"_http._tcp.example.com" + first, dns.TypeA, nx},
		{"www.example.com.nowhere.svc.cluster.local.", dns.TypeA, nx},
		{"www.example.com.svc.cluster.local.", dns.TypeA, nx},
	} {
		m := exchange(t, s, question(tt.name, tt.qtype), false)
		if got := summary(m, tt.name); got != tt.want {
			t.Errorf("%s %s: got %q, want %q in\n%v", tt.name, dns.TypeToString[tt.qtype], got, tt.want, m)
		}
		if tt.want == nx && len(m.Ns) != 1 {
			t.Errorf("%s: no SOA", tt.name)
		}
	}
	signed := question("www.example.com"+first, dns.TypeA)
	signed.SetEdns0(1232, true)
	if m := exchange(t, s, signed, false); m.Rcode != dns.RcodeNameError {
		t.Errorf("with DO: %v", m)
	}
	options.Autopath = false
	if m := exchange(t, newServer(t, options), question("www.example.com"+first, dns.TypeA), false); m.Rcode != dns.RcodeNameError {
		t.Errorf("off: %v", m)
	}
}

func summary(m *dns.Msg, name string) string {
	if len(m.Answer) == 0 {
		return dns.RcodeToString[m.Rcode]
	}
	alias, ok := m.Answer[0].(*dns.CNAME)
	if !ok || alias.Hdr.Name != name {
		return "no alias"
	}
	switch rr := m.Answer[len(m.Answer)-1].(type) {
	case *dns.A:
		return alias.Target + " " + rr.A.String()
	case *dns.AAAA:
		return alias.Target + " " + rr.AAAA.String()
	}
	return alias.Target + " " + dns.RcodeToString[m.Rcode]
}
