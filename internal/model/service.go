package model

import (
	"net/netip"
	"time"
)

// Protocol is the transport protocol of a port.
type Protocol uint8

// The protocols that a Service port can have. SCTP is accepted by the API;
// data paths report it where the kernel lacks it.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String returns the API's name of the protocol.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return "unknown"
}

// ServiceType is the type of a Service.
type ServiceType uint8

// The four types of a Service.
const (
	ClusterIP ServiceType = iota
	NodePort
	LoadBalancer
	ExternalName
)

// String returns the API's name of the type.
func (t ServiceType) String() string {
	return [...]string{"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"}[t]
}

// Distribution is a Service's spec.trafficDistribution (KEP-2433, KEP-3015).
type Distribution uint8

// The values of trafficDistribution. PreferClose is the old name of PreferSameZone.
const (
	DistributeEvenly Distribution = iota
	PreferSameZone
	PreferSameNode
)

// Service is one Kubernetes Service.
type Service struct {
	Key
	UID     string
	Created time.Time
	Type    ServiceType

	// ClusterIPs are the virtual addresses, at most one of each family; empty
	// for headless and ExternalName Services.
	ClusterIPs []netip.Addr
	// Headless is true for clusterIP: None.
	Headless bool
	// IPv4 and IPv6 tell which families are in spec.ipFamilies.
	IPv4, IPv6 bool
	// ExternalName is the lower-case name, without a final dot, that an
	// ExternalName Service stands for.
	ExternalName string
	// ExternalIPs are spec.externalIPs.
	ExternalIPs []netip.Addr
	// Ports are in the order of the object. Never nil entries, names unique.
	Ports []ServicePort

	// AffinityTimeout is how long a client stays with its endpoint
	// (sessionAffinity: ClientIP); 0 means no affinity.
	AffinityTimeout time.Duration
	// InternalLocal and ExternalLocal are internal/externalTrafficPolicy: Local.
	InternalLocal bool
	ExternalLocal bool
	// HealthCheckNodePort is 0 where there is none.
	HealthCheckNodePort uint16
	// PublishNotReady is spec.publishNotReadyAddresses.
	PublishNotReady bool
	// Distribution is spec.trafficDistribution; hints in endpoints carry its effect.
	Distribution Distribution
	// HasSelector is false for Services whose endpoints are written by hand.
	HasSelector bool
	// NotProxied is true when label service.kubernetes.io/service-proxy-name
	// or service.kubernetes.io/headless tells service proxies to leave it alone.
	NotProxied bool

	// LoadBalancer is what concerns type LoadBalancer; zero for other types.
	LoadBalancer ServiceLoadBalancer
	// TLS asks for TLS on the Service itself; nil for none.
	TLS *ServiceTLS
	// Upstream is how the gateway treats the endpoints; nil for as by default.
	Upstream *ServiceUpstream
}

// ServicePort is one port of a Service.
type ServicePort struct {
	// Name is unique in the Service; empty only where it has a single port.
	Name     string
	Protocol Protocol
	// Port is the port at the cluster and load-balancer addresses.
	Port uint16
	// NodePort is 0 where none is allocated.
	NodePort uint16
	// AppProtocol is spec.ports[].appProtocol, as written.
	AppProtocol string
}

// Port returns the port named by ref, by name first, then by number.
func (s *Service) Port(ref PortRef) (ServicePort, bool) {
	for _, p := range s.Ports {
		if ref.Name != "" && p.Name == ref.Name || ref.Name == "" && p.Port == ref.Number {
			return p, true
		}
	}
	return ServicePort{}, false
}

// ServiceLoadBalancer is the load-balancer part of a Service.
type ServiceLoadBalancer struct {
	// Class is spec.loadBalancerClass; empty means the cluster's default.
	Class string
	// Requested are addresses asked for by spec.loadBalancerIP or annotation
	// fairway.dev/load-balancer-ips (MetalLB's is read as well).
	Requested []netip.Addr
	// Pool names the pool asked for by annotation; empty for any.
	Pool string
	// SharingKey lets Services with the same key share an address.
	SharingKey string
	// SourceRanges limit who may connect; empty means everybody.
	SourceRanges []netip.Prefix
	// Ingress is status.loadBalancer.ingress with an address.
	Ingress []LoadBalancerIngress
}

// LoadBalancerIngress is one address that a load balancer reported.
type LoadBalancerIngress struct {
	Addr netip.Addr
	// Proxy is ipMode: Proxy (KEP-1860): traffic for the address must go
	// through the load balancer and is not short-circuited on the node.
	Proxy bool
}

// TLSMode tells what follows after TLS was ended at the node.
type TLSMode uint8

// The TLS modes of a Service.
const (
	// TLSTerminate sends plain bytes to the endpoint.
	TLSTerminate TLSMode = iota
	// TLSReencrypt opens TLS to the endpoint.
	TLSReencrypt
)

// ServiceTLS asks Fairway to end TLS for connections to a Service
// (annotations fairway.dev/tls-secret, tls-hosts, tls-ports, tls-mode).
type ServiceTLS struct {
	// Certificates are the Secrets, in the Service's namespace, to choose
	// from by SNI; the first is the default.
	Certificates []Key
	// Hosts are the names that clients may ask for by SNI; empty allows any.
	// A client without SNI gets the first certificate.
	Hosts []string
	// Ports are names or numbers of the Service ports with TLS; empty means
	// every TCP port.
	Ports []PortRef
	Mode  TLSMode
	// CA names a Secret whose ca.crt verifies endpoints with TLSReencrypt;
	// zero means the endpoint's certificate is not verified.
	CA Key
	// ServerName is the SNI and verified name with TLSReencrypt; empty means
	// the Service's own DNS name.
	ServerName string
}

// Covers reports whether connections to port p are to be ended with TLS.
func (t *ServiceTLS) Covers(p ServicePort) bool {
	if t == nil || p.Protocol != TCP {
		return false
	}
	if len(t.Ports) == 0 {
		return true
	}
	for _, ref := range t.Ports {
		if ref.Name != "" && ref.Name == p.Name || ref.Name == "" && ref.Number == p.Port {
			return true
		}
	}
	return false
}

// PortRef names a Service port by name or, with an empty Name, by number.
type PortRef struct {
	Name   string
	Number uint16
}
