package model

import "time"

// ServiceUpstream is how the gateway treats a Service's endpoints, apart from
// what routes ask for.
type ServiceUpstream struct {
	// Health asks the gateway to look whether endpoints are well; nil for no.
	Health *HealthCheck
	// SlowStart is how long an endpoint that is new, or back, gets less than its
	// share; 0 for not at all.
	SlowStart time.Duration
	// Proxy is the version of the PROXY protocol that endpoints expect, 1 or 2; 0
	// for none.
	Proxy uint8
	// Idle ends connections and sessions of TCP and UDP ports that carry nothing
	// for so long; 0 for the gateway's default.
	Idle time.Duration
	// Limits bound what is under way at the endpoints of each port, for each
	// gateway; nil for no limits.
	Limits *UpstreamLimits
}

// UpstreamLimits bound what is under way at endpoints; 0 is no limit, but for Pending.
type UpstreamLimits struct {
	// Requests are those under way, and Connections those in use, by a request
	// of HTTP/1.1 or a client of a TCP or UDP port.
	Requests, Connections int
	// Pending is how many may wait for a connection while all are in use.
	Pending int
}

// CheckKind is how an endpoint is asked whether it is well.
type CheckKind uint8

// The kinds of health checks.
const (
	// CheckTCP opens a connection.
	CheckTCP CheckKind = iota
	// CheckHTTP sends a GET request.
	CheckHTTP
	// CheckGRPC calls grpc.health.v1.Health/Check.
	CheckGRPC
)

// String returns the value of the annotation that asks for the kind.
func (k CheckKind) String() string { return [...]string{"tcp", "http", "grpc"}[k] }

// HealthCheck is how and how often endpoints are asked whether they are well.
type HealthCheck struct {
	Kind CheckKind
	// TLS asks by TLS whatever the port's appProtocol says.
	TLS bool
	// Port is asked in place of the endpoint's own; 0 for that.
	Port uint16
	// Path and Host are what CheckHTTP asks for; an empty Host is the endpoint's address.
	Path, Host string
	// Status are the answers to CheckHTTP that tell of health.
	Status []StatusRange
	// Service is what CheckGRPC asks about; empty for the whole server.
	Service string
	// Interval is the time between two checks of an endpoint, and Timeout how long one may take.
	Interval, Timeout time.Duration
	// HealthyAfter and UnhealthyAfter are how many checks in a row have to agree before an
	// endpoint gets requests again, or no more; at least 1.
	HealthyAfter, UnhealthyAfter int
}

// StatusRange are the status codes of HTTP from Low to High.
type StatusRange struct{ Low, High int }
