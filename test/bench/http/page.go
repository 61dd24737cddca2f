package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// page is what a run has measured.
type page struct {
	results       []result
	idles         []idle
	rounds        int
	before, after string // load averages
	took          time.Duration
	whole         bool // all rows were measured
}

// costs says where Fairway's time goes in rows that are known to be behind.
var costs = map[string]string{
	"HTTP/1.1 kept, 100 B":                      "two sends, two receives and the wake-ups between them are four fifths of it: a program that only passes the bytes on takes as much, by goroutines or by an event loop; parsing, routing and the heads are the rest",
	"HTTP/1.1 kept, 10 KB":                      "two sends and two receives, with the copies and the acknowledgement, are two thirds of it, in the kernel, whichever proxy asks",
	"WebSocket messages, 64 B":                  "two sends, two receives and the wake-ups between them are all of it, in the kernel, whichever proxy asks: a program that does nothing else takes as much",
	"TCP, a connection each":                    "the kernel takes six sevenths of it to open and close two connections and to carry a few packets; the rest is the choice of an endpoint, and to wake one goroutine for a new connection and one for what comes",
	"TLS 1.3, a full handshake each (P-256)":    "Go agrees on a key (X25519) in 93 µs and signs in 31 µs; with a connection and its request (33 µs) that is most of what the aim allows. Of the rest, a seventh of all is the key schedule, hashes and records of Go's TLS, and an eighteenth the runtime's sysmon, which the first system call that may block, once all processors were idle, has look out every 20 µs for a while",
	"TLS 1.3, a full handshake each (RSA 2048)": "Go signs by RSA in 1,000 µs, OpenSSL in 240 µs with AVX-512 IFMA and 580 µs without; [what to do](../features/ingress.md#tls)",
}

// best returns the peer of a row that needs the least CPU time.
func (p page) best(row string, among ...string) (best result) {
	for _, r := range p.results {
		if r.Row != row || !slices.Contains(among, r.Peer) {
			continue
		}
		if best.Peer == "" || r.CPU < best.CPU {
			best = r
		}
	}
	return best
}

func (p page) write(out string) error {
	text := p.text()
	fmt.Print(text)
	if !p.whole {
		return nil // what is committed is from one run
	}
	data, err := json.MarshalIndent(struct {
		Rows []result `json:"rows"`
		Idle []idle   `json:"idleConnections"`
	}{p.results, p.idles}, "", "  ")
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{"http.md": []byte(text), "http.json": append(data, '\n'), "http.svg": plot(p.results)} {
		if err := os.WriteFile(filepath.Join(out, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (p page) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# The gateway's HTTP engine, side by side

Made by `+"`make bench-http`"+` on %s in %s: %d cores, %s, %s; load average %s before, %s after. All share the machine, in one network namespace over loopback.
The load of rows with HTTP/1.1 on kept connections, and of bodies, comes from wrk with 32 connections, all other from a client in Go; answers from nginx, those of gRPC, WebSocket and messages from Go. CPU is the
proxy's own time in user and kernel mode per request, the median of %d rounds, in each of which all peers had their turn, with its rates and times. Shares are medians of the ratios within a round; below 1 means that Fairway needs less. In brackets are the
quartiles of both. p50 to p99.9 are under full load: they tell of the machine's queue first.

Traefik and Envoy are not among the peers. Traefik 3.7 is a Go module, but as such does not build: it replaces two modules by forks and one by a folder that is not part of it, and of its 2,600 packages, most for DNS providers of its certificates, some are not offered any more by
the public module proxy. Envoy has no Go build, and Debian has packages of neither.

`, time.Now().Format(time.DateOnly), p.took.Round(time.Second), runtime.NumCPU(), kernel(), runtime.Version(), p.before, p.after, p.rounds)
	b.WriteString("| load | peer | CPU per request | Fairway's share of it | requests/s | p50 | p99 | p99.9 | failed |\n|---|---|---|---|---|---|---|---|---|\n")
	var order []string
	for _, r := range p.results {
		if r.Peer == fairway {
			order = append(order, r.Row)
		}
		fmt.Fprintf(&b, "| %s | %s | %.1f µs (%.1f–%.1f) | %.2f (%.2f–%.2f) | %.0f | %.2f ms | %.2f ms | %.2f ms | %d |\n",
			r.Row, r.Peer, r.CPU, r.CPULow, r.CPUHigh, r.Share, r.ShareLow, r.ShareHigh, r.Rate, r.P50, r.P99, r.P999, r.Failed)
	}
	b.WriteString("\n![CPU per request](http.svg)\n")
	if len(p.idles) > 0 {
		fmt.Fprintf(&b, "\n## Idle connections\n\nMemory that the proxy's processes have more, for each of %d plain and %d TLS connections that are open after one request.\n\n| peer | plain | TLS |\n|---|---|---|\n", idlePlain, idleTLS)
		for _, i := range p.idles {
			fmt.Fprintf(&b, "| %s | %.1f KiB | %.1f KiB |\n", i.Peer, i.Plain, i.TLS)
		}
	}
	b.WriteString("\n## Aims\n\n| load | aim | least CPU of a peer | Fairway's share | | where it goes |\n|---|---|---|---|---|---|\n")
	for _, row := range order {
		aim, best := 1.0, p.best(row, "nginx", "HAProxy", caddy, reverseProxy)
		switch {
		case row == "HTTP/1.1 kept, 100 B", row == "HTTP/1.1 kept, 10 KB":
			aim, best = 0.8, p.best(row, "nginx", "HAProxy")
		case strings.Contains(row, "ML-KEM"):
		case strings.Contains(row, "full handshake"):
			aim, best = 0.5, p.best(row, "nginx", "HAProxy")
		}
		if best.Peer == "" {
			continue // nobody to compare with was asked for
		}
		verdict, why := "met", ""
		if best.Share > aim {
			verdict, why = "**missed**", costs[row]
		}
		fmt.Fprintf(&b, "| %s | %.1f | %s, %.1f µs | %.2f | %s | %s |\n", row, aim, best.Peer, best.CPU, best.Share, verdict, why)
	}
	return b.String()
}

func loadAverage() string {
	b, _ := os.ReadFile("/proc/loadavg")
	load, _, _ := strings.Cut(string(b), " ")
	return load
}

func kernel() string {
	b, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return "Linux " + strings.TrimSpace(string(b))
}

// plot draws CPU per request, each row relative to its most expensive peer.
func plot(list []result) []byte {
	const width, bar, label = 900, 16, 300
	colours := map[string]string{fairway: "#1b7f5c", "nginx": "#8899aa", "HAProxy": "#aab7c4", caddy: "#bbc6d0", reverseProxy: "#ccd5dd"}
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
