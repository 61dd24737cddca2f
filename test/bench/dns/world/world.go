// Package world makes up clusters: Services of every type with their
// EndpointSlices, Pods, Namespaces and Nodes, always the same for the same
// seed. It must not know who reads them.
package world

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// World is a cluster.
type World struct {
	Namespaces []*corev1.Namespace
	Nodes      []*corev1.Node
	Services   []*corev1.Service
	Slices     []*discoveryv1.EndpointSlice
	Pods       []*corev1.Pod

	random    *rand.Rand
	services  int // addresses given so far
	endpoints int
}

// Objects are all objects of the world.
func (w *World) Objects() []runtime.Object {
	var out []runtime.Object
	for _, o := range w.Namespaces {
		out = append(out, o)
	}
	for _, o := range w.Nodes {
		out = append(out, o)
	}
	for _, o := range w.Services {
		out = append(out, o)
	}
	for _, o := range w.Slices {
		out = append(out, o)
	}
	for _, o := range w.Pods {
		out = append(out, o)
	}
	return out
}

// ServiceRanges and PodRanges hold all addresses that are given.
var (
	ServiceRanges = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/14"), netip.MustParsePrefix("fd00:96::/108")}
	PodRanges     = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/14"), netip.MustParsePrefix("fd00:244::/64")}
)

// DNSService is the Service of the cluster's DNS.
const DNSService = "kube-dns"

// DNSAddr is the address of the DNS Service.
var DNSAddr = netip.MustParseAddr("10.96.0.10")

// New returns a world of one node and the DNS Service, whose endpoint is the node.
func New(seed uint64, node string, addr netip.Addr) *World {
	w := &World{random: rand.New(rand.NewPCG(seed, 4)), services: 16}
	w.Namespaces = []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, {ObjectMeta: metav1.ObjectMeta{Name: "kube-system"}}}
	w.Nodes = []*corev1.Node{{
		ObjectMeta: metav1.ObjectMeta{Name: node},
		Spec:       corev1.NodeSpec{PodCIDRs: []string{PodRanges[0].String()}},
		Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: addr.String()}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		},
	}}
	w.Services = append(w.Services, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: DNSService},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: DNSAddr.String(), ClusterIPs: []string{DNSAddr.String()}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53}, {Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53}},
		},
	})
	ready := true
	w.Slices = append(w.Slices, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "kube-system", Name: DNSService + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: DNSService}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{addr.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
		Ports:       []discoveryv1.EndpointPort{slicePort("dns", corev1.ProtocolUDP, 53), slicePort("dns-tcp", corev1.ProtocolTCP, 53)},
	})
	return w
}

// ServeDNS has the DNS Service's endpoint be the node's own server, at a port.
func (w *World) ServeDNS(port int32) {
	s := w.Slices[0]
	s.Endpoints[0].NodeName = &w.Nodes[0].Name
	for i := range s.Ports {
		s.Ports[i].Port = &port
	}
}

func slicePort(name string, p corev1.Protocol, port int32) discoveryv1.EndpointPort {
	return discoveryv1.EndpointPort{Name: &name, Protocol: &p, Port: &port}
}

func (w *World) namespace(name string) {
	w.Namespaces = append(w.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
}

func nth(p netip.Prefix, n int) string {
	b := p.Addr().AsSlice()
	for i, last := 0, len(b)-1; i < 4; i++ {
		b[last-i] |= byte(n >> (8 * i))
	}
	a, _ := netip.AddrFromSlice(b)
	return a.String()
}

// Plain adds n Services for a benchmark, 50 to a namespace, each with three
// endpoints: of ten, nine have a cluster IP of both families and one is
// headless, with hostnames.
func (w *World) Plain(n int) {
	for i := range n {
		ns := fmt.Sprintf("team-%d", i/50)
		if i%50 == 0 {
			w.namespace(ns)
		}
		s := shape{namespace: ns, name: fmt.Sprintf("service-%d", i), ports: []port{{"http", corev1.ProtocolTCP, 80}}, v4: true, endpoints: 3}
		if i%10 == 9 {
			s.headless, s.hostnames = true, true
		} else {
			s.v6 = true
		}
		w.add(s)
	}
}

type port struct {
	name     string
	protocol corev1.Protocol
	number   int32
}

// shape is what a Service looks like.
type shape struct {
	namespace, name            string
	kind                       corev1.ServiceType
	headless, publishNotReady  bool
	v4, v6                     bool
	ports                      []port
	endpoints                  int
	hostnames                  bool
	unready                    float64 // share of endpoints
	externalName               string
	pods, duplicate, noTarget  bool
	perSlice                   int // endpoints in a slice; 0 for 100
	mixedPorts, sharedHostname bool
}

// add makes the Service with its slices and, if asked for, Pods.
func (w *World) add(s shape) {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: s.name}, Spec: corev1.ServiceSpec{Type: s.kind}}
	w.Services = append(w.Services, svc)
	for _, p := range s.ports {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: p.name, Protocol: p.protocol, Port: p.number, TargetPort: intstr.FromInt32(8000 + p.number%1000)})
	}
	if s.kind == corev1.ServiceTypeExternalName {
		svc.Spec.ExternalName = s.externalName
		return
	}
	svc.Spec.Selector = map[string]string{"app": s.name}
	svc.Spec.PublishNotReadyAddresses = s.publishNotReady
	if svc.Spec.Type == "" {
		svc.Spec.Type = corev1.ServiceTypeClusterIP
	}
	w.services++
	for i, use := range []bool{s.v4, s.v6} {
		if !use {
			continue
		}
		svc.Spec.IPFamilies = append(svc.Spec.IPFamilies, []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}[i])
		if !s.headless {
			svc.Spec.ClusterIPs = append(svc.Spec.ClusterIPs, nth(ServiceRanges[i], w.services))
		}
	}
	if s.headless {
		svc.Spec.ClusterIPs = []string{corev1.ClusterIPNone}
	}
	svc.Spec.ClusterIP = svc.Spec.ClusterIPs[0]
	if s.kind == corev1.ServiceTypeLoadBalancer {
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.200"}}
	}
	w.slices(s)
}

func (w *World) slices(s shape) {
	if s.perSlice == 0 {
		s.perSlice = 100
	}
	first := w.endpoints
	w.endpoints += s.endpoints
	ready := make([]bool, s.endpoints)
	for i := range ready {
		ready[i] = w.random.Float64() >= s.unready
	}
	for family, use := range []bool{s.v4, s.v6} {
		if !use {
			continue
		}
		kind := []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}[family]
		for start := 0; start == 0 || start < s.endpoints; start += s.perSlice {
			slice := &discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{
					Namespace: s.namespace, Name: fmt.Sprintf("%s-%s-%d", s.name, strings.ToLower(string(kind)), start),
					Labels: map[string]string{discoveryv1.LabelServiceName: s.name, discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io"},
				},
				AddressType: kind,
			}
			for _, p := range s.ports {
				number := 8000 + p.number%1000
				if s.mixedPorts && start > 0 {
					number += 100 // a named targetPort that differs between Pods
				}
				slice.Ports = append(slice.Ports, slicePort(p.name, p.protocol, number))
			}
			for i := start; i < min(start+s.perSlice, s.endpoints); i++ {
				e := discoveryv1.Endpoint{Addresses: []string{nth(PodRanges[family], first+i+10)}, NodeName: &w.Nodes[0].Name}
				ok := ready[i] || s.publishNotReady
				terminating := !ready[i] && i%2 == 0
				e.Conditions = discoveryv1.EndpointConditions{Ready: &ok, Serving: &ok, Terminating: &terminating}
				if i%7 == 3 && ok {
					e.Conditions = discoveryv1.EndpointConditions{} // the API: nil is to be taken for ready
				}
				if s.hostnames && !(s.noTarget && i%3 == 1) {
					host := fmt.Sprintf("%s-%d", s.name, i)
					if s.sharedHostname {
						host = fmt.Sprintf("%s-%d", s.name, i/2)
					}
					e.Hostname = &host
				}
				pod := fmt.Sprintf("%s-%d", s.name, i)
				if !s.noTarget {
					e.TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: s.namespace, Name: pod}
				}
				slice.Endpoints = append(slice.Endpoints, e)
				if s.pods && family == 0 {
					w.Pods = append(w.Pods, &corev1.Pod{
						ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: pod, Labels: map[string]string{"app": s.name}},
						Spec:       corev1.PodSpec{NodeName: w.Nodes[0].Name, Hostname: pod, Subdomain: s.name},
						Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: e.Addresses[0], PodIPs: []corev1.PodIP{{IP: e.Addresses[0]}}},
					})
				}
			}
			w.Slices = append(w.Slices, slice)
			if s.duplicate && start == 0 { // an endpoint on its way from one slice to another stands in both
				twin := slice.DeepCopy()
				twin.Name += "-moving"
				twin.Endpoints = twin.Endpoints[:min(1, len(twin.Endpoints))]
				w.Slices = append(w.Slices, twin)
			}
		}
	}
}

// Mixed adds n Services of all types and oddities, some of each by chance.
func (w *World) Mixed(n int) {
	for i := range 12 {
		w.namespace(fmt.Sprintf("ns-%d", i))
	}
	w.namespace("empty")
	for i := range n {
		w.add(w.mixed(i))
	}
}

func (w *World) mixed(i int) shape {
	pick := func(p float64) bool { return w.random.Float64() < p }
	s := shape{namespace: fmt.Sprintf("ns-%d", w.random.IntN(12)), name: fmt.Sprintf("svc-%d", i), endpoints: w.random.IntN(5), pods: true}
	switch w.random.IntN(4) {
	case 0:
		s.v4, s.v6 = true, true
	case 1:
		s.v6 = true
	default:
		s.v4 = true
	}
	switch w.random.IntN(4) {
	case 0:
		s.ports = []port{{"", corev1.ProtocolTCP, int32(80 + w.random.IntN(100))}}
	case 1:
		s.ports = []port{{"dns", corev1.ProtocolUDP, 53}, {"dns-tcp", corev1.ProtocolTCP, 53}, {"sctp", corev1.ProtocolSCTP, 7000}}
	case 2:
		s.ports = []port{{"http", corev1.ProtocolTCP, 80}, {"https", corev1.ProtocolTCP, 443}}
	default:
		s.ports = []port{{"http", corev1.ProtocolTCP, 80}}
	}
	switch w.random.IntN(8) {
	case 0, 1, 2:
		s.headless = true
		s.hostnames = pick(0.6)
		s.unready = float64(w.random.IntN(3)) * 0.4
		s.publishNotReady = pick(0.2)
		s.noTarget = pick(0.2)
		s.duplicate = pick(0.2)
		s.sharedHostname = pick(0.1)
		if pick(0.2) {
			s.endpoints, s.perSlice, s.mixedPorts = 40+w.random.IntN(200), 50, true
		}
		if pick(0.1) {
			s.ports = nil
		}
	case 3:
		s.kind = corev1.ServiceTypeNodePort
	case 4:
		s.kind = corev1.ServiceTypeLoadBalancer
	case 5:
		s.kind = corev1.ServiceTypeExternalName
		switch w.random.IntN(5) {
		case 0:
			s.externalName = fmt.Sprintf("host-%d.example.com", w.random.IntN(50))
		case 1:
			s.externalName = "gone.example.com"
		case 2:
			s.externalName = fmt.Sprintf("svc-%d.%s.svc.cluster.local", max(0, i-1), s.namespace)
		case 3:
			s.externalName = "Upper.Example.COM"
		default:
			s.externalName = "alias.example.com"
		}
	default:
		s.hostnames = pick(0.3)
		s.unready = float64(w.random.IntN(2)) * 0.5
	}
	return s
}
