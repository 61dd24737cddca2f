package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// options are what can be configured.
type options struct {
	sizes   []int
	rounds  int
	round   time.Duration
	iperf   int // rounds of iperf3
	changes int
	pause   time.Duration // between two changes at the same peer
	settle  time.Duration // before memory is read
	scratch string
	what    string // measure only what has this in its name; for working on one
}

// run measures the peers at each size.
type run struct {
	options
	log   *slog.Logger
	peers []peer
	softirqs
}

// station is a peer at work.
type station struct {
	peer  peer
	lab   *lab
	agent *agent
	world world
	size  *sizeResult
	rate  map[string]*samples
}

// samples are the rounds of one measurement at one peer.
type samples struct {
	rate, cpu, p50, p99 []float64
	failed              int64
}

// The measurements of connections, in the order of the report.
const (
	podConnect     = "Pod to ClusterIP, connections"
	podRequest     = "Pod to ClusterIP, requests on kept connections"
	podStream      = "Pod to ClusterIP, throughput"
	outsideConnect = "outside to NodePort, connections"
	outsideRequest = "outside to NodePort, requests on kept connections"
)

func (r *run) all(ctx context.Context) ([]*sizeResult, error) {
	var out []*sizeResult
	for i, n := range r.sizes {
		results, err := r.size(ctx, n, i == len(r.sizes)-1)
		if err != nil {
			return nil, fmt.Errorf("%d Services: %w", n, err)
		}
		out = append(out, results...)
	}
	return out, nil
}

// size measures every peer with n Services; the last size is also changed.
func (r *run) size(ctx context.Context, n int, last bool) (out []*sizeResult, err error) {
	w := world{services: n}
	objects := w.objects()
	var stations []*station
	defer func() {
		for _, s := range stations {
			if s.peer.beside == "" {
				s.agent.stop()
				s.lab.close()
			}
		}
	}()
	for _, p := range r.peers {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		r.log.Info("start", "peer", p.name, "services", n)
		s := &station{peer: p, world: w, size: &sizeResult{Peer: p.name, Services: n, Endpoints: n * endpointsEach}, rate: map[string]*samples{}}
		if i := slices.IndexFunc(stations, func(s *station) bool { return s.peer.name == p.beside }); i >= 0 {
			s.lab = stations[i].lab
			stations, out = append(stations, s), append(out, s.size)
			continue
		}
		if s.lab, err = newLab(p.name, r.scratch); err != nil {
			return nil, err
		}
		stations, out = append(stations, s), append(out, s.size)
		if err := s.lab.serveIperf(); err != nil {
			return nil, err
		}
		if p.rules != "" {
			if err := s.lab.addRules(p.rules); err != nil {
				return nil, err
			}
		}
		if p.command != nil {
			s.lab.api.Put(objects...)
			s.lab.api.Warm()
			if err := r.cold(s); err != nil {
				return nil, err
			}
		}
	}
	for round := range r.rounds {
		for _, what := range []string{podConnect, podRequest, podStream, outsideConnect, outsideRequest} {
			if what == podStream && round >= r.iperf || r.what != "" && !strings.Contains(what, r.what) {
				continue
			}
			// Whoever begins differs, for the first may find the machine in another state.
			for i := range stations {
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				s := stations[(i+round)%len(stations)]
				if s.peer.beside != "" && (what == outsideConnect || what == outsideRequest) {
					continue // the server Pod is not dialled from there
				}
				if err := r.once(s, what); err != nil {
					return nil, fmt.Errorf("%s: %s: %w", s.peer.name, what, err)
				}
			}
		}
		r.log.Info("measured", "services", n, "round", round+1)
	}
	if last {
		if err := r.change(ctx, stations); err != nil {
			return nil, err
		}
	}
	time.Sleep(r.settle)
	for _, s := range stations {
		if s.agent != nil {
			if s.size.MemoryBytes, s.size.MemoryPeakBytes, err = s.agent.memory(); err != nil {
				return nil, fmt.Errorf("%s has ended: %w\n%s", s.peer.name, err, s.agent.lastWords())
			}
		}
		s.size.Rates = map[string]*rateResult{}
		for what, x := range s.rate {
			s.size.Rates[what] = x.result()
		}
	}
	return out, nil
}

// cold starts the agent with everything already in the API, and waits until all measured Services answer.
func (r *run) cold(s *station) error {
	var err error
	if s.agent, err = startAgent(s.peer, s.lab, r.scratch); err != nil {
		return err
	}
	targets := append(s.world.clusterIPs(), s.world.nodePorts()[:1]...)
	got, err := s.lab.pod.do(order{Do: "until", Targets: append(targets, followAddr), Limit: 5 * time.Minute})
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", s.peer.name, err, s.agent.lastWords())
	}
	c := &coldResult{Wall: (slices.Max(got.At) - s.agent.started).Seconds()}
	user, system, err := s.agent.cpu()
	if err != nil {
		return err
	}
	c.User, c.System = user.Seconds(), system.Seconds()
	time.Sleep(200 * time.Millisecond) // for the metrics of the round that has just been programmed
	if sum, ok := s.agent.metric("kubeproxy_sync_proxy_rules_duration_seconds_sum"); ok {
		c.Sync = sum
	}
	s.size.Cold = c
	r.log.Info("cold", "peer", s.peer.name, "wall", c.Wall, "user", c.User, "system", c.System, "sync", c.Sync)
	return nil
}

// once makes one round of a measurement.
func (r *run) once(s *station, what string) error {
	x := s.rate[what]
	if x == nil {
		x = &samples{}
		s.rate[what] = x
	}
	client, targets := s.lab.pod, direct()
	if s.peer.command != nil {
		targets = s.world.clusterIPs()
	}
	if what == outsideConnect || what == outsideRequest {
		client = s.lab.outside
		if s.peer.command != nil {
			targets = s.world.nodePorts()
		}
	}
	if what == podStream {
		return r.stream(s, x)
	}
	o := order{Do: "connect", Targets: targets, Threads: 4, Limit: r.round}
	if what == podRequest || what == outsideRequest {
		o.Do = "request"
	}
	before, err := s.lab.server.do(order{Do: "usage"})
	if err != nil {
		return err
	}
	kernel := r.softirqs.cpu()
	got, err := client.do(o)
	if err != nil {
		return err
	}
	kernel = r.softirqs.cpu() - kernel
	after, err := s.lab.server.do(order{Do: "usage"})
	if err != nil {
		return err
	}
	x.failed += got.Failed
	x.rate = append(x.rate, float64(got.Count)/got.Took.Seconds())
	x.cpu = append(x.cpu, (got.CPU+after.CPU-before.CPU+kernel).Seconds()/float64(got.Count))
	x.p50 = append(x.p50, got.P50.Seconds())
	x.p99 = append(x.p99, got.P99.Seconds())
	return nil
}

// stream runs iperf3 for a second; the rate is in bits per second.
func (r *run) stream(s *station, x *samples) error {
	target := serverAddr(0)
	if s.peer.command != nil {
		target = clusterIP(0)
	}
	load, err := os.Open(filepath.Join(s.lab.cgroup, "load"))
	if err != nil {
		return err
	}
	defer load.Close()
	out, err := inside(s.lab.netns("pod"), load, "iperf3", "-J", "-c", target.String(), "-p", fmt.Sprint(iperfPort), "-t", "1").Output()
	var report struct {
		Error string
		End   struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
			CPU struct {
				Local  float64 `json:"host_total"`
				Remote float64 `json:"remote_total"`
			} `json:"cpu_utilization_percent"`
		}
	}
	if jsonErr := json.Unmarshal(out, &report); jsonErr != nil || report.Error != "" || err != nil {
		return fmt.Errorf("iperf3: %v %v %s", err, jsonErr, report.Error)
	}
	x.rate = append(x.rate, report.End.Received.Rate)
	// CPU for a gigabyte.
	x.cpu = append(x.cpu, (report.End.CPU.Local+report.End.CPU.Remote)/100/(report.End.Received.Rate/8e9))
	return nil
}

// change has one Service's endpoint replaced again and again, at one peer after the other.
func (r *run) change(ctx context.Context, stations []*station) error {
	latencies := map[*station][]float64{}
	cpu := map[*station]time.Duration{}
	for _, s := range stations {
		if s.agent != nil {
			user, system, err := s.agent.cpu()
			if err != nil {
				return err
			}
			cpu[s] = user + system
		}
	}
	for i := range r.changes {
		begin := time.Now()
		for _, s := range stations {
			if s.agent == nil {
				continue
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			ready := 1 - i%2
			err := s.lab.pod.send(order{Do: "follow", Targets: []netip.AddrPort{followAddr}, Say: byte('a' + ready), Limit: time.Minute})
			if err == nil {
				_, err = s.lab.pod.receive() // it has begun
			}
			if err != nil {
				return err
			}
			time.Sleep(5 * time.Millisecond)
			slice := s.world.followSlice(ready)
			written := monotonic()
			s.lab.api.Put(slice)
			got, err := s.lab.pod.receive()
			if err != nil {
				return fmt.Errorf("%s: change %d: %w\n%s", s.peer.name, i, err, s.agent.lastWords())
			}
			latencies[s] = append(latencies[s], (got.At[0] - written).Seconds())
			if got.Failed > 0 {
				r.log.Warn("connections failed during a change", "peer", s.peer.name, "failed", got.Failed, "of", got.Count)
			}
		}
		// No peer shall be asked sooner than it cares to write: kube-proxy does so once a second.
		if rest := r.pause - time.Since(begin); rest > 0 {
			time.Sleep(rest)
		}
		if (i+1)%25 == 0 {
			r.log.Info("changed", "times", i+1)
		}
	}
	for s, all := range latencies {
		slices.Sort(all)
		user, system, err := s.agent.cpu()
		if err != nil {
			return err
		}
		s.size.Change = &changeResult{
			Count: len(all), P50: quantile(all, 0.5), P99: quantile(all, 0.99), Max: all[len(all)-1],
			CPU: (user + system - cpu[s]).Seconds() / float64(len(all)),
		}
	}
	return nil
}

// softirqs are the kernel's threads that take over soft interrupts when there
// are many. All other work of the network is done by whoever sends, in its name.
type softirqs []int

func findSoftirqs() softirqs {
	var out softirqs
	names, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, name := range names {
		if data, _ := os.ReadFile(name); strings.HasPrefix(string(data), "ksoftirqd/") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			out = append(out, pid)
		}
	}
	return out
}

// cpu returns the time that they have used.
func (s softirqs) cpu() time.Duration {
	var sum time.Duration
	for _, pid := range s {
		// The first number of schedstat is the time on a processor in nanoseconds.
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
		if err != nil {
			continue
		}
		n, _ := strconv.ParseInt(strings.Fields(string(data))[0], 10, 64)
		sum += time.Duration(n)
	}
	return sum
}
