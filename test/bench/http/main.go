// Command http measures the gateway's HTTP engine side by side with nginx,
// HAProxy and httputil.ReverseProxy, in one run, in a network namespace of its
// own: CPU time of the proxy per request, requests per second, latency. It
// prints a table with ratios and writes docs/benchmarks/http.{md,json,svg}.
//
// It must not be imported, and reaches nothing but its own namespace.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
)

// row is one sort of load.
type row struct {
	name  string
	path  string
	tls   bool
	close bool // a connection for each request
}

var rows = []row{
	{name: "HTTP/1.1 kept, 100 B", path: "/small"},
	{name: "HTTP/1.1 kept, 10 KB", path: "/medium"},
	{name: "HTTP/1.1, a connection each", path: "/small", close: true},
	{name: "1 MB bodies", path: "/large"},
	{name: "TLS 1.3 kept, 100 B", path: "/small", tls: true},
	{name: "TLS 1.3, a full handshake each (P-256)", path: "/small", tls: true, close: true},
}

// result is what one peer did in one row.
type result struct {
	Row      string  `json:"row"`
	Peer     string  `json:"peer"`
	CPU      float64 `json:"cpuMicrosPerRequest"`
	Rate     float64 `json:"requestsPerSecond"`
	P50      float64 `json:"p50Millis"`
	P99      float64 `json:"p99Millis"`
	Requests int64   `json:"requests"`
	Failed   int64   `json:"failed"`
}

func main() {
	seconds := flag.Int("seconds", 2, "length of one measurement")
	rounds := flag.Int("rounds", 3, "rounds; the median counts")
	out := flag.String("out", "docs/benchmarks", "where to write the page, the numbers and the plot")
	only := flag.String("rows", "", "a regular expression that names the rows to measure; all if empty")
	hold := flag.Bool("hold", false, "start everything and wait for a signal, for a look with perf or strace")
	serve := flag.String("serve", "", "for the program itself: the proxy to run")
	flag.Parse()
	var err error
	switch {
	case *serve != "":
		err = serveProxy(*serve)
	case os.Getenv(inside) == "":
		err = enter()
	default:
		err = bench(*seconds, *rounds, *out, *only, *hold)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-http:", err)
		os.Exit(1)
	}
}

const inside = "FAIRWAY_BENCH_NETNS"

// enter runs the program again in a network namespace without a way out.
func enter() error {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	return cmd.Run()
}

func bench(seconds, rounds int, out, only string, hold bool) error {
	chosen, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-rows: %w", err)
	}
	rows := slices.DeleteFunc(slices.Clone(rows), func(r row) bool { return !chosen.MatchString(r.name) })
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
	dir, err := os.MkdirTemp("", "bench-http")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	peers, err := start(dir)
	defer func() {
		for _, p := range peers {
			p.stop()
		}
	}()
	if err != nil {
		return err
	}
	if hold {
		for _, p := range peers {
			fmt.Println(p.name, p.cmd.Process.Pid, p.port, p.tlsPort)
		}
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		<-ctx.Done()
		return nil
	}
	all := map[string][]result{}
	for range rounds {
		for _, r := range rows {
			for _, p := range peers {
				if p.port == 0 {
					continue // the backend
				}
				res, err := measure(p, r, seconds)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", p.name, r.name, err)
				}
				all[r.name+p.name] = append(all[r.name+p.name], res)
			}
		}
	}
	var list []result
	for _, r := range rows {
		for _, p := range peers {
			if p.port != 0 {
				list = append(list, median(all[r.name+p.name]))
			}
		}
	}
	return report(list, out)
}

func median(list []result) result {
	slices.SortFunc(list, func(a, b result) int { return cmp.Compare(a.CPU, b.CPU) })
	return list[len(list)/2]
}

var (
	wrkRequests = regexp.MustCompile(`(\d+) requests in`)
	wrkRate     = regexp.MustCompile(`Requests/sec:\s+([\d.]+)`)
	wrkP50      = regexp.MustCompile(`50%\s+([\d.]+)(us|ms|s)`)
	wrkP99      = regexp.MustCompile(`99%\s+([\d.]+)(us|ms|s)`)
	wrkErrors   = regexp.MustCompile(`(?:connect|read|write|timeout|responses:) (\d+)`)
)

// measure loads one peer with wrk for some seconds.
func measure(p *peer, r row, seconds int) (result, error) {
	scheme, port := "http", p.port
	if r.tls {
		scheme, port = "https", p.tlsPort
	}
	args := []string{"-t1", "-c32", fmt.Sprintf("-d%ds", seconds), "--latency", "-H", "Host: bench.test"}
	if r.close {
		args = append(args, "-H", "Connection: close")
	}
	args = append(args, fmt.Sprintf("%s://127.0.0.1:%d%s", scheme, port, r.path))
	before := p.cpu()
	output, err := exec.Command("wrk", args...).CombinedOutput()
	if err != nil {
		return result{}, fmt.Errorf("wrk: %w: %s", err, output)
	}
	used := p.cpu() - before
	res := result{Row: r.name, Peer: p.name}
	text := string(output)
	number := func(re *regexp.Regexp) float64 {
		m := re.FindStringSubmatch(text)
		if m == nil {
			return 0
		}
		n, _ := strconv.ParseFloat(m[1], 64)
		if len(m) > 2 {
			n *= map[string]float64{"us": 0.001, "ms": 1, "s": 1000}[m[2]]
		}
		return n
	}
	res.Requests, res.Rate, res.P50, res.P99 = int64(number(wrkRequests)), number(wrkRate), number(wrkP50), number(wrkP99)
	for _, m := range wrkErrors.FindAllStringSubmatch(text, -1) {
		n, _ := strconv.ParseInt(m[1], 10, 64)
		res.Failed += n
	}
	if res.Requests == 0 {
		return res, fmt.Errorf("no request was answered: %s", text)
	}
	res.CPU = float64(used.Microseconds()) / float64(res.Requests)
	return res, nil
}

// cpu is the CPU time that the peer's processes have used, in user and kernel mode.
func (p *peer) cpu() time.Duration {
	var ticks int64
	for _, pid := range p.processes() {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		for _, s := range f[11:13] {
			n, _ := strconv.ParseInt(s, 10, 64)
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// processes are the peer's process and its children.
func (p *peer) processes() []int {
	list := []int{p.cmd.Process.Pid}
	children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", list[0]))
	for _, file := range children {
		b, _ := os.ReadFile(file)
		for _, s := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(s); err == nil {
				list = append(list, pid)
			}
		}
	}
	return list
}

func report(list []result, out string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# The gateway's HTTP engine, side by side\n\n`make bench-http`, %s, %d cores, %s, %s. The load comes from wrk with 32 connections over loopback, the answers from nginx; all share the machine. CPU is the proxy's own time in user and\nkernel mode per request, the median of the rounds. A ratio below 1 means that Fairway needs less.\n\n", time.Now().Format(time.DateOnly), runtime.NumCPU(), kernel(), runtime.Version())
	b.WriteString("| load | peer | CPU per request | Fairway's share of it | requests/s | p50 | p99 | failed |\n|---|---|---|---|---|---|---|---|\n")
	own := map[string]float64{}
	for _, r := range list {
		if r.Peer == fairway {
			own[r.Row] = r.CPU
		}
	}
	for _, r := range list {
		fmt.Fprintf(&b, "| %s | %s | %.1f µs | %.2f | %.0f | %.2f ms | %.2f ms | %d |\n", r.Row, r.Peer, r.CPU, own[r.Row]/r.CPU, r.Rate, r.P50, r.P99, r.Failed)
	}
	b.WriteString("\n![CPU per request](http.svg)\n")
	fmt.Print(b.String())
	data, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{"http.md": []byte(b.String()), "http.json": append(data, '\n'), "http.svg": plot(list)} {
		if err := os.WriteFile(filepath.Join(out, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func kernel() string {
	b, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return "Linux " + strings.TrimSpace(string(b))
}

// plot draws CPU per request, each row relative to its most expensive peer.
func plot(list []result) []byte {
	const width, bar, label = 900, 16, 300
	colours := map[string]string{fairway: "#1b7f5c", "nginx": "#8899aa", "HAProxy": "#aab7c4", "ReverseProxy": "#ccd5dd"}
	var b strings.Builder
	y := 10
	most := map[string]float64{}
	for _, r := range list {
		most[r.Row] = math.Max(most[r.Row], r.CPU)
	}
	last := ""
	for _, r := range list {
		if r.Row != last {
			last = r.Row
			y += 26
			fmt.Fprintf(&b, `<text x="10" y="%d" font-weight="bold">%s</text>`+"\n", y-6, r.Row)
		}
		w := r.CPU / most[r.Row] * (width - label - 90)
		fmt.Fprintf(&b, `<text x="20" y="%d">%s</text><rect x="%d" y="%d" width="%.0f" height="%d" fill="%s"/><text x="%.0f" y="%d">%.1f µs</text>`+"\n",
			y+12, r.Peer, label-150, y, w, bar-3, colours[r.Peer], float64(label-150)+w+6, y+12, r.CPU)
		y += bar
	}
	return fmt.Appendf(nil, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12"><rect width="100%%" height="100%%" fill="white"/>`+"\n%s</svg>\n", width, y+20, b.String())
}
