package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Addresses. The tester speaks from an address that is not of the network it
// shares with the machine, as if it were behind a router: the tests tell by that
// whether a client's address was kept.
const (
	machineAddress = "198.51.100.2"
	routerAddress  = "198.51.100.1"
	testerAddress  = "192.0.2.1"
	network        = "198.51.100.0/24"
	loadBalancers  = "198.51.100.128/26"
	nodeRange      = "10.245.0.0/24"
	apiServer      = "https://10.245.0.1:6443"
)

// Options configure a Cluster.
type Options struct {
	// Bin is the directory of Fairway's executables. Required.
	Bin string
	// Dir is an empty directory for everything that the run writes. Required.
	Dir string
	// DataPath is the value of --dataplane. Required.
	DataPath string
	// Nodes is how many nodes there are. Required.
	Nodes int
	// Zones is the value of --zones. Optional.
	Zones string
	// Images are the images that the tests ask for. Optional.
	Images []Image
}

// Image is a command of this machine that an image stands for.
type Image struct {
	// Ref and Command are as for --image.
	Ref, Command string
	// Files is a directory as for --image-files. Optional.
	Files string
}

// Cluster is a running Fairway.
type Cluster struct {
	opts            Options
	machine, tester string // network namespaces
}

// Start makes the namespaces and starts Fairway in them. Close must be called
// also when it fails.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	c := &Cluster{opts: o, machine: fmt.Sprintf("fwc-machine-%d", os.Getpid()), tester: fmt.Sprintf("fwc-tester-%d", os.Getpid())}
	script := fmt.Sprintf(`set -e
ip netns add %[1]s; ip netns add %[2]s
ip -n %[1]s link set lo up; ip -n %[2]s link set lo up
ip -n %[1]s link add lan0 type veth peer name lan0 netns %[2]s
ip -n %[1]s addr add %[3]s/24 dev lan0; ip -n %[2]s addr add %[4]s/24 dev lan0
ip -n %[2]s addr add %[5]s/32 dev lo
ip -n %[1]s link set lan0 up; ip -n %[2]s link set lan0 up
ip -n %[1]s route add default via %[4]s
ip -n %[2]s route replace %[6]s dev lan0 src %[5]s
ip -n %[2]s route add %[7]s via %[3]s src %[5]s
`, c.machine, c.tester, machineAddress, routerAddress, testerAddress, network, nodeRange)
	if out, err := exec.CommandContext(ctx, "bash", "-c", script).CombinedOutput(); err != nil {
		return c, fmt.Errorf("make the network namespaces: %w: %s", err, out)
	}
	args := []string{"up", "--data-dir", c.data(), "--detach", "--dataplane", o.DataPath, "--nodes", fmt.Sprint(o.Nodes),
		"--lb-pool", loadBalancers, "--node-cidr", nodeRange + ",fd00:10:245::/112",
		// Tests have Pods with the network of any node listen at port 80, where the gateway would be.
		"--http-port", "28080", "--https-port", "28443"}
	if o.Zones != "" {
		args = append(args, "--zones", o.Zones)
	}
	for _, image := range o.Images {
		args = append(args, "--image", image.Ref+"="+image.Command)
		if image.Files != "" {
			args = append(args, "--image-files", image.Ref+"="+image.Files)
		}
	}
	if out, err := c.command(ctx, c.machine, filepath.Join(o.Bin, "fairway"), args...).CombinedOutput(); err != nil {
		return c, fmt.Errorf("fairway up: %w\n%s", err, out)
	}
	return c, c.credentials()
}

// credentials writes the kubeconfig and the kubectl of the tester.
func (c *Cluster) credentials() error {
	config, err := os.ReadFile(filepath.Join(c.data(), "kubeconfig"))
	if err != nil {
		return err
	}
	const local = "https://127.0.0.1:6443"
	if !bytes.Contains(config, []byte(local)) {
		return fmt.Errorf("the kubeconfig does not name the API server %s", local)
	}
	config = bytes.ReplaceAll(config, []byte(local), []byte(apiServer))
	kubectl := fmt.Sprintf("#!/bin/sh\nexec '%s' kubectl \"$@\"\n", filepath.Join(c.opts.Bin, "fairway-standalone"))
	return errors.Join(os.WriteFile(c.Kubeconfig(), config, 0o600), os.WriteFile(c.Kubectl(), []byte(kubectl), 0o755))
}

func (c *Cluster) data() string { return filepath.Join(c.opts.Dir, "data") }

// Kubeconfig is the path of the tester's credentials: the cluster's
// administrator, through an address that the tester reaches.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.opts.Dir, "kubeconfig") }

// Kubectl is the path of a kubectl of the cluster's version.
func (c *Cluster) Kubectl() string { return filepath.Join(c.opts.Dir, "kubectl") }

// Logs is the directory of Fairway's logs.
func (c *Cluster) Logs() string { return filepath.Join(c.data(), "logs") }

// Tester returns a command that runs on the other machine of the network.
func (c *Cluster) Tester(ctx context.Context, name string, args ...string) *exec.Cmd {
	return c.command(ctx, c.tester, name, args...)
}

// command runs a program in a network namespace. It is asked to end before it
// is killed.
func (c *Cluster) command(ctx context.Context, ns, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=/run/netns/" + ns, "--", name}, args...)...)
	cmd.Dir = c.opts.Dir
	cmd.Env = []string{"HOME=" + c.opts.Dir, "KUBECONFIG=" + c.Kubeconfig()}
	for _, v := range os.Environ() { // without proxies and other clusters
		if name, _, _ := strings.Cut(v, "="); name == "PATH" || name == "TMPDIR" || name == "LANG" {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	return cmd
}

// Close stops Fairway and removes the namespaces.
func (c *Cluster) Close() error {
	var errs []error
	if _, err := os.Stat(filepath.Join(c.data(), "run", "state.json")); err == nil {
		// A busy machine takes its time, and what is left behind is in the way.
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		defer cancel()
		if out, err := c.command(ctx, c.machine, filepath.Join(c.opts.Bin, "fairway"), "down", "--data-dir", c.data()).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("fairway down: %w: %s", err, out))
		}
	}
	for _, ns := range []string{c.machine, c.tester} {
		if _, err := os.Stat("/run/netns/" + ns); err != nil {
			continue
		}
		if out, err := exec.Command("ip", "netns", "del", ns).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("remove namespace %s: %w: %s", ns, err, out))
		}
	}
	return errors.Join(errs...)
}
