package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/dataplane/ebpf"
	"fairway.dev/fairway/internal/dataplane/nft"
	"fairway.dev/fairway/internal/explain"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/source/kube"
	"fairway.dev/fairway/internal/state"
)

// ExplainOptions say what to explain.
type ExplainOptions struct {
	// Config reaches the API. Required.
	Config *rest.Config
	// Service is the Service. Required.
	Service model.Key
	// From is "node", "outside", or a Pod, as NAME, pod/NAME or NAMESPACE/NAME;
	// empty for all clients.
	From string
	// Node is the node to explain for; by default that of the Pod in From, else
	// DefaultNode, else this machine.
	Node, DefaultNode string
	// Port limits the explanation to one port, by name or number. Optional.
	Port string
	// All has the text list every endpoint, however many.
	All bool
	// Enter runs f where a node's kernel can be read, in its network namespace;
	// nil where only this machine's own can.
	Enter func(node string, f func() error) error
	// Slow is called once when the API has not told everything within 3 s. Optional.
	Slow func()
}

// syncTimeout bounds the wait for the API to tell everything.
const syncTimeout = 30 * time.Second

// apiPatience is how long the API may take until who waits is told.
const apiPatience = 3 * time.Second

// Explain reads the cluster and the kernel and explains a Service.
func Explain(ctx context.Context, o ExplainOptions) (*explain.Report, error) {
	snap, err := readCluster(ctx, o.Config, o.Slow)
	if err != nil {
		return nil, err
	}
	x := explain.Options{Snapshot: snap, Service: o.Service, Node: o.Node, Port: o.Port, All: o.All}
	if err := o.client(ctx, &x); err != nil {
		return nil, err
	}
	if x.Node == "" {
		if x.Node, err = o.defaultNode(snap); err != nil {
			return nil, err
		}
	}
	if x.From == explain.Node {
		x.FromName = "node " + x.Node
	}
	node, ok := snap.Nodes.Get(x.Node)
	if !ok {
		return nil, fmt.Errorf("there is no Node %s; kubectl get nodes lists all", x.Node)
	}
	x.Plan = plan.Options{ExternalIPs: true}
	for _, a := range node.Addrs {
		x.Plan.TLSProxy = append(x.Plan.TLSProxy, netip.AddrPortFrom(a, uint16(DefaultTLSPort)))
	}
	x.Plan.OwnServer = dnsServersOf(snap, x.Node)
	read := func() (err error) {
		x.Plan.SCTP = dataplane.SupportsSCTP()
		x.Kernel, err = readKernel()
		return err
	}
	switch {
	case o.Enter != nil:
		err = o.Enter(x.Node, read)
	case here(node):
		err = read()
	default:
		err = fmt.Errorf("node %s is another machine; run it there", x.Node)
	}
	if err != nil {
		x.Unread = err.Error()
	}
	return explain.New(x)
}

// readKernel reads what data paths hold in the network namespace of the calling
// thread, as chooseDataplane has them serve together. With an error it returns
// those that it could read.
func readKernel() ([]dataplane.HeldPart, error) {
	sockets, err := ebpf.Read(ebpf.Options{Pins: ebpf.DefaultPins + "*"})
	if err != nil && !errors.Is(err, ebpf.ErrAbsent) {
		return nil, err
	}
	var out []dataplane.HeldPart
	rest := dataplane.HeldPart{}
	if err == nil {
		out = append(out, dataplane.HeldPart{Holdings: sockets, Takes: ebpf.Takes})
		if sockets.Ingress() {
			rest.Takes = ebpf.Remainder
		}
	}
	switch rest.Holdings, err = nft.Read(nft.Options{}); {
	case errors.Is(err, nft.ErrAbsent): // then it serves nothing of what it should
		rest.Missing = "there are no tables ip fairway and ip6 fairway"
	case err != nil:
		return out, err
	}
	return append(out, rest), nil
}

// readCluster reads all that a node role would, and what only people are told.
func readCluster(ctx context.Context, config *rest.Config, slow func()) (*state.Snapshot, error) {
	return readOnce(ctx, kube.Options{Config: config, Kinds: kube.ForNode}, slow)
}

// readOnce reads all that a role with these options would, and what only people
// are told. slow, if any, is called once when that takes more than apiPatience.
func readOnce(ctx context.Context, o kube.Options, slow func()) (*state.Snapshot, error) {
	store := state.New()
	o.Store, o.Logger, o.About = store, slog.New(slog.DiscardHandler), true
	source, err := kube.New(o)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	if slow != nil {
		defer time.AfterFunc(apiPatience, slow).Stop()
	}
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx) }()
	sub := store.Subscribe()
	defer sub.Close()
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the Kubernetes API at %s did not tell everything within %s", o.Config.Host, syncTimeout)
		case <-sub.C():
			if snap := store.Snapshot(); snap.Synced {
				cancel()
				return snap, <-done
			}
		}
	}
}

// client reads From.
func (o *ExplainOptions) client(ctx context.Context, x *explain.Options) error {
	switch o.From {
	case "":
		return nil
	case "outside":
		x.From, x.FromName = explain.Outside, "clients outside the cluster"
		return nil
	case "node":
		x.From = explain.Node
		return nil
	}
	pod, err := findPod(ctx, o.Config, o.Service.Namespace, o.From, "node, outside, or a Pod as NAME or NAMESPACE/NAME")
	switch {
	case err != nil:
		return err
	case o.Node != "" && o.Node != pod.Spec.NodeName:
		return fmt.Errorf("--from %s: the Pod is on node %s; leave --node out", o.From, pod.Spec.NodeName)
	}
	x.Node, x.From, x.FromName = pod.Spec.NodeName, explain.Pod, "Pod "+pod.Namespace+"/"+pod.Name
	if addr, err := netip.ParseAddr(pod.Status.PodIP); err == nil && !pod.Spec.HostNetwork {
		x.FromAddr = addr
	}
	return nil
}

// findPod finds the Pod that --from names, as NAME, pod/NAME or NAMESPACE/NAME;
// it is on a node. want says what else --from can be.
func findPod(ctx context.Context, config *rest.Config, namespace, from, want string) (*corev1.Pod, error) {
	name := strings.TrimPrefix(from, "pod/")
	if ns, rest, ok := strings.Cut(name, "/"); ok {
		namespace, name = ns, rest
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	pod, err := client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("--from %s: there is no Pod %s in namespace %s; give %s", from, name, namespace, want)
	case err != nil:
		return nil, fmt.Errorf("--from %s: %w", from, err)
	case pod.Spec.NodeName == "":
		return nil, fmt.Errorf("--from %s: the Pod is on no node yet", from)
	}
	return pod, nil
}

func (o *ExplainOptions) defaultNode(snap *state.Snapshot) (string, error) {
	if o.DefaultNode != "" {
		return o.DefaultNode, nil
	}
	var names []string
	for name, node := range snap.Nodes.All() {
		if here(node) {
			return name, nil
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return "", errors.New("the cluster has no nodes")
	}
	slices.Sort(names)
	return "", fmt.Errorf("this machine is no node of the cluster: name one with --node (%s)", strings.Join(names, ", "))
}

// here reports whether a node is this machine.
func here(node *model.Node) bool {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(addrs, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && slices.Contains(node.Addrs, p.Addr())
	})
}
