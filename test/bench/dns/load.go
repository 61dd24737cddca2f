package main

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"fairway.dev/fairway/test/bench/dns/world"
)

// workload is what is asked.
type workload struct {
	name string
	// rcode is what every answer has to have.
	rcode string
	ask   func(r *rand.Rand, w *world.World) string // "NAME TYPE"
}

func anyService(r *rand.Rand, w *world.World, headless bool) string {
	for {
		s := w.Services[r.IntN(len(w.Services))]
		if s.Namespace != "kube-system" && (s.Spec.ClusterIP == "None") == headless {
			return s.Name + "." + s.Namespace + ".svc.cluster.local"
		}
	}
}

// cachedNames is how many external names are asked for: both caches hold all of them.
const cachedNames = 500

// workloads are the rows of the report.
var workloads = []workload{
	{"A", "NOERROR", func(r *rand.Rand, w *world.World) string { return anyService(r, w, false) + " A" }},
	{"AAAA", "NOERROR", func(r *rand.Rand, w *world.World) string { return anyService(r, w, false) + " AAAA" }},
	{"A, headless", "NOERROR", func(r *rand.Rand, w *world.World) string { return anyService(r, w, true) + " A" }},
	{"SRV", "NOERROR", func(r *rand.Rand, w *world.World) string { return "_http._tcp." + anyService(r, w, false) + " SRV" }},
	{"NXDOMAIN", "NXDOMAIN", func(r *rand.Rand, w *world.World) string {
		return fmt.Sprintf("missing-%d.team-%d.svc.cluster.local A", r.IntN(5000), r.IntN(20))
	}},
	{"external, cached", "NOERROR", func(r *rand.Rand, _ *world.World) string {
		return fmt.Sprintf("www-%d.example.com A", r.IntN(cachedNames))
	}},
}

// writeQueries writes a dnsperf input file of n questions.
func writeQueries(path string, n int, ask func() string) error {
	var b bytes.Buffer
	for range n {
		fmt.Fprintln(&b, ask())
	}
	return os.WriteFile(path, b.Bytes(), 0o600)
}

// sample is one run of dnsperf.
type sample struct {
	QPS     float64
	CPU     float64 // of the server, µs per query
	P99     float64 // ms; only where the rate was given
	Lost    int     // without an answer in time
	Answers int
}

var (
	qpsLine  = regexp.MustCompile(`Queries per second:\s+([\d.]+)`)
	doneLine = regexp.MustCompile(`Queries completed:\s+(\d+)`)
	lostLine = regexp.MustCompile(`Queries lost:\s+(\d+)`)
	codeLine = regexp.MustCompile(`Response codes:\s+(.*)`)
	sentLine = regexp.MustCompile(`^> (\S+) \S+ \S+ ([\d.]+)`)
)

// dnsperf asks p for d. With a rate it asks that often and says how long
// answers took; without one it asks as often as p answers.
func dnsperf(p *peer, file, proto string, d time.Duration, rate int, want string) (sample, error) {
	args := []string{"-s", p.addr.Addr().String(), "-p", fmt.Sprint(p.addr.Port()), "-d", file, "-m", proto,
		"-l", strconv.FormatFloat(d.Seconds(), 'f', 1, 64), "-c", "20", "-T", "1", "-q", "100", "-t", "2"}
	if rate > 0 {
		args = append(args, "-Q", fmt.Sprint(rate), "-v")
	}
	before, err := cpuTime(p.cmd.Process.Pid)
	if err != nil {
		return sample{}, err
	}
	out, err := exec.Command("dnsperf", args...).CombinedOutput()
	if err != nil {
		return sample{}, fmt.Errorf("dnsperf: %w\n%s", err, out)
	}
	after, err := cpuTime(p.cmd.Process.Pid)
	if err != nil {
		return sample{}, err
	}
	number := func(re *regexp.Regexp) float64 {
		m := re.FindSubmatch(out)
		if m == nil {
			return 0
		}
		v, _ := strconv.ParseFloat(string(m[1]), 64)
		return v
	}
	s := sample{QPS: number(qpsLine), Answers: int(number(doneLine)), Lost: int(number(lostLine))}
	if s.Answers == 0 {
		return s, fmt.Errorf("%s answers nothing:\n%s", p.name, out)
	}
	s.CPU = float64((after - before).Microseconds()) / float64(s.Answers)
	if codes := codeLine.FindSubmatch(out); want != "" && (codes == nil || !strings.HasPrefix(string(codes[1]), want) || strings.Contains(string(codes[1]), ",")) {
		return s, fmt.Errorf("%s answers other than %s: %s", p.name, want, codes)
	}
	if rate > 0 {
		var took []float64
		for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
			if m := sentLine.FindSubmatch(lines.Bytes()); m != nil {
				v, _ := strconv.ParseFloat(string(m[2]), 64)
				took = append(took, v*1000)
			}
		}
		if len(took) == 0 {
			return s, fmt.Errorf("dnsperf names no query:\n%.2000s", out)
		}
		slices.Sort(took)
		s.P99 = took[min(len(took)-1, len(took)*99/100)]
	}
	return s, nil
}

// ticks is the unit of times in /proc (USER_HZ), the same on every machine that Go runs on.
const ticks = 100

// cpuTime is what a process has used so far, user and system.
func cpuTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, data)
	}
	return time.Duration(user+system) * time.Second / ticks, nil
}

// rss is a process' resident memory, MiB.
func rss(pid int) (float64, error) {
	data, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "status"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 64)
			return kb / 1024, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}
