package bootstrap

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	applynetworkingv1 "k8s.io/client-go/applyconfigurations/networking/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"fairway.dev/fairway/internal/model"
)

const (
	// FieldManager owns the fields of the objects made here. An object with it
	// is Fairway's own, so nobody else may apply under this name.
	FieldManager = "fairway"

	// ingressClass and ingressController are those that source/translate serves.
	ingressClass      = "fairway"
	ingressController = "fairway.dev/ingress"

	// repeat is how often the objects are looked after, whatever is told of them.
	repeat   = 5 * time.Minute
	retryMin = 500 * time.Millisecond
	retryMax = 30 * time.Second
)

// DNSService is the Service of the cluster's DNS, by the name that it has in
// every cluster.
var DNSService = model.Key{Namespace: metav1.NamespaceSystem, Name: "kube-dns"}

// Options configure an [Ensurer].
type Options struct {
	// Config reaches the API. Required, unless Client and Dynamic are given.
	Config *rest.Config
	// Client and Dynamic replace Config.
	Client  kubernetes.Interface
	Dynamic dynamic.Interface
	// Logger is told what was left alone. Required.
	Logger *slog.Logger
	// ClusterDNS are the cluster IPs of the DNS Service, at most one of each
	// family; none leaves the Service to others.
	ClusterDNS []netip.Addr
	// Changed tells that the DNS Service is another one or gone, so that it is
	// back soon. Optional.
	Changed <-chan struct{}
	// PoolKind creates the kind IPAddressPool of MetalLB where it is missing.
	PoolKind bool
}

// Ensurer sees to it that Fairway's objects exist.
type Ensurer struct {
	Options
	told map[string]bool // what was logged already
}

// New returns an ensurer; nothing is written before Run or Ensure.
func New(o Options) (*Ensurer, error) {
	if o.Logger == nil {
		return nil, errors.New("bootstrap: Logger is required")
	}
	if o.Client == nil || o.Dynamic == nil {
		if o.Config == nil {
			return nil, errors.New("bootstrap: Config, or Client and Dynamic, are required")
		}
		var err error
		if o.Client, err = kubernetes.NewForConfig(o.Config); err != nil {
			return nil, fmt.Errorf("bootstrap: %w", err)
		}
		if o.Dynamic, err = dynamic.NewForConfig(o.Config); err != nil {
			return nil, fmt.Errorf("bootstrap: %w", err)
		}
	}
	return &Ensurer{Options: o, told: map[string]bool{}}, nil
}

// Run ensures the objects now, every few minutes, and within about a second of
// what Changed tells, until ctx ends; it then returns nil. Failures are logged and
// tried again.
func (e *Ensurer) Run(ctx context.Context) error {
	return keep(ctx, e.Logger, "cannot create Fairway's own objects", e.Changed, e.Ensure)
}

// Ensure creates or updates the objects. It returns what failed, having tried
// all of them.
func (e *Ensurer) Ensure(ctx context.Context) error {
	errs := []error{e.ingressClass(ctx)}
	if len(e.ClusterDNS) > 0 {
		errs = append(errs, e.dnsService(ctx))
	}
	if e.PoolKind {
		errs = append(errs, e.poolKind(ctx))
	}
	return errors.Join(errs...)
}

func (e *Ensurer) say(message string, args ...any) {
	if !e.told[message] {
		e.told[message] = true
		e.Logger.Info(message, args...)
	}
}

// owned reports whether Fairway made the object.
func owned(fields []metav1.ManagedFieldsEntry) bool {
	for _, f := range fields {
		if f.Manager == FieldManager && f.Operation == metav1.ManagedFieldsOperationApply {
			return true
		}
	}
	return false
}

// Keeps reports whether an object is one of those that are made here, whoever
// made it.
func Keeps(kind, namespace, name string, labels map[string]string) bool {
	switch kind {
	case "IngressClass":
		return name == ingressClass
	case "Service":
		return namespace == DNSService.Namespace && name == DNSService.Name
	case "EndpointSlice":
		return namespace == DNSService.Namespace && labels[discoveryv1.LabelManagedBy] == dnsSlicesManagedBy
	case "CustomResourceDefinition":
		return name == poolKindName
	}
	return false
}

func applyOptions() metav1.ApplyOptions {
	return metav1.ApplyOptions{FieldManager: FieldManager, Force: true}
}

// ingressClass makes the class, as the default one unless the cluster has a
// default already: with two of them the API refuses Ingresses that name none.
func (e *Ensurer) ingressClass(ctx context.Context) error {
	classes, err := e.Client.NetworkingV1().IngressClasses().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list IngressClasses: %w", err)
	}
	isDefault := true
	for _, c := range classes.Items {
		if c.Name == ingressClass {
			if !owned(c.ManagedFields) {
				e.say("IngressClass exists already and is left as it is", "ingressClass", ingressClass)
				return nil
			}
			continue
		}
		if c.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true" {
			isDefault = false
			e.say("another IngressClass is the default; name ours in Ingresses that are meant for Fairway", "default", c.Name, "ingressClass", ingressClass)
		}
	}
	class := applynetworkingv1.IngressClass(ingressClass).
		WithSpec(applynetworkingv1.IngressClassSpec().WithController(ingressController))
	if isDefault {
		class = class.WithAnnotations(map[string]string{networkingv1.AnnotationIsDefaultIngressClass: "true"})
	}
	if _, err := e.Client.NetworkingV1().IngressClasses().Apply(ctx, class, applyOptions()); err != nil {
		return fmt.Errorf("apply IngressClass %s: %w", ingressClass, err)
	}
	return nil
}

// dnsService makes Service kube-system/kube-dns, without selector: its
// endpoints are written by the nodes (see [DNSEndpoints]).
func (e *Ensurer) dnsService(ctx context.Context) error {
	services := e.Client.CoreV1().Services(DNSService.Namespace)
	present, err := services.Get(ctx, DNSService.Name, metav1.GetOptions{})
	switch {
	case err == nil && !owned(present.ManagedFields):
		e.say("the cluster has a DNS Service of somebody else's, which is left as it is", "service", DNSService)
		return nil
	case err != nil && !apierrors.IsNotFound(err):
		return fmt.Errorf("get Service %s: %w", DNSService, err)
	}
	spec := applycorev1.ServiceSpec().WithType(corev1.ServiceTypeClusterIP).
		WithClusterIP(e.ClusterDNS[0].String()).
		WithTrafficDistribution(corev1.ServiceTrafficDistributionPreferSameNode).
		WithIPFamilyPolicy(corev1.IPFamilyPolicySingleStack)
	if len(e.ClusterDNS) > 1 {
		spec = spec.WithIPFamilyPolicy(corev1.IPFamilyPolicyRequireDualStack)
	}
	for _, a := range e.ClusterDNS {
		spec = spec.WithClusterIPs(a.String()).WithIPFamilies(familyOf(a))
	}
	for _, p := range dnsPorts {
		spec = spec.WithPorts(applycorev1.ServicePort().WithName(p.name).WithProtocol(p.protocol).WithPort(53))
	}
	service := applycorev1.Service(DNSService.Name, DNSService.Namespace).
		WithLabels(map[string]string{"k8s-app": "kube-dns", "kubernetes.io/name": "Fairway", "kubernetes.io/cluster-service": "true"}).
		WithSpec(spec)
	if _, err := services.Apply(ctx, service, applyOptions()); err != nil {
		return fmt.Errorf("apply Service %s with cluster IPs %v: %w", DNSService, e.ClusterDNS, err)
	}
	return nil
}

// dnsPorts are the ports of the DNS Service, by the names that they have in
// every cluster.
var dnsPorts = []struct {
	name     string
	protocol corev1.Protocol
}{{"dns", corev1.ProtocolUDP}, {"dns-tcp", corev1.ProtocolTCP}}

func familyOf(a netip.Addr) corev1.IPFamily {
	if a.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// poolKindManifest is a small definition of MetalLB's kind: the same group,
// version and fields, so that its objects can be applied.
//
//go:embed ipaddresspools.yaml
var poolKindManifest []byte

// poolKindName is the name of that definition.
const poolKindName = "ipaddresspools.metallb.io"

var crdResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

func (e *Ensurer) poolKind(ctx context.Context) error {
	var crd unstructured.Unstructured
	if err := yaml.Unmarshal(poolKindManifest, &crd.Object); err != nil {
		return fmt.Errorf("definition of IPAddressPool: %w", err)
	}
	crds := e.Dynamic.Resource(crdResource)
	present, err := crds.Get(ctx, crd.GetName(), metav1.GetOptions{})
	switch {
	case err == nil && !owned(present.GetManagedFields()):
		e.say("MetalLB's address pools are defined already", "crd", crd.GetName())
		return nil
	case err != nil && !apierrors.IsNotFound(err):
		return fmt.Errorf("get CustomResourceDefinition %s: %w", crd.GetName(), err)
	}
	if _, err := crds.Apply(ctx, crd.GetName(), &crd, applyOptions()); err != nil {
		return fmt.Errorf("apply CustomResourceDefinition %s: %w", crd.GetName(), err)
	}
	return nil
}
