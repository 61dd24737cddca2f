package query

import (
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// Resolver is what a resolv.conf(5) says.
type Resolver struct {
	// Servers are asked, the first one first.
	Servers []netip.Addr `json:"servers,omitempty"`
	// Search are the domains to try a name in.
	Search []string `json:"search,omitempty"`
	// Ndots is how many dots make a name be tried as it stands first.
	Ndots int `json:"ndots"`
}

// maxNdots is the most that resolvers take (resolv.conf(5)).
const maxNdots = 15

// Steps returns the full names that a resolver asks for, one after the other
// until one has an answer, in glibc's order.
func (r Resolver) Steps(name string) []string {
	if strings.HasSuffix(name, ".") {
		return []string{name}
	}
	var steps []string
	add := func(full string) {
		if _, ok := dns.IsDomainName(full); ok { // one that is too long is passed over
			steps = append(steps, full)
		}
	}
	asIs := strings.Count(name, ".") >= min(r.Ndots, maxNdots)
	if asIs {
		add(name + ".")
	}
	for _, domain := range r.Search {
		if domain = strings.Trim(domain, "."); domain == "" {
			add(name + ".")
			continue
		}
		add(name + "." + domain + ".")
	}
	if !asIs {
		add(name + ".")
	}
	return steps
}

// ForPods is the resolver of a Pod with the settings that Pods have by default.
func ForPods(namespace, domain string, servers []netip.Addr, search ...string) Resolver {
	domain = strings.Trim(domain, ".")
	return Resolver{
		Servers: servers, Ndots: 5,
		Search: append([]string{namespace + ".svc." + domain, "svc." + domain, domain}, search...),
	}
}
