// Dnsbench sets Fairway's DNS beside CoreDNS, in network namespaces of its own
// and in the same run: what answers cost (bench), and what they say (compare),
// also with one Corefile for both (corefile). And it keeps the Kubernetes API
// from Fairway for a while (away).
//
//	dnsbench bench   -fairway bin/fairway -coredns bin/coredns -out docs/benchmarks
//	dnsbench compare -fairway bin/fairway -coredns bin/coredns
//	dnsbench corefile -fairway bin/fairway -coredns bin/coredns
//	dnsbench away    -fairway bin/fairway -for 10m
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "dnsbench:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 || !slices.Contains([]string{"bench", "compare", "corefile", "away"}, args[0]) {
		return fmt.Errorf("want: dnsbench bench|compare|corefile|away [flags]")
	}
	f := flag.NewFlagSet("dnsbench "+args[0], flag.ContinueOnError)
	fairway := f.String("fairway", "bin/fairway", "`executable` of Fairway")
	coredns := f.String("coredns", "bin/coredns", "`executable` of CoreDNS")
	var b benchOptions
	var c compareOptions
	var a awayOptions
	switch args[0] {
	case "bench":
		b.flags(f)
	case "compare":
		c.flags(f)
	case "away":
		a.flags(f)
	}
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	if inside, err := enter(); err != nil || !inside {
		return err
	}
	dir, err := os.MkdirTemp("", "fairway-dnsbench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	paths := [2]string{}
	for i, p := range []string{*fairway, *coredns} {
		if paths[i], err = filepath.Abs(p); err != nil {
			return err
		}
	}
	l, err := newLab(dir, paths[0], paths[1])
	if err != nil {
		return err
	}
	switch args[0] {
	case "bench":
		return bench(l, b)
	case "corefile":
		return corefiles(l)
	case "away":
		return away(l, a)
	}
	return compare(l, c)
}
