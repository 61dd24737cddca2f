package forward

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/cache"
)

// Domain is a part of all names with a way out of its own. Names in it are
// fully qualified and in lower case.
type Domain struct {
	// Name has all names below it; "." is for those of no other.
	Name string
	// Groups are whom to ask; the first that takes a name counts, and names that
	// none takes cannot be told.
	Groups []Group
	// Keep are the limits of the cache for a name; nil keeps no answer. Optional:
	// without, the cache's own count.
	Keep func(name string) *cache.Limits
}

// Group is a number of servers that are asked the same.
type Group struct {
	// From are the names that they are asked for, Except which of these not.
	From   string
	Except []string
	// Servers are asked by Policy, which is Sequential by default. NodeServers
	// adds those that [Options] name.
	Servers     []Server
	NodeServers bool
	Policy      Policy
	// MaxConcurrent bounds the different questions asked at a time. Default that
	// of the options.
	MaxConcurrent int
	// TCP asks by TCP alone.
	TCP bool
	// ProbeEvery is how often one that is down is asked for the name servers of
	// ProbeDomain. Defaults 1 s and the root's.
	ProbeEvery  time.Duration
	ProbeDomain string
	// MaxFails is after how many unanswered questions one is down. Default 3;
	// negative for never.
	MaxFails int
}

// ErrNoDomain is returned for names in no domain.
var ErrNoDomain = errors.New("the name lies in no domain that is served")

// routes are all domains; they never change.
type routes struct {
	number  uint64
	domains []domain // longest name first
}

type domain struct {
	Domain
	groups []*group
}

type group struct {
	Group
	servers []*upstream
	policy  Policy
	slots   chan struct{}
	turn    atomic.Uint32 // of [RoundRobin]
}

// domainOf returns the domain that a name lies in.
func (r *routes) domainOf(name string) *domain {
	for i := range r.domains {
		if dns.IsSubDomain(r.domains[i].Name, name) {
			return &r.domains[i]
		}
	}
	return nil
}

// find returns whom to ask.
func (r *routes) find(q Query) (*domain, *group, error) {
	in := q.Name
	if q.Domain != "" {
		in = q.Domain
	}
	d := r.domainOf(in)
	if d == nil {
		return nil, nil, ErrNoDomain
	}
	for _, g := range d.groups {
		below := func(zone string) bool { return dns.IsSubDomain(zone, q.Name) }
		if below(g.From) && !slices.ContainsFunc(g.Except, below) {
			return d, g, nil
		}
	}
	return nil, nil, ErrNoUpstream
}

// limits are those of the cache for a name; nil keeps nothing.
func (d *domain) limits(name string) *cache.Limits { return d.Keep(strings.ToLower(name)) }

// servers are those of all groups.
func (r *routes) servers() []*upstream {
	var list []*upstream
	for _, d := range r.domains {
		for _, g := range d.groups {
			list = append(list, g.servers...)
		}
	}
	return list
}

// serversOf returns all servers of a group.
func (f *Forwarder) serversOf(g *group) []*upstream {
	if !g.NodeServers {
		return g.servers
	}
	return slices.Concat(*f.servers.Load(), g.servers)
}

// DomainOf returns the name of the domain that a name lies in, or "".
func (f *Forwarder) DomainOf(name string) string {
	if d := f.routes.Load().domainOf(name); d != nil {
		return d.Name
	}
	return ""
}

// Configure replaces the domains; nil stands for one with the servers of the
// options for all names. What the options say of stub domains, of servers and of
// their policy goes before. Questions under way still go to the servers of
// before, and what the cache has from them is forgotten; servers that stay keep
// their health and connections.
func (f *Forwarder) Configure(list []Domain) error {
	if list == nil {
		list = []Domain{{Name: ".", Groups: []Group{{From: ".", NodeServers: true}}}}
	}
	list, err := f.override(list)
	if err != nil {
		return err
	}
	f.changing.Lock()
	defer f.changing.Unlock()
	old := f.routes.Load()
	next := &routes{number: 1}
	var known []*upstream
	if old != nil {
		next.number, known = old.number+1, old.servers()
	}
	var added []*upstream
	for _, d := range list {
		if d.Keep == nil {
			d.Keep = func(string) *cache.Limits { return f.opts.Cache.Limits() }
		}
		out := domain{Domain: d}
		for _, g := range d.Groups {
			one, fresh := f.group(g, slices.Concat(known, added))
			out.groups, added = append(out.groups, one), append(added, fresh...)
		}
		next.domains = append(next.domains, out)
	}
	slices.SortStableFunc(next.domains, func(a, b domain) int { return dns.CountLabel(b.Name) - dns.CountLabel(a.Name) })
	f.routes.Store(next)
	if old == nil {
		return nil
	}
	f.opts.Cache.Clear()
	kept := next.servers()
	for _, u := range known {
		if !slices.Contains(kept, u) {
			f.retire(u)
		}
	}
	if ctx := f.running.Load(); ctx != nil {
		f.findLoops(*ctx, added)
	}
	return nil
}

// override puts what the options say into a list of domains.
func (f *Forwarder) override(list []Domain) ([]Domain, error) {
	list = slices.Clone(list)
	seen := map[string]bool{}
	for i, d := range list {
		if seen[d.Name] {
			return nil, fmt.Errorf("forward: domain %s stands there twice", d.Name)
		}
		seen[d.Name] = true
		if d.Name != "." {
			continue
		}
		list[i].Groups = slices.Clone(d.Groups)
		at := slices.IndexFunc(d.Groups, func(g Group) bool { return g.From == "." })
		if len(f.opts.Upstreams) > 0 {
			ours := Group{From: ".", NodeServers: true}
			if at < 0 {
				at, list[i].Groups = len(d.Groups), append(list[i].Groups, ours)
			} else {
				ours.Except, ours.MaxConcurrent, ours.Policy = d.Groups[at].Except, d.Groups[at].MaxConcurrent, d.Groups[at].Policy
				list[i].Groups[at] = ours
			}
		}
		if f.opts.Policy != "" && at >= 0 {
			list[i].Groups[at].Policy = f.opts.Policy
		}
	}
	if len(f.opts.Upstreams) > 0 && !seen["."] {
		list = append(list, Domain{Name: ".", Groups: []Group{{From: ".", NodeServers: true, Policy: f.opts.Policy}}})
	}
	for _, s := range f.opts.Stubs {
		name := strings.ToLower(dns.Fqdn(s.Domain))
		list = slices.DeleteFunc(list, func(d Domain) bool { return d.Name == name })
		list = append(list, Domain{Name: name, Groups: []Group{{From: name, Servers: s.Servers, Policy: f.opts.Policy}}})
	}
	return list, nil
}

// checkStubs says what is wrong with the stub domains of the options.
func (f *Forwarder) checkStubs() error {
	seen := map[string]bool{}
	for _, o := range f.opts.Stubs {
		for _, server := range o.Servers {
			if slices.Contains(f.opts.Self, server.Addr) {
				return fmt.Errorf("forward: stub domain %s: %s is this DNS server itself; give one that knows the domain", o.Domain, server)
			}
		}
		if len(o.Servers) == 0 {
			return fmt.Errorf("forward: stub domain %s has no server", o.Domain)
		}
		name := strings.ToLower(dns.Fqdn(o.Domain))
		if seen[name] {
			return fmt.Errorf("forward: stub domain %s stands there twice; give all its servers at once", o.Domain)
		}
		seen[name] = true
	}
	return nil
}

// group makes one, of servers that are known as far as there are, and returns
// those that are not.
func (f *Forwarder) group(o Group, known []*upstream) (g *group, added []*upstream) {
	g = &group{Group: o, policy: o.Policy, slots: make(chan struct{}, f.opts.MaxConcurrent)}
	if g.policy == "" {
		g.policy = Sequential
	}
	if o.MaxConcurrent > 0 {
		g.slots = make(chan struct{}, o.MaxConcurrent)
	}
	how := usually
	how.tcp = o.TCP
	if o.ProbeEvery > 0 {
		how.every = o.ProbeEvery
	}
	if o.ProbeDomain != "" {
		how.domain = o.ProbeDomain
	}
	if o.MaxFails != 0 {
		how.maxFails = o.MaxFails
	}
	for _, s := range o.Servers {
		if slices.Contains(f.opts.Self, s.Addr) {
			f.log.Error("upstream name server is this one and is not asked", "domain", o.From, "server", s.String())
			continue
		}
		same := func(u *upstream) bool { return u.server == s && u.how == how }
		if slices.ContainsFunc(g.servers, same) {
			continue
		}
		if i := slices.IndexFunc(known, same); i >= 0 {
			g.servers = append(g.servers, known[i])
			continue
		}
		u := newUpstream(s, how, f.opts.TLSRoots, f.metrics)
		g.servers, added = append(g.servers, u), append(added, u)
	}
	return g, added
}

// retire ends the connections to a server that is not asked any more, once the
// questions under way have had their time.
func (f *Forwarder) retire(u *upstream) { time.AfterFunc(2*f.opts.Timeout, u.close) }
