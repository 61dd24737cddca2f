package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"fairway.dev/fairway/internal/bootstrap"
	"fairway.dev/fairway/internal/dns/query"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// QueryDNSOptions say what to ask of whom.
type QueryDNSOptions struct {
	// Config reaches the API. Required.
	Config *rest.Config
	// Name and Types are what is asked for. Required.
	Name  string
	Types []uint16
	// Namespace is that of From, and of the Pod that asks without From. Required.
	Namespace string
	// From is a Pod, as NAME or NAMESPACE/NAME: its search path and name servers
	// count. By default they are those that Pods of Namespace have.
	From string
	// Server is asked in place of the Pod's own, as ADDRESS or ADDRESS:PORT. Optional.
	Server string
	// Node is the node whose server is asked; by default that of the Pod, else
	// DefaultNode, else this machine.
	Node, DefaultNode string
	// Domain is the cluster domain. Required.
	Domain string
	// ResolvConf is the node's, whose search domains Pods have, too.
	ResolvConf string
	// Enter runs f in a node's network namespace; nil where there is just this machine's.
	Enter func(node string, f func() error) error
	// Slow is called once when the API has not told everything within 3 s. Optional.
	Slow func()
}

// QueryDNS asks as the Pod would, and explains the answers.
func QueryDNS(ctx context.Context, o QueryDNSOptions) (*query.Report, error) {
	snap, err := readCluster(ctx, o.Config, o.Slow)
	if err != nil {
		return nil, err
	}
	var pod *corev1.Pod
	client := "a Pod of Namespace " + o.Namespace
	if o.From != "" {
		if pod, err = o.pod(ctx); err != nil {
			return nil, err
		}
		client = "Pod " + pod.Namespace + "/" + pod.Name
		o.Namespace = pod.Namespace
	}
	node, err := o.node(snap, pod)
	if err != nil {
		return nil, err
	}
	q := query.Options{Name: o.Name, Types: o.Types, Snapshot: snap, Domain: o.Domain}
	var via string
	if q.Resolver, err = o.resolver(snap, pod); err != nil {
		return nil, err
	}
	if q.Server, via, err = o.server(snap, q.Resolver, node); err != nil {
		return nil, err
	}
	var report *query.Report
	ask := func() error {
		report, err = query.Run(ctx, q)
		return err
	}
	if o.Enter != nil {
		err = o.Enter(node, ask)
	} else {
		err = ask()
	}
	if err != nil {
		return nil, err
	}
	report.Client, report.Via = client, via
	return report, nil
}

func (o *QueryDNSOptions) pod(ctx context.Context) (*corev1.Pod, error) {
	namespace, name := o.Namespace, strings.TrimPrefix(o.From, "pod/")
	if ns, rest, ok := strings.Cut(name, "/"); ok {
		namespace, name = ns, rest
	}
	client, err := kubernetes.NewForConfig(o.Config)
	if err != nil {
		return nil, err
	}
	pod, err := client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("--from %s: there is no Pod %s in namespace %s; give a Pod as NAME or NAMESPACE/NAME", o.From, name, namespace)
	case err != nil:
		return nil, fmt.Errorf("--from %s: %w", o.From, err)
	case pod.Spec.NodeName == "":
		return nil, fmt.Errorf("--from %s: the Pod is on no node yet", o.From)
	case o.Node != "" && o.Node != pod.Spec.NodeName:
		return nil, fmt.Errorf("--from %s: the Pod is on node %s; leave --node out", o.From, pod.Spec.NodeName)
	}
	return pod, nil
}

func (o *QueryDNSOptions) node(snap *state.Snapshot, pod *corev1.Pod) (string, error) {
	switch {
	case pod != nil:
		return pod.Spec.NodeName, nil
	case o.Node == "":
		e := ExplainOptions{DefaultNode: o.DefaultNode}
		name, err := e.defaultNode(snap)
		if err != nil && o.Server != "" {
			return "", nil // it matters to nobody
		}
		return name, err
	}
	if _, ok := snap.Nodes.Get(o.Node); !ok {
		return "", fmt.Errorf("there is no Node %s; kubectl get nodes lists all", o.Node)
	}
	return o.Node, nil
}

// resolver is the resolv.conf that kubelet makes for the Pod.
func (o *QueryDNSOptions) resolver(snap *state.Snapshot, pod *corev1.Pod) (query.Resolver, error) {
	machine, err := dns.ClientConfigFromFile(o.ResolvConf)
	if err != nil {
		machine = &dns.ClientConfig{Ndots: 1}
	}
	var cluster []netip.Addr
	if svc, ok := snap.Services.Get(bootstrap.DNSService); ok {
		cluster = svc.ClusterIPs
	}
	if len(cluster) > 1 {
		cluster = cluster[:1] // kubelet's clusterDNS is mostly the one of the first family
	}
	r := query.ForPods(o.Namespace, o.Domain, cluster, machine.Search...)
	if pod == nil {
		return r, nil
	}
	switch policy := pod.Spec.DNSPolicy; {
	case policy == corev1.DNSNone:
		r = query.Resolver{Ndots: 1}
	case policy == corev1.DNSDefault, policy == corev1.DNSClusterFirst && pod.Spec.HostNetwork:
		r = query.Resolver{Ndots: machine.Ndots, Search: machine.Search, Servers: addrsOf(machine.Servers)}
	}
	if c := pod.Spec.DNSConfig; c != nil {
		r.Servers = append(r.Servers, addrsOf(c.Nameservers)...)
		for _, s := range c.Searches {
			if !slices.Contains(r.Search, s) {
				r.Search = append(r.Search, s)
			}
		}
		for _, option := range c.Options {
			if option.Name != "ndots" || option.Value == nil {
				continue
			}
			n, err := strconv.Atoi(*option.Value)
			if err != nil || n < 0 {
				return r, fmt.Errorf("pod %s/%s: spec.dnsConfig.options: ndots %q is no number; resolvers pass it over", pod.Namespace, pod.Name, *option.Value)
			}
			r.Ndots = n
		}
	}
	return r, nil
}

func addrsOf(list []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// server is whom the resolver's question reaches. The cluster DNS address leads
// to the node's own server, which is asked directly: the address itself may not
// work for processes that are no Pods.
func (o *QueryDNSOptions) server(snap *state.Snapshot, r query.Resolver, node string) (netip.AddrPort, string, error) {
	if o.Server != "" {
		if ap, err := netip.ParseAddrPort(o.Server); err == nil {
			return ap, "as --server says", nil
		}
		a, err := netip.ParseAddr(strings.Trim(o.Server, "[]"))
		if err != nil {
			return netip.AddrPort{}, "", fmt.Errorf("--server %q: want ADDRESS or ADDRESS:PORT, with an IP address", o.Server)
		}
		return netip.AddrPortFrom(a, 53), "as --server says", nil
	}
	if len(r.Servers) == 0 {
		return netip.AddrPort{}, "", fmt.Errorf("there is no name server to ask: no Service %s with a cluster IP, and none in the Pod's settings; name one with --server", bootstrap.DNSService)
	}
	first := r.Servers[0]
	svc, ok := snap.Services.Get(bootstrap.DNSService)
	if !ok || !slices.Contains(svc.ClusterIPs, first) {
		return netip.AddrPortFrom(first, 53), "the Pod's own name server", nil
	}
	best, where := o.endpoint(snap, svc, node)
	if !best.IsValid() {
		return netip.AddrPortFrom(first, 53), fmt.Sprintf("Service %s, which has no ready endpoint", bootstrap.DNSService), nil
	}
	return best, fmt.Sprintf("which %s leads to: %s", first, where), nil
}

// endpoint is the DNS server that clients on the node are led to.
func (o *QueryDNSOptions) endpoint(snap *state.Snapshot, svc *model.Service, node string) (netip.AddrPort, string) {
	set, ok := snap.Endpoints.Get(svc.Key)
	if !ok {
		return netip.AddrPort{}, ""
	}
	var other netip.AddrPort
	where := ""
	for _, ep := range set.Endpoints {
		if !ep.Ready || ep.Addr.Is4() != svc.ClusterIPs[0].Is4() {
			continue
		}
		for _, p := range ep.Ports {
			if p.Protocol != model.UDP {
				continue
			}
			at := netip.AddrPortFrom(ep.Addr, p.Port)
			if ep.Node == node {
				return at, "the server of node " + node
			}
			if !other.IsValid() {
				other, where = at, "a server that is not on node "+node
			}
		}
	}
	return other, where
}
