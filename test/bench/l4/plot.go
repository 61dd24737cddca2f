package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// colours of the peers, told apart on light and dark ground.
var colours = map[string]string{"direct": "#8a8f98", "again": "#b4b8bf", "tracked": "#5f646d", "ebpf": "#1f9e6e", "ebpf-pods": "#8fcfb6", "nft": "#3b82d0", "nft-pods": "#9dc1e8", "kube-proxy": "#d9822b"}

// bar is one bar of a panel.
type bar struct {
	group, peer, text string
	value             float64
}

// panel is a diagram of bars.
type panel struct {
	title string
	// log draws by the logarithm, for values that differ by orders of magnitude.
	log  bool
	bars []bar
}

// panels are what the plot shows.
func (r *report) panels() []panel {
	rate := func(title, what, format string, factor float64, of func(*rateResult) float64) panel {
		p := panel{title: title}
		for _, n := range r.sizes() {
			for _, peer := range r.peers() {
				if x := r.rates(peer, n, what); x != nil {
					p.bars = append(p.bars, bar{fmt.Sprintf("%d Services", n), peer, fmt.Sprintf(format, of(x)*factor), of(x)})
				}
			}
		}
		return p
	}
	per := func(x *rateResult) float64 { return x.Rate }
	cpu := func(x *rateResult) float64 { return x.CPU }
	agents := func(title, format string, factor float64, of func(*sizeResult) float64) panel {
		p := panel{title: title, log: true}
		for _, n := range r.sizes() {
			for _, peer := range r.peers() {
				if s := r.of(peer, n); s != nil {
					if v := of(s); v > 0 {
						p.bars = append(p.bars, bar{fmt.Sprintf("%d Services", n), peer, fmt.Sprintf(format, v*factor), v})
					}
				}
			}
		}
		return p
	}
	all := []panel{
		rate("Pod to ClusterIP: connections per second", podConnect, "%.0f", 1, per),
		rate("Pod to ClusterIP: CPU of a connection, µs (less is better)", podConnect, "%.1f", 1e6, cpu),
		rate("Pod to ClusterIP: requests per second on kept connections", podRequest, "%.0f", 1, per),
		rate("Pod to ClusterIP: throughput, Gbit/s", podStream, "%.1f", 1e-9, per),
		rate("outside to NodePort: connections per second", outsideConnect, "%.0f", 1, per),
		agents("cold start until all Services answer, s (less is better, logarithmic)", "%.2f", 1, func(s *sizeResult) float64 {
			if s.Cold == nil {
				return 0
			}
			return s.Cold.Wall
		}),
		agents("one change of an endpoint, p99, ms (less is better, logarithmic)", "%.1f", 1e3, func(s *sizeResult) float64 {
			if s.Change == nil {
				return 0
			}
			return s.Change.P99
		}),
		agents("memory of the agent, MiB (less is better, logarithmic)", "%.0f", 1.0/(1<<20), func(s *sizeResult) float64 { return float64(s.MemoryBytes) }),
	}
	kept := all[:0]
	for _, p := range all {
		if len(p.bars) > 0 {
			kept = append(kept, p)
		}
	}
	return kept
}

// The plot's measures, in pixels.
const (
	plotWidth, panelWidth = 940, 450
	barHeight, barStep    = 13, 16
	labelWidth            = 92
	valueWidth            = 60
)

// plot draws the panels in two columns as SVG.
func (r *report) plot() string {
	var body strings.Builder
	heights := [2]int{44, 44}
	for _, p := range r.panels() {
		column := 0
		if heights[1] < heights[0] {
			column = 1
		}
		heights[column] += p.draw(&body, 10+column*(panelWidth+20), heights[column])
	}
	var out strings.Builder
	height := max(heights[0], heights[1])
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", plotWidth, height, plotWidth, height)
	fmt.Fprintf(&out, `<rect width="100%%" height="100%%" fill="#ffffff"/>`+"\n")
	x := 10
	for _, peer := range r.peers() {
		fmt.Fprintf(&out, `<rect x="%d" y="14" width="12" height="12" fill="%s"/><text x="%d" y="24" fill="#222222">%s</text>`+"\n", x, colours[peer], x+17, html.EscapeString(labels[peer]))
		x += 40 + 7*len(labels[peer])
	}
	out.WriteString(body.String())
	out.WriteString("</svg>\n")
	return out.String()
}

// draw draws a panel and returns its height.
func (p panel) draw(b *strings.Builder, left, top int) int {
	fmt.Fprintf(b, `<text x="%d" y="%d" font-weight="bold" fill="#222222">%s</text>`+"\n", left, top+14, html.EscapeString(p.title))
	least, most := math.Inf(1), 0.0
	for _, x := range p.bars {
		least, most = min(least, x.value), max(most, x.value)
	}
	room := float64(panelWidth - labelWidth - valueWidth)
	length := func(v float64) float64 {
		if p.log {
			// The shortest bar has a tenth of the room.
			return room * (0.1 + 0.9*math.Log(v/least)/max(math.Log(most/least), 1e-9))
		}
		return room * v / most
	}
	y, group := top+24, ""
	for _, x := range p.bars {
		if x.group != group {
			if group != "" {
				y += 6
			}
			group = x.group
			fmt.Fprintf(b, `<text x="%d" y="%d" fill="#555555">%s</text>`+"\n", left, y+11, html.EscapeString(group))
		}
		w := length(x.value)
		fmt.Fprintf(b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/><text x="%.1f" y="%d" fill="#222222">%s</text>`+"\n",
			left+labelWidth, y, w, barHeight, colours[x.peer], float64(left+labelWidth)+w+5, y+11, html.EscapeString(x.text))
		y += barStep
	}
	return y - top + 18
}
