package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
)

// trial puts a lab under steady load, lets things happen to it, and counts the
// connections that fail.
type trial struct {
	lab     *lab
	world   world
	log     *slog.Logger
	scratch string
	fairway string
	agent   *agent
	ready   int // of the Service whose endpoint changes
	table   table
	errs    []error
}

// countFailures goes through all that can happen to an agent, first with one
// data path, then with the other. It returns a table, and an error when a
// connection failed that must not.
func countFailures(ctx context.Context, log *slog.Logger, fairway, scratch string, services int) (string, error) {
	// Programs end with the thread that has started them.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	t := &trial{world: world{services: services}, log: log, scratch: scratch, fairway: fairway}
	t.table.head("what happens", "new connections", "failed", "kept connections: answers", "broken", "longest, ms", "first error")
	for _, first := range []string{"ebpf", "nft"} {
		if err := t.with(ctx, first); err != nil {
			return t.table.b.String(), fmt.Errorf("%s: %w", first, err)
		}
	}
	return t.table.b.String(), errors.Join(t.errs...)
}

func (t *trial) with(ctx context.Context, dataplane string) (err error) {
	if t.lab, err = newLab("load-"+dataplane, t.scratch); err != nil {
		return err
	}
	defer func() {
		t.agent.stop()
		t.lab.close()
		t.agent = nil
	}()
	t.lab.api.Put(t.world.objects()...)
	t.lab.api.Warm()
	t.ready = 0
	if err := t.start(t.fairway, dataplane); err != nil {
		return err
	}
	if _, err := t.lab.pod.do(order{Do: "until", Targets: append(t.world.clusterIPs(), t.world.nodePorts()...), Limit: 2 * time.Minute}); err != nil {
		return fmt.Errorf("%w\n%s", err, t.agent.lastWords())
	}
	for client, targets := range map[*worker][]netip.AddrPort{t.lab.pod: t.world.clusterIPs(), t.lab.outside: t.world.nodePorts()} {
		if _, err := client.do(order{Do: "steady", Targets: targets, Threads: 2, Kept: 10}); err != nil {
			return err
		}
	}
	other := map[string]string{"ebpf": "nft", "nft": "ebpf"}[dataplane]
	for _, phase := range []struct {
		name string
		// zero is true when no connection may fail.
		zero bool
		do   func() error
	}{
		{"nothing", true, func() error { time.Sleep(2 * time.Second); return nil }},
		{"kill -9 of the agent, three times", true, func() error {
			for range 3 {
				if err := t.replace(os.Kill, t.fairway, dataplane); err != nil {
					return err
				}
			}
			return nil
		}},
		{"restart with another executable", true, func() error {
			renewed := filepath.Join(t.scratch, "fairway-renewed")
			if err := copyFile(t.fairway, renewed); err != nil {
				return err
			}
			return t.replace(syscall.SIGTERM, renewed, dataplane)
		}},
		{"switch to " + other + " and back", true, func() error {
			if err := t.replace(syscall.SIGTERM, t.fairway, other); err != nil {
				return err
			}
			return t.replace(syscall.SIGTERM, t.fairway, dataplane)
		}},
		{"all endpoints replaced, twenty times", true, t.churn},
		{"half of the endpoints die, the API knows 1 s later", false, func() error {
			if err := t.lose(); err != nil {
				return err
			}
			time.Sleep(time.Second)
			t.restrict(0)
			return t.follows()
		}},
		{"after that", true, func() error { time.Sleep(2 * time.Second); return nil }},
	} {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := phase.do(); err != nil {
			return fmt.Errorf("%s: %w\n%s", phase.name, err, t.agent.lastWords())
		}
		time.Sleep(500 * time.Millisecond) // for what was under way
		if phase.name == "half of the endpoints die, the API knows 1 s later" {
			time.Sleep(steadyPatience)
		}
		if err := t.count(dataplane+": "+phase.name, phase.zero); err != nil {
			return err
		}
	}
	return nil
}

// count adds a row for what was counted since the last one.
func (t *trial) count(name string, zero bool) error {
	var sum outcome
	for _, client := range []*worker{t.lab.pod, t.lab.outside} {
		got, err := client.do(order{Do: "count"})
		if err != nil {
			return err
		}
		sum.Count, sum.Failed, sum.Pings, sum.Broken = sum.Count+got.Count, sum.Failed+got.Failed, sum.Pings+got.Pings, sum.Broken+got.Broken
		sum.Longest = max(sum.Longest, got.Longest)
		if sum.Why == "" {
			sum.Why = got.Why
		}
	}
	t.table.row(name, fmt.Sprint(sum.Count), fmt.Sprint(sum.Failed), fmt.Sprint(sum.Pings), fmt.Sprint(sum.Broken), fmt.Sprint(sum.Longest.Milliseconds()), sum.Why)
	t.log.Info("counted", "what", name, "new", sum.Count, "failed", sum.Failed, "answers", sum.Pings, "broken", sum.Broken)
	if sum.Count == 0 || sum.Pings == 0 {
		return fmt.Errorf("%s: there was no load", name)
	}
	if zero && sum.Failed+sum.Broken > 0 {
		t.errs = append(t.errs, fmt.Errorf("%s: %d new connections failed and %d kept ones broke: %s", name, sum.Failed, sum.Broken, sum.Why))
	}
	return nil
}

// start starts an executable as the agent.
func (t *trial) start(executable, dataplane string) (err error) {
	all := peers(executable, "")
	p := all[slices.IndexFunc(all, func(p peer) bool { return p.name == dataplane })]
	t.agent, err = startAgent(p, t.lab, t.scratch)
	return err
}

// replace ends the agent, leaves its work to itself for a moment, starts
// another one, and waits until that follows changes.
func (t *trial) replace(by os.Signal, executable, dataplane string) error {
	t.agent.end(by)
	time.Sleep(300 * time.Millisecond)
	if err := t.start(executable, dataplane); err != nil {
		return err
	}
	return t.follows()
}

// follows changes an endpoint and waits until a packet follows.
func (t *trial) follows() error {
	t.ready = 1 - t.ready
	t.lab.api.Put(t.world.followSlice(t.ready))
	o := order{Do: "follow", Targets: []netip.AddrPort{followAddr}, Say: byte('a' + t.ready), Limit: time.Minute}
	if err := t.lab.pod.send(o); err != nil {
		return err
	}
	if _, err := t.lab.pod.receive(); err != nil { // it has begun
		return err
	}
	_, err := t.lab.pod.receive()
	return err
}

// restrict leaves the measured Services only half of their endpoints.
func (t *trial) restrict(half int) {
	for i := range t.world.services {
		if _, ok := t.world.isMeasured(i); !ok {
			continue
		}
		s := t.world.slice(i)
		all := s.Endpoints
		s.Endpoints = append([]discoveryv1.Endpoint{}, all[half*len(all)/2:(half+1)*len(all)/2]...)
		t.lab.api.Put(s)
	}
}

// churn gives every measured Service other endpoints again and again. The
// Pods that are taken out go on serving whom they have.
func (t *trial) churn() error {
	for i := range 20 {
		t.restrict(i % 2)
		if err := t.follows(); err != nil {
			return err
		}
	}
	for i := range t.world.services {
		if _, ok := t.world.isMeasured(i); ok {
			t.lab.api.Put(t.world.slice(i))
		}
	}
	return t.follows()
}

// lose takes the way to half of the endpoints away.
func (t *trial) lose() error {
	for i := endpointsEach / 2; i < endpointsEach; i++ {
		out, err := exec.Command("ip", "-n", t.lab.prefix+"-node", "route", "replace", "blackhole", serverAddr(i).String()).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
