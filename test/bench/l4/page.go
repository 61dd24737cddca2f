package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// labels of the peers, for people.
var labels = map[string]string{"direct": "direct to the Pod", "again": "direct again", "tracked": "direct, tracked", "ebpf": "Fairway ebpf", "ebpf-pods": "the Pod, beside ebpf", "nft": "Fairway nft", "nft-pods": "the Pod, beside nft", "kube-proxy": "kube-proxy"}

// numbers are a list of them in JSON.
var numbers = regexp.MustCompile(`\[[-+.,\d\seE]+\]`)

// write puts page, numbers and plot into a directory.
func (r *report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	// A line for the rounds of a measurement, not one for each.
	data = numbers.ReplaceAllFunc(data, func(list []byte) []byte { return bytes.Join(bytes.Fields(list), nil) })
	for name, text := range map[string]string{"l4.json": string(data) + "\n", "l4.md": r.page(), "l4.svg": r.plot()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (r *report) page() string {
	m := r.Machine
	return fmt.Sprintf(`# The Service data path against its peers

Made by `+"`make bench-l4`"+` on %s: %d cores (%s), Linux %s, %s; load average %.1f before, %.1f after. All numbers of a table
are from one run. Numbers of every round are in [l4.json](l4.json).

%s![the numbers as bars](l4.svg)

%s
## What is measured, and how

- Every peer has a node, a client Pod, a server Pod and a client outside, each in a network namespace of its own, and an API server of its own with the same objects, in memory, which
  speaks what a real one does to client-go (watches with initial events, protobuf). Each Service has %d endpoints. A hundred of the Services, spread evenly, lead to the server Pod, which has
  as many addresses; clients connect to them in turn. %d rounds of %g s each, the peers taking turns, and each time another one first. Numbers are medians of the rounds; ratios
  are medians of the ratios of rounds that were made right after each other, with the quartiles in brackets.
- "direct to the Pod" is the same network without any service proxy, and so without connection tracking. "direct again" is the same once more: how far its ratio is from 1 is what
  chance does. "direct, tracked" has a rule that masquerades what Pods send out of the cluster, as nearly every node has, and with it the kernel tracks all connections, as it does
  for every service proxy that translates packets. "the Pod, beside ..." is the Pod's address, dialled where that data path is at work: what a Service costs more than its Pod on one node.
- Aims about the Pod's rate, and where it says so those about kube-proxy, are of the rounds of all numbers of Services together, with the bounds between which the median is with 95 %% confidence in brackets.
- A connection is connect, 64 bytes there, 64 bytes back, close. Four threads of the client do so one after the other, so that client and server together use up the machine:
  connections/s then tell what one costs. p50 and p99 are from connect to the answer, under that load.
- CPU of a connection or request: what client and server used, in user and kernel mode, and the kernel's threads ksoftirqd; the kernel does all other work of the network in the name of whoever sends.
- Throughput is by iperf3, one stream of a second.
- Cold: from the start of the agent, with everything in the API already, until each of the hundred Services has answered; CPU is what the agent and the programs that it runs (kube-proxy runs nft) have used by then.
  "writing rules" is the agent's own metric sync_proxy_rules_duration_seconds.
- One change: an EndpointSlice is written in which another one of ten endpoints is the ready one; a client that connects over and over tells when the first connection to that one was made. Each agent is asked again after
  1.2 s at the soonest, because kube-proxy writes once a second at most.
`, r.Made.Format("2006-01-02 15:04 UTC"), m.Cores, m.CPU, m.Kernel, m.NFT, m.LoadBefore, m.LoadAfter, r.busy(), r.tables(), endpointsEach, r.Rounds, r.RoundSeconds)
}

// busy warns of numbers from a machine that had other things to do.
func (r *report) busy() string {
	var out string
	if n := r.Machine.OthersPrograms; n > 0 {
		out = fmt.Sprintf("**%d BPF programs of others ran for each connection**, of every peer, for they are attached to the root of all cgroups.\n\n", n)
	}
	if r.Machine.LoadBefore < 2*float64(r.Machine.Cores) {
		return out
	}
	return out + "**The machine was busy with other work**: times are longer than on a quiet one, and rates differ by chance by tens of percent, as the spread of the rounds shows. Run `make bench-l4` on a quiet machine.\n\n"
}

// peers returns the peers of the report in the order of labels' columns.
func (r *report) peers() []string {
	var out []string
	for _, name := range []string{"direct", "again", "tracked", "ebpf", "ebpf-pods", "nft", "nft-pods", "kube-proxy"} {
		if slices.ContainsFunc(r.Results, func(s *sizeResult) bool { return s.Peer == name }) {
			out = append(out, name)
		}
	}
	return out
}

// fairways are those of the peers that are Fairway's.
func (r *report) fairways() []string {
	return slices.DeleteFunc(r.peers(), func(p string) bool { return !slices.Contains([]string{"ebpf", "nft"}, p) })
}

// podsBeside is the peer that dials the Pod where another one serves.
func podsBeside(peer string) string { return peer + "-pods" }

// pairs are the peers that are compared, each with the other in the divisor.
func (r *report) pairs() [][2]string {
	out := [][2]string{{"again", "direct"}, {"tracked", "direct"}}
	for _, p := range r.fairways() {
		out = append(out, [2]string{p, podsBeside(p)}, [2]string{p, "direct"}, [2]string{p, "kube-proxy"})
	}
	peers := r.peers()
	return slices.DeleteFunc(out, func(p [2]string) bool { return !slices.Contains(peers, p[0]) || !slices.Contains(peers, p[1]) })
}

// table is a table in Markdown.
type table struct{ b strings.Builder }

func (t *table) row(cells ...string) {
	fmt.Fprintf(&t.b, "| %s |\n", strings.Join(cells, " | "))
}

func (t *table) head(cells ...string) {
	t.row(cells...)
	t.row(slices.Repeat([]string{"---"}, len(cells))...)
}

func (r *report) tables() string {
	return r.rateTable() + r.coldTable() + r.changeTable() + r.aims()
}

// measure is one row of the tables about connections.
type measure struct {
	what, unit string
	value      func(*rateResult) string
	// rounds are compared; less tells that less is better.
	rounds func(*rateResult) []float64
	less   bool
}

func number(format string, factor float64, of func(*rateResult) float64) func(*rateResult) string {
	return func(x *rateResult) string { return fmt.Sprintf(format, of(x)*factor) }
}

func measures() []measure {
	var out []measure
	for _, what := range []string{podConnect, podRequest, podStream, outsideConnect, outsideRequest} {
		rate := func(x *rateResult) float64 { return x.Rate }
		cpu := func(x *rateResult) float64 { return x.CPU }
		rates := func(x *rateResult) []float64 { return x.Rounds }
		cpus := func(x *rateResult) []float64 { return x.CPUs }
		if what == podStream {
			out = append(out,
				measure{what, "Gbit/s", number("%.1f", 1e-9, rate), rates, false},
				measure{what, "CPU ms/GB", number("%.0f", 1e3, cpu), cpus, true})
			continue
		}
		out = append(out,
			measure{what, "per second", number("%.0f", 1, rate), rates, false},
			measure{what, "CPU µs", number("%.1f", 1e6, cpu), cpus, true},
			measure{what, "p50 / p99 ms", func(x *rateResult) string { return fmt.Sprintf("%.2f / %.2f", x.P50*1e3, x.P99*1e3) }, nil, true})
	}
	return out
}

func (r *report) rateTable() string {
	var t table
	t.b.WriteString("## Connections and requests\n\n")
	for _, n := range r.sizes() {
		fmt.Fprintf(&t.b, "%d Services:\n\n", n)
		head := []string{"", ""}
		for _, p := range r.peers() {
			head = append(head, labels[p])
		}
		for _, p := range r.pairs() {
			head = append(head, p[0]+" : "+p[1])
		}
		t.head(head...)
		for _, m := range measures() {
			if !slices.ContainsFunc(r.peers(), func(p string) bool { return r.rates(p, n, m.what) != nil }) {
				continue
			}
			cells := []string{m.what, m.unit}
			for _, p := range r.peers() {
				cell := ""
				if x := r.rates(p, n, m.what); x != nil {
					if cell = m.value(x); x.Failed > 0 && m.unit == "per second" {
						cell += fmt.Sprintf(" (%d failed)", x.Failed)
					}
				}
				cells = append(cells, cell)
			}
			for _, p := range r.pairs() {
				cells = append(cells, r.ratio(m, n, p[0], p[1]))
			}
			t.row(cells...)
		}
		t.b.WriteString("\n")
	}
	return t.b.String()
}

func (r *report) rates(peer string, n int, what string) *rateResult {
	s := r.of(peer, n)
	if s == nil {
		return nil
	}
	return s.Rates[what]
}

func (r *report) ratio(m measure, n int, a, b string) string {
	x, y := r.rates(a, n, m.what), r.rates(b, n, m.what)
	if x == nil || y == nil || m.rounds == nil {
		return ""
	}
	c := compare(m.rounds(x), m.rounds(y))
	return fmt.Sprintf("%.2f (%.2f–%.2f)", c.middle, c.low, c.high)
}

func (r *report) coldTable() string {
	var t table
	t.b.WriteString("## Cold start and memory\n\n")
	t.head("Services × endpoints", "", "until all answer, s", "CPU user, s", "CPU kernel, s", "writing rules, s", "memory, MiB", "most memory, MiB")
	for _, n := range r.sizes() {
		for _, p := range r.peers() {
			s := r.of(p, n)
			if s == nil || s.Cold == nil {
				continue
			}
			sync := ""
			if s.Cold.Sync > 0 {
				sync = fmt.Sprintf("%.3f", s.Cold.Sync)
			}
			t.row(fmt.Sprintf("%d × %d", n, endpointsEach), labels[p], fmt.Sprintf("%.2f", s.Cold.Wall), fmt.Sprintf("%.2f", s.Cold.User), fmt.Sprintf("%.2f", s.Cold.System), sync,
				fmt.Sprint(s.MemoryBytes>>20), fmt.Sprint(s.MemoryPeakBytes>>20))
		}
	}
	t.b.WriteString("\n")
	return t.b.String()
}

func (r *report) changeTable() string {
	var t table
	fmt.Fprintf(&t.b, "## One change of an endpoint, from the write at the API to the first packet that follows\n\n")
	t.head("", "Services", "changes", "p50, ms", "p99, ms", "longest, ms", "CPU of the agent, ms")
	for _, s := range r.Results {
		if c := s.Change; c != nil {
			t.row(labels[s.Peer], fmt.Sprint(s.Services), fmt.Sprint(c.Count), fmt.Sprintf("%.1f", c.P50*1e3), fmt.Sprintf("%.1f", c.P99*1e3), fmt.Sprintf("%.1f", c.Max*1e3), fmt.Sprintf("%.1f", c.CPU*1e3))
		}
	}
	t.b.WriteString("\n")
	return t.b.String()
}

// aims says which aims are met.
func (r *report) aims() string {
	var t table
	t.b.WriteString("## Aims\n\n")
	t.head("aim", "Fairway", "measured", "")
	verdict := func(ok bool) string {
		if ok {
			return "met"
		}
		return "**missed**"
	}
	sizes := r.sizes()
	largest := sizes[len(sizes)-1]
	for _, p := range r.fairways() {
		for _, reference := range []struct{ peer, aim string }{
			{podsBeside(p), "Pod to ClusterIP at least 0.98 of dialling the Pod on the same node"},
			{"direct", "the same, of dialling the Pod on a node that serves no Services"},
		} {
			for _, m := range measures() {
				if m.rounds == nil || m.less || !strings.HasPrefix(m.what, "Pod") {
					continue
				}
				if v, chance := r.overall(m, p, reference.peer), r.overall(m, "again", "direct"); v.middle > 0 {
					measured := fmt.Sprintf("%.3f (%.2f–%.2f) of the rate", v.middle, v.low, v.high)
					if chance.middle > 0 {
						measured += fmt.Sprintf("; direct again, of direct: %.3f (%.2f–%.2f)", chance.middle, chance.low, chance.high)
					}
					t.row(reference.aim+": "+strings.TrimPrefix(m.what, "Pod to ClusterIP, "), p, measured, verdict(v.middle >= 0.98))
				}
			}
		}
		if r.of("kube-proxy", largest) != nil {
			var behind []string
			rows, unclear := 0, 0
			for _, n := range sizes {
				for _, m := range measures() {
					x, y := r.rates(p, n, m.what), r.rates("kube-proxy", n, m.what)
					if x == nil || y == nil || m.rounds == nil {
						continue
					}
					rows++
					v := compare(m.rounds(x), m.rounds(y))
					worse, clearly := v.middle < 0.995, v.high < 1
					if m.less {
						worse, clearly = v.middle > 1.005, v.low > 1
					}
					switch {
					case worse && clearly:
						behind = append(behind, fmt.Sprintf("%.2f (%s, %s, %d Services)", v.middle, m.what, m.unit, n))
					case worse:
						unclear++
					}
				}
			}
			measured := fmt.Sprintf("of %d rows, the median is behind in %d: in %d of these within the spread of the rounds, in %d beyond it", rows, len(behind)+unclear, unclear, len(behind))
			if len(behind) > 0 {
				measured += ": " + strings.Join(behind, "; ")
			}
			t.row("never behind kube-proxy", p, measured, verdict(len(behind)+unclear == 0))
			var overall []string
			for _, m := range measures() {
				if m.rounds == nil {
					continue
				}
				v := r.overall(m, p, "kube-proxy")
				if m.less && v.low > 1 || !m.less && v.high < 1 {
					overall = append(overall, fmt.Sprintf("%.3f (%.2f–%.2f) %s, %s", v.middle, v.low, v.high, m.what, m.unit))
				}
			}
			measured = "behind in none"
			if len(overall) > 0 {
				measured = "behind: " + strings.Join(overall, "; ")
			}
			t.row("the same, beyond chance and all numbers of Services together", p, measured, verdict(len(overall) == 0))
		}
		s := r.of(p, largest)
		if s.Cold != nil {
			t.row(fmt.Sprintf("%d × %d cold within 0.5 s", largest, endpointsEach), p, fmt.Sprintf("%.2f s from the start of the process, API read included", s.Cold.Wall), verdict(s.Cold.Wall <= 0.5))
			if s.Cold.Sync > 0 {
				t.row("", p, fmt.Sprintf("%.2f s writing rules", s.Cold.Sync), verdict(s.Cold.Sync <= 0.5))
			}
		}
		if s.Change != nil {
			t.row("one change within 20 ms, p99", p, fmt.Sprintf("%.1f ms", s.Change.P99*1e3), verdict(s.Change.P99 <= 0.020))
		}
		t.row("agent within 100 MiB", p, fmt.Sprintf("%d MiB with %d × %d", s.MemoryBytes>>20, largest, endpointsEach), verdict(s.MemoryBytes <= 100<<20))
	}
	t.b.WriteString("\n")
	return t.b.String()
}
