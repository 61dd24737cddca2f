package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/test/bench/dns/world"
)

type awayOptions struct {
	outage   time.Duration
	services int
	clients  int
	rate     int
}

func (o *awayOptions) flags(f *flag.FlagSet) {
	f.DurationVar(&o.outage, "for", 10*time.Minute, "`time` that the API is away")
	f.IntVar(&o.services, "services", 2000, "`number` of Services")
	f.IntVar(&o.clients, "clients", 8, "`number` of clients that ask all the while")
	f.IntVar(&o.rate, "rate", 4000, "`queries` a second that they ask together")
}

const (
	// growth is how much more memory the last quarter of a phase may have than
	// its second, and slack what that may be in any case, MiB: the cache fills up.
	growth, slack = 1.15, 24
	// maxGap is how long a start without the API may leave clients without answers.
	maxGap = 15 * time.Second
)

// expected is a question with the answers that it may have: addresses, in text
// and sorted, or an rcode.
type expected struct {
	name  string
	qtype uint16
	want  string
}

// away keeps the API from a server of a large cluster: half of the time it is
// the one that knew the API, then one that starts without. Every answer has to
// be right, memory flat, and the metric to say so.
func away(l *lab, o awayOptions) error {
	w := world.New(1, nodeName, l.addrs["fairway"])
	w.Plain(o.services)
	if err := l.serve(w); err != nil {
		return err
	}
	state := filepath.Join(l.dir, "state")
	metrics := netip.AddrPortFrom(l.addrs["fairway"], metricsPort)
	start := func() (*peer, error) {
		return l.startFairwayWith("--dns-upstream", upAddr, "--state-dir", state, "--metrics-address", metrics.String())
	}
	p, err := start()
	if err != nil {
		return err
	}
	defer func() { p.stop() }()
	if err := p.await("kube-dns.kube-system.svc.cluster.local.", "host-1.example.com."); err != nil {
		return err
	}
	if err := until("the state on disk, and fresh answers", func() bool {
		_, err := os.Stat(filepath.Join(state, "last-known"))
		return err == nil && gauge(metrics, "fairway_dns_stale") == 0
	}); err != nil {
		return err
	}
	questions := expectations(w)

	l.listener.Stop()
	if err := until("the metric that the answers are stale", func() bool { return gauge(metrics, "fairway_dns_stale") == 1 }); err != nil {
		return err
	}
	a := &asker{addr: p.addr, questions: questions, pause: time.Second * time.Duration(o.clients) / time.Duration(max(1, o.rate)), stop: make(chan struct{})}
	for i := range o.clients {
		a.clients.Go(func() { a.ask(i) })
	}
	var failed []error
	phase := func(name string) {
		failed = append(failed, a.phase(name, p, metrics, o.outage/2))
	}
	phase("as it was")

	a.down.Store(true)
	began := time.Now()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	<-p.done
	ended := time.Since(began)
	if p, err = start(); err != nil {
		return err
	}
	if err := p.await("kube-dns.kube-system.svc.cluster.local."); err != nil {
		return err
	}
	gap := time.Since(began)
	a.down.Store(false)
	fmt.Printf("ended after %v, and without the API answering again after %v\n", ended.Round(time.Millisecond), gap.Round(time.Millisecond))
	if gap > maxGap {
		failed = append(failed, fmt.Errorf("no answers for %v", gap))
	}
	phase("started without the API")
	close(a.stop)
	a.clients.Wait()

	fresh := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "fresh"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "host-1.example.com"}}
	l.api.Put(fresh)
	if err := l.listener.Start(); err != nil {
		return err
	}
	if err := p.await("fresh.default.svc.cluster.local."); err != nil {
		return err
	}
	failed = append(failed, until("fresh answers, now that the API is back", func() bool { return gauge(metrics, "fairway_dns_stale") == 0 }))
	fmt.Printf("%d answers, %d of them wrong, %d queries lost\n", a.answers.Load(), a.wrong.Load(), a.lost.Load())
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.examples {
		fmt.Println("  ", e)
	}
	if a.wrong.Load() > 0 || a.lost.Load() > 0 || a.answers.Load() == 0 {
		failed = append(failed, errors.New("answers are wrong, or missing"))
	}
	return errors.Join(failed...)
}

// asker asks one question after the other and checks every answer.
type asker struct {
	addr      netip.AddrPort
	questions []expected
	pause     time.Duration // between two questions of a client
	stop      chan struct{}
	clients   sync.WaitGroup
	down      atomic.Bool // no answer is due
	answers   atomic.Int64
	wrong     atomic.Int64
	lost      atomic.Int64

	mu       sync.Mutex
	examples []string
}

func (a *asker) ask(i int) {
	random := rand.New(rand.NewPCG(7, uint64(i)))
	client := &dns.Client{Net: []string{"udp", "tcp"}[i%2], Timeout: 3 * time.Second}
	var conn *dns.Conn
	next := time.Now()
	for n := 0; ; n++ {
		next = next.Add(a.pause)
		select {
		case <-a.stop:
			return
		case <-time.After(time.Until(next)):
		}
		q := a.questions[random.IntN(len(a.questions))]
		if q.want == "" { // another one each time, so that the cache has to let others go
			q.name, q.want = fmt.Sprintf("h%d.example.com.", random.IntN(200000)), "192.0.2.80"
		}
		excused := a.down.Load()
		var err error
		if conn == nil {
			conn, err = client.Dial(a.addr.String())
		}
		var m *dns.Msg
		if err == nil {
			m, _, err = client.ExchangeWithConn(new(dns.Msg).SetQuestion(q.name, q.qtype), conn)
		}
		if err != nil || n%500 == 499 {
			if conn != nil {
				_ = conn.Close()
			}
			conn = nil
		}
		switch {
		case err != nil && (excused || a.down.Load()):
			time.Sleep(20 * time.Millisecond)
		case err != nil:
			a.lost.Add(1)
			a.example("lost: %s %s: %v", q.name, dns.TypeToString[q.qtype], err)
		default:
			a.answers.Add(1)
			// A server that has just started may say that it does not know yet.
			if got := said(m); got != q.want && !(got == "SERVFAIL" && (excused || a.down.Load())) {
				a.wrong.Add(1)
				a.example("wrong: %s %s: %s, want %s", q.name, dns.TypeToString[q.qtype], got, q.want)
			}
		}
	}
}

func (a *asker) example(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.examples) < 10 {
		a.examples = append(a.examples, fmt.Sprintf(format, args...))
	}
}

// phase samples memory and the metric for a time.
func (a *asker) phase(name string, p *peer, metrics netip.AddrPort, d time.Duration) error {
	before := a.answers.Load()
	var memory []float64
	for end, every := time.Now().Add(d), max(d/100, 100*time.Millisecond); time.Now().Before(end); time.Sleep(every) {
		if stale := gauge(metrics, "fairway_dns_stale"); stale != 1 {
			return fmt.Errorf("%s: fairway_dns_stale is %v while the API is away", name, stale)
		}
		if v, err := rss(p.cmd.Process.Pid); err != nil {
			return err
		} else {
			memory = append(memory, v)
		}
	}
	n := len(memory)
	if n < 4 {
		return fmt.Errorf("%s: %v is too short to tell", name, d)
	}
	second, last := middle(memory[n/4:n/2]), middle(memory[n*3/4:])
	fmt.Printf("%s: %.0f answers/s, memory %.0f MiB in the second quarter, %.0f in the last, at most %.0f\n",
		name, float64(a.answers.Load()-before)/d.Seconds(), second, last, slices.Max(memory))
	if last > second*growth && last > second+slack {
		return fmt.Errorf("%s: memory grows, %.1f to %.1f MiB", name, second, last)
	}
	return nil
}

func middle(list []float64) float64 {
	list = slices.Clone(list)
	slices.Sort(list)
	return list[len(list)/2]
}

// said is an answer in text: its addresses, or the rcode where it has none.
func said(m *dns.Msg) string {
	var addrs []string
	for _, rr := range m.Answer {
		switch r := rr.(type) {
		case *dns.A:
			addrs = append(addrs, r.A.String())
		case *dns.AAAA:
			addrs = append(addrs, r.AAAA.String())
		}
	}
	if m.Rcode != dns.RcodeSuccess || len(addrs) == 0 {
		return dns.RcodeToString[m.Rcode]
	}
	slices.Sort(addrs)
	return strings.Join(addrs, " ")
}

// expectations are the questions about a world, and about names elsewhere.
func expectations(w *world.World) []expected {
	endpoints := map[string][]string{}
	for _, s := range w.Slices {
		if s.AddressType != "IPv4" {
			continue
		}
		key := s.Labels["kubernetes.io/service-name"] + "." + s.Namespace
		for _, e := range s.Endpoints {
			endpoints[key] = append(endpoints[key], e.Addresses...)
		}
	}
	var list []expected
	for i, s := range w.Services {
		if s.Namespace == "kube-system" {
			continue
		}
		key := s.Name + "." + s.Namespace
		name := key + ".svc.cluster.local."
		want := slices.Sorted(slices.Values(endpoints[key]))
		if s.Spec.ClusterIP != "None" {
			want = s.Spec.ClusterIPs[:1]
		}
		list = append(list, expected{name, dns.TypeA, strings.Join(want, " ")}, expected{"no-" + name, dns.TypeA, "NXDOMAIN"})
		if i%4 == 0 {
			list = append(list, expected{fmt.Sprintf("www-%d.example.com.", i%500), dns.TypeA, "192.0.2.80"}, expected{qtype: dns.TypeA})
		}
	}
	return list
}

// until waits for something, a minute at most.
func until(what string, ok func() bool) error {
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("not reached: %s", what)
		}
	}
	return nil
}

// gauge reads one without labels; -1 where it cannot be read.
func gauge(metrics netip.AddrPort, name string) float64 {
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get("http://" + metrics.String() + "/metrics")
	if err != nil {
		return -1
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return -1
	}
	for line := range strings.Lines(string(body)) {
		var v float64
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			if _, err := fmt.Sscan(rest, &v); err == nil {
				return v
			}
		}
	}
	return -1
}
