package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/test/bench/dns/world"
)

type benchOptions struct {
	sizes            string
	rounds, rate     int
	full, paced, mix time.Duration
	out              string
}

func (o *benchOptions) flags(f *flag.FlagSet) {
	f.StringVar(&o.sizes, "services", "1000,10000", "`numbers` of Services")
	f.IntVar(&o.rounds, "rounds", 2, "rounds; in each, every row is measured on both")
	f.DurationVar(&o.full, "full", 2*time.Second, "time of a measurement at full speed")
	f.DurationVar(&o.paced, "paced", 1500*time.Millisecond, "time of a measurement at a fixed rate")
	f.IntVar(&o.rate, "rate", 4000, "queries a second at the fixed rate")
	f.DurationVar(&o.mix, "soak", 2*time.Minute, "time of the soak; 0 for none")
	f.StringVar(&o.out, "out", "docs/benchmarks", "`folder` for the report")
}

// row is one line of the report: the median of all rounds.
type row struct {
	Services int    `json:"services"`
	Protocol string `json:"protocol"`
	Query    string `json:"query"`
	Fairway  figure `json:"fairway"`
	CoreDNS  figure `json:"coredns"`
	// CPURatio is Fairway's CPU per query over CoreDNS', at full speed.
	CPURatio float64 `json:"cpuRatio"`
}

type figure struct {
	QPS      float64 `json:"queriesPerSecond"`
	CPU      float64 `json:"cpuMicrosPerQuery"`
	PacedCPU float64 `json:"cpuMicrosPerQueryPaced"`
	P99      float64 `json:"p99MillisPaced"`
	Lost     int     `json:"lost"`
}

type memory struct {
	Services int     `json:"services"`
	Fairway  float64 `json:"fairwayMiB"`
	CoreDNS  float64 `json:"corednsMiB"`
	// After is what they have at the end of the measurements.
	FairwayAfter float64 `json:"fairwayAfterMiB"`
	CoreDNSAfter float64 `json:"corednsAfterMiB"`
}

type soak struct {
	Seconds  float64   `json:"seconds"`
	Services int       `json:"services"`
	Queries  int       `json:"queries"`
	Lost     int       `json:"lost"`
	Changes  int       `json:"changes"`
	RSS      []float64 `json:"rssMiB"`
	// Growth is the median of the last quarter over that of the second.
	Growth float64 `json:"growth"`
}

type report struct {
	Made     string   `json:"made"`
	Machine  machine  `json:"machine"`
	Fairway  string   `json:"fairway"`
	CoreDNS  string   `json:"coredns"`
	Rounds   int      `json:"rounds"`
	Rate     int      `json:"pacedRate"`
	Rows     []row    `json:"rows"`
	Memory   []memory `json:"memory"`
	Soak     *soak    `json:"soak,omitempty"`
	InZone   float64  `json:"worstInZoneCPURatio"`
	Worst    float64  `json:"worstCPURatio"`
	Duration string   `json:"duration"`
}

type machine struct {
	Kernel string `json:"kernel"`
	Cores  int    `json:"cores"`
}

func bench(l *lab, o benchOptions) error {
	began := time.Now()
	r := &report{
		Made: began.UTC().Format("2006-01-02"), Machine: machine{kernel(), runtime.NumCPU()},
		Fairway: version(l.fairway, "version"), CoreDNS: version(l.coredns, "-version"), Rounds: o.rounds, Rate: o.rate,
	}
	for _, s := range strings.Split(o.sizes, ",") {
		size, err := strconv.Atoi(s)
		if err != nil || size < 20 {
			return fmt.Errorf("-services %q: want numbers from 20 on", o.sizes)
		}
		if err := benchSize(l, o, r, size); err != nil {
			return fmt.Errorf("%d Services: %w", size, err)
		}
	}
	for _, row := range r.Rows {
		r.Worst = max(r.Worst, row.CPURatio)
		if row.Query != "external, cached" {
			r.InZone = max(r.InZone, row.CPURatio)
		}
	}
	r.Duration = time.Since(began).Round(time.Second).String()
	return r.write(o.out)
}

func kernel() string {
	data, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return strings.TrimSpace(string(data))
}

func version(args ...string) string {
	out, _ := exec.Command(args[0], args[1:]...).Output()
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}

func benchSize(l *lab, o benchOptions, r *report, size int) error {
	w := world.New(uint64(size), nodeName, l.addrs["fairway"])
	w.ServeDNS(fairwayPort)
	w.Plain(size)
	if err := l.serve(w); err != nil {
		return err
	}
	peers := make([]*peer, 2)
	for i, start := range []func() (*peer, error){l.startForClients, l.startCoreDNS} {
		p, err := start()
		if err != nil {
			return err
		}
		defer p.stop()
		first, last := w.Services[1], w.Services[len(w.Services)-1]
		if err := p.await(first.Name+"."+first.Namespace+".svc.cluster.local.", last.Name+"."+last.Namespace+".svc.cluster.local.", "www-1.example.com."); err != nil {
			return err
		}
		peers[i] = p
	}
	time.Sleep(3 * time.Second) // garbage of the start, and the data path's first programming
	m := memory{Services: size}
	var err error
	if m.Fairway, m.CoreDNS, err = both(peers); err != nil {
		return err
	}
	rows, err := measure(l, o, peers, w, size)
	if err != nil {
		return err
	}
	r.Rows = append(r.Rows, rows...)
	if m.FairwayAfter, m.CoreDNSAfter, err = both(peers); err != nil {
		return err
	}
	r.Memory = append(r.Memory, m)
	fmt.Printf("%d Services: memory %.0f and %.0f MiB, after the load %.0f and %.0f MiB\n", size, m.Fairway, m.CoreDNS, m.FairwayAfter, m.CoreDNSAfter)
	if o.mix > 0 && r.Soak == nil {
		r.Soak, err = soakOn(l, o, peers[0], w, size)
	}
	return err
}

func both(peers []*peer) (a, b float64, err error) {
	if a, err = rss(peers[0].cmd.Process.Pid); err == nil {
		b, err = rss(peers[1].cmd.Process.Pid)
	}
	return a, b, err
}

// measure measures every row in every round, one server right after the other,
// the first of them in turn.
func measure(l *lab, o benchOptions, peers []*peer, w *world.World, size int) ([]row, error) {
	type cell struct{ full, paced []sample }
	cells := map[string]*[2]cell{}
	var rows []row
	for round := range o.rounds {
		for n, load := range workloads {
			file := filepath.Join(l.dir, "queries")
			random := rand.New(rand.NewPCG(uint64(round), uint64(size)))
			if err := writeQueries(file, 20000, func() string { return load.ask(random, w) }); err != nil {
				return nil, err
			}
			for _, proto := range []string{"udp", "tcp"} {
				key := load.name + " " + proto
				if cells[key] == nil {
					cells[key] = &[2]cell{}
					rows = append(rows, row{Services: size, Protocol: strings.ToUpper(proto), Query: load.name})
				}
				if round == 0 && (n == 0 || load.name == "external, cached" && proto == "udp") {
					// Not yet as they are in the long run: heaps that have not grown to
					// their size, sockets, and the caches of names from elsewhere.
					for _, p := range peers {
						if _, err := dnsperf(p, file, proto, max(time.Second, o.full), 0, ""); err != nil {
							return nil, err
						}
					}
				}
				for i := range peers {
					i = (i + round) % 2
					full, err := dnsperf(peers[i], file, proto, o.full, 0, load.rcode)
					if err != nil {
						return nil, fmt.Errorf("%s: %w", key, err)
					}
					paced, err := dnsperf(peers[i], file, proto, o.paced, o.rate, load.rcode)
					if err != nil {
						return nil, fmt.Errorf("%s: %w", key, err)
					}
					c := &cells[key][i]
					c.full, c.paced = append(c.full, full), append(c.paced, paced)
				}
			}
		}
	}
	for i := range rows {
		row := &rows[i]
		c := cells[row.Query+" "+strings.ToLower(row.Protocol)]
		for j, f := range []*figure{&row.Fairway, &row.CoreDNS} {
			f.QPS = median(c[j].full, func(s sample) float64 { return s.QPS })
			f.CPU = median(c[j].full, func(s sample) float64 { return s.CPU })
			f.PacedCPU = median(c[j].paced, func(s sample) float64 { return s.CPU })
			f.P99 = median(c[j].paced, func(s sample) float64 { return s.P99 })
			for _, s := range append(c[j].full, c[j].paced...) {
				f.Lost += s.Lost
			}
		}
		row.CPURatio = row.Fairway.CPU / row.CoreDNS.CPU
		fmt.Printf("%6d Services, %s, %-17s %7.0f and %6.0f queries/s, %5.1f and %5.1f µs (%.2f), p99 %.2f and %.2f ms\n",
			size, row.Protocol, row.Query, row.Fairway.QPS, row.CoreDNS.QPS, row.Fairway.CPU, row.CoreDNS.CPU, row.CPURatio, row.Fairway.P99, row.CoreDNS.P99)
	}
	return rows, nil
}

func median(list []sample, of func(sample) float64) float64 {
	var v []float64
	for _, s := range list {
		v = append(v, of(s))
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// soakOn asks for everything at once, among it 100,000 external names, far more
// than the cache holds, while Services come and go.
func soakOn(l *lab, o benchOptions, p *peer, w *world.World, size int) (*soak, error) {
	file := filepath.Join(l.dir, "queries")
	random := rand.New(rand.NewPCG(9, 9))
	err := writeQueries(file, 300000, func() string {
		switch n := random.IntN(100); {
		case n < 30:
			return fmt.Sprintf("%x.example.com A", random.IntN(100000))
		case n < 40:
			return fmt.Sprintf("%x.gone.example.com AAAA", random.IntN(100000))
		default:
			return workloads[n%len(workloads)].ask(random, w)
		}
	})
	if err != nil {
		return nil, err
	}
	s := &soak{Seconds: o.mix.Seconds(), Services: size}
	stop, changed := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { changed <- n }()
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
			svc := &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("churn-%d", n%50)},
				Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: fmt.Sprintf("c-%d.example.com", n)},
			}
			if n%3 == 2 {
				l.api.Delete(svc)
			} else {
				l.api.Put(svc)
			}
			n++
		}
	}()
	sampled := make(chan []float64)
	go func() {
		var all []float64
		defer func() { sampled <- all }()
		for {
			select {
			case <-stop:
				return
			case <-time.After(o.mix / 40):
			}
			if v, err := rss(p.cmd.Process.Pid); err == nil {
				all = append(all, float64(int(v*10))/10)
			}
		}
	}()
	var failed error
	for end := time.Now().Add(o.mix); time.Now().Before(end) && failed == nil; {
		for _, proto := range []string{"udp", "tcp"} {
			var got sample
			got, failed = dnsperf(p, file, proto, max(time.Second, min(o.mix/8, time.Until(end))), 0, "")
			s.Queries += got.Answers
			s.Lost += got.Lost
		}
	}
	close(stop)
	s.Changes, s.RSS = <-changed, <-sampled
	if failed != nil {
		return nil, failed
	}
	part := func(from, to int) float64 {
		v := slices.Clone(s.RSS[from:to])
		slices.Sort(v)
		return v[len(v)/2]
	}
	if n := len(s.RSS); n >= 4 {
		s.Growth = part(n*3/4, n) / part(n/4, n/2)
	}
	fmt.Printf("soak of %v: %d queries, %d lost, %d changes, memory %.0f to %.0f MiB, last quarter %.2f times the second\n",
		o.mix, s.Queries, s.Lost, s.Changes, slices.Min(s.RSS), slices.Max(s.RSS), s.Growth)
	return s, nil
}

func (r *report) write(dir string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, content := range map[string]string{"dns.json": string(data) + "\n", "dns.md": r.markdown(), "dns.svg": r.svg()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	fmt.Printf("CPU per query against CoreDNS', worst row: %.2f in zone, %.2f of all; %s\n", r.InZone, r.Worst, r.Duration)
	return nil
}
