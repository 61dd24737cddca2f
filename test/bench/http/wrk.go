package main

import (
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
)

// wrk is load of HTTP/1.1 by the program of that name, with 32 connections.
type wrk struct {
	path  string
	host  string // "" for the only one
	tls   bool
	close bool // a connection for each request
	port  int  // which of those that carry TCP; one of HTTP if 0
}

// wrkDone prints what wrk itself leaves out.
const wrkDone = `done = function(summary, latency, requests)
  io.write(string.format("\n99.9%% %.3fms\n", latency:percentile(99.9) / 1000))
end
`

var (
	wrkRequests = regexp.MustCompile(`(\d+) requests in`)
	wrkRate     = regexp.MustCompile(`Requests/sec:\s+([\d.]+)`)
	wrkP50      = regexp.MustCompile(`50%\s+([\d.]+)(us|ms|s)`)
	wrkP99      = regexp.MustCompile(`99%\s+([\d.]+)(us|ms|s)`)
	wrkP999     = regexp.MustCompile(`99\.9%\s+([\d.]+)(ms)`)
	wrkErrors   = regexp.MustCompile(`(?:connect|read|write|timeout|responses:) (\d+)`)
)

func (w wrk) run(p *peer, seconds int) (result, error) {
	scheme, port, name := "http", p.port, host
	if w.tls {
		scheme, port = "https", p.tlsPort
	}
	if w.port != 0 {
		port = p.streams + w.port
	}
	if w.host != "" {
		name = w.host
	}
	args := []string{"-t1", "-c32", fmt.Sprintf("-d%ds", seconds), "--latency", "-s", p.file("done.lua"), "-H", "Host: " + name}
	if w.close {
		args = append(args, "-H", "Connection: close")
	}
	args = append(args, fmt.Sprintf("%s://127.0.0.1:%d%s", scheme, port, w.path))
	output, err := exec.Command("wrk", args...).CombinedOutput()
	if err != nil {
		return result{}, fmt.Errorf("wrk: %w: %s", err, output)
	}
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
	res := result{Requests: int64(number(wrkRequests)), Rate: number(wrkRate), P50: number(wrkP50), P99: number(wrkP99), P999: number(wrkP999)}
	for _, m := range wrkErrors.FindAllStringSubmatch(text, -1) {
		n, _ := strconv.ParseInt(m[1], 10, 64)
		res.Failed += n
	}
	return res, nil
}
