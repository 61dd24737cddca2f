// Dnsbench sets Fairway's DNS beside CoreDNS, in network namespaces of its own
// and in the same run: what answers cost (bench), and what they say (compare).
//
//	dnsbench bench   -fairway bin/fairway -coredns bin/coredns -out docs/benchmarks
//	dnsbench compare -fairway bin/fairway -coredns bin/coredns
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "dnsbench:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 || args[0] != "bench" && args[0] != "compare" {
		return fmt.Errorf("want: dnsbench bench|compare [flags]")
	}
	f := flag.NewFlagSet("dnsbench "+args[0], flag.ContinueOnError)
	fairway := f.String("fairway", "bin/fairway", "`executable` of Fairway")
	coredns := f.String("coredns", "bin/coredns", "`executable` of CoreDNS")
	var b benchOptions
	var c compareOptions
	if args[0] == "bench" {
		b.flags(f)
	} else {
		c.flags(f)
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
	if args[0] == "bench" {
		return bench(l, b)
	}
	return compare(l, c)
}
