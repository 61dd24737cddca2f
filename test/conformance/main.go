package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/test/conformance/cluster"
	"fairway.dev/fairway/test/conformance/report"
)

// suite is one start of the tests against a cluster of their own.
type suite struct {
	name    string
	nodes   int
	zones   string
	procs   int // how many tests run at a time; most wait most of the time
	timeout time.Duration
}

// suites are in the order in which they run. Six nodes in three zones are what
// the tests of traffic distribution ask for. Of the nodes only the first is on
// the tester's network: tests that need that of every node with endpoints have
// but one node.
var suites = []suite{
	{name: report.Conformance, nodes: 2, procs: 4, timeout: 30 * time.Minute},
	{name: report.Services, nodes: 6, zones: "a,b,c", procs: 8, timeout: time.Hour},
	{name: report.Local, nodes: 1, procs: 2, timeout: 30 * time.Minute},
}

type options struct {
	bin, programs, testdata, out, fairway, kubernetes string
	dataPaths, suites                                 string
	focus                                             string
	procs                                             int
	keep                                              bool
}

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "", "directory of Fairway's executables")
	flag.StringVar(&o.programs, "programs", "", "directory of e2e.test, ginkgo, agnhost, coredns and regression-issue-74839")
	flag.StringVar(&o.testdata, "agnhost-source", "", "directory of agnhost's source, for the certificate that its image holds")
	flag.StringVar(&o.out, "out", "", "directory of the report; with none, results are only printed")
	flag.StringVar(&o.fairway, "fairway-version", "dev", "version of Fairway, for the report")
	flag.StringVar(&o.kubernetes, "kubernetes-version", "", "version of Kubernetes, for the report")
	flag.StringVar(&o.dataPaths, "dataplanes", strings.Join(report.DataPaths, ","), "data paths to run on, one after the other")
	flag.StringVar(&o.suites, "suites", strings.Join(report.Suites, ","), "suites to run")
	flag.StringVar(&o.focus, "focus", "", "regular expression: run only these tests of the suites, and write no report")
	flag.IntVar(&o.procs, "procs", 0, "how many tests run at a time (default 4, 8 and 2, by suite)")
	flag.BoolVar(&o.keep, "keep", false, "keep logs and Ginkgo's reports, and say where")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	for _, dir := range []*string{&o.bin, &o.programs, &o.testdata} {
		if *dir == "" {
			return errors.New("-bin, -programs and -agnhost-source are required: use make conformance")
		}
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return err
		}
		*dir = abs
	}
	if err := checkPrograms(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "fairway-conformance-")
	if err != nil {
		return err
	}
	if o.keep {
		fmt.Println("logs and reports are kept in", dir)
	} else {
		defer os.RemoveAll(dir)
	}
	images, err := makeImages(filepath.Join(dir, "images"), o)
	if err != nil {
		return err
	}
	var errs []error
	for _, dataPath := range strings.Split(o.dataPaths, ",") {
		for _, s := range suites {
			if !strings.Contains(","+o.suites+",", ","+s.name+",") || ctx.Err() != nil {
				continue
			}
			done, err := runSuite(ctx, o, s, dataPath, images, filepath.Join(dir, dataPath+"-"+s.name))
			if err != nil {
				errs = append(errs, fmt.Errorf("%s on %s: %w", s.name, dataPath, err))
				continue
			}
			result := report.Run{DataPath: dataPath, Suites: []report.Suite{done}}
			errs = append(errs, result.Err())
			if o.out != "" && o.focus == "" && ctx.Err() == nil {
				errs = append(errs, report.Write(o.out, result), report.Render(o.out))
			}
		}
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// runSuite starts a cluster, runs the tests against it and takes it down.
func runSuite(ctx context.Context, o options, s suite, dataPath string, images []cluster.Image, dir string) (_ report.Suite, err error) {
	began := time.Now()
	done := report.Suite{Name: s.name, Date: began.UTC().Truncate(time.Second), Fairway: o.fairway, Kubernetes: o.kubernetes, Kernel: kernel(), Nodes: s.nodes, Zones: s.zones}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return done, err
	}
	fmt.Printf("%s on %s: %d nodes\n", s.name, dataPath, s.nodes)
	c, err := cluster.Start(ctx, cluster.Options{Bin: o.bin, Dir: dir, DataPath: dataPath, Nodes: s.nodes, Zones: s.zones, Images: images})
	defer func() { err = errors.Join(err, c.Close()) }()
	if err != nil {
		return done, err
	}
	log, err := os.Create(filepath.Join(dir, "e2e.log"))
	if err != nil {
		return done, err
	}
	defer log.Close()
	cmd := c.Tester(ctx, filepath.Join(o.programs, "ginkgo"), o.ginkgo(s, dataPath, c, dir)...)
	cmd.Stdout, cmd.Stderr = log, log
	runErr := cmd.Run()
	tests, all, err := readReport(filepath.Join(dir, "report.json"))
	if err != nil {
		return done, errors.Join(fmt.Errorf("the tests did not run to their end: %w; %w", runErr, err), tail(log.Name()))
	}
	if done.Tests, err = complete(s, dataPath, o, tests, all); err != nil {
		return done, err
	}
	done.Seconds = time.Since(began).Round(time.Second).Seconds()
	fmt.Printf("%s on %s: %d passed, %d failed, %d missing, %d skipped, in %.0f s\n", s.name, dataPath, done.Count(report.Passed),
		done.Count(report.Failed), done.Count(report.Missing), done.Count(report.Skipped), done.Seconds)
	return done, nil
}

// ginkgo returns the arguments of a run. Nothing is tried a second time.
func (o options) ginkgo(s suite, dataPath string, c *cluster.Cluster, dir string) []string {
	focus, skip := report.Selection(s.name, dataPath)
	if o.focus != "" {
		focus = `\[sig-network\].*(` + o.focus + ")"
	}
	procs := cmp.Or(o.procs, s.procs)
	args := []string{fmt.Sprintf("--procs=%d", procs), "--timeout", (s.timeout - 3*time.Minute).String(), "--no-color", "--poll-progress-after=0",
		"--json-report=report.json", "--output-dir", dir, "--focus", focus}
	for _, pattern := range skip {
		args = append(args, "--skip", pattern)
	}
	return append(args, filepath.Join(o.programs, "e2e.test"), "--", "--kubeconfig", c.Kubeconfig(), "--kubectl-path", c.Kubectl(),
		"--provider=skeleton", "--num-nodes", fmt.Sprint(s.nodes), "--dump-logs-on-failure=true")
}

func readReport(path string) (tests []report.Test, all []string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	return report.Read(f)
}

// complete adds what should have run and did not, and what was left out.
func complete(s suite, dataPath string, o options, tests []report.Test, all []string) ([]report.Test, error) {
	if o.focus != "" {
		return tests, nil
	}
	required, err := report.Required()
	if err != nil {
		return nil, err
	}
	expected, excluded := report.Expect(s.name, dataPath, all, required)
	return append(report.Complete(tests, expected), excluded...), nil
}

// tail is an error that holds the end of a log.
func tail(path string) error {
	out, err := exec.Command("tail", "-n", "40", path).Output()
	return errors.Join(err, errors.New(string(out)))
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
