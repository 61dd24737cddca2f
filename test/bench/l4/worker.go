package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// payload is the size of a request and of its answer, in bytes.
const payload = 64

// order is what a worker shall do. Workers are processes of this program in the
// namespaces of a lab; they read orders from stdin and answer on stdout, a line
// of JSON each.
type order struct {
	// Do is serve, usage, connect, request, until, follow, steady or count.
	Do string
	// Targets are where to listen, or to connect to in turn.
	Targets []netip.AddrPort
	Threads int
	// Limit is how long to go on, or to wait.
	Limit time.Duration
	// Say is what a server answers with; follow waits for it.
	Say byte
	// Kept is the number of connections that steady keeps, beside making new ones.
	Kept int
}

// outcome is what came of an order.
type outcome struct {
	Error         string `json:",omitempty"`
	Count, Failed int64
	Took          time.Duration
	// CPU is what the process used meanwhile, in user and kernel mode; for usage, since it started.
	CPU time.Duration
	// P50 and P99 are of the time from connect (or, on a kept connection,
	// write) to the answer.
	P50, P99 time.Duration
	// At are moments of the monotonic clock: for until, when each target first
	// answered; for follow, when the first connection was made that followed.
	At []time.Duration `json:",omitempty"`
	// Pings were answered on kept connections, of which Broken ones broke;
	// Longest is the longest time to an answer, Why the first error. For count, all since the last time.
	Pings, Broken int64         `json:",omitempty"`
	Longest       time.Duration `json:",omitempty"`
	Why           string        `json:",omitempty"`
}

// runWorker serves orders until stdin ends.
func runWorker(in io.Reader, out io.Writer) error {
	// Threads wait in the kernel, each with a processor of the runtime, so that none waits for another there.
	runtime.GOMAXPROCS(128)
	var s steady
	lines := bufio.NewScanner(in)
	answers := json.NewEncoder(out)
	for lines.Scan() {
		var o order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			return err
		}
		begin, cpu := monotonic(), processCPU()
		result, err := o.carryOut(&s, func() { _ = answers.Encode(outcome{}) })
		if err != nil {
			result.Error = err.Error()
		}
		result.Took = monotonic() - begin
		if result.CPU = processCPU(); o.Do != "usage" {
			result.CPU -= cpu
		}
		if err := answers.Encode(result); err != nil {
			return err
		}
	}
	return lines.Err()
}

func (o order) carryOut(s *steady, begun func()) (outcome, error) {
	switch o.Do {
	case "usage":
		return outcome{}, nil
	case "serve":
		return outcome{}, o.serve()
	case "connect":
		return o.load(false)
	case "request":
		return o.load(true)
	case "until":
		return o.until()
	case "steady":
		s.start(o)
		return outcome{}, nil
	case "count":
		return s.count(), nil
	case "follow":
		begun()
		return o.follow()
	}
	return outcome{}, fmt.Errorf("worker: no such order: %q", o.Do)
}

// monotonic reads CLOCK_MONOTONIC, which all processes share.
func monotonic() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail with this clock
	return time.Duration(ts.Nano())
}

func processCPU() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u) // cannot fail with RUSAGE_SELF
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func sockaddr(a netip.AddrPort) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

// serve listens at the targets, with a number of threads for each, until the process ends.
func (o order) serve() error {
	for _, at := range o.Targets {
		l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.SetsockoptInt(l, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if err := unix.Bind(l, sockaddr(at)); err != nil {
			return fmt.Errorf("bind %s: %w", at, err)
		}
		if err := unix.Listen(l, 4096); err != nil {
			return err
		}
		for range o.Threads {
			go answer(l, o.Say)
		}
	}
	return nil
}

// answer serves one connection after the other: to whatever it reads it answers with as much.
func answer(listener int, say byte) {
	runtime.LockOSThread()
	in, out := make([]byte, payload), make([]byte, payload)
	out[0] = say
	for {
		c, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if err != nil {
			continue // of one connection that is gone already
		}
		for {
			if n, err := unix.Read(c, in); err != nil || n <= 0 {
				break
			}
			if _, err := unix.Write(c, out); err != nil {
				break
			}
		}
		_ = unix.Close(c)
	}
}

// patience is how long a connection may take to be made, and an answer to
// come. Where it is not sure that anybody answers, it is short: an answer that
// nobody does may go unnoticed, when it comes before the connection waits for it.
const patience, impatience = time.Second, 20 * time.Millisecond

// dial connects.
func dial(to netip.AddrPort, within time.Duration) (int, error) {
	c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	limit := unix.NsecToTimeval(int64(within))
	if err = unix.SetsockoptTimeval(c, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err == nil {
		err = unix.SetsockoptTimeval(c, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)
	}
	if err == nil {
		err = unix.Connect(c, sockaddr(to))
	}
	if err != nil {
		_ = unix.Close(c)
		return -1, err
	}
	return c, nil
}

// ask sends a request on a connection and returns the first byte of the answer.
func ask(c int, buf []byte) (byte, error) {
	if _, err := unix.Write(c, buf); err != nil {
		return 0, err
	}
	n, err := unix.Read(c, buf)
	if err == nil && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	return buf[0], err
}

// load makes connections with one request each, or requests on kept connections, for a time.
func (o order) load(keep bool) (outcome, error) {
	var failed atomic.Int64
	var firstError atomic.Value
	times := make([][]time.Duration, o.Threads)
	end := monotonic() + o.Limit
	var wg sync.WaitGroup
	for thread := range o.Threads {
		wg.Go(func() {
			runtime.LockOSThread()
			buf := make([]byte, payload)
			mine := make([]time.Duration, 0, 1<<16)
			c := -1
			for i := thread; ; i++ {
				begin := monotonic()
				if begin >= end {
					break
				}
				err := error(nil)
				if c < 0 {
					c, err = dial(o.Targets[i%len(o.Targets)], patience)
				}
				if err == nil {
					_, err = ask(c, buf)
				}
				if err != nil {
					failed.Add(1)
					firstError.CompareAndSwap(nil, err.Error())
				} else {
					mine = append(mine, monotonic()-begin)
				}
				if c >= 0 && (!keep || err != nil) {
					_ = unix.Close(c)
					c = -1
				}
			}
			if c >= 0 {
				_ = unix.Close(c)
			}
			times[thread] = mine
		})
	}
	wg.Wait()
	all := slices.Concat(times...)
	slices.Sort(all)
	out := outcome{Count: int64(len(all)), Failed: failed.Load()}
	if out.Count == 0 {
		return out, fmt.Errorf("nothing answered: %v", firstError.Load())
	}
	out.P50, out.P99 = quantile(all, 0.50), quantile(all, 0.99)
	return out, nil
}

// quantile returns a quantile of what is sorted.
func quantile[T any](sorted []T, q float64) T {
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// until connects to each target until it answers.
func (o order) until() (outcome, error) {
	var out outcome
	end := monotonic() + o.Limit
	buf := make([]byte, payload)
	for _, to := range o.Targets {
		for {
			c, err := dial(to, impatience)
			if err == nil {
				_, err = ask(c, buf)
				_ = unix.Close(c)
			}
			if err == nil {
				out.At = append(out.At, monotonic())
				out.Count++
				break
			}
			out.Failed++
			if monotonic() > end {
				return out, fmt.Errorf("%s does not answer: %w", to, err)
			}
			time.Sleep(time.Millisecond)
		}
	}
	return out, nil
}

// follow connects to the first target again and again, until whoever says Say answers.
func (o order) follow() (outcome, error) {
	runtime.LockOSThread()
	var out outcome
	end := monotonic() + o.Limit
	buf := make([]byte, payload)
	for {
		c, err := dial(o.Targets[0], impatience)
		connected := monotonic()
		var said byte
		if err == nil {
			said, err = ask(c, buf)
			// Without this the namespace would fill with connections that wait for their end.
			_ = unix.SetsockoptLinger(c, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			_ = unix.Close(c)
		}
		switch {
		case err != nil:
			out.Failed++
		case said == o.Say:
			out.At = append(out.At, connected)
			return out, nil
		}
		out.Count++
		if connected > end {
			return out, fmt.Errorf("%s: no packet has followed the change (%d connections, %d failed): %v", o.Targets[0], out.Count, out.Failed, err)
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// worker is the driver's end of a worker.
type worker struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// startWorker starts one in a network namespace and a cgroup.
func startWorker(netns string, cgroup *os.File) (*worker, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := inside(netns, cgroup, self, "worker")
	// The runtime's signals would interrupt system calls.
	cmd.Env = append(cmd.Env, "GODEBUG=asyncpreemptoff=1")
	w := &worker{cmd: cmd}
	if w.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	w.out = json.NewDecoder(out)
	return w, cmd.Start()
}

// send gives an order; receive returns what comes of it.
func (w *worker) send(o order) error { return json.NewEncoder(w.in).Encode(o) }

func (w *worker) receive() (outcome, error) {
	var out outcome
	if err := w.out.Decode(&out); err != nil {
		return out, fmt.Errorf("worker: %w", err)
	}
	if out.Error != "" {
		return out, fmt.Errorf("worker: %s", out.Error)
	}
	return out, nil
}

func (w *worker) do(o order) (outcome, error) {
	if err := w.send(o); err != nil {
		return outcome{}, err
	}
	return w.receive()
}

func (w *worker) stop() {
	_ = w.in.Close()
	_ = w.cmd.Process.Kill()
	_ = w.cmd.Wait()
}
