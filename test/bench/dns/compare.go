package main

import (
	"cmp"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/test/bench/dns/world"
)

type compareOptions struct {
	services int
	seed     uint64
	show     int
	proto    string
}

func (o *compareOptions) flags(f *flag.FlagSet) {
	f.IntVar(&o.services, "services", 400, "`number` of Services to make up")
	f.Uint64Var(&o.seed, "seed", 1, "another `seed`, another cluster")
	f.IntVar(&o.show, "show", 3, "`examples` to print of each kind of difference")
	f.StringVar(&o.proto, "proto", "tcp", "udp or tcp; by udp answers may be cut")
}

// question is a name and a type, and what kind of name it is.
type question struct {
	name, kind string
	qtype      uint16
}

// compare asks both servers everything and sorts the differences.
func compare(l *lab, o compareOptions) error {
	w := world.New(o.seed, nodeName, l.addrs["fairway"])
	w.Mixed(o.services)
	if err := l.serve(w); err != nil {
		return err
	}
	peers := make([]*peer, 2)
	for i, start := range []func() (*peer, error){l.startFairway, l.startCoreDNS} {
		p, err := start()
		if err != nil {
			return err
		}
		defer p.stop()
		if err := p.await("kube-dns.kube-system.svc.cluster.local.", "www.example.com."); err != nil {
			return err
		}
		peers[i] = p
	}
	time.Sleep(2 * time.Second)

	questions := ask(w, o.seed)
	found := map[string][]string{} // by explanation, or by what differs
	unexplained := 0
	answers := [2][]*dns.Msg{}
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i, p := range peers {
		wg.Go(func() { answers[i], errs[i] = exchange(p, o.proto, questions) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	same := 0
	for i, q := range questions {
		a, b := answers[0][i], answers[1][i]
		d := differences(a, b)
		if len(d) == 0 {
			same++
			continue
		}
		why := explain(w, q, a, b)
		if why == "" {
			unexplained++
			why = "UNEXPLAINED: " + q.kind + " " + dns.TypeToString[q.qtype] + ": " + strings.Join(d, ", ")
		}
		found[why] = append(found[why], fmt.Sprintf("%s %s\n      Fairway: %s\n      CoreDNS: %s", q.name, dns.TypeToString[q.qtype], brief(a), brief(b)))
	}
	fmt.Printf("%d Services, %d questions: %d answered alike\n", len(w.Services), len(questions), same)
	kinds := make([]string, 0, len(found))
	for k := range found {
		kinds = append(kinds, k)
	}
	slices.SortFunc(kinds, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(found[b]), len(found[a])), cmp.Compare(a, b))
	})
	for _, k := range kinds {
		fmt.Printf("%6d  %s\n", len(found[k]), k)
		for _, example := range found[k][:min(o.show, len(found[k]))] {
			fmt.Println("   e.g.", example)
		}
	}
	if unexplained > 0 {
		return fmt.Errorf("%d answers differ without an explanation in docs/features/dns.md", unexplained)
	}
	return nil
}

// ask makes the questions: names of every object, in every form, with every
// type that a client may ask for, and names beside them that are not there.
func ask(w *world.World, seed uint64) []question {
	random := rand.New(rand.NewPCG(seed, 77))
	var list []question
	add := func(kind, name string, types ...uint16) {
		if len(types) == 0 {
			types = []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeTXT, dns.TypeCNAME}
		}
		for _, t := range types {
			list = append(list, question{dns.Fqdn(name), kind, t})
		}
	}
	odd := []uint16{dns.TypeMX, dns.TypeNS, dns.TypeSOA, dns.TypePTR, dns.TypeHTTPS, dns.TypeCAA, dns.TypeDS}
	const zone = ".svc.cluster.local"
	endpoints := map[string][]string{} // of Services, by their names
	hosts := map[string][]string{}
	for _, s := range w.Slices {
		key := s.Labels["kubernetes.io/service-name"] + "." + s.Namespace
		for _, e := range s.Endpoints {
			endpoints[key] = append(endpoints[key], e.Addresses...)
			if e.Hostname != nil {
				hosts[key] = append(hosts[key], *e.Hostname)
			}
		}
	}
	for i, s := range w.Services {
		key := s.Name + "." + s.Namespace
		add("service", key+zone)
		if i%8 == 0 {
			add("service", key+zone, odd...)
			add("service", mixCase(random, key+zone))
			add("any port", "_"+".tcp."+key+zone, dns.TypeSRV, dns.TypeA)
			add("wildcard", "*."+key+zone, dns.TypeA, dns.TypeSRV)
			add("below a service", "a.b.c."+key+zone, dns.TypeA, dns.TypeSRV)
			add("no such namespace", s.Name+".nowhere"+zone, dns.TypeA, dns.TypeSRV)
			add("no such service", "no-"+key+zone, dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeTXT)
		}
		for _, p := range s.Spec.Ports {
			name := "_" + p.Name + "._" + strings.ToLower(string(p.Protocol)) + "." + key + zone
			if p.Name == "" {
				name = "_x._tcp." + key + zone
			}
			add("port", name, dns.TypeSRV, dns.TypeA, dns.TypeTXT)
			if i%8 == 1 {
				add("port", mixCase(random, name), dns.TypeSRV)
				add("port", strings.Replace(name, "._tcp.", "._udp.", 1), dns.TypeSRV)
			}
		}
		if i%4 == 0 {
			add("no such port", "_nope._tcp."+key+zone, dns.TypeSRV, dns.TypeA)
			add("protocol", "_tcp."+key+zone, dns.TypeSRV, dns.TypeA)
			add("protocol", "_udp."+key+zone, dns.TypeSRV)
		}
		for j, addr := range endpoints[key] {
			if j >= 6 {
				break
			}
			add("endpoint", dashed(addr)+"."+key+zone, dns.TypeA, dns.TypeAAAA, dns.TypeSRV)
			add("reverse of endpoint", reverse(addr), dns.TypePTR)
			add("pod", dashed(addr)+"."+s.Namespace+".pod.cluster.local", dns.TypeA, dns.TypeAAAA, dns.TypeSRV)
		}
		for j, host := range hosts[key] {
			if j >= 6 {
				break
			}
			add("hostname", host+"."+key+zone, dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeTXT)
			if j == 0 {
				add("hostname", mixCase(random, host+"."+key+zone), dns.TypeA)
				add("port of hostname", "_http._tcp."+host+"."+key+zone, dns.TypeSRV)
			}
		}
		for _, ip := range s.Spec.ClusterIPs {
			if ip != "None" {
				add("reverse of service", reverse(ip), dns.TypePTR, dns.TypeA)
			}
		}
	}
	for _, ns := range w.Namespaces {
		for _, kind := range []string{"svc", "pod"} {
			add("namespace", ns.Name+"."+kind+".cluster.local", append([]uint16{dns.TypeA, dns.TypeSRV, dns.TypeTXT}, odd...)...)
		}
		add("pod", "1-2-3-4."+ns.Name+".pod.cluster.local", dns.TypeA, dns.TypeAAAA)
		add("pod", "2001-db8--1."+ns.Name+".pod.cluster.local", dns.TypeA, dns.TypeAAAA)
		add("pod, no address", "x."+ns.Name+".pod.cluster.local", dns.TypeA, dns.TypeTXT)
		add("pod, no address", "1-2-3-256."+ns.Name+".pod.cluster.local", dns.TypeA)
		add("below a pod", "a.1-2-3-4."+ns.Name+".pod.cluster.local", dns.TypeA)
	}
	add("no such namespace", "1-2-3-4.nowhere.pod.cluster.local", dns.TypeA)
	add("no such namespace", "nowhere.svc.cluster.local", dns.TypeA)
	add("no such namespace", "nowhere.pod.cluster.local", dns.TypeA)
	all := append([]uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeTXT, dns.TypeCNAME}, odd...)
	for _, name := range []string{"cluster.local", "CLUSTER.Local", "svc.cluster.local", "pod.cluster.local", "dns.cluster.local",
		"ns.dns.cluster.local", "dns-version.cluster.local", "x.cluster.local", "x.y.cluster.local", "a.b.c.d.cluster.local"} {
		add("zone", name, all...)
	}
	for _, name := range []string{"cluster.local", "dns-version.cluster.local", "kube-dns.kube-system.svc.cluster.local", "x.cluster.local"} {
		add("ANY", name, dns.TypeANY)
	}
	for _, name := range []string{"www.example.com", "gone.example.com", "alias.example.com", "WWW.Example.Com"} {
		add("external", name, dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypeCNAME)
	}
	add("external", "nowhere.test", dns.TypeA)
	for _, addr := range []string{"10.96.255.254", "10.245.255.254", "192.0.2.77", "fd00:96::ffff", "fd00:244::ffff", "2001:db8::1"} {
		add("reverse of nothing", reverse(addr), dns.TypePTR)
	}
	add("reverse of a range", "96.10.in-addr.arpa", dns.TypePTR, dns.TypeNS)
	add("localhost", "localhost", dns.TypeA, dns.TypeAAAA)
	return list
}

func mixCase(r *rand.Rand, s string) string {
	return strings.Map(func(c rune) rune {
		if r.IntN(2) == 0 {
			return []rune(strings.ToUpper(string(c)))[0]
		}
		return c
	}, s)
}

func dashed(addr string) string { return strings.NewReplacer(".", "-", ":", "-").Replace(addr) }

func reverse(addr string) string {
	name, err := dns.ReverseAddr(addr)
	if err != nil {
		panic(err)
	}
	return name
}

// exchange asks p everything, over one connection after another by TCP.
func exchange(p *peer, proto string, questions []question) ([]*dns.Msg, error) {
	out := make([]*dns.Msg, len(questions))
	client := &dns.Client{Net: proto, Timeout: 5 * time.Second, UDPSize: 1232}
	var conn *dns.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close()
		}
	}()
	for i, q := range questions {
		var err error
		for try := 0; try < 3; try++ {
			if conn == nil {
				if conn, err = client.Dial(p.addr.String()); err != nil {
					continue
				}
			}
			m := new(dns.Msg).SetQuestion(q.name, q.qtype)
			m.SetEdns0(1232, false)
			if out[i], _, err = client.ExchangeWithConn(m, conn); err == nil {
				break
			}
			_ = conn.Close() // it may have had its number of queries
			conn = nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %s %s: %w", p.name, q.name, dns.TypeToString[q.qtype], err)
		}
	}
	return out, nil
}

// differences names the parts in which two answers differ. RA takes no part:
// Fairway sets it in every answer, for it asks others for its clients; CoreDNS
// does not in those of the zone.
func differences(a, b *dns.Msg) []string {
	var d []string
	if a.Rcode != b.Rcode {
		d = append(d, "rcode "+dns.RcodeToString[a.Rcode]+" for "+dns.RcodeToString[b.Rcode])
	}
	if a.Authoritative != b.Authoritative {
		d = append(d, fmt.Sprintf("AA %t", a.Authoritative))
	}
	if a.Truncated != b.Truncated {
		d = append(d, fmt.Sprintf("TC %t", a.Truncated))
	}
	for _, s := range []struct {
		name string
		a, b []dns.RR
	}{{"answer", a.Answer, b.Answer}, {"authority", a.Ns, b.Ns}, {"additional", a.Extra, b.Extra}} {
		if !slices.Equal(texts(s.a), texts(s.b)) {
			d = append(d, s.name)
		}
	}
	return d
}

// texts are the records of a section, sorted. A zone's serial is a time, and an
// OPT record speaks of the server.
func texts(list []dns.RR) []string {
	var out []string
	for _, rr := range list {
		switch r := rr.(type) {
		case *dns.OPT:
			continue
		case *dns.SOA:
			c := *r
			c.Serial = 0
			rr = &c
		}
		out = append(out, rr.String())
	}
	slices.Sort(out)
	return out
}

func brief(m *dns.Msg) string {
	var parts []string
	for i, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		t := texts(section)
		if len(t) == 0 {
			continue
		}
		more := ""
		if len(t) > 3 {
			more = fmt.Sprintf(" and %d more", len(t)-3)
		}
		for j := range t {
			t[j] = strings.Join(strings.Fields(t[j]), " ")
		}
		parts = append(parts, []string{"answer", "authority", "additional"}[i]+" "+strings.Join(t[:min(3, len(t))], " | ")+more)
	}
	return fmt.Sprintf("%s aa=%t %s", dns.RcodeToString[m.Rcode], m.Authoritative, strings.Join(parts, "; "))
}
