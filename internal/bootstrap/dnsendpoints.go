package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"

	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	applydiscoveryv1 "k8s.io/client-go/applyconfigurations/discovery/v1"
	applymetav1 "k8s.io/client-go/applyconfigurations/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"fairway.dev/fairway/internal/model"
)

// dnsSlicesManagedBy marks the slices, so that no other controller takes them
// for its own.
const dnsSlicesManagedBy = "dns.fairway.dev"

// DNSEndpointsOptions configure [DNSEndpoints].
type DNSEndpointsOptions struct {
	// Config reaches the API. Required, unless Client is given.
	Config *rest.Config
	// Client replaces Config.
	Client kubernetes.Interface
	// Logger is told of failures. Required.
	Logger *slog.Logger
	// Node is the machine's Node object: name, UID and zone. Required.
	Node *model.Node
	// Listen are the addresses and ports at which this node answers DNS, at
	// most one of each family. Required.
	Listen []netip.AddrPort
	// Changed tells that the slices or the Service are others or gone, so that
	// they are put right soon. Optional.
	Changed <-chan struct{}
}

// DNSEndpoints keeps the EndpointSlices by which Service kube-system/kube-dns
// leads to this node's own DNS server.
type DNSEndpoints struct {
	DNSEndpointsOptions

	mu      sync.Mutex // one writer at a time, lest an older word be the last
	retired bool
	left    bool
}

// NewDNSEndpoints returns it; nothing is written before Run or Ensure.
func NewDNSEndpoints(o DNSEndpointsOptions) (*DNSEndpoints, error) {
	if o.Logger == nil || o.Node == nil || len(o.Listen) == 0 {
		return nil, errors.New("DNS endpoints: Logger, Node and Listen are required")
	}
	if o.Client == nil {
		if o.Config == nil {
			return nil, errors.New("DNS endpoints: Config or Client is required")
		}
		var err error
		if o.Client, err = kubernetes.NewForConfig(o.Config); err != nil {
			return nil, fmt.Errorf("DNS endpoints: %w", err)
		}
	}
	return &DNSEndpoints{DNSEndpointsOptions: o}, nil
}

// Run keeps the slices, every few minutes and within about a second of
// what Changed tells, until ctx ends; it then returns nil. They stay, and go
// with the Node, which owns them.
func (d *DNSEndpoints) Run(ctx context.Context) error {
	return keep(ctx, d.Logger, "cannot publish this node's DNS server", d.Changed, d.Ensure)
}

// Ensure writes one slice for each family that the node has, and deletes that of a
// family which it had: clients would be led to an address that is gone. Where the
// DNS Service is somebody
// else's there must be none: its clients would get answers of two servers.
func (d *DNSEndpoints) Ensure(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ensure(ctx)
}

// Retire says that this node's server is about to end: clients on this node
// are to use those of others, and this one only while there is no other. Ensure
// changes nothing about that.
func (d *DNSEndpoints) Retire(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.retired = true
	return d.ensure(ctx)
}

// Leave says, after Retire, that this node's server answers no more: who still
// has a flow to it, such as a client that asks from the same port again, is to be
// led elsewhere.
func (d *DNSEndpoints) Leave(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.retired, d.left = true, true
	return d.ensure(ctx)
}

func (d *DNSEndpoints) ensure(ctx context.Context) error {
	present, err := d.Client.CoreV1().Services(DNSService.Namespace).Get(ctx, DNSService.Name, metav1.GetOptions{})
	switch {
	case err == nil && !owned(present.ManagedFields):
		return d.withdraw(ctx, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6)
	case err != nil && !apierrors.IsNotFound(err):
		return fmt.Errorf("get Service %s: %w", DNSService, err)
	}
	var errs []error
	missing := []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}
	for _, a := range d.Listen {
		slice := d.slice(a)
		missing = slices.DeleteFunc(missing, func(t discoveryv1.AddressType) bool { return t == *slice.AddressType })
		if _, err := d.Client.DiscoveryV1().EndpointSlices(DNSService.Namespace).Apply(ctx, slice, applyOptions()); err != nil {
			errs = append(errs, fmt.Errorf("apply EndpointSlice %s/%s: %w", DNSService.Namespace, *slice.Name, err))
		}
	}
	return errors.Join(append(errs, d.withdraw(ctx, missing...))...)
}

// withdraw deletes this node's slices of these families.
func (d *DNSEndpoints) withdraw(ctx context.Context, families ...discoveryv1.AddressType) error {
	var errs []error
	for _, family := range families {
		name := d.name(family)
		err := d.Client.DiscoveryV1().EndpointSlices(DNSService.Namespace).Delete(ctx, name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("delete EndpointSlice %s/%s: %w", DNSService.Namespace, name, err))
		}
	}
	return errors.Join(errs...)
}

// name is that of the node's slice of a family.
func (d *DNSEndpoints) name(family discoveryv1.AddressType) string {
	return DNSService.Name + "-" + d.Node.Name + "-" + strings.ToLower(string(family))
}

// slice leads to this node's server, for clients on this node: the hint for
// the node alone makes every node use its own server (KEP-3015).
func (d *DNSEndpoints) slice(a netip.AddrPort) *applydiscoveryv1.EndpointSliceApplyConfiguration {
	addressType := discoveryv1.AddressTypeIPv4
	if a.Addr().Is6() {
		addressType = discoveryv1.AddressTypeIPv6
	}
	endpoint := applydiscoveryv1.Endpoint().
		WithAddresses(a.Addr().String()).
		WithConditions(applydiscoveryv1.EndpointConditions().WithReady(!d.retired).WithServing(!d.left).WithTerminating(d.retired)).
		WithNodeName(d.Node.Name).
		WithHints(applydiscoveryv1.EndpointHints().WithForNodes(applydiscoveryv1.ForNode().WithName(d.Node.Name)))
	if d.Node.Zone != "" {
		endpoint = endpoint.WithZone(d.Node.Zone)
	}
	slice := applydiscoveryv1.EndpointSlice(d.name(addressType), DNSService.Namespace).
		WithLabels(map[string]string{
			discoveryv1.LabelServiceName: DNSService.Name,
			discoveryv1.LabelManagedBy:   dnsSlicesManagedBy,
		}).
		WithAddressType(addressType).
		WithEndpoints(endpoint)
	if d.Node.UID != "" {
		slice = slice.WithOwnerReferences(applymetav1.OwnerReference().
			WithAPIVersion("v1").WithKind("Node").WithName(d.Node.Name).WithUID(types.UID(d.Node.UID)))
	}
	for _, p := range dnsPorts {
		slice = slice.WithPorts(applydiscoveryv1.EndpointPort().WithName(p.name).WithProtocol(p.protocol).WithPort(int32(a.Port())))
	}
	return slice
}
