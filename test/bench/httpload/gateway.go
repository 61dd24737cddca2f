package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// gateway is a running `fairway gateway`.
type gateway struct {
	cmd     *exec.Cmd
	metrics string
	log     string
	done    chan struct{} // closed when it has ended
	err     error
}

// startGateway starts one and waits until it serves. Several run beside each
// other at the same ports.
func startGateway(ctx context.Context, program, config, scratch string, n int) (*gateway, error) {
	g := &gateway{metrics: fmt.Sprintf("127.0.0.1:%d", 10300+n), log: filepath.Join(scratch, fmt.Sprintf("gateway-%d.log", n)), done: make(chan struct{})}
	ready := filepath.Join(scratch, fmt.Sprintf("ready-%d", n))
	log, err := os.Create(g.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	g.cmd = exec.Command(program, "gateway", "--kubeconfig", config, "--metrics-address", g.metrics, "--ready-file", ready, "--log-level", "warn",
		"--http-port", strconv.Itoa(httpPort), "--https-port", strconv.Itoa(httpsPort))
	g.cmd.Stdout, g.cmd.Stderr = log, log
	if err := g.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { g.err = g.cmd.Wait(); close(g.done) }()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(ready); err == nil {
			return g, nil
		}
		select {
		case <-g.done:
			return nil, fmt.Errorf("the gateway ended: %w\n%s", g.err, g.lastWords())
		case <-ctx.Done():
			g.kill()
			return nil, ctx.Err()
		default:
		}
		if time.Now().After(deadline) {
			g.kill()
			return nil, fmt.Errorf("the gateway does not serve after a minute\n%s", g.lastWords())
		}
	}
}

// stop ends it as an upgrade does, and waits for what it has under way.
func (g *gateway) stop() error {
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-g.done:
		return g.err
	case <-time.After(45 * time.Second):
		g.kill()
		return fmt.Errorf("the gateway did not end within 45 s of SIGTERM\n%s", g.lastWords())
	}
}

func (g *gateway) kill() {
	_ = g.cmd.Process.Kill()
	<-g.done
}

// lastWords is the end of its log.
func (g *gateway) lastWords() string {
	data, _ := os.ReadFile(g.log)
	return string(data[max(0, len(data)-2000):])
}

// uses is what a gateway uses of the machine.
type uses struct {
	goroutines, files, memory float64 // memory in bytes, resident
}

func (g *gateway) uses() (u uses, err error) {
	resp, err := http.Get("http://" + g.metrics + "/metrics")
	if err != nil {
		return u, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		v, _ := strconv.ParseFloat(value, 64)
		switch name {
		case "go_goroutines":
			u.goroutines = v
		case "process_open_fds":
			u.files = v
		case "process_resident_memory_bytes":
			u.memory = v
		}
	}
	if u.goroutines == 0 || u.files == 0 || u.memory == 0 {
		return u, fmt.Errorf("http://%s/metrics lacks go_goroutines, process_open_fds or process_resident_memory_bytes", g.metrics)
	}
	return u, lines.Err()
}
