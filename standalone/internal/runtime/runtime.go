package runtime

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	internalapi "k8s.io/cri-api/pkg/apis"
	"k8s.io/cri-streaming/pkg/streaming"

	"fairway.dev/fairway/standalone/internal/podnet"
)

// Options configure a node's container runtime.
type Options struct {
	// Dir holds the runtime's state on disk, one directory per node. Required.
	Dir string
	// NodeName is the Kubernetes name of the node. Required.
	NodeName string
	// PodCIDRs are the ranges that Pods of this node get their addresses from,
	// at most one per IP family, the primary family first. Required.
	PodCIDRs []netip.Prefix
	// ClusterCIDRs are all ranges inside of the cluster: the other nodes' Pods
	// and addresses, Services and load balancers. What Pods send there keeps
	// its source address, what they send elsewhere gets the node's. Optional.
	ClusterCIDRs []netip.Prefix
	// NodeIPs are the node's own addresses, from which it talks to its Pods.
	// Required.
	NodeIPs []netip.Addr
	// Images map image references to commands of the machine. Optional.
	Images []ImageMapping
	// ImageFiles are files that images bring with them. Optional.
	ImageFiles []ImageFiles
	// InitPath is the fairway-init executable. Required.
	InitPath string
	// BinDir holds Fairway's executables; every container sees it read-only at
	// /.fairway/bin. Required.
	BinDir string
	// CgroupParent is the cgroup that the node's is made below, as a path from
	// the mount of cgroup v2. Optional, "fairway" by default. One that is given is
	// not removed.
	CgroupParent string
	// Hide are paths of the machine that containers do not see, such as the
	// cluster's data with its credentials. Optional, Dir is always hidden.
	Hide []string
	// Logger receives what the runtime has to say. Required.
	Logger *slog.Logger
}

// Runtime runs the Pods of one node.
type Runtime struct {
	opts    Options
	images  *imageMap
	cgroups *cgroupTree
	network *podnet.Network
	lock    *os.File
	nodeNet *os.File

	stream streaming.Server
	server *http.Server

	mu         sync.RWMutex
	sandboxes  map[string]*sandbox
	containers map[string]*container
	closed     bool
}

// New prepares the node: it removes what an earlier run left behind and
// readies networking, cgroups and the streaming server. It works in the
// network namespace of its caller.
func New(ctx context.Context, opts Options) (_ *Runtime, err error) {
	r := &Runtime{opts: opts, images: newImageMap(opts.Images, opts.ImageFiles...), sandboxes: map[string]*sandbox{}, containers: map[string]*container{}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("container runtime of node %s: %w", opts.NodeName, err), r.Close(ctx))
		}
	}()
	for _, path := range []string{opts.InitPath, opts.BinDir} {
		if _, err := os.Stat(path); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(opts.Dir, 0o755); err != nil {
		return nil, err
	}
	if r.lock, err = lockDir(opts.Dir); err != nil {
		return nil, err
	}
	if r.nodeNet, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return nil, err
	}
	// First the processes, as they hold mounts and namespaces.
	if r.cgroups, err = newCgroupTree(opts.CgroupParent, r.cgroupName()); err != nil {
		return nil, err
	}
	if !r.cgroups.has("memory") || !r.cgroups.has("cpu") {
		opts.Logger.Info("resource limits of containers are not enforced: cgroup v2 of this machine lacks controllers", "mount", r.cgroups.mount, "controllers", r.cgroups.controllers)
	}
	if err := r.makeDirs(); err != nil {
		return nil, err
	}
	r.network, err = podnet.New(podnet.Options{
		Dir: filepath.Join(opts.Dir, "podnet"), Owner: r.owner(), PodCIDRs: opts.PodCIDRs, ClusterCIDRs: opts.ClusterCIDRs,
		NodeIPs: opts.NodeIPs, Logger: opts.Logger,
	})
	if err != nil {
		return nil, err
	}
	if err := r.serveStreams(); err != nil {
		return nil, err
	}
	return r, nil
}

// Services returns the runtime as kubelet wants it.
func (r *Runtime) Services() (internalapi.RuntimeService, internalapi.ImageManagerService) {
	return &runtimeService{Runtime: r}, &imageService{Runtime: r}
}

// CgroupPath is the directory of the node's cgroup: every process of every Pod
// of the node is below it, and nothing else.
func (r *Runtime) CgroupPath() string { return r.cgroups.root }

// shutdownGrace is how long Close waits for containers to end by themselves.
const shutdownGrace = 3 * time.Second

// Close ends every container and removes everything the runtime made. Containers
// get their stop signal and a few seconds, or less if ctx ends before.
func (r *Runtime) Close(ctx context.Context) error {
	r.mu.Lock()
	r.closed = true
	var sandboxes []*sandbox
	for _, s := range r.sandboxes {
		sandboxes = append(sandboxes, s)
	}
	r.mu.Unlock()
	r.askToStop(ctx)
	var errs []error
	if r.server != nil {
		errs = append(errs, r.server.Close())
	}
	if r.cgroups != nil {
		errs = append(errs, r.cgroups.kill(r.cgroups.root))
	}
	for _, s := range sandboxes {
		errs = append(errs, r.removeSandbox(s))
	}
	if r.network != nil {
		errs = append(errs, r.network.Close())
	}
	if r.cgroups != nil {
		errs = append(errs, r.cgroups.removeAll())
	}
	if r.lock != nil {
		errs = append(errs, r.removeDirs(), r.lock.Close())
	}
	if r.nodeNet != nil {
		errs = append(errs, r.nodeNet.Close())
	}
	return errors.Join(errs...)
}

// askToStop signals all containers and waits for them.
func (r *Runtime) askToStop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, shutdownGrace)
	defer cancel()
	containers := r.allContainers()
	for _, c := range containers {
		if init, err := c.running(); err == nil {
			init.signal(0, stopSignal(c.config.GetStopSignal()))
		}
	}
	for _, c := range containers {
		if _, err := c.running(); err != nil {
			continue
		}
		select {
		case <-c.finished:
		case <-ctx.Done():
			return
		}
	}
}

// owner tells this node from all others that may share the machine.
func (r *Runtime) owner() string {
	dir, err := filepath.Abs(r.opts.Dir)
	if err != nil {
		dir = r.opts.Dir
	}
	sum := sha256.Sum256([]byte(dir))
	return hex.EncodeToString(sum[:4])
}

// cgroupName is the same in every run, so that leftovers are found.
func (r *Runtime) cgroupName() string { return r.opts.NodeName + "-" + r.owner() }

// Directories below Options.Dir.
func (r *Runtime) sandboxDir(id string) string { return filepath.Join(r.opts.Dir, "sandboxes", id) }
func (r *Runtime) shmRoot() string             { return filepath.Join(r.opts.Dir, "shm") }
func (r *Runtime) scratchDir() string          { return filepath.Join(r.opts.Dir, "scratch") }

// makeDirs starts with empty directories. The Pods' shared memory is one tmpfs
// for all of them.
func (r *Runtime) makeDirs() error {
	if err := r.removeDirs(); err != nil {
		return err
	}
	for _, dir := range []string{r.sandboxDir(""), r.shmRoot(), r.scratchDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("fairway", r.shmRoot(), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755"); err != nil {
		return fmt.Errorf("mount shared memory on %s: %w", r.shmRoot(), err)
	}
	return nil
}

func (r *Runtime) removeDirs() error {
	for {
		err := unix.Unmount(r.shmRoot(), unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // no mount (any more)
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", r.shmRoot(), err)
		}
	}
	return errors.Join(os.RemoveAll(r.sandboxDir("")), os.RemoveAll(r.shmRoot()), os.RemoveAll(r.scratchDir()))
}

// lockDir makes sure that no other process runs the same node.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s is in use by another process: stop it, or choose another data directory", dir)
	}
	return f, nil
}

// serveStreams serves exec, attach and port-forward to kubelet, on loopback,
// under addresses that contain a secret each.
func (r *Runtime) serveStreams() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("streaming server: %w", err)
	}
	config := streaming.DefaultConfig
	config.Addr = listener.Addr().String()
	if r.stream, err = streaming.NewServer(config, &streams{r}); err != nil {
		listener.Close()
		return fmt.Errorf("streaming server: %w", err)
	}
	r.server = &http.Server{Handler: r.stream}
	go func() {
		if err := r.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			r.opts.Logger.Error("streaming server ended", "error", err)
		}
	}()
	return nil
}

// newID names a sandbox or a container, as other runtimes do.
func newID() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
