// Command http measures the gateway's HTTP engine side by side with nginx,
// HAProxy, Caddy and httputil.ReverseProxy, in one run, in a network namespace
// of its own: CPU time of the proxy per request, requests per second, latency,
// and memory of idle connections. It prints a table with ratios and writes
// docs/benchmarks/http.{md,json,svg}.
//
// It must not be imported, and reaches nothing but its own namespace.
package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
)

// row is one sort of load.
type row struct {
	name string
	// hosts is how many hosts the peers serve; they are started anew for each number.
	hosts int
	load  func(p *peer, seconds int) (result, error)
	// not are peers that are left out.
	not []string
}

const oneHost = 1

// onlyHTTP are peers that carry nothing else.
var onlyHTTP = []string{caddy, reverseProxy}

// idleRow is what -rows calls the memory of idle connections.
const idleRow = "idle connections"

// rows are in the order in which they are measured.
var rows = []row{
	{name: "HTTP/1.1 kept, 100 B", hosts: oneHost, load: wrk{path: "/small"}.run},
	{name: "HTTP/1.1 kept, 10 KB", hosts: oneHost, load: wrk{path: "/medium"}.run},
	{name: "HTTP/1.1, a connection each", hosts: oneHost, load: wrk{path: "/small", close: true}.run},
	{name: "1 MB bodies", hosts: oneHost, load: wrk{path: "/large"}.run},
	{name: "TLS 1.3 kept, 100 B", hosts: oneHost, load: wrk{path: "/small", tls: true}.run},
	{name: "TLS 1.3, a full handshake each (P-256)", hosts: oneHost, load: handshakes(host, false, tls.X25519)},
	{name: "TLS 1.3, a full handshake each (RSA 2048)", hosts: oneHost, load: handshakes(rsaHost, false, tls.X25519)},
	{name: "TLS 1.3, a full handshake each (P-256, ML-KEM)", hosts: oneHost, load: handshakes(host, false, tls.X25519MLKEM768), not: []string{"nginx", "HAProxy", caddy}},
	{name: "TLS 1.3, a resumed handshake each", hosts: oneHost, load: handshakes(host, true, tls.X25519)},
	{name: "HTTP/2 to HTTP/1.1, 10 streams, TLS", hosts: oneHost, load: http2Streams},
	{name: "gRPC unary, 10 streams, TLS", hosts: oneHost, load: grpcUnary},
	{name: "WebSocket messages, 64 B", hosts: oneHost, load: webSocket},
	{name: "TCP messages, 64 B", hosts: oneHost, load: tcpMessages, not: onlyHTTP},
	{name: "TCP, a connection each", hosts: oneHost, load: wrk{path: "/small", close: true, port: bulkPort}.run, not: onlyHTTP},
	{name: "TCP, 1 MB bodies", hosts: oneHost, load: wrk{path: "/large", port: bulkPort}.run, not: onlyHTTP},
	{name: "TLS passed through, messages of 64 B", hosts: oneHost, load: passedMessages, not: onlyHTTP},
	{name: "HTTP/1.1 kept, 100 B, one of 1,000 hosts", hosts: 1000, load: wrk{path: "/small", host: "h777.test"}.run, not: []string{caddy}},
	{name: "HTTP/1.1 kept, 100 B, one of 10,000 hosts", hosts: 10000, load: wrk{path: "/small", host: "h7777.test"}.run, not: []string{caddy}},
}

// result is what one peer did in one row: the median round, by CPU time.
type result struct {
	Row  string  `json:"row"`
	Peer string  `json:"peer"`
	CPU  float64 `json:"cpuMicrosPerRequest"`
	// CPULow and CPUHigh are the quartiles of the rounds.
	CPULow  float64 `json:"cpuLowerQuartile"`
	CPUHigh float64 `json:"cpuUpperQuartile"`
	// Share is Fairway's CPU time in relation to this peer's, of rounds that were
	// made right after each other, with its quartiles.
	Share     float64 `json:"fairwayShare"`
	ShareLow  float64 `json:"fairwayShareLowerQuartile"`
	ShareHigh float64 `json:"fairwayShareUpperQuartile"`
	Rate      float64 `json:"requestsPerSecond"`
	P50       float64 `json:"p50Millis"`
	P99       float64 `json:"p99Millis"`
	P999      float64 `json:"p999Millis"`
	Requests  int64   `json:"requests"`
	Failed    int64   `json:"failed"`
}

// idle is the memory that idle connections take.
type idle struct {
	Peer  string  `json:"peer"`
	Plain float64 `json:"plainKiBPerConnection"`
	TLS   float64 `json:"tlsKiBPerConnection"`
}

// options are the flags of somebody who measures.
type options struct {
	seconds, rounds int
	out             string
	rows, peers     string
	builds          string
	profile         string
	hold            bool
}

func main() {
	var o options
	flag.IntVar(&o.seconds, "seconds", 1, "length of one measurement")
	flag.IntVar(&o.rounds, "rounds", 7, "rounds, in each of which all peers have their turn; the median counts")
	flag.StringVar(&o.out, "out", "docs/benchmarks", "where to write the page, the numbers and the plot")
	flag.StringVar(&o.rows, "rows", "", "a regular expression that names the rows to measure; all if empty")
	flag.StringVar(&o.peers, "peers", "", "a regular expression that names the peers to measure beside Fairway; all if empty")
	flag.StringVar(&o.builds, "builds", "", "other builds of this program, separated by commas: the Fairway of each is a peer as well, which shows what a change does")
	flag.StringVar(&o.profile, "profile", "", "write a CPU profile of Fairway to this file, of the rows with one host")
	flag.BoolVar(&o.hold, "hold", false, "start everything and wait for a signal, for a look with perf or strace")
	serve := flag.String("serve", "", "for the program itself: what to run")
	hosts := flag.Int("hosts", oneHost, "for the program itself: how many hosts to serve")
	ports := flag.Int("ports", 0, "for the program itself: what is added to Fairway's ports")
	flag.Parse()
	var err error
	switch {
	case *serve != "":
		err = serveAs(*serve, *hosts, *ports, o.profile)
	case os.Getenv(inside) == "":
		err = enter()
	default:
		err = bench(o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-http:", err)
		os.Exit(1)
	}
}

// inside is set for the program that runs in the namespace.
const inside = "FAIRWAY_BENCH_HTTP_INSIDE"

// enter runs the program again in a network namespace without a way out.
func enter() error {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	return cmd.Run()
}

func setUpNetwork() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(backendAddr + "/32")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(lo, addr); err != nil {
		return err
	}
	for name, value := range map[string]string{"ip_local_port_range": "10000 65000", "tcp_tw_reuse": "1"} {
		if err := os.WriteFile(filepath.Join("/proc/sys/net/ipv4", name), []byte(value), 0); err != nil {
			return err
		}
	}
	// Idle connections are files of both sides.
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return err
	}
	files.Cur = files.Max
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files)
}

func bench(o options) error {
	chosen, err := regexp.Compile(o.rows)
	if err != nil {
		return fmt.Errorf("-rows: %w", err)
	}
	if _, err := regexp.Compile(o.peers); err != nil {
		return fmt.Errorf("-peers: %w", err)
	}
	if o.rounds < 1 || o.seconds < 1 {
		return fmt.Errorf("-rounds and -seconds are 1 at least")
	}
	if o.profile != "" { // Fairway runs elsewhere
		if o.profile, err = filepath.Abs(o.profile); err != nil {
			return fmt.Errorf("-profile: %w", err)
		}
	}
	rows := slices.DeleteFunc(slices.Clone(rows), func(r row) bool { return !chosen.MatchString(r.name) })
	withIdle := chosen.MatchString(idleRow)
	if len(rows) == 0 && !withIdle {
		return fmt.Errorf("-rows %q names none", o.rows)
	}
	if err := setUpNetwork(); err != nil {
		return fmt.Errorf("set up the network namespace: %w", err)
	}
	before := loadAverage()
	began := time.Now()
	var list []result
	for len(rows) > 0 {
		n := 1
		for n < len(rows) && rows[n].hosts == rows[0].hosts {
			n++
		}
		more, err := group(rows[:n], o)
		if err != nil || o.hold {
			return err
		}
		list, rows = append(list, more...), rows[n:]
	}
	var idles []idle
	if withIdle && !o.hold {
		if idles, err = idleConnections(o); err != nil {
			return fmt.Errorf("idle connections: %w", err)
		}
	}
	whole := o.rows == "" && o.peers == "" && o.builds == "" && o.profile == ""
	return page{results: list, idles: idles, rounds: o.rounds, before: before, after: loadAverage(), took: time.Since(began), whole: whole}.write(o.out)
}

// with starts backends and peers, and stops them after do.
func with(hosts int, o options, do func(peers []*peer) error) error {
	dir, err := os.MkdirTemp("", "fairway-bench-http-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	peers, err := start(dir, hosts, o)
	defer func() {
		for _, p := range peers {
			p.stop()
		}
	}()
	if err != nil {
		return err
	}
	return do(peers)
}

// group measures rows whose peers serve the same hosts.
func group(rows []row, o options) (list []result, err error) {
	err = with(rows[0].hosts, o, func(peers []*peer) error {
		if o.hold {
			for _, p := range peers {
				fmt.Println(p.name, p.cmd.Process.Pid, p.port, p.tlsPort)
			}
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			<-ctx.Done()
			return nil
		}
		for _, r := range rows {
			more, err := r.measure(peers, o)
			if err != nil {
				return err
			}
			list = append(list, more...)
			fmt.Fprintln(os.Stderr, "measured:", r.name)
		}
		return nil
	})
	return list, err
}

// measure lets all peers have their turn in each round, another one first each
// time: what else happens on the machine meets all of them.
func (r row) measure(peers []*peer, o options) (list []result, err error) {
	peers = slices.DeleteFunc(slices.Clone(peers), func(p *peer) bool { return p.port == 0 || slices.Contains(r.not, p.name) })
	all := make([][]result, len(peers)) // the rounds of each
	for round := range o.rounds {
		for i := range peers {
			n := (round + i) % len(peers)
			res, err := r.once(peers[n], o.seconds)
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", peers[n].name, r.name, err)
			}
			all[n] = append(all[n], res)
		}
	}
	own := all[slices.IndexFunc(peers, func(p *peer) bool { return p.name == fairway })]
	for _, rounds := range all {
		list = append(list, summary(rounds, own))
	}
	return list, nil
}

// once loads one peer for some seconds, and takes its CPU time.
func (r row) once(p *peer, seconds int) (result, error) {
	before, err := p.cpu()
	if err != nil {
		return result{}, err
	}
	res, err := r.load(p, seconds)
	if err != nil {
		return res, err
	}
	if res.Requests == 0 {
		return res, fmt.Errorf("no request was answered")
	}
	after, err := p.cpu()
	res.Row, res.Peer = r.name, p.name
	res.CPU = float64((after - before).Nanoseconds()) / 1000 / float64(res.Requests)
	return res, err
}

// summary makes one result of a peer's rounds and, for comparison, Fairway's.
func summary(rounds, own []result) result {
	var shares []float64
	for i, r := range rounds {
		shares = append(shares, own[i].CPU/r.CPU)
	}
	slices.Sort(shares)
	rounds = slices.SortedFunc(slices.Values(rounds), func(a, b result) int { return cmp.Compare(a.CPU, b.CPU) })
	low, middle, high := quarters(len(rounds))
	res := rounds[middle]
	res.CPULow, res.CPUHigh = rounds[low].CPU, rounds[high].CPU
	res.Share, res.ShareLow, res.ShareHigh = shares[middle], shares[low], shares[high]
	return res
}

// quarters are the places of the quartiles and the median in a sorted list.
func quarters(n int) (low, middle, high int) {
	return n / 4, n / 2, n - 1 - n/4
}
