package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		if err := runWorker(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "l4 worker:", err)
			os.Exit(1)
		}
		return
	}
	// Programs that this one starts end with the thread that has started them.
	runtime.LockOSThread()
	if err := drive(); err != nil {
		fmt.Fprintln(os.Stderr, "l4:", err)
		os.Exit(1)
	}
}

func drive() error {
	var o options
	fairway := flag.String("fairway", "bin/fairway", "the program")
	kubeProxy := flag.String("kube-proxy", "bin/kube-proxy", "the peer")
	only := flag.String("peers", "", "measure only these, separated by commas")
	sizes := flag.String("services", "10,1000,10000", "numbers of Services")
	out := flag.String("out", "", "directory for l4.md, l4.json and l4.svg; none are written without")
	failures := flag.Bool("failures", false, "count connections that fail while agents are killed, restarted and replaced, instead of measuring")
	redraw := flag.String("redraw", "", "measure nothing, write page and plot of this l4.json anew")
	flag.StringVar(&o.what, "measure", "", "measure only what has this in its name, such as: Pod to ClusterIP, connections")
	flag.IntVar(&o.rounds, "rounds", 20, "rounds of each measurement")
	flag.DurationVar(&o.round, "round", 250*time.Millisecond, "length of a round")
	flag.IntVar(&o.iperf, "iperf-rounds", 4, "rounds of iperf3, one second each")
	flag.IntVar(&o.changes, "changes", 100, "endpoint changes to time at the last size")
	flag.DurationVar(&o.pause, "pause", 1200*time.Millisecond, "time from one change to the next at the same peer")
	flag.DurationVar(&o.settle, "settle", 15*time.Second, "wait before memory is read")
	flag.Parse()
	if *redraw != "" {
		var r report
		data, err := os.ReadFile(*redraw)
		if err == nil {
			err = json.Unmarshal(data, &r)
		}
		if err != nil {
			return err
		}
		return r.write(*out)
	}
	if os.Getuid() != 0 {
		return fmt.Errorf("this makes network namespaces: run it as root")
	}
	for n := range strings.SplitSeq(*sizes, ",") {
		size, err := strconv.Atoi(n)
		if err != nil || size < 1 || size > 20000 {
			return fmt.Errorf("-services %q: want numbers from 1 to 20000", n)
		}
		o.sizes = append(o.sizes, size)
	}
	var err error
	if *fairway, err = filepath.Abs(*fairway); err != nil {
		return err
	}
	if *kubeProxy, err = filepath.Abs(*kubeProxy); err != nil {
		return err
	}
	if o.scratch, err = os.MkdirTemp("", "fairway-l4-"); err != nil {
		return err
	}
	defer os.RemoveAll(o.scratch)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r := &run{options: o, log: slog.New(slog.NewTextHandler(os.Stderr, nil)), softirqs: findSoftirqs()}
	for _, p := range peers(*fairway, *kubeProxy) {
		if names := strings.Split(*only, ","); *only == "" || slices.Contains(names, p.name) || slices.Contains(names, p.beside) {
			r.peers = append(r.peers, p)
		}
	}
	if *failures {
		t, err := countFailures(ctx, r.log, *fairway, o.scratch, o.sizes[len(o.sizes)-1])
		fmt.Print(t)
		return err
	}
	result := &report{Made: time.Now().UTC().Truncate(time.Second), Machine: thisMachine(), Rounds: o.rounds, RoundSeconds: o.round.Seconds()}
	if result.Results, err = r.all(ctx); err != nil {
		return err
	}
	result.Machine.LoadAfter = loadAverage()
	fmt.Print(result.tables())
	if *out == "" {
		return nil
	}
	return result.write(*out)
}

func thisMachine() machine {
	m := machine{Cores: runtime.NumCPU(), LoadBefore: loadAverage()}
	text := func(path string) string { data, _ := os.ReadFile(path); return strings.TrimSpace(string(data)) }
	m.Kernel = text("/proc/sys/kernel/osrelease")
	for line := range strings.Lines(text("/proc/cpuinfo")) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			m.CPU = strings.TrimSpace(value)
		}
	}
	m.OthersPrograms = othersPrograms()
	version, _ := exec.Command("nft", "--version").Output()
	m.NFT = strings.TrimSpace(string(version))
	return m
}

// othersPrograms counts what is attached to connect() for the whole machine
// before any peer is.
func othersPrograms() int {
	root, err := os.Open(filepath.Dir(cgroupRoot))
	if err != nil {
		return 0
	}
	defer root.Close()
	found, err := link.QueryPrograms(link.QueryOptions{Target: int(root.Fd()), Attach: ebpf.AttachCGroupInet4Connect})
	if err != nil {
		return 0
	}
	return len(found.Programs)
}

func loadAverage() float64 {
	data, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(data), " ")
	v, _ := strconv.ParseFloat(first, 64)
	return v
}
