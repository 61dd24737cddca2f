package main

import (
	"fmt"
	"strings"
)

// The aims of the project: Fairway's CPU per query over CoreDNS'.
const (
	aimInZone = 0.2
	aimAll    = 0.5
)

func (r *report) markdown() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("# DNS beside CoreDNS")
	p("")
	p("Made by `make bench-dns` on %s: %d cores, Linux %s, %d rounds, %s for all. %s against %s with kubeadm's Corefile,", r.Made, r.Machine.Cores, r.Machine.Kernel, r.Rounds, r.Duration, quote(r.Fairway), quote(r.CoreDNS))
	p("each in a network namespace of its own, with the same API server and upstream; dnsperf asks one right after the other, CoreDNS where it listens and Fairway at the cluster DNS address. Fairway is the whole")
	p("`fairway node`, data path included. CPU is the server's own, user and system, from `/proc`. Queries/s are with 100 questions in flight, from one thread of")
	p("dnsperf on the same cores, which is often the limit; p99 is at %d queries/s, where the machine is not full.", r.Rate)
	p("")
	p("![CPU per query](dns.svg)")
	p("")
	p("| Services | | Query | Queries/s | CoreDNS | CPU, µs/query | CoreDNS | Ratio | paced, µs/query | CoreDNS | p99, ms | CoreDNS |")
	p("|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
	lost := 0
	for _, w := range r.Rows {
		p("| %d | %s | %s | %.0f | %.0f | %.1f | %.1f | **%.2f** | %.1f | %.1f | %.2f | %.2f |", w.Services, w.Protocol, w.Query,
			w.Fairway.QPS, w.CoreDNS.QPS, w.Fairway.CPU, w.CoreDNS.CPU, w.CPURatio, w.Fairway.PacedCPU, w.CoreDNS.PacedCPU, w.Fairway.P99, w.CoreDNS.P99)
		lost += w.Fairway.Lost + w.CoreDNS.Lost
	}
	p("")
	p("Aims: at most %.1f times CoreDNS' CPU in the zone (worst row: %.2f, %s), and %.1f in any row (worst: %.2f, %s). Without an answer stayed %d queries of all.",
		aimInZone, r.InZone, met(r.InZone, aimInZone), aimAll, r.Worst, met(r.Worst, aimAll), lost)
	p("")
	p("## Memory")
	p("")
	p("Resident, MiB, three seconds after the start and after all measurements. Fairway's holds the data path, Service TLS and announcing too.")
	p("")
	p("| Services | Fairway | CoreDNS | Fairway, after | CoreDNS, after |")
	p("|---:|---:|---:|---:|---:|")
	for _, m := range r.Memory {
		p("| %d | %.0f | %.0f | %.0f | %.0f |", m.Services, m.Fairway, m.CoreDNS, m.FairwayAfter, m.CoreDNSAfter)
	}
	if s := r.Soak; s != nil && len(s.RSS) > 0 {
		p("")
		p("## Soak")
		p("")
		p("%.0f s of all queries mixed, by UDP and TCP, with 100,000 external names (more than the cache holds) and as many that are not there, while %d changes were made to", s.Seconds, s.Changes)
		p("Services: %d queries, %d without an answer. Memory of Fairway from %.0f to %.0f MiB; the median of the last quarter is %.2f times that of the second.", s.Queries, s.Lost, lowest(s.RSS), highest(s.RSS), s.Growth)
	}
	return b.String()
}

func lowest(v []float64) float64 {
	m := v[0]
	for _, x := range v {
		m = min(m, x)
	}
	return m
}

func highest(v []float64) float64 {
	m := v[0]
	for _, x := range v {
		m = max(m, x)
	}
	return m
}

func quote(s string) string {
	if s == "" {
		return "a build without version"
	}
	return s
}

func met(v, aim float64) string {
	if v <= aim {
		return "met"
	}
	return "**not met**"
}

// svg draws the CPU per query of every row.
func (r *report) svg() string {
	const left, width, line, top = 250, 420, 30, 54
	most := 0.0
	for _, w := range r.Rows {
		most = max(most, w.Fairway.CPU, w.CoreDNS.CPU)
	}
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	height := top + line*len(r.Rows) + 12
	p(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`, left+width+90, height)
	p(`<rect width="100%%" height="100%%" fill="#fff"/>`)
	p(`<text x="12" y="20" font-size="15" fill="#111">CPU per query, µs, at full speed: shorter is better</text>`)
	p(`<rect x="12" y="30" width="12" height="10" fill="#0b7285"/><text x="30" y="39" fill="#111">Fairway</text>`)
	p(`<rect x="100" y="30" width="12" height="10" fill="#adb5bd"/><text x="118" y="39" fill="#111">CoreDNS</text>`)
	for i, w := range r.Rows {
		y := top + i*line
		p(`<text x="%d" y="%d" text-anchor="end" fill="#111">%d Services, %s, %s</text>`, left-8, y+16, w.Services, w.Protocol, w.Query)
		for j, v := range []float64{w.Fairway.CPU, w.CoreDNS.CPU} {
			length := v / most * width
			p(`<rect x="%d" y="%d" width="%.1f" height="10" fill="%s"/>`, left, y+2+j*11, length, []string{"#0b7285", "#adb5bd"}[j])
			p(`<text x="%.1f" y="%d" font-size="10" fill="#333">%.1f</text>`, left+length+4, y+11+j*11, v)
		}
	}
	p(`</svg>`)
	return b.String()
}
