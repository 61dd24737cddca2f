// Command httpload counts the requests that fail while everything around the
// gateway changes: endpoints roll, 10,000 routes are read anew, certificates
// are renewed, the gateway itself is replaced, endpoints hang, reset or answer
// garbage. It fails when a request failed that must not. With -soak it goes
// on with changes for that long, and fails when the gateway's goroutines, files
// or memory grow.
//
// Gateway, API, backends and clients share a network namespace of their own
// without a way out.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
)

// entered is set for the program that runs in the namespace.
const entered = "FAIRWAY_HTTPLOAD_ENTERED"

func main() {
	var o options
	flag.StringVar(&o.fairway, "fairway", "bin/fairway", "the `program` to try")
	flag.IntVar(&o.routes, "routes", 10000, "paths of all Ingresses")
	flag.DurationVar(&o.soak, "soak", 0, "go on with changes for this `time`, and look at what the gateway uses")
	flag.DurationVar(&o.pause, "pause", 2*time.Second, "`time` with nothing and with a sick endpoint")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "httpload:", err)
		os.Exit(1)
	}
}

type options struct {
	fairway     string
	routes      int
	soak, pause time.Duration
}

func run(o options) error {
	if os.Getenv(entered) == "" {
		return enter()
	}
	if err := setUpNetwork(); err != nil {
		return fmt.Errorf("set up the network namespace: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	scratch, err := os.MkdirTemp("", "fairway-httpload-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	table, err := try(ctx, log, o, scratch)
	fmt.Print(table)
	return err
}

// enter runs the program again in a network namespace without a way out.
func enter() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root, for a network namespace of its own")
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), entered+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	return cmd.Run()
}

func setUpNetwork() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	// Endpoints at loopback addresses are left out, as the API wants it.
	addr, err := netlink.ParseAddr(network)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(lo, addr); err != nil {
		return err
	}
	// As the docs of the gateway say: connections that wait to be accepted move
	// to the socket of the next process.
	for name, value := range map[string]string{"tcp_migrate_req": "1", "ip_local_port_range": "1024 65000"} {
		if err := os.WriteFile(filepath.Join("/proc/sys/net/ipv4", name), []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}
