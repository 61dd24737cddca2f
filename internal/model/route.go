package model

import (
	"net/netip"
	"strings"
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
	// ClientAuth is what clients have to prove; nil for nothing. It is of hosts, and
	// so of all that is served there, whichever route it is from: those of
	// ClientAuthHosts, where "" stands for all that no route names. Which route
	// decides about a host [ClientAuthOwners] says.
	ClientAuth      *ClientAuth
	ClientAuthHosts []string
}

// ClientAuthOwner is who decides what clients of a host have to prove.
type ClientAuthOwner struct {
	// First is the oldest route that serves the host. It is its namespace that
	// decides: nobody is to shut out another's clients, or to let in whom another
	// does not.
	First *Route
	// Decides is the oldest route of that namespace that asks something of the
	// host; nil if none does.
	Decides *Route
}

// ClientAuthOwners returns who decides about each host that a route asks something
// of. Routes are all there are, in order, the oldest first.
func ClientAuthOwners(routes []*Route) map[string]ClientAuthOwner {
	owners := map[string]ClientAuthOwner{}
	for _, r := range routes {
		if r.ClientAuth != nil {
			for _, host := range r.ClientAuthHosts {
				owners[host] = ClientAuthOwner{}
			}
		}
	}
	for _, r := range routes {
		serves := func(host string) {
			if o, ok := owners[host]; ok && o.First == nil {
				owners[host] = ClientAuthOwner{First: r}
			}
		}
		for i := range r.Rules {
			if rule := &r.Rules[i]; rule.Canary == nil {
				serves(rule.Host)
			}
		}
		for i := range r.TLS {
			for _, host := range r.TLS[i].Hosts {
				serves(host)
			}
		}
		if r.ClientAuth == nil {
			continue
		}
		for _, host := range r.ClientAuthHosts {
			serves(host)
			if o := owners[host]; o.Decides == nil && o.First.Namespace == r.Namespace {
				o.Decides = r
				owners[host] = o
			}
		}
	}
	return owners
}

// ClientVerify is what is asked of clients' certificates, in ingress-nginx's terms.
type ClientVerify uint8

// What is asked.
const (
	// ClientVerifyOn lets in who shows a good certificate, and nobody else.
	ClientVerifyOn ClientVerify = iota
	// ClientVerifyOptional lets in those as well who show none.
	ClientVerifyOptional
	// ClientVerifyOptionalNoCA lets in those as well whose certificate none of the
	// authorities has signed; the backend is told.
	ClientVerifyOptionalNoCA
	// ClientVerifyOff asks nobody.
	ClientVerifyOff
)

// String returns the name in annotations.
func (v ClientVerify) String() string {
	return [...]string{"on", "optional", "optional_no_ca", "off"}[v]
}

// ClientAuth is what clients of a host have to prove by a certificate of their
// own (auth-tls-secret and its kin of ingress-nginx). Two that are equal ask for
// the same.
type ClientAuth struct {
	// Field is where it is asked for, for people.
	Field string
	// Refused is why nobody is let in: what was asked for cannot be told. Empty if
	// it can.
	Refused string
	// Secret has the authorities (ca.crt) and what they have revoked (ca.crl).
	Secret Key
	Verify ClientVerify
	// Depth is how many authorities may stand between a client and those of Secret.
	Depth int
	// ErrorPage is where clients are sent whose certificate is missing or bad;
	// empty for an answer of 400.
	ErrorPage string
	// Pass tells the backend the certificate.
	Pass bool
	// CommonName is a regular expression for the whole common name of the
	// certificate; empty for any.
	CommonName string
}

// Asks reports whether clients are asked for certificates.
func (a *ClientAuth) Asks() bool { return a.Refused != "" || a.Verify != ClientVerifyOff }

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
	// TLS is what is asked of TLS to it; nil for the gateway's default, which
	// verifies nothing.
	TLS *BackendTLS
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
	// PassedThrough answers every request with 421: TLS for the host passes through
	// to the backend, and whoever asks here has shaken hands for another one.
	PassedThrough bool
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
	// Session keeps the requests of a client at one endpoint. It goes before
	// HashBy, and that before Balance.
	Session *Session
	// HashBy makes requests that are alike in it go to the same endpoint; empty
	// for none.
	HashBy []HashPart
	// Balance is how endpoints are chosen otherwise.
	Balance Balance
	// TraceOff leaves requests out of traces, and TraceDistrust does not go on
	// with traces that clients began.
	TraceOff, TraceDistrust bool
}

// Balance is how the endpoints of a backend share its requests.
type Balance uint8

// The ways to balance.
const (
	// BalanceTurns takes endpoints in turns, the less busy of two.
	BalanceTurns Balance = iota
	// BalanceEWMA takes of two endpoints the one that has answered faster of
	// late for the requests that it has under way.
	BalanceEWMA
)

// Session is a cookie that says which endpoint a client was served by, in
// ingress-nginx's terms.
type Session struct {
	// Cookie is its name.
	Cookie string
	// Path and Domain say where the client sends it; an empty Path means the
	// rule's path.
	Path, Domain string
	// SameSite is "Strict", "Lax", "None" or "".
	SameSite string
	// Secure is whether it is sent by TLS only; nil means if it was set by TLS.
	Secure *bool
	// MaxAge and Expires are how long the client keeps it; 0 leaves them out.
	MaxAge, Expires time.Duration
	// Persistent sessions stay while their endpoint is there. The others are
	// shared anew, as few as possible, when endpoints are added.
	Persistent bool
	// ChangeOnFailure moves a session for good when its endpoint fails;
	// otherwise it comes back.
	ChangeOnFailure bool
	// LegacyCanary lets canaries take requests of sessions.
	LegacyCanary bool
}

// HashSource is what a part of a key for hashing is taken from.
type HashSource uint8

// The sources, with the variables of nginx that ask for them.
const (
	HashText   HashSource = iota // the name itself
	HashURI                      // $request_uri
	HashPath                     // $uri
	HashQuery                    // $args
	HashClient                   // $remote_addr
	HashHost                     // $host
	HashMethod                   // $request_method
	HashScheme                   // $scheme
	HashHeader                   // $http_NAME, as a header's canonical name
	HashArg                      // $arg_NAME
	HashCookie                   // $cookie_NAME
)

// HashPart is a piece of the key that requests are hashed by.
type HashPart struct {
	Source HashSource
	// Name is the text, or the name of the header, argument or cookie.
	Name string
}

// String returns the part as it is asked for.
func (p HashPart) String() string {
	if p.Source >= HashHeader {
		prefix := [...]string{"$http_", "$arg_", "$cookie_"}[p.Source-HashHeader]
		if p.Source == HashHeader {
			return prefix + strings.ReplaceAll(strings.ToLower(p.Name), "-", "_")
		}
		return prefix + p.Name
	}
	if p.Source == HashText {
		return p.Name
	}
	return [...]string{"$request_uri", "$uri", "$args", "$remote_addr", "$host", "$request_method", "$scheme"}[p.Source-HashURI]
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
	// Port is the gateway's port; 0 for those that it serves HTTPS at, which take
	// only TLS for Hosts, whose TLS passes through then.
	Port uint16
	// Hosts are names for TLS SNI: where several routes share a port, a TLS
	// client is sent by its SNI. Empty takes everything.
	Hosts   []string
	Backend Backend
	// ProxyIn and ProxyOut are PROXY protocol from the client and to the backend.
	ProxyIn, ProxyOut bool
}
