package model

import (
	"net/netip"
	"time"
)

// Route is the HTTP routing that one object (an Ingress; later an HTTPRoute)
// asks for.
type Route struct {
	Ref
	// Created decides between objects that claim the same host and path: the
	// older one wins (as in Gateway API).
	Created time.Time
	Rules   []RouteRule
	// TLS are the certificates for hosts.
	TLS []RouteTLS
}

// RouteTLS binds a certificate to host names.
type RouteTLS struct {
	// Hosts are exact or "*." wildcard names, lower case. Empty means the
	// names in the certificate itself.
	Hosts []string
	// Secret names the certificate's Secret; zero means the default certificate.
	Secret Key
}

// RouteRule sends the requests that match to backends.
type RouteRule struct {
	// Field is where the rule stands in its object, for people:
	// "spec.rules[0].http.paths[1]".
	Field string
	// Host is an exact name, a wildcard "*.example.com", or "" for every
	// host; lower case, no port, no final dot.
	Host string
	Path PathMatch
	// Methods, Headers and Query all have to match as well; empty match all.
	Methods []string
	Headers []ValueMatch
	Query   []ValueMatch
	// Default marks spec.defaultBackend: it takes what no other rule takes.
	Default bool
	// Backends share the requests by weight. Empty means answer 503, unless a
	// filter answers.
	Backends []WeightedBackend
	Filters  Filters
	// Canary marks the rule as a canary of the rule with the same host and
	// path in another object; nil for ordinary rules.
	Canary *Canary
}

// PathType tells how a path is matched.
type PathType uint8

// The path types.
const (
	// PathPrefix matches element-wise: /foo matches /foo and /foo/bar, not /foobar.
	PathPrefix PathType = iota
	// PathExact matches the whole path, case-sensitive.
	PathExact
	// PathGlob is ImplementationSpecific with "*": a final "/*" matches the
	// path before it and everything below; "*" elsewhere matches within one element.
	PathGlob
	// PathRegex matches a regular expression at the start of the path,
	// ignoring case, as ingress-nginx does with use-regex.
	PathRegex
)

// String returns the name of the path type for people.
func (t PathType) String() string {
	return [...]string{"Prefix", "Exact", "Glob", "Regex"}[t]
}

// PathMatch is a path condition. Value is normalised (no dot segments, no
// double slash, escapes of unreserved characters decoded), except for PathRegex.
type PathMatch struct {
	Type  PathType
	Value string
}

// ValueMatch is a condition on a header or query parameter.
type ValueMatch struct {
	Name  string
	Value string
	// Regex makes Value a regular expression for the whole value.
	Regex bool
}

// Backend is a Service port that requests or connections go to.
type Backend struct {
	Service Key
	Port    PortRef
	// Protocol is how to speak to it; BackendAuto goes by the Service port's appProtocol.
	Protocol BackendProtocol
}

// WeightedBackend is a backend with its share.
type WeightedBackend struct {
	Backend
	Weight uint32
}

// BackendProtocol is how the gateway speaks to a backend.
type BackendProtocol uint8

// The backend protocols.
const (
	BackendAuto BackendProtocol = iota
	BackendHTTP
	BackendHTTPS
	BackendH2C
	BackendGRPC
	BackendGRPCS
)

// Filters change requests, answers, or how a backend is reached. Each feature
// is one field; nil or zero means off.
type Filters struct {
	// HTTPSRedirect answers plain-HTTP requests with a redirect to https.
	HTTPSRedirect *HTTPSRedirect
	// Redirect answers every request with a redirect.
	Redirect *Redirect
	// Rewrite changes the path that the backend sees.
	Rewrite *Rewrite
	// RequestTimeout limits the whole request; 0 means no limit.
	RequestTimeout time.Duration
	// ConnectTimeout limits opening a connection to a backend, ReadTimeout the
	// time between two reads from it and SendTimeout between two writes to it
	// (proxy-connect-timeout and its kin of ingress-nginx); 0 means the
	// gateway's default.
	ConnectTimeout, ReadTimeout, SendTimeout time.Duration
	// AllowFrom limits clients by address; empty allows all.
	AllowFrom []netip.Prefix
	// MaxBodyBytes limits the request body; 0 means the gateway's default, -1 no limit.
	MaxBodyBytes int64
}

// HTTPSRedirect is ssl-redirect and force-ssl-redirect of ingress-nginx.
type HTTPSRedirect struct {
	// Status is 301, 302, 307 or 308.
	Status int
	// Force redirects also where the host has no certificate (TLS ended in
	// front); X-Forwarded-Proto of a trusted peer is honoured.
	Force bool
}

// Redirect is an answer that sends the client elsewhere.
type Redirect struct {
	// Location is absolute, or a path.
	Location string
	Status   int
}

// Rewrite replaces the path. With PathRegex $1, $2... in Target are the captures.
type Rewrite struct {
	Target string
	// Prefix replaces only the matched prefix instead of the whole path.
	Prefix bool
}

// Canary is the share of another rule's requests that this rule takes, in
// ingress-nginx's terms: header before cookie before weight.
type Canary struct {
	Header        string
	HeaderValue   string
	HeaderPattern string
	Cookie        string
	Weight        uint32
	// WeightTotal is the denominator of Weight; 100 unless set.
	WeightTotal uint32
}

// StreamRoute sends TCP connections or UDP sessions at a gateway port to a backend.
type StreamRoute struct {
	Ref
	Created time.Time
	// Field is where it stands in its object, for people.
	Field    string
	Protocol Protocol
	Port     uint16
	// Hosts are names for TLS SNI: where several routes share a port, a TLS
	// client is sent by its SNI. Empty takes everything.
	Hosts   []string
	Backend Backend
	// ProxyIn and ProxyOut are PROXY protocol from the client and to the backend.
	ProxyIn, ProxyOut bool
}
