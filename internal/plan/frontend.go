package plan

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"fairway.dev/fairway/internal/model"
)

// Kind tells what sort of address a frontend is.
type Kind uint8

// The kinds of frontends, in order of precedence where two Services claim the
// same address and port.
const (
	ClusterIP Kind = iota
	NodePort
	LoadBalancer
	ExternalIP
)

// String returns the kind as the API spells it.
func (k Kind) String() string {
	return [...]string{"ClusterIP", "NodePort", "LoadBalancer", "ExternalIP"}[k]
}

// Policy is a traffic policy (spec.internalTrafficPolicy, externalTrafficPolicy).
type Policy uint8

// The traffic policies.
const (
	Cluster Policy = iota
	Local
	// Standby is no policy of the API's: it is that of [Frontend.Standby].
	Standby
)

// String returns the policy as the API spells it.
func (p Policy) String() string { return [...]string{"Cluster", "Local", "Standby"}[p] }

// Action is what happens to a connection.
type Action uint8

// The actions.
const (
	// Forward sends it to one of the backends.
	Forward Action = iota
	// Redirect sends it to the TLS proxy of the node, which ends TLS and goes
	// on to one of the backends.
	Redirect
	// Reject answers with a TCP reset or ICMP port unreachable: nobody anywhere
	// serves the port.
	Reject
	// Drop does not answer: the Local policy found nobody here, but other nodes
	// may serve, so that an outside load balancer should try another one.
	Drop
)

// String returns the action in one word.
func (a Action) String() string { return [...]string{"forward", "redirect", "reject", "drop"}[a] }

// Pool is what one class of clients of a frontend gets. The backends of a
// Service port depend only on its Policy, so frontends of the same port and
// family with the same Policy have the same backends.
type Pool struct {
	Policy Policy
	Action Action
	// Backends are in order of address, each once; empty with Reject and Drop. Do not modify.
	Backends []Backend
}

func (p Pool) equal(o Pool) bool {
	return p.Policy == o.Policy && p.Action == o.Action && slices.Equal(p.Backends, o.Backends)
}

// Frontend is one address, protocol and port that this node serves.
type Frontend struct {
	Kind Kind
	// Addr is the address. For a NodePort it is unspecified (0.0.0.0 or ::):
	// every address of the node that data paths are told to serve NodePorts on.
	Addr     netip.Addr
	Protocol model.Protocol
	// Port is the port at Addr.
	Port uint16
	// ServicePort is the Service's port behind it.
	ServicePort model.ServicePort
	// Internal is for clients in the cluster, that is Pods and nodes, External
	// for all others. They differ with externalTrafficPolicy: Local, which does
	// not bind clients in the cluster ("short-circuit").
	Internal, External Pool
	// OwnServer is true of a cluster address whose one backend is a server of
	// Options.OwnServer: its packets need no translation where that server
	// answers at the address itself.
	OwnServer bool
	// Standby has, with OwnServer, the backends on other nodes, for as long as
	// that one does not answer; else it has none.
	Standby Pool
	// AffinityTimeout is how long after its last new connection a client's
	// choice of backend holds; 0 for no affinity.
	AffinityTimeout time.Duration
	// Restricted is true when only clients within SourceRanges may connect;
	// all others get no answer. SourceRanges has only prefixes of Addr's family,
	// ordered, none within another.
	Restricted   bool
	SourceRanges []netip.Prefix
	// Serving, of UDP frontends only, are all endpoints that still serve,
	// whatever the policies choose for new clients: flows to them go on, flows
	// to any others are to be forgotten. Ordered, each once. Do not modify.
	Serving []netip.AddrPort
}

// Equal reports whether both are the same in every respect.
func (f *Frontend) Equal(o *Frontend) bool {
	return f.Kind == o.Kind && f.Addr == o.Addr && f.Protocol == o.Protocol && f.Port == o.Port &&
		f.ServicePort == o.ServicePort && f.AffinityTimeout == o.AffinityTimeout && f.OwnServer == o.OwnServer && f.Restricted == o.Restricted &&
		f.Internal.equal(o.Internal) && f.External.equal(o.External) && f.Standby.equal(o.Standby) && slices.Equal(f.SourceRanges, o.SourceRanges) && slices.Equal(f.Serving, o.Serving)
}

// Split reports whether clients outside the cluster are treated differently.
func (f *Frontend) Split() bool { return !f.Internal.equal(f.External) }

// StandsBy reports whether there is a Standby.
func (f *Frontend) StandsBy() bool { return len(f.Standby.Backends) > 0 }

// Service is what a node serves for one Service.
type Service struct {
	Key     model.Key
	UID     string
	Created time.Time
	// Frontends are in order of the Service's ports, then family, then kind.
	Frontends []Frontend
	// Problems are what people should know, for example endpoints left out.
	Problems model.Problems
}

// Equal reports whether both are the same in every respect.
func (s Service) Equal(o Service) bool {
	return s.Key == o.Key && s.UID == o.UID && s.Created.Equal(o.Created) && slices.Equal(s.Problems, o.Problems) &&
		slices.EqualFunc(s.Frontends, o.Frontends, func(a, b Frontend) bool { return a.Equal(&b) })
}

// Claim is a Service's claim to a frontend. Where several Services claim the
// same address, protocol and port, the least by Compare has it.
type Claim struct {
	Kind    Kind
	Created time.Time
	Key     model.Key
}

// Claim returns the claim of s to its frontend f.
func (s *Service) Claim(f *Frontend) Claim { return Claim{f.Kind, s.Created, s.Key} }

// Compare orders claims by kind, then age, then key: a cluster address cannot
// be taken by somebody's external IP (CVE-2020-8554), nor an older Service's
// address by a younger one.
func (c Claim) Compare(o Claim) int {
	if n := cmp.Compare(c.Kind, o.Kind); n != 0 {
		return n
	}
	if n := c.Created.Compare(o.Created); n != 0 {
		return n
	}
	return c.Key.Compare(o.Key)
}
