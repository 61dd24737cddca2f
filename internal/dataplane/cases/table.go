package cases

import (
	"time"

	"fairway.dev/fairway/internal/dataplane"
)

// testCase is Services and what clients get from them.
type testCase struct {
	name     string
	tcpOnly  bool
	node     func(r *run, n *dataplane.Node) // edits the settings of the node
	services []service
	probes   []probe
}

// service is a Service with port 80; addresses are names of the network.
type service struct {
	vip       string // default vip
	endpoints string // names, each with /terminating or /unready if it is that
	nodePort  uint16
	lb        bool
	lbProxy   bool
	from      []string // loadBalancerSourceRanges, by name
	ext       bool

	externalLocal, internalLocal bool
	affinity                     time.Duration
	tls, certificate             bool
}

// probe is a client and what it gets; or, with change, the first Service
// changes between probes.
type probe struct {
	from string
	as   string // the client's own address, where it has several
	to   string // name:port
	// want is the names of the endpoints that must answer, each at least once,
	// or refused or silent.
	want string
	// sockets is the same where sockets are balanced, if it differs, which then
	// is an exception of all others.
	sockets   string
	exception Exception
	// sees tells, by endpoint, what client address it sees: "node" for one of
	// node-1's, "itself" for the same unless sockets are balanced; by default the
	// client's own.
	sees   map[string]string
	sticky bool // only one of want answers, the same each time
	change *service
}

const (
	refused = "-refused"
	silent  = "-silent"
)

// remote is what clients are seen as when a connection leaves the node again.
var remote = map[string]string{"pod-c": "node"}

var table = []testCase{{
	name:     "a cluster IP spreads over all endpoints",
	services: []service{{endpoints: "pod-b pod-c"}},
	probes: []probe{
		{from: "pod-a", to: "vip:80", want: "pod-b pod-c"},
		{from: "node-1", to: "vip:80", want: "pod-b pod-c"},
		{from: "outside", to: "vip:80", want: "pod-b pod-c", sees: remote},
	},
}, {
	name:     "one endpoint, also the client itself",
	services: []service{{endpoints: "pod-a"}},
	probes: []probe{
		{from: "pod-a", to: "vip:80", want: "pod-a", sees: map[string]string{"pod-a": "itself"}},
		{from: "pod-b", to: "vip:80", want: "pod-a"},
	},
}, {
	name:     "a host network endpoint",
	services: []service{{endpoints: "node-1", nodePort: 30080}},
	probes: []probe{
		{from: "pod-a", to: "vip:80", want: "node-1"},
		{from: "node-1", to: "vip:80", want: "node-1"},
		{from: "outside", to: "wan:30080", want: "node-1"},
	},
}, {
	name:     "a port that the Service does not have, an address that no Service has",
	services: []service{{endpoints: "pod-b"}},
	probes: []probe{
		{from: "pod-a", to: "vip:81", want: refused},
		{from: "node-1", to: "vip:81", want: refused},
		{from: "outside", to: "vip:81", want: refused},
		{from: "pod-a", to: "free:80", want: refused},
		{from: "node-1", to: "free:80", want: refused},
	},
}, {
	name:     "no endpoints: refused everywhere",
	services: []service{{endpoints: "pod-b/unready", nodePort: 30080, lb: true, ext: true, externalLocal: true, internalLocal: true}},
	probes: []probe{
		{from: "pod-a", to: "vip:80", want: refused},
		{from: "node-1", to: "vip:80", want: refused},
		{from: "outside", to: "vip:80", want: refused},
		{from: "outside", to: "wan:30080", want: refused},
		{from: "node-1", to: "node-1:30080", want: refused},
		{from: "outside", to: "lb:80", want: refused},
		{from: "pod-a", to: "ext:80", want: refused},
	},
}, {
	name:     "endpoints come and go",
	services: []service{{endpoints: "pod-b"}},
	probes: []probe{
		{from: "pod-a", to: "vip:80", want: "pod-b"},
		{change: &service{endpoints: "pod-b pod-c node-1"}},
		{from: "pod-a", to: "vip:80", want: "pod-b pod-c node-1"},
		{change: &service{endpoints: "pod-c"}},
		{from: "pod-a", to: "vip:80", want: "pod-c"},
		{change: &service{endpoints: ""}},
		{from: "pod-a", to: "vip:80", want: refused},
		{change: &service{endpoints: "pod-b", nodePort: 30081}},
		{from: "pod-a", to: "vip:80", want: "pod-b"},
		{from: "pod-a", to: "node-1:30081", want: "pod-b"},
	},
}, {
	name:     "terminating endpoints serve when there is nobody else",
	services: []service{{endpoints: "pod-b/terminating pod-c/terminating pod-a/unready"}},
	probes: []probe{
		{from: "pod-a", to: "vip:80", want: "pod-b pod-c"},
		{change: &service{endpoints: "pod-b/terminating pod-c"}},
		{from: "pod-a", to: "vip:80", want: "pod-c"},
	},
}, {
	name:     "a node port, at every address of the node; at loopback, where sockets are balanced",
	services: []service{{endpoints: "pod-b pod-c", nodePort: 30080}},
	probes: []probe{
		{from: "outside", to: "wan:30080", want: "pod-b pod-c", sees: remote},
		{from: "outside", to: "node-1:30080", want: "pod-b pod-c", sees: remote},
		{from: "pod-a", to: "node-1:30080", want: "pod-b pod-c"},
		{from: "node-1", to: "node-1:30080", want: "pod-b pod-c"},
		{from: "node-1", to: "wan:30080", want: "pod-b pod-c"},
		{from: "pod-c", to: "node-1:30080", want: "pod-b pod-c", sees: remote},
		{from: "node-1", to: "loopback:30080", want: refused, sockets: "pod-b pod-c", exception: NoLoopback},
		{from: "outside", to: "wan:30081", want: refused},
		{from: "pod-a", to: "vip:30080", want: refused},
	},
}, {
	name: "node ports at chosen addresses only",
	node: func(r *run, n *dataplane.Node) {
		n.NodePorts = prefixes("203.0.113.0/24", "2001:db8:1::/64")
	},
	services: []service{{endpoints: "pod-b", nodePort: 30080}},
	probes: []probe{
		{from: "outside", to: "wan:30080", want: "pod-b"},
		{from: "outside", to: "node-1:30080", want: refused},
		{from: "node-1", to: "loopback:30080", want: refused},
		{from: "pod-a", to: "node-1:30080", want: refused},
		{from: "pod-a", to: "wan:30080", want: "pod-b"},
	},
}, {
	name:     "a load balancer address",
	services: []service{{endpoints: "pod-b pod-c", lb: true}},
	probes: []probe{
		{from: "outside", to: "lb:80", want: "pod-b pod-c", sees: remote},
		{from: "pod-a", to: "lb:80", want: "pod-b pod-c"},
		{from: "node-1", to: "lb:80", want: "pod-b pod-c"},
	},
}, {
	name:     "ipMode Proxy is left to the load balancer",
	services: []service{{endpoints: "pod-b", lb: true, lbProxy: true}},
	probes:   []probe{{from: "pod-a", to: "lb:80", want: silent}},
}, {
	name:     "an external IP",
	services: []service{{endpoints: "pod-b pod-c", ext: true}},
	probes: []probe{
		{from: "outside", to: "ext:80", want: "pod-b pod-c", sees: remote},
		{from: "pod-a", to: "ext:80", want: "pod-b pod-c"},
	},
}, {
	name:     "externalTrafficPolicy Local keeps to the node and to the client's address",
	services: []service{{endpoints: "pod-b pod-c", nodePort: 30080, lb: true, ext: true, externalLocal: true}},
	probes: []probe{
		{from: "outside", to: "wan:30080", want: "pod-b"},
		{from: "outside", to: "lb:80", want: "pod-b"},
		{from: "outside", to: "ext:80", want: "pod-b"},
		{from: "node-2", to: "lb:80", want: "pod-b"},
		{from: "pod-a", to: "lb:80", want: "pod-b pod-c"},
		{from: "pod-a", to: "node-1:30080", want: "pod-b pod-c"},
		{from: "pod-c", to: "node-1:30080", want: "pod-b pod-c", sees: remote},
		{from: "node-1", to: "lb:80", want: "pod-b pod-c"},
		{from: "node-1", to: "node-1:30080", want: "pod-b pod-c"},
		{from: "outside", to: "vip:80", want: "pod-b pod-c", sees: remote},
	},
}, {
	name:     "externalTrafficPolicy Local with nobody here: silence outside, all endpoints inside",
	services: []service{{endpoints: "pod-c", nodePort: 30080, lb: true, ext: true, externalLocal: true}},
	probes: []probe{
		{from: "outside", to: "wan:30080", want: silent},
		{from: "outside", to: "lb:80", want: silent},
		{from: "outside", to: "ext:80", want: silent},
		{from: "pod-a", to: "lb:80", want: "pod-c"},
		{from: "node-1", to: "node-1:30080", want: "pod-c"},
		// An endpoint comes to this node, and goes again.
		{change: &service{endpoints: "pod-b pod-c", nodePort: 30080, lb: true, ext: true, externalLocal: true}},
		{from: "outside", to: "lb:80", want: "pod-b"},
		{change: &service{endpoints: "pod-c", nodePort: 30080, lb: true, ext: true, externalLocal: true}},
		{from: "outside", to: "lb:80", want: silent},
	},
}, {
	name:     "externalTrafficPolicy Local falls back to its own terminating endpoints",
	services: []service{{endpoints: "pod-b/terminating pod-c", nodePort: 30080, externalLocal: true}},
	probes: []probe{
		{from: "outside", to: "wan:30080", want: "pod-b"},
		{from: "pod-a", to: "node-1:30080", want: "pod-c"},
	},
}, {
	name:     "internalTrafficPolicy Local binds the cluster IP only",
	services: []service{{endpoints: "pod-b pod-c", nodePort: 30080, internalLocal: true}},
	probes: []probe{
		{from: "pod-a", to: "vip:80", want: "pod-b"},
		{from: "node-1", to: "vip:80", want: "pod-b"},
		{from: "outside", to: "wan:30080", want: "pod-b pod-c", sees: remote},
		{change: &service{endpoints: "pod-c", internalLocal: true}},
		{from: "pod-a", to: "vip:80", want: silent},
	},
}, {
	name:     "source ranges let in whom they name, to load balancer addresses",
	services: []service{{endpoints: "pod-b", lb: true, nodePort: 30080, ext: true, from: []string{"pod-a", "node-2"}}},
	probes: []probe{
		{from: "pod-a", to: "lb:80", want: "pod-b"},
		{from: "node-2", to: "lb:80", want: "pod-b"},
		{from: "pod-b", to: "lb:80", want: silent},
		{from: "outside", to: "lb:80", want: silent},
		{from: "node-1", to: "lb:80", want: silent},
		{from: "outside", to: "wan:30080", want: "pod-b"},
		{from: "outside", to: "ext:80", want: "pod-b"},
		{from: "pod-b", to: "vip:80", want: "pod-b", sees: map[string]string{"pod-b": "itself"}},
		{change: &service{endpoints: "pod-b", lb: true, from: []string{"outside"}}},
		{from: "outside", to: "lb:80", want: "pod-b"},
		{from: "pod-a", to: "lb:80", want: silent},
	},
}, {
	name:     "client affinity",
	services: []service{{endpoints: "pod-b pod-c", nodePort: 30080, affinity: time.Hour}},
	probes: []probe{
		{from: "pod-a", to: "vip:80", want: "pod-b pod-c", sticky: true},
		{from: "pod-a", to: "node-1:30080", want: "pod-b pod-c", sticky: true},
		{from: "outside", to: "wan:30080", want: "pod-b pod-c", sticky: true, sees: remote},
		{from: "node-1", to: "vip:80", want: "pod-b pod-c", sticky: true},
		{change: &service{endpoints: "pod-b", nodePort: 30080, affinity: time.Hour}},
		{from: "pod-a", to: "vip:80", want: "pod-b"},
		{change: &service{endpoints: "pod-b pod-c", nodePort: 30080, affinity: time.Hour}},
		{from: "pod-a", to: "vip:80", want: "pod-b"}, // it stays where it went
		{change: &service{endpoints: "pod-c", nodePort: 30080, affinity: time.Hour}},
		{from: "pod-a", to: "vip:80", want: "pod-c"}, // its endpoint has gone
		{change: &service{endpoints: "pod-b pod-c", nodePort: 30080}},
		{from: "pod-a", to: "vip:80", want: "pod-b pod-c"},
	},
}, {
	name:     "TLS on a Service goes to the node's proxy",
	tcpOnly:  true,
	services: []service{{endpoints: "pod-c", nodePort: 30080, lb: true, tls: true, certificate: true}},
	probes: []probe{
		{from: "pod-a", to: "vip:80", want: "tls-proxy"},
		{from: "node-1", to: "vip:80", want: "tls-proxy"},
		{from: "outside", to: "wan:30080", want: "tls-proxy"},
		{from: "outside", to: "lb:80", want: "tls-proxy"},
		{change: &service{endpoints: "pod-c", nodePort: 30080, tls: true}},
		{from: "pod-a", to: "vip:80", want: refused},
		{from: "outside", to: "wan:30080", want: refused},
		{change: &service{endpoints: "", nodePort: 30080, tls: true, certificate: true}},
		{from: "pod-a", to: "vip:80", want: refused},
	},
}, {
	name:     "two Services side by side",
	services: []service{{endpoints: "pod-b", vip: "vip"}, {endpoints: "pod-c", vip: "free", nodePort: 30080}},
	probes: []probe{
		{from: "pod-a", to: "vip:80", want: "pod-b"},
		{from: "pod-a", to: "free:80", want: "pod-c"},
		{from: "outside", to: "wan:30080", want: "pod-c", sees: remote},
	},
}}
