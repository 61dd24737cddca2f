package translate

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"fairway.dev/fairway/internal/model"
)

const (
	// labelServiceProxyName hands a Service to another service proxy.
	labelServiceProxyName = "service.kubernetes.io/service-proxy-name"
	// labelHeadless tells service proxies to ignore a Service, or an
	// EndpointSlice of one that is not headless (any more).
	labelHeadless = "service.kubernetes.io/headless"

	// defaultAffinityTimeout is that of the API (core/v1 ClientIPConfig).
	defaultAffinityTimeout = 10800 * time.Second
)

// Service translates a Service. Defaults are those of the API, so that objects
// which never passed an API server mean the same.
func Service(o *corev1.Service) (*model.Service, model.Problems) {
	r := newReport("Service", o)
	s := &model.Service{
		Key:             keyOf(o),
		UID:             string(o.UID),
		Created:         o.CreationTimestamp.Time,
		Type:            serviceType(r, o.Spec.Type),
		PublishNotReady: o.Spec.PublishNotReadyAddresses,
		HasSelector:     len(o.Spec.Selector) > 0,
		NotProxied:      notProxied(o.Labels),
	}
	if s.Type == model.ExternalName {
		s.ExternalName = externalName(r, o.Spec.ExternalName)
	} else {
		serviceAddresses(r, o, s)
		servicePolicies(r, o, s)
	}
	s.Ports = servicePorts(r, o.Spec.Ports)
	if s.Type == model.LoadBalancer {
		s.LoadBalancer = serviceLoadBalancer(r, o)
	}
	s.TLS = serviceTLS(r, o, s)
	s.Upstream = serviceUpstream(r, o)
	unknownServiceAnnotations(r, o, s)
	return s, r.problems
}

func serviceType(r *report, t corev1.ServiceType) model.ServiceType {
	switch t {
	case "", corev1.ServiceTypeClusterIP:
		return model.ClusterIP
	case corev1.ServiceTypeNodePort:
		return model.NodePort
	case corev1.ServiceTypeLoadBalancer:
		return model.LoadBalancer
	case corev1.ServiceTypeExternalName:
		return model.ExternalName
	}
	r.invalid("spec.type", "%q is no type of Service; use ClusterIP, NodePort, LoadBalancer or ExternalName. It is taken as ClusterIP", t)
	return model.ClusterIP
}

func externalName(r *report, name string) string {
	n := strings.ToLower(strings.TrimSuffix(name, "."))
	if !isDNSName(n) {
		r.invalid("spec.externalName", "%q is no DNS name; write a name such as www.example.com", name)
		return ""
	}
	for label := range strings.SplitSeq(n, ".") {
		if len(label) > 63 {
			r.invalid("spec.externalName", "%q has %d letters between two dots, and DNS has at most 63; write a shorter name", name, len(label))
			return ""
		}
	}
	if _, err := netip.ParseAddr(n); err == nil {
		r.invalid("spec.externalName", "%q is an address, which DNS cannot give as an alias; use a Service without selector and an EndpointSlice with the address instead", name)
		return ""
	}
	return n
}

// AliasOfItself is what is wrong with a Service of type ExternalName that has its
// own name for one; none for others. The domain is the cluster's.
func AliasOfItself(o *corev1.Service, domain string) model.Problems {
	name := strings.ToLower(strings.TrimSuffix(o.Spec.ExternalName, "."))
	if o.Spec.Type != corev1.ServiceTypeExternalName || name != o.Name+"."+o.Namespace+".svc."+strings.ToLower(strings.TrimSuffix(domain, ".")) {
		return nil
	}
	r := newReport("Service", o)
	r.invalid("spec.externalName", "%q is the name of this Service itself, so that it leads nowhere and DNS answers SERVFAIL; write the name of something with an address", o.Spec.ExternalName)
	return r.problems
}

// serviceAddresses reads clusterIPs, families and externalIPs.
func serviceAddresses(r *report, o *corev1.Service, s *model.Service) {
	ips := o.Spec.ClusterIPs
	if len(ips) == 0 && o.Spec.ClusterIP != "" {
		ips = []string{o.Spec.ClusterIP}
	}
	if len(ips) == 1 && ips[0] == corev1.ClusterIPNone {
		s.Headless = true
		ips = nil
	}
	s.ClusterIPs = addresses(r, "spec.clusterIPs", ips)
	s.ExternalIPs = addresses(r, "spec.externalIPs", o.Spec.ExternalIPs)
	for i, f := range o.Spec.IPFamilies {
		switch f {
		case corev1.IPv4Protocol:
			s.IPv4 = true
		case corev1.IPv6Protocol:
			s.IPv6 = true
		default:
			r.invalid(fmt.Sprintf("spec.ipFamilies[%d]", i), "%q is no address family; use IPv4 or IPv6", f)
		}
	}
	if len(o.Spec.IPFamilies) > 0 {
		return
	}
	for _, a := range s.ClusterIPs {
		s.IPv4, s.IPv6 = s.IPv4 || a.Is4(), s.IPv6 || a.Is6()
	}
	if s.Headless && !s.IPv4 && !s.IPv6 {
		// A headless Service without families has whatever its endpoints have.
		s.IPv4, s.IPv6 = true, true
	}
}

func servicePolicies(r *report, o *corev1.Service, s *model.Service) {
	switch o.Spec.SessionAffinity {
	case "", corev1.ServiceAffinityNone:
	case corev1.ServiceAffinityClientIP:
		s.AffinityTimeout = affinityTimeout(r, o.Spec.SessionAffinityConfig)
	default:
		r.invalid("spec.sessionAffinity", "%q is no session affinity; use None or ClientIP", o.Spec.SessionAffinity)
	}
	if p := o.Spec.InternalTrafficPolicy; p != nil {
		switch *p {
		case corev1.ServiceInternalTrafficPolicyLocal:
			s.InternalLocal = true
		case corev1.ServiceInternalTrafficPolicyCluster, "":
		default:
			r.invalid("spec.internalTrafficPolicy", "%q is no traffic policy; use Cluster or Local", *p)
		}
	}
	switch o.Spec.ExternalTrafficPolicy {
	case corev1.ServiceExternalTrafficPolicyLocal:
		s.ExternalLocal = s.Type == model.NodePort || s.Type == model.LoadBalancer || len(s.ExternalIPs) > 0
	case corev1.ServiceExternalTrafficPolicyCluster, "":
	default:
		r.invalid("spec.externalTrafficPolicy", "%q is no traffic policy; use Cluster or Local", o.Spec.ExternalTrafficPolicy)
	}
	if p := o.Spec.HealthCheckNodePort; p != 0 && s.Type == model.LoadBalancer && s.ExternalLocal {
		s.HealthCheckNodePort = port16(r, "spec.healthCheckNodePort", p)
	}
	if d := o.Spec.TrafficDistribution; d != nil {
		s.Distribution = distribution(r, *d)
	}
}

func affinityTimeout(r *report, c *corev1.SessionAffinityConfig) time.Duration {
	if c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
		return defaultAffinityTimeout
	}
	seconds := *c.ClientIP.TimeoutSeconds
	if seconds < 1 || seconds > 86400 {
		r.invalid("spec.sessionAffinityConfig.clientIP.timeoutSeconds",
			"%d is not within 1 to 86400; the default of %d is used", seconds, int(defaultAffinityTimeout.Seconds()))
		return defaultAffinityTimeout
	}
	return time.Duration(seconds) * time.Second
}

// distribution reads spec.trafficDistribution (KEP-4444 and KEP-3015).
// PreferClose is the old name of PreferSameZone.
func distribution(r *report, d string) model.Distribution {
	switch d {
	case "":
		return model.DistributeEvenly
	case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone:
		return model.PreferSameZone
	case corev1.ServiceTrafficDistributionPreferSameNode:
		return model.PreferSameNode
	}
	r.add(ReasonUnsupported, "spec.trafficDistribution",
		"%q is not known; use PreferSameZone or PreferSameNode. Traffic is spread evenly", d)
	return model.DistributeEvenly
}

func servicePorts(r *report, ports []corev1.ServicePort) []model.ServicePort {
	type number struct {
		model.Protocol
		port uint16
	}
	names, numbers := map[string]bool{}, map[number]bool{}
	var out []model.ServicePort
	for i, p := range ports {
		field := fmt.Sprintf("spec.ports[%d]", i)
		protocol, ok := protocolOf(p.Protocol)
		if !ok {
			r.invalid(field+".protocol", "%q is no protocol of a port; use TCP, UDP or SCTP. The port is left out", p.Protocol)
			continue
		}
		port := port16(r, field+".port", p.Port)
		if port == 0 {
			continue
		}
		if names[p.Name] {
			r.invalid(field+".name", "the name %q stands twice; give every port a name of its own. The port is left out", p.Name)
			continue
		}
		if numbers[number{protocol, port}] {
			r.invalid(field+".port", "port %d/%s stands twice; remove one of them. The second is left out", port, protocol)
			continue
		}
		names[p.Name], numbers[number{protocol, port}] = true, true
		sp := model.ServicePort{Name: p.Name, Protocol: protocol, Port: port}
		if p.NodePort != 0 {
			sp.NodePort = port16(r, field+".nodePort", p.NodePort)
		}
		if p.AppProtocol != nil {
			sp.AppProtocol = *p.AppProtocol
		}
		out = append(out, sp)
	}
	return out
}

func protocolOf(p corev1.Protocol) (model.Protocol, bool) {
	switch p {
	case "", corev1.ProtocolTCP:
		return model.TCP, true
	case corev1.ProtocolUDP:
		return model.UDP, true
	case corev1.ProtocolSCTP:
		return model.SCTP, true
	}
	return 0, false
}

// port16 returns 0, and reports it, for a number that is no port.
func port16(r *report, field string, n int32) uint16 {
	if n < 1 || n > 65535 {
		r.invalid(field, "%d is no port number; use 1 to 65535", n)
		return 0
	}
	return uint16(n)
}

func addresses(r *report, field string, list []string) []netip.Addr {
	var out []netip.Addr
	for i, s := range list {
		if a, ok := address(s); ok {
			out = append(out, a)
			continue
		}
		r.invalid(fmt.Sprintf("%s[%d]", field, i), "%q is no IP address", s)
	}
	return out
}

// address parses an address; IPv4 in IPv6 form counts as IPv4. Addresses with
// a zone are refused, for a zone means something on one machine only.
func address(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(strings.TrimSpace(s))
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

// prefix parses a CIDR, or an address as the range of it alone.
func prefix(s string) (netip.Prefix, bool) {
	s = strings.TrimSpace(s)
	if p, err := netip.ParsePrefix(s); err == nil {
		if a := p.Addr(); a.Is4In6() {
			if p.Bits() < 96 {
				return netip.Prefix{}, false
			}
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		return p.Masked(), true
	}
	if a, ok := address(s); ok {
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	return netip.Prefix{}, false
}

// notProxied reports whether labels tell service proxies to leave an object
// alone. Those of EndpointSlices count as those of Services do: kube-proxy
// watches neither with such a label.
func notProxied(labels map[string]string) bool {
	_, other := labels[labelServiceProxyName]
	_, headless := labels[labelHeadless]
	return other || headless
}
