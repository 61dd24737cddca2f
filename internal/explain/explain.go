package explain

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/state"
)

// Client is a kind of client.
type Client uint8

// The kinds of clients. Anyone means that all are told of.
const (
	Anyone Client = iota
	Pod
	Node
	Outside
)

// Options say what to explain.
type Options struct {
	// Snapshot is the state of the cluster, synced. Required.
	Snapshot *state.Snapshot
	// Service is the Service. Required.
	Service model.Key
	// Node is the name of the node that is connected from or through. Required.
	Node string
	// Plan is how the node plans.
	Plan plan.Options
	// From limits the explanation to one kind of client, and FromName names it,
	// for people.
	From     Client
	FromName string
	// FromAddr is the client's address, for source ranges. Optional.
	FromAddr netip.Addr
	// Port limits the explanation to the Service's port of that name or number. Optional.
	Port string
	// Kernel is what the node's data paths hold in the kernel, the first of them
	// the one that it is named after; without those that were not read, for the
	// reason in Unread.
	Kernel []dataplane.HeldPart
	Unread string
	// All has the text list every endpoint, however many; JSON does in any case.
	All bool
}

// Report is the explanation. Its JSON is for programs.
type Report struct {
	Service string `json:"service"`
	Type    string `json:"type"`
	Node    string `json:"node"`
	Zone    string `json:"zone,omitempty"`
	// From is the client it is about; empty for all.
	From string `json:"from,omitempty"`
	// Notes are why there may be less than expected, Problems what is wrong.
	Notes    []string `json:"notes"`
	Problems []string `json:"problems"`
	Ports    []Port   `json:"ports"`
	Kernel   Kernel   `json:"kernel"`

	all bool
}

// Kernel is what was read.
type Kernel struct {
	// Mode is the data path that was read, for example nftables.
	Mode string `json:"mode,omitempty"`
	// Unread is why the kernel was not read, or not all of it; empty if it was.
	Unread string `json:"unread,omitempty"`
	// Differs is true when it holds something else than planned.
	Differs bool `json:"differs"`
}

// Port is one port of the Service.
type Port struct {
	Name      string     `json:"name,omitempty"`
	Protocol  string     `json:"protocol"`
	Port      uint16     `json:"port"`
	Endpoints []Endpoint `json:"endpoints"`
	Frontends []Frontend `json:"frontends"`
}

// Endpoint is one endpoint, and what the two traffic policies make of it.
type Endpoint struct {
	Address string   `json:"address"`
	Pod     string   `json:"pod,omitempty"`
	Node    string   `json:"node,omitempty"`
	Zone    string   `json:"zone,omitempty"`
	Here    bool     `json:"here"`
	Cluster Standing `json:"cluster"`
	Local   Standing `json:"local"`
}

// Standing is whether an endpoint gets connections, and why or why not.
type Standing struct {
	In  bool   `json:"in"`
	Why string `json:"why"`
}

// Frontend is one address that clients connect to.
type Frontend struct {
	Kind    string `json:"kind"`
	Address string `json:"address"`
	// SourceRanges are where clients have to be; nil where any client may
	// connect, and empty where none may.
	SourceRanges []string `json:"sourceRanges,omitzero"`
	// Affinity is how long a client stays with its endpoint; empty for no affinity.
	Affinity string `json:"affinity,omitempty"`
	// Standby are the endpoints in the place of the node's own server while that
	// does not answer.
	Standby []string `json:"standby,omitempty"`
	// Untracked is true where the node's own server answers without connection
	// tracking.
	Untracked bool `json:"untracked,omitempty"`
	// TakenBy is the Service that has the address instead.
	TakenBy string  `json:"takenBy,omitempty"`
	Clients []Class `json:"clients"`
}

// Class is what one class of clients gets.
type Class struct {
	// Who is "all", "inside" or "outside": Pods and nodes, or the others.
	Who    string `json:"who"`
	Policy string `json:"policy"`
	Action string `json:"action"`
	// Why is the reason for any other action than to forward.
	Why string `json:"why,omitempty"`
	// Barred is true for the one client asked about when the source ranges do
	// not admit it: it gets no answer.
	Barred   bool     `json:"barred,omitempty"`
	Backends []string `json:"backends"`
	// Held is what the kernel has; nil where it was not read or has nothing.
	Held *Held `json:"held,omitempty"`
	// Differs says how the kernel differs; empty if it does not or was not read.
	// What concerns all clients stands with the first class.
	Differs string `json:"differs,omitempty"`
}

// Held is what the kernel does.
type Held struct {
	Action   string   `json:"action"`
	Backends []string `json:"backends"`
}

// New explains a Service. It fails for what does not exist.
func New(o Options) (*Report, error) {
	if o.Snapshot == nil || o.Service.IsZero() || o.Node == "" {
		return nil, errors.New("explain: Snapshot, Service and Node are required")
	}
	svc, ok := o.Snapshot.Services.Get(o.Service)
	if !ok {
		return nil, fmt.Errorf("there is no Service %s; kubectl get services -A lists all", o.Service)
	}
	node, ok := o.Snapshot.Nodes.Get(o.Node)
	if !ok {
		return nil, fmt.Errorf("there is no Node %s; kubectl get nodes lists all", o.Node)
	}
	x := explainer{Options: o, svc: svc, report: &Report{
		Service: svc.Key.String(), Type: svc.Type.String(), Node: node.Name, Zone: node.Zone, From: o.FromName,
		Notes: []string{}, Problems: []string{}, Ports: []Port{}, Kernel: Kernel{Unread: o.Unread},
		all: o.All,
	}}
	var modes []string
	for _, k := range o.Kernel {
		modes = append(modes, k.Mode())
	}
	x.report.Kernel.Mode = strings.Join(modes, " and ")
	x.eps, _ = o.Snapshot.Endpoints.Get(o.Service)
	x.in = plan.Input{Service: svc, Endpoints: x.eps, Node: node, Options: o.Plan}
	x.compile()
	x.notes()
	for _, port := range svc.Ports {
		if o.Port == "" || o.Port == port.Name || o.Port == strconv.Itoa(int(port.Port)) {
			x.report.Ports = append(x.report.Ports, x.port(port))
		}
	}
	if o.Port != "" && len(x.report.Ports) == 0 {
		return nil, fmt.Errorf("service %s has no port %q; its ports are %s", o.Service, o.Port, portList(svc))
	}
	return x.report, nil
}

func portList(svc *model.Service) string {
	var all []string
	for _, p := range svc.Ports {
		s := fmt.Sprintf("%d/%s", p.Port, p.Protocol)
		if p.Name != "" {
			s = p.Name + " (" + s + ")"
		}
		all = append(all, s)
	}
	return strings.Join(all, ", ")
}

type explainer struct {
	Options
	svc    *model.Service
	eps    *model.EndpointSet
	in     plan.Input
	plan   plan.Service
	index  plan.Index // of all Services, to know who has an address
	report *Report
}

// compile plans all Services, since others may claim the same addresses, and
// collects what is wrong with this one.
func (x *explainer) compile() {
	view := plan.View{Node: x.Node, Options: x.Plan}
	for key := range x.Snapshot.Services.All() {
		if s, ok := view.Compile(x.Snapshot, key); ok {
			x.index.Put(s)
			if key == x.Service {
				x.plan = s
			}
		}
	}
	problems := slices.Clone(x.plan.Problems)
	for ref, list := range x.Snapshot.Problems.All() {
		if ref.Kind == "Service" && ref.Key == x.Service {
			problems = append(problems, list...)
		}
	}
	for _, p := range problems {
		text := p.Message
		if p.Field != "" {
			text = p.Field + ": " + text
		}
		x.report.Problems = append(x.report.Problems, text)
	}
}

func (x *explainer) note(format string, args ...any) {
	x.report.Notes = append(x.report.Notes, fmt.Sprintf(format, args...))
}

func (x *explainer) notes() {
	switch {
	case x.svc.NotProxied:
		x.note("label service.kubernetes.io/service-proxy-name or service.kubernetes.io/headless leaves the Service to another proxy: Fairway serves nothing of it")
	case x.svc.Headless:
		x.note("the Service is headless: clients get the endpoints' addresses of DNS, and connect to them directly")
	case x.svc.Type == model.ExternalName && x.svc.ExternalName == "":
		x.note("the Service has no name that DNS can give as an alias: its spec.externalName is none")
	case x.svc.Type == model.ExternalName:
		x.note("the Service stands for the name %s, which DNS answers with: there is nothing to connect through", x.svc.ExternalName)
	case len(x.svc.ClusterIPs) == 0:
		x.note("the Service has no cluster IP yet")
	}
	if x.svc.Type != model.ExternalName && (x.eps == nil || len(x.eps.Endpoints) == 0) {
		why := "create an EndpointSlice for it, for it has no selector"
		if x.svc.HasSelector {
			why = "no Pod that its selector finds has an address"
		}
		x.note("there are no endpoints: %s", why)
	}
}

func (x *explainer) port(p model.ServicePort) Port {
	out := Port{Name: p.Name, Protocol: p.Protocol.String(), Port: p.Port, Endpoints: []Endpoint{}, Frontends: []Frontend{}}
	for _, v := range plan.Verdicts(x.in, p) {
		e := Endpoint{
			Address: v.Addr.String(), Node: v.Endpoint.Node, Here: v.Here,
			Cluster: Standing(v.Cluster), Local: Standing(v.Local),
		}
		if v.Addr.Port() == 0 {
			e.Address = v.Addr.Addr().String()
		}
		if about := v.Endpoint.About; about != nil {
			e.Zone, e.Pod = about.Zone, about.Pod.Name
		}
		out.Endpoints = append(out.Endpoints, e)
	}
	for i := range x.plan.Frontends {
		if f := &x.plan.Frontends[i]; f.ServicePort == p {
			served := slices.ContainsFunc(out.Endpoints, func(e Endpoint) bool {
				return e.Cluster.In && strings.HasPrefix(e.Address, "[") == f.Addr.Is6()
			})
			out.Frontends = append(out.Frontends, x.frontend(f, served))
		}
	}
	return out
}

// why gives the reason for an action; served tells whether anybody anywhere
// serves the port.
func why(a plan.Action, served bool) string {
	switch {
	case a == plan.Redirect:
		return "TLS is ended on the node"
	case a == plan.Reject && served:
		return "TLS is to be ended, and there is no usable certificate"
	case a == plan.Reject:
		return "no endpoint serves the port"
	case a == plan.Drop:
		return "no endpoint on this node serves the port, but others do"
	}
	return ""
}

// frontend explains one address; served tells whether anybody anywhere serves
// the port in its family.
func (x *explainer) frontend(f *plan.Frontend, served bool) Frontend {
	out := Frontend{Kind: f.Kind.String(), Address: netip.AddrPortFrom(f.Addr, f.Port).String(), Clients: []Class{}}
	if f.Restricted {
		out.SourceRanges = []string{}
		for _, r := range f.SourceRanges {
			out.SourceRanges = append(out.SourceRanges, r.String())
		}
	}
	if f.AffinityTimeout > 0 {
		out.Affinity = f.AffinityTimeout.String()
	}
	for _, b := range f.Standby.Backends {
		out.Standby = append(out.Standby, b.String())
	}
	if owner, _, ok := x.index.Find(netip.AddrPortFrom(f.Addr, f.Port), f.Protocol); ok && owner.Key != x.Service {
		out.TakenBy = owner.Key.String()
	}
	parts := x.parts(f, out.TakenBy != "")
	for _, p := range parts {
		out.Untracked = out.Untracked || p.held != nil && p.held.Untracked
	}
	add := func(who string, p plan.Pool, of func(*dataplane.Held) dataplane.HeldPool) {
		c := Class{Who: who, Policy: p.Policy.String(), Action: p.Action.String(), Why: why(p.Action, served), Backends: []string{}}
		for _, b := range p.Backends {
			c.Backends = append(c.Backends, b.AddrPort.String())
		}
		if f.Restricted && x.FromAddr.IsValid() && x.FromAddr.Is4() == f.Addr.Is4() {
			c.Barred = !slices.ContainsFunc(f.SourceRanges, func(p netip.Prefix) bool { return p.Contains(x.FromAddr) })
		}
		c.compare(parts, of)
		if len(out.Clients) == 0 {
			c.differ(parts, func(p *heldPart) []string { return p.others })
		}
		x.report.Kernel.Differs = x.report.Kernel.Differs || c.Differs != ""
		out.Clients = append(out.Clients, c)
	}
	same := !f.Split()
	inside, outside := x.From != Outside, x.From == Anyone || x.From == Outside
	switch {
	case same && x.From == Anyone:
		add("all", f.Internal, internal)
		return out
	}
	if inside {
		add("inside", f.Internal, internal)
	}
	if outside {
		add("outside", f.External, external)
	}
	return out
}

func internal(h *dataplane.Held) dataplane.HeldPool { return h.Internal }
func external(h *dataplane.Held) dataplane.HeldPool { return h.External }

// heldPart is what one data path has of a frontend.
type heldPart struct {
	prefix string          // of what is said of it, where there are several
	held   *dataplane.Held // nil if it has nothing
	others []string        // what is not as planned besides
}

// parts returns what each data path has of a frontend that it serves.
func (x *explainer) parts(f *plan.Frontend, taken bool) []heldPart {
	if taken {
		return nil // it shall have nothing of this Service
	}
	// An address that a Service has twice, say as external IP and as load
	// balancer's, is there once: as the first of them.
	again := false
	for i := range x.plan.Frontends {
		other := &x.plan.Frontends[i]
		if other == f {
			break
		}
		again = again || other.Addr == f.Addr && other.Port == f.Port && other.Protocol == f.Protocol
	}
	var out []heldPart
	for _, k := range x.Kernel {
		if k.Takes != nil && !k.Takes(f) {
			continue
		}
		var p heldPart
		if len(x.Kernel) > 1 {
			p.prefix = k.Mode() + ": "
		}
		if held, ok := k.Held(f); ok {
			p.held = &held
			if !again {
				p.others = k.Differences(f)
			}
		}
		if k.Missing != "" {
			p.others = append(p.others, k.Missing)
		}
		out = append(out, p)
	}
	return out
}

// compare says what the data paths have for a class, and how they differ.
func (c *Class) compare(parts []heldPart, of func(*dataplane.Held) dataplane.HeldPool) {
	c.differ(parts, func(p *heldPart) []string {
		if p.held == nil {
			return []string{"the kernel does not have it"}
		}
		pool := of(p.held)
		held := Held{Action: pool.Action.String(), Backends: []string{}}
		for _, b := range pool.Backends {
			held.Backends = append(held.Backends, b.String())
		}
		if c.Held == nil {
			c.Held = &held
		}
		return c.differences(&held)
	})
}

// differ adds what is said of each data path.
func (c *Class) differ(parts []heldPart, say func(*heldPart) []string) {
	var all []string
	if c.Differs != "" {
		all = append(all, c.Differs)
	}
	for i := range parts {
		if words := say(&parts[i]); len(words) > 0 {
			all = append(all, parts[i].prefix+strings.Join(words, "; "))
		}
	}
	c.Differs = strings.Join(all, "; ")
}

// differences says how what is held differs from the plan.
func (c *Class) differences(held *Held) []string {
	switch {
	case held.Action != c.Action:
		return []string{fmt.Sprintf("the kernel does %s", held.Action)}
	case c.Action != plan.Forward.String():
		return nil // the backends of others are not the kernel's concern
	}
	var parts []string
	if missing := without(c.Backends, held.Backends); len(missing) > 0 {
		parts = append(parts, "the kernel lacks "+backends(missing))
	}
	if extra := without(held.Backends, c.Backends); len(extra) > 0 {
		parts = append(parts, "the kernel still has "+backends(extra))
	}
	return parts
}

// without returns what of a is not in b.
func without(a, b []string) []string {
	have := make(map[string]struct{}, len(b))
	for _, s := range b {
		have[s] = struct{}{}
	}
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { _, ok := have[s]; return ok })
}
