package main

import (
	"bufio"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/test/bench/dns/world"
)

// rulesCorefile has what people write into a Corefile beside kubeadm's lines.
const rulesCorefile = `(rules) {
    rewrite name kube.example.com kube-dns.kube-system.svc.cluster.local
    rewrite name suffix .services.example .svc.cluster.local answer auto
    rewrite name suffix .plain.example .svc.cluster.local
    rewrite name prefix pre www answer auto
    rewrite name prefix half- whole-
    rewrite name substring .mid. . answer auto
    rewrite name regex ^([a-z0-9-]+)-in-([a-z-]+)\.apps\.example\.$ {1}.{2}.svc.cluster.local answer auto
    rewrite stop {
        name regex (.*)\.in\.example\.com\.$ {1}.example.com
        answer name (.*)\.example\.com\.$ {1}.in.example.com
        answer value (.*)\.example\.com\.$ {1}.val.example.com
    }
    rewrite continue name chain1.example.com chain2.example.com
    rewrite name chain2.example.com host-9.example.com
    rewrite name gone.example.test x.gone.example.com
    rewrite name to-host.example.com box.lan
}
.:53 {
    import rules
    prometheus :9153
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       kubeconfig %[1]s
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 5
    }
    hosts {
       192.0.2.101 box.lan Second.LAN
       192.0.2.102 box.lan
       2001:db8::101 box.lan
       192.0.2.103 *.wild.lan
       192.0.2.104 www.example.com
       ttl 77
       fallthrough
    }
    forward . %[2]s {
       except secret.example.com
    }
    cache {
       success 1000 40
       denial 1000 20
       disable success kept-not.example.com
    }
}
closed.example.com strict.example.com:53 {
    hosts {
       192.0.2.110 a.closed.example.com
       fallthrough strict.example.com
    }
    forward . %[2]s
    cache 15
}
empty.example.com {
    errors
}
`

var rulesNames = []string{
	"kube.example.com", "KUBE.example.com", "sub.kube.example.com", "kube-dns.kube-system.services.example", "nope.kube-system.services.example",
	"kube-dns.kube-system.plain.example", "pre.example.com", "prefix.example.com", "half-a.example.com", "half-.example.com", "a.mid.example.com", "mid.example.com",
	"kube-dns-in-kube-system.apps.example", "nope-in-nowhere.apps.example", "host-1.in.example.com", "alias.in.example.com", "x.gone.in.example.com",
	"chain1.example.com", "chain2.example.com", "gone.example.test", "to-host.example.com",
	"box.lan", "Box.LAN", "second.lan", "third.lan", "a.wild.lan", "b.a.wild.lan", "wild.lan", "www.example.com", "alias.example.com", "host-1.example.com",
	"a.secret.example.com", "secret.example.com", "a.closed.example.com", "b.closed.example.com", "closed.example.com", "b.strict.example.com", "a.empty.example.com",
	"a.kept-not.example.com", "x.gone.example.com", "nowhere.test",
	"101.2.0.192.in-addr.arpa", "103.2.0.192.in-addr.arpa", "110.2.0.192.in-addr.arpa", "1.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
	"kube-dns.kube-system.svc.cluster.local", "nope.kube-system.svc.cluster.local",
}

// corefiles asks both servers the same with the same Corefile: each question
// twice, so that the second answer is that of the cache.
func corefiles(l *lab) error {
	if err := l.serve(world.New(1, nodeName, l.addrs["fairway"])); err != nil {
		return err
	}
	path := filepath.Join(l.dir, "Corefile")
	if err := os.WriteFile(path, []byte(fmt.Sprintf(rulesCorefile, l.kubeconfig(), upAddr)), 0o600); err != nil {
		return err
	}
	peers := []*peer{}
	for _, start := range []func() (*peer, error){
		func() (*peer, error) {
			return l.startFairwayWith("--dns-corefile", path, "--metrics-address", netip.AddrPortFrom(l.addrs["fairway"], metricsPort).String())
		},
		func() (*peer, error) { return l.startCoreDNSWith(path) },
	} {
		p, err := start()
		if err != nil {
			return err
		}
		defer p.stop()
		if err := p.await("kube-dns.kube-system.svc.cluster.local.", "host-1.example.com."); err != nil {
			return err
		}
		peers = append(peers, p)
	}
	time.Sleep(2 * time.Second)
	var questions []question
	for _, name := range rulesNames {
		for _, t := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeMX, dns.TypePTR} {
			questions = append(questions, question{dns.Fqdn(name), "corefile", t})
		}
	}
	same, differ, explained := 0, []string{}, map[string]int{}
	for round := range 2 {
		var answers [2][]*dns.Msg
		for i, p := range peers {
			var err error
			if answers[i], err = exchange(p, "tcp", questions); err != nil {
				return err
			}
		}
		for i, q := range questions {
			a, b := answers[0][i], answers[1][i]
			d := differences(a, b)
			why := explainRules(a, b)
			switch {
			case len(d) == 0:
				same++
			case why != "":
				explained[why]++
			default:
				differ = append(differ, fmt.Sprintf("%s %s, round %d: %s\n      Fairway: %s\n      CoreDNS: %s", q.name, dns.TypeToString[q.qtype], round+1, strings.Join(d, ", "), brief(a), brief(b)))
			}
		}
	}
	fmt.Printf("%d questions with rules, twice: %d answered alike\n", len(questions), same)
	for why, n := range explained {
		fmt.Printf("%6d  %s\n", n, why)
	}
	var labels [2]map[string]string
	for i, p := range peers {
		var err error
		if labels[i], err = metricLabels(p.addr.Addr()); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(labels[1])) {
		ours, ok := labels[0][name]
		switch {
		case !strings.HasPrefix(name, "coredns_"):
		case !ok:
			fmt.Println("  only CoreDNS has", name, "with", labels[1][name])
		case ours != labels[1][name]:
			differ = append(differ, fmt.Sprintf("%s has labels %s, with CoreDNS %s", name, ours, labels[1][name]))
		}
	}
	if len(differ) > 0 {
		fmt.Println(strings.Join(differ, "\n"))
		return fmt.Errorf("%d answers or metrics differ without an explanation", len(differ))
	}
	return nil
}

// metricsPort is where both serve their metrics.
const metricsPort = 9153

// metricLabels returns the names of the labels of each metric at an address.
func metricLabels(addr netip.Addr) (map[string]string, error) {
	resp, err := http.Get("http://" + netip.AddrPortFrom(addr, metricsPort).String() + "/metrics")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	out := map[string]string{}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		line := lines.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		name, rest, _ := strings.Cut(line, " ")
		if before, inside, ok := strings.Cut(line, "{"); ok {
			name, rest = before, inside
		}
		var labels []string
		for _, m := range labelName.FindAllStringSubmatch(rest, -1) {
			if m[1] != "le" {
				labels = append(labels, m[1])
			}
		}
		slices.Sort(labels)
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			name = strings.TrimSuffix(name, suffix)
		}
		out[name] = "{" + strings.Join(labels, ",") + "}"
	}
	return out, lines.Err()
}

var labelName = regexp.MustCompile(`([a-z_]+)="[^"]*"`)

// explainRules says why two answers may differ; "" where they may not.
func explainRules(a, b *dns.Msg) string {
	for _, m := range []*dns.Msg{a, b} {
		for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
			for _, rr := range section {
				rr.Header().Name = strings.ToLower(rr.Header().Name)
			}
		}
	}
	if len(differences(a, b)) == 0 {
		return "CoreDNS answers in lower case"
	}
	for _, m := range []*dns.Msg{a, b} {
		for _, rr := range append(append([]dns.RR{}, m.Answer...), m.Extra...) {
			if m.Authoritative {
				rr.Header().Ttl = 0
			}
			if srv, ok := rr.(*dns.SRV); ok {
				srv.Weight = 0
			}
		}
	}
	if len(differences(a, b)) == 0 {
		return "CoreDNS' cache keeps names of hosts and of the cluster, too; SRV weights"
	}
	return ""
}
