package agent

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"k8s.io/client-go/rest"

	"fairway.dev/fairway/internal/explain"
	"fairway.dev/fairway/internal/source/kube"
	"fairway.dev/fairway/internal/source/translate"
)

// ExplainRequestOptions say which HTTP request to explain.
type ExplainRequestOptions struct {
	// Config reaches the API. Required.
	Config *rest.Config
	// URL, Method and Header are the request, as in [explain.RequestOptions].
	URL, Method string
	Header      []string
	// From is the client: an address, or a Pod as NAME, pod/NAME or
	// NAMESPACE/NAME, in Namespace if it names none; empty for any.
	From, Namespace string
	// Node is the node that the gateway runs on; by default DefaultNode, else
	// this machine if it is one, else none.
	Node, DefaultNode string
	// ServeNginx tells that gateways serve Ingresses of ingress-nginx's class.
	ServeNginx bool
	// HTTPPort and HTTPSPort are those of gateways; 80 and 443 if zero.
	HTTPPort, HTTPSPort uint16
	// ClusterDomain is the domain of the cluster's names; cluster.local if empty.
	ClusterDomain string
	// Slow is called once when the API has not told everything within 3 s. Optional.
	Slow func()
}

// ExplainRequest reads the cluster and explains what its gateways do with an
// HTTP request.
func ExplainRequest(ctx context.Context, o ExplainRequestOptions) (*explain.RequestReport, error) {
	x := explain.RequestOptions{URL: o.URL, Method: o.Method, Header: o.Header, Node: o.Node, HTTPPort: o.HTTPPort, HTTPSPort: o.HTTPSPort, ClusterDomain: o.ClusterDomain}
	if err := x.Check(); err != nil {
		return nil, err // before anything is read
	}
	if err := o.client(ctx, &x); err != nil {
		return nil, err
	}
	snap, err := readOnce(ctx, kube.Options{Config: o.Config, Kinds: kube.ForGateway, ServeNginx: o.ServeNginx}, o.Slow)
	if err != nil {
		return nil, err
	}
	if x.Node == "" {
		x.Node = o.DefaultNode
	}
	for name, node := range snap.Nodes.All() {
		if x.Node == "" && here(node) {
			x.Node = name
		}
	}
	if _, ok := snap.Nodes.Get(x.Node); !ok && x.Node != "" {
		return nil, fmt.Errorf("there is no Node %s; kubectl get nodes lists all", x.Node)
	}
	x.Snapshot, x.Problems = snap, translate.CrossCheck(snap, time.Now())
	return explain.Request(x)
}

// client reads From.
func (o *ExplainRequestOptions) client(ctx context.Context, x *explain.RequestOptions) error {
	if o.From == "" {
		return nil
	}
	addr, err := netip.ParseAddr(o.From)
	if err != nil {
		pod, err := findPod(ctx, o.Config, o.Namespace, o.From, "an address, or a Pod as NAME or NAMESPACE/NAME")
		if err != nil {
			return err
		}
		if addr, err = netip.ParseAddr(pod.Status.PodIP); err != nil {
			return fmt.Errorf("--from %s: the Pod has no address yet", o.From)
		}
	}
	x.Client = addr.Unmap()
	return nil
}
