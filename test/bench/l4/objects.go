package main

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	nodeName  = "bench"
	namespace = "bench"
	// measured is the number of Services, spread evenly among all, that lead to
	// the server Pod and that clients connect to in turn. The endpoints of all
	// others are nowhere.
	measured = 100
	// firstNodePort is that of the first Service that is measured.
	firstNodePort = 30000
)

// world is what is in the API.
type world struct{ services int }

// isMeasured reports whether Service i is one of those; it is then number n of them.
func (w world) isMeasured(i int) (n int, ok bool) {
	step := max(w.services/measured, 1)
	return i / step, i%step == 0 && i/step < measured
}

// clusterIP returns the address of Service i.
func clusterIP(i int) netip.Addr {
	i += 256 // past the addresses of "kubernetes" and DNS
	return netip.AddrFrom4([4]byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)})
}

// clusterIPs returns the addresses of the measured Services.
func (w world) clusterIPs() []netip.AddrPort {
	var out []netip.AddrPort
	for i := range w.services {
		if _, ok := w.isMeasured(i); ok {
			out = append(out, netip.AddrPortFrom(clusterIP(i), 80))
		}
	}
	return out
}

// nodePorts returns where the measured Services are reached from outside.
func (w world) nodePorts() []netip.AddrPort {
	var out []netip.AddrPort
	for n := range w.clusterIPs() {
		out = append(out, netip.AddrPortFrom(nodeAddr, uint16(firstNodePort+n)))
	}
	return out
}

// direct returns the addresses of the server Pod.
func direct() []netip.AddrPort {
	var out []netip.AddrPort
	for i := range endpointsEach {
		out = append(out, netip.AddrPortFrom(serverAddr(i), servePort))
	}
	return out
}

// followAddr is the Service whose endpoint changes.
var followAddr = netip.MustParseAddrPort("10.96.0.250:80")

func meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: namespace, Name: name,
		Labels:      map[string]string{"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "bench"},
		Annotations: map[string]string{"example.com/team": "one of many", "example.com/revision": "42"},
	}
}

// objects returns everything, Node and namespace included.
func (w world) objects() []runtime.Object {
	list := []runtime.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}},
		&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: nodeName},
			Spec:       corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24"}},
			Status: corev1.NodeStatus{
				Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: nodeAddr.String()}, {Type: corev1.NodeHostName, Address: nodeName}},
				Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
			},
		},
		serviceObject("follow", followAddr.Addr()), w.followSlice(0),
	}
	for i := range w.services {
		list = append(list, w.service(i), w.slice(i))
	}
	return list
}

func serviceObject(name string, ip netip.Addr) *corev1.Service {
	single, inside := corev1.IPFamilyPolicySingleStack, corev1.ServiceInternalTrafficPolicyCluster
	return &corev1.Service{ObjectMeta: meta(name), Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, ClusterIP: ip.String(), ClusterIPs: []string{ip.String()},
		IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, IPFamilyPolicy: &single, InternalTrafficPolicy: &inside,
		SessionAffinity: corev1.ServiceAffinityNone, Selector: map[string]string{"app.kubernetes.io/name": name},
		Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromString("http")}},
	}}
}

func serviceName(i int) string { return fmt.Sprintf("service-%05d", i) }

func (w world) service(i int) *corev1.Service {
	s := serviceObject(serviceName(i), clusterIP(i))
	if n, ok := w.isMeasured(i); ok {
		s.Spec.Type, s.Spec.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, corev1.ServiceExternalTrafficPolicyCluster
		s.Spec.Ports[0].NodePort = int32(firstNodePort + n)
		if n == 0 {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{
				Name: "iperf", Protocol: corev1.ProtocolTCP, Port: iperfPort, TargetPort: intstr.FromString("iperf"), NodePort: firstNodePort + measured,
			})
		}
	}
	return s
}

func pointer[T any](v T) *T { return &v }

func sliceObject(service string, port int32) *discoveryv1.EndpointSlice {
	m := meta(service + "-abcde")
	m.Labels = map[string]string{discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io", "app.kubernetes.io/name": service}
	return &discoveryv1.EndpointSlice{
		ObjectMeta: m, AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{Name: pointer("http"), Protocol: pointer(corev1.ProtocolTCP), Port: pointer(port)}},
	}
}

func endpoint(name string, addr netip.Addr, node string, ready bool) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{
		Addresses: []string{addr.String()}, NodeName: &node, Zone: pointer("zone-a"),
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready, Terminating: pointer(false)},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: namespace, Name: name, UID: types.UID("8f3c2a50-0000-4000-8000-" + fmt.Sprintf("%012x", addr.As4()))},
	}
}

func (w world) slice(i int) *discoveryv1.EndpointSlice {
	s := sliceObject(serviceName(i), servePort)
	n, ok := w.isMeasured(i)
	if ok && n == 0 {
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: pointer("iperf"), Protocol: pointer(corev1.ProtocolTCP), Port: pointer[int32](iperfPort)})
	}
	for j := range endpointsEach {
		name := fmt.Sprintf("%s-%d", serviceName(i), j)
		if ok {
			s.Endpoints = append(s.Endpoints, endpoint(name, serverAddr(j), nodeName, true))
			continue
		}
		at := i*endpointsEach + j
		s.Endpoints = append(s.Endpoints, endpoint(name, netip.AddrFrom4([4]byte{10, 128 + byte(at>>16), byte(at >> 8), byte(at)}), fmt.Sprintf("node-%03d", at%200), true))
	}
	return s
}

// followSlice has ten endpoints, of which number ready serves.
func (w world) followSlice(ready int) *discoveryv1.EndpointSlice {
	s := sliceObject("follow", followPort)
	for j := range endpointsEach {
		s.Endpoints = append(s.Endpoints, endpoint(fmt.Sprintf("follow-%d", j), serverAddr(j), nodeName, j == ready))
	}
	return s
}
