package plan

// Reasons of the problems that plans and their review find.
const (
	// ReasonNoPorts is a Service that has nothing to serve.
	ReasonNoPorts = "NoPorts"
	// ReasonProtocolUnsupported is a port that the kernel cannot serve.
	ReasonProtocolUnsupported = "ProtocolUnsupported"
	// ReasonEndpointInvalid is an endpoint whose address cannot be right.
	ReasonEndpointInvalid = "EndpointInvalid"
	// ReasonExternalIPsIgnored are external IPs where they are switched off.
	ReasonExternalIPsIgnored = "ExternalIPsIgnored"
	// ReasonExternalIPInvalid is an external IP that no node can serve.
	ReasonExternalIPInvalid = "ExternalIPInvalid"
	// ReasonExternalIPOfNode is an external IP that is a node's own address. It
	// is served, as by kube-proxy, and takes the port from the node.
	ReasonExternalIPOfNode = "ExternalIPOfNode"
	// ReasonLoadBalancerAddressInvalid is an address in status.loadBalancer that
	// no node can serve.
	ReasonLoadBalancerAddressInvalid = "LoadBalancerAddressInvalid"
	// ReasonAddressTaken is a frontend that another Service has.
	ReasonAddressTaken = "AddressTaken"
)

// Reasons are all of them.
var Reasons = []string{
	ReasonNoPorts, ReasonProtocolUnsupported, ReasonEndpointInvalid, ReasonExternalIPsIgnored,
	ReasonExternalIPInvalid, ReasonExternalIPOfNode, ReasonLoadBalancerAddressInvalid, ReasonAddressTaken,
}
