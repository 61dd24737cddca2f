package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/kubernetes"
	v1core "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	kubeletapp "k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	kubeletutil "k8s.io/kubernetes/pkg/kubelet/util"
	"k8s.io/kubernetes/pkg/util/oom"

	"fairway.dev/fairway/standalone/internal/kubelog"
	"fairway.dev/fairway/standalone/internal/pki"
)

// closeLimit bounds the end of all containers.
const closeLimit = 10 * time.Second

// noise are messages of kubelet that are no news on such a node.
var noise = []string{
	// Its first look at things, before it knows anything.
	"Skipping pod synchronization",
	"Node does not have NodeReady condition",
	"node is not registered yet",
	"failed to get node info",
	// There is no cgroup of all Pods that kubelet could read; it asks every ten seconds.
	`system container \"pods\" not found in metrics`,
	// A client ended kubectl exec or port-forward.
	"use of closed network connection",
	"websocket: close 1006 (abnormal closure)",
	// Somebody deleted the Pod or the namespace while kubelet was at it.
	"Failed to update status for pod",
}

// Node is one node.
type Node struct {
	opts Options
}

// New checks the options. Nothing is opened before Run.
func New(opts Options) (*Node, error) {
	dir, err := filepath.Abs(opts.DataDir)
	if err != nil {
		return nil, fmt.Errorf("--data-dir %s: %w", opts.DataDir, err)
	}
	opts.DataDir = dir
	if err := opts.validate(); err != nil {
		return nil, err
	}
	return &Node{opts: opts}, nil
}

// DataDir is the absolute path of the data directory.
func (n *Node) DataDir() string { return n.opts.DataDir }

// Run runs the node and blocks until the context ends, then ends its containers and returns nil. A process can run it
// once. kubelet ends the whole process when it cannot go on.
func (n *Node) Run(ctx context.Context) error {
	started := time.Now()
	o := &n.opts
	debug.SetGCPercent(75)
	if err := kubelog.Setup(kubelog.Options{Output: o.LogOutput, Verbosity: o.Verbosity, Drop: noise}); err != nil {
		return err
	}
	p, cert, err := openPKI(o)
	if err != nil {
		return err
	}
	if err := checkPort(o.Port); err != nil {
		return err
	}
	for _, dir := range []string{o.root(), o.logs(), o.volumePlugins()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make the node's directory: %w", err)
		}
	}
	clients, err := newClients(o.Kubeconfig)
	if err != nil {
		return err
	}
	if err := ensureNode(ctx, clients.api, o); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	containers, err := o.NewRuntime(ctx)
	if err != nil {
		return fmt.Errorf("container runtime: %w", err)
	}
	// kubelet has its own context: it must not take the end of a container for a failure that it should heal, so it
	// ends before the containers do.
	kubeletCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	err = n.start(kubeletCtx, p, cert, clients, containers)
	if err == nil {
		if waitReady(ctx, clients.api, o.NodeName, started) == nil {
			o.Logger.Info("node is ready", "elapsed", time.Since(started).Round(time.Millisecond))
		}
		<-ctx.Done()
	}
	stop()
	closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
	defer cancel()
	if closeErr := containers.Close(closeCtx); closeErr != nil {
		err = errors.Join(err, fmt.Errorf("end the containers: %w", closeErr))
	}
	return err
}

// openPKI opens the certificates that the control plane made, and kubelet's own.
func openPKI(o *Options) (*pki.PKI, pki.Pair, error) {
	p, err := pki.Open(pki.Options{Dir: filepath.Join(o.DataDir, "pki"), ReadOnly: true})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, pki.Pair{}, fmt.Errorf("%s holds no cluster yet: start the control plane with the same --data-dir first", o.DataDir)
	}
	if err != nil {
		return nil, pki.Pair{}, err
	}
	cert, err := p.Server(filepath.Join("nodes", o.NodeName), pki.Identity{
		CommonName: "system:node:" + o.NodeName,
		Groups:     []string{"system:nodes"},
		DNSNames:   []string{o.NodeName},
		Addresses:  o.NodeIPs,
	})
	return p, cert, err
}

// checkPort tells that a port is taken before kubelet does so in its own way: it ends the process.
func checkPort(port int) error {
	listener, err := net.Listen("tcp", ":"+strconv.Itoa(port))
	if err == nil {
		return listener.Close()
	}
	if strings.Contains(err.Error(), "address already in use") {
		return fmt.Errorf("port %d is used by another program in this network namespace, perhaps another kubelet: stop it, or give "+
			"another port with --kubelet-port", port)
	}
	return fmt.Errorf("open port %d (choose another with --kubelet-port): %w", port, err)
}

// clients are kubelet's ways to the API server.
type clients struct {
	api       *kubernetes.Clientset
	heartbeat *kubernetes.Clientset
	events    v1core.EventsGetter
}

func newClients(kubeconfig string) (*clients, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig %s: %w", kubeconfig, err)
	}
	config.UserAgent = "kubelet"
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	config.QPS, config.Burst = 200, 400
	c := &clients{}
	if c.api, err = kubernetes.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("--kubeconfig %s: %w", kubeconfig, err)
	}
	if c.events, err = v1core.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("--kubeconfig %s: %w", kubeconfig, err)
	}
	heartbeat := rest.CopyConfig(config)
	heartbeat.QPS = -1
	heartbeat.Timeout = 10 * time.Second
	if c.heartbeat, err = kubernetes.NewForConfig(heartbeat); err != nil {
		return nil, fmt.Errorf("--kubeconfig %s: %w", kubeconfig, err)
	}
	return c, nil
}

// start builds kubelet and starts it; it runs until the context ends.
func (n *Node) start(ctx context.Context, p *pki.PKI, cert pki.Pair, clients *clients, containers Runtime) error {
	server, err := serverConfig(&n.opts, p, cert)
	if err != nil {
		return err
	}
	if err := options.ValidateKubeletServer(server); err != nil {
		return fmt.Errorf("kubelet's configuration: %w", err)
	}
	deps, err := kubeletapp.UnsecuredDependencies(ctx, server, utilfeature.DefaultFeatureGate)
	if err != nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	machine := machine{root: n.opts.root()}
	deps.KubeClient = clients.api
	deps.HeartbeatClient = clients.heartbeat
	deps.EventClient = clients.events
	deps.RemoteRuntimeService, deps.RemoteImageService = containers.Services()
	deps.CAdvisorInterface = machine
	deps.ContainerManager = newContainerManager(machine)
	deps.OSInterface = hostOS{}
	deps.OOMAdjuster = oom.NewFakeOOMAdjuster() // kubelet's own score; the containers' are the runtime's
	deps.PodStartupLatencyTracker = kubeletutil.NewPodStartupLatencyTracker()
	deps.NodeStartupLatencyTracker = kubeletutil.NewNodeStartupLatencyTracker(klog.Background())
	auth, reload, err := kubeletapp.BuildAuth(types.NodeName(n.opts.NodeName), clients.api, server.KubeletConfiguration)
	if err != nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	deps.Auth = auth
	reload(ctx.Done())
	if err := kubeletapp.RunKubelet(ctx, server, deps); err != nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	return nil
}
