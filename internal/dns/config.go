package dns

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/cache"
	"fairway.dev/fairway/internal/dns/forward"
	"fairway.dev/fairway/internal/dns/wire"
	"fairway.dev/fairway/internal/dns/zone"
	"fairway.dev/fairway/internal/model"
)

// config is a [model.DNSConfig] in the form that queries need. It never changes.
type config struct {
	autopath bool
	blocks   []configBlock // longest zone first, one for each zone
}

// configBlock is what happens to the names of a zone before they are looked up.
type configBlock struct {
	domain   string
	zone     wire.Name
	rewrites []rewriteRule
	hosts    *hostTable
}

// newConfig compiles c; a nil one stands for none.
func newConfig(c *model.DNSConfig) (*config, error) {
	out := &config{}
	if c == nil {
		return out, nil
	}
	out.autopath = c.Autopath
	for _, b := range c.Blocks {
		var rules []rewriteRule
		for _, r := range b.Rewrites {
			rule, err := newRewriteRule(r)
			if err != nil {
				return nil, err
			}
			rules = append(rules, rule)
		}
		var hosts *hostTable
		if b.Hosts != nil {
			hosts = newHostTable(b.Hosts)
		}
		for _, z := range b.Zones {
			one := configBlock{domain: z, rewrites: rules, hosts: hosts}
			if !setName(&one.zone, z) {
				return nil, fmt.Errorf("%q is no name of a zone", z)
			}
			out.blocks = append(out.blocks, one)
		}
	}
	slices.SortStableFunc(out.blocks, func(a, b configBlock) int { return b.zone.Labels() - a.zone.Labels() })
	if !slices.ContainsFunc(out.blocks, func(b configBlock) bool { return b.rewrites != nil || b.hosts != nil }) {
		out.blocks = nil // so that no query has to look
	}
	return out, nil
}

// setName sets a wire name from text, with escapes.
func setName(n *wire.Name, text string) bool {
	packed, err := (&dns.Msg{Question: []dns.Question{{Name: text, Qtype: dns.TypeA, Qclass: dns.ClassINET}}}).Pack()
	var q wire.Query
	if err != nil || q.Parse(packed) != nil {
		return false
	}
	*n = q.Name
	return true
}

// concerns returns the block that changes what a query is answered with; nil for
// none. It allocates nothing, and uses text for memory.
func (c *config) concerns(q *wire.Query, text *[]byte) *configBlock {
	for i := range c.blocks {
		b := &c.blocks[i]
		if !q.Name.EndsWith(&b.zone) {
			continue
		}
		if b.hosts != nil && b.hosts.concerns(q) {
			return b
		}
		if len(b.rewrites) > 0 {
			*text = q.Name.Append((*text)[:0])
			if slices.ContainsFunc(b.rewrites, func(r rewriteRule) bool { return r.matches(*text) }) {
				return b
			}
		}
		return nil
	}
	return nil
}

// blockOf returns the block that a name lies in; nil for none.
func (c *config) blockOf(name string) *configBlock {
	for i := range c.blocks {
		if dns.IsSubDomain(c.blocks[i].domain, name) {
			return &c.blocks[i]
		}
	}
	return nil
}

// rewriteRule is a [model.DNSRewrite].
type rewriteRule struct {
	model.DNSRewrite
	from    []byte
	pattern *regexp.Regexp
	answers []answerRule
}

// answerRule changes names of an answer: those of records, or in what they say.
type answerRule struct {
	names, values bool
	change        func(string) string
}

func newRewriteRule(r model.DNSRewrite) (rewriteRule, error) {
	out := rewriteRule{DNSRewrite: r, from: []byte(r.From)}
	var err error
	if r.Match == model.DNSRegex {
		if out.pattern, err = regexp.Compile(r.From); err != nil {
			return out, err
		}
	}
	for _, a := range r.Answers {
		pattern, err := regexp.Compile(a.From)
		if err != nil {
			return out, err
		}
		out.answers = append(out.answers, answerRule{names: !a.Value, values: a.Value, change: func(s string) string {
			if changed, ok := substitute(pattern, s, a.To); ok {
				return changed
			}
			return s
		}})
	}
	return out, nil
}

// String returns the rule as it stands in a Corefile, without what it does to answers.
func (r *rewriteRule) String() string {
	then := "stop"
	if r.Continue {
		then = "continue"
	}
	return fmt.Sprintf("rewrite %s name %s %s %s", then, r.Match, r.From, r.To)
}

// matches reports whether the rule changes a name, in lower case.
func (r *rewriteRule) matches(name []byte) bool {
	switch r.Match {
	case model.DNSExact:
		return string(name) == r.From
	case model.DNSPrefix:
		return len(name) >= len(r.From) && string(name[:len(r.From)]) == r.From
	case model.DNSSuffix:
		return len(name) >= len(r.From) && string(name[len(name)-len(r.From):]) == r.From
	case model.DNSSubstring:
		return contains(name, r.From)
	}
	return r.pattern.Match(name)
}

// contains is bytes.Contains with a string.
func contains(b []byte, s string) bool {
	for i := 0; i+len(s) <= len(b); i++ {
		if string(b[i:i+len(s)]) == s {
			return true
		}
	}
	return false
}

// rewrite returns what takes the place of a name, and how to turn that back in
// the answer to asked, the name of the client.
func (r *rewriteRule) rewrite(name, asked string) (string, []answerRule) {
	var to string
	switch r.Match {
	case model.DNSExact:
		to = r.To
	case model.DNSPrefix:
		to = r.To + strings.TrimPrefix(name, r.From)
	case model.DNSSuffix:
		to = strings.TrimSuffix(name, r.From) + r.To
	case model.DNSSubstring:
		to = strings.ReplaceAll(name, r.From, r.To)
	default:
		to, _ = substitute(r.pattern, name, r.To)
	}
	if !r.Auto {
		return to, r.answers
	}
	back := answerRule{names: true, values: true, change: func(s string) string {
		if r.Match == model.DNSSuffix { // also of names that are not below the one asked for
			if head, ok := strings.CutSuffix(s, r.To); ok {
				return head + r.From
			}
			return s
		}
		if s == to {
			return name
		}
		if head, ok := strings.CutSuffix(s, "."+to); ok {
			return head + "." + name
		}
		return s
	}}
	return to, append([]answerRule{back}, r.answers...)
}

// substitute returns what takes the place of a name that matches: to, with the
// groups of the pattern in it.
func substitute(pattern *regexp.Regexp, name, to string) (string, bool) {
	groups := pattern.FindStringSubmatch(name)
	if groups == nil {
		return "", false
	}
	for i, g := range groups {
		to = strings.ReplaceAll(to, fmt.Sprintf("{%d}", i), g)
	}
	return to, true
}

// rewrite returns the name that is looked up in place of one, in lower case,
// and how its answer becomes that of the first. note, which may be nil, is told of
// each rule that applies, with the name before and after it.
func (b *configBlock) rewrite(name string, note func(rule *rewriteRule, from, to string)) (string, []answerRule) {
	var rules []answerRule
	asked := name
	for i := range b.rewrites {
		r := &b.rewrites[i]
		if !r.matches([]byte(name)) {
			continue
		}
		to, back := r.rewrite(name, asked)
		if note != nil {
			note(r, name, to)
		}
		name, rules = to, append(rules, back...)
		if !r.Continue {
			break
		}
	}
	return name, rules
}

// revert changes the names of an answer, the last rule first.
func revert(m *dns.Msg, rules []answerRule) {
	for _, section := range [][]dns.RR{m.Ns, m.Answer, m.Extra} {
		for _, rr := range section {
			for _, r := range slices.Backward(rules) {
				if r.names {
					rr.Header().Name = r.change(strings.ToLower(rr.Header().Name))
				}
				if v := nameIn(rr); v != nil && r.values {
					*v = r.change(strings.ToLower(*v))
				}
			}
		}
	}
}

// nameIn is the name that a record leads to; nil for other records.
func nameIn(rr dns.RR) *string {
	switch rr := rr.(type) {
	case *dns.SRV:
		return &rr.Target
	case *dns.MX:
		return &rr.Mx
	case *dns.CNAME:
		return &rr.Target
	case *dns.NS:
		return &rr.Ns
	case *dns.DNAME:
		return &rr.Target
	case *dns.NAPTR:
		return &rr.Replacement
	case *dns.SOA:
		return &rr.Ns
	case *dns.PTR:
		return &rr.Ptr
	}
	return nil
}

// settings are those of the cluster's names.
func settings(flags time.Duration, c *model.DNSConfig) zone.Settings {
	s := zone.Settings{TTL: flags}
	if c != nil {
		s.NoPods = c.NoPods
		if s.TTL == 0 {
			s.TTL = c.TTL
		}
	}
	return s
}

// entryBytes is what an answer in the cache is taken to need, where a Corefile
// bounds their number.
const entryBytes = 1 << 10

// cacheBytes is the memory that a configuration gives the cache.
func cacheBytes(usual int, c *model.DNSConfig) int {
	entries := 0
	if c != nil {
		for _, b := range c.Blocks {
			if b.Cache != nil {
				entries += b.Cache.Entries
			}
		}
	}
	if entries == 0 {
		return usual
	}
	return min(max(entries*entryBytes, 1<<20), 256<<20)
}

// domains are whom to ask for what.
func domains(c *model.DNSConfig) ([]forward.Domain, error) {
	if c == nil {
		return nil, nil
	}
	list := []forward.Domain{}
	for _, b := range c.Blocks {
		var groups []forward.Group
		for _, f := range b.Forwards {
			g := forward.Group{
				From: f.From, Except: f.Except, NodeServers: f.NodeServers, Policy: forward.Policy(f.Policy), MaxConcurrent: f.MaxConcurrent,
				TCP: f.TCP, ProbeEvery: f.HealthCheck, ProbeDomain: f.HealthDomain, MaxFails: f.MaxFails,
			}
			for _, s := range f.Servers {
				g.Servers = append(g.Servers, forward.Server{Addr: s.Addr, TLS: s.TLS, Name: s.Name})
			}
			groups = append(groups, g)
		}
		keep, err := keeping(b.Cache)
		if err != nil {
			return nil, err
		}
		for _, z := range b.Zones {
			list = append(list, forward.Domain{Name: z, Groups: groups, Keep: keep})
		}
	}
	return list, nil
}

// keeping returns the limits for each name of a block.
func keeping(c *model.DNSCache) (func(string) *cache.Limits, error) {
	if c == nil {
		return func(string) *cache.Limits { return nil }, nil
	}
	limits := cache.Limits{
		MinTTL: c.MinTTL, MaxTTL: c.MaxTTL, MinNegativeTTL: c.MinNegativeTTL, MaxNegativeTTL: c.MaxNegativeTTL,
		StaleFor: c.StaleFor, PrefetchHits: c.Prefetch, PrefetchPercent: c.PrefetchPercent,
	}
	var kinds [2][2]*cache.Limits // by NoSuccess, NoDenial
	for i := range kinds {
		for j := range kinds[i] {
			limits.NoSuccess, limits.NoDenial = i == 1, j == 1
			checked, err := cache.Check(limits)
			if err != nil {
				return nil, err
			}
			kinds[i][j] = checked
		}
	}
	return func(name string) *cache.Limits {
		in := func(zone string) bool { return dns.IsSubDomain(zone, name) }
		if len(c.Zones) > 0 && !slices.ContainsFunc(c.Zones, in) {
			return nil
		}
		return kinds[number(slices.ContainsFunc(c.NoSuccess, in))][number(slices.ContainsFunc(c.NoDenial, in))]
	}, nil
}
