package query

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/wire"
	"fairway.dev/fairway/internal/state"
)

// Options say what to ask, and whom.
type Options struct {
	// Name is what a program would look up. Required.
	Name string
	// Types are asked for at each step, together. Required.
	Types []uint16
	// Resolver is that of the client.
	Resolver Resolver
	// Server is asked. Required.
	Server netip.AddrPort
	// Snapshot is the cluster as the API tells it. Required.
	Snapshot *state.Snapshot
	// Domain is the cluster domain. Required.
	Domain string
	// Timeout bounds one question. Default 5 s, a resolver's.
	Timeout time.Duration
	// Total bounds all of them: names that are left by then are not asked for.
	// Default 10 s.
	Total time.Duration
}

// Report is what was asked and answered.
type Report struct {
	// Client and Via say who would ask, and how it comes to that server; for people.
	Client string `json:"client"`
	Via    string `json:"via,omitempty"`
	Server string `json:"server"`
	// Resolver is the client's.
	Resolver Resolver `json:"resolver"`
	Name     string   `json:"name"`
	Steps    []Step   `json:"steps"`
	// Found is whether the last step has records.
	Found bool `json:"found"`
	// Unasked are the names further along the search path that there was no time for.
	Unasked []string `json:"unasked,omitempty"`
}

// Step is one name along the search path.
type Step struct {
	Name    string   `json:"name"`
	Answers []Answer `json:"answers"`
}

// Answer is that to one question.
type Answer struct {
	Type string `json:"type"`
	// Rcode is the result, or empty where there is no answer; then Error says why.
	Rcode string `json:"rcode,omitempty"`
	Error string `json:"error,omitempty"`
	// Source is where the answer is from: zone, cache, stale, hosts or upstream with
	// the server; none with the zone whose servers gave no answer, and why; empty
	// where the server does not tell.
	Source string `json:"source,omitempty"`
	// Rules are those of the Corefile that had other names looked up in place of this.
	Rules []Rule `json:"rules,omitempty"`
	// Micros is how long the answer took.
	Micros int64 `json:"micros"`
	// TTL is the lowest of the records', in seconds: how long clients may keep the answer.
	TTL     uint32   `json:"ttl"`
	Records []string `json:"records,omitempty"`
	// Authority has the SOA that says that there is none.
	Authority []string `json:"authority,omitempty"`
	// Truncated: asked again by TCP.
	Truncated bool `json:"truncated,omitempty"`
	// Why explains it, one sentence each.
	Why []string `json:"why"`
}

// Rule is one of the Corefile, and what it did.
type Rule struct {
	// To was looked up in place of From.
	From string `json:"from"`
	To   string `json:"to"`
	// Rule is as it stands in a Corefile, but for what it does to answers.
	Rule string `json:"rule"`
}

// explained takes apart what a server says with [wire.OptionExplain].
func explained(told string) (source string, rules []Rule) {
	parts := strings.Split(told, wire.ExplainRule)
	for _, p := range parts[1:] {
		if said := strings.SplitN(p, wire.ExplainName, 3); len(said) == 3 {
			rules = append(rules, Rule{said[0], said[1], said[2]})
		}
	}
	return parts[0], rules
}

// leastTimeout is what a question has, however late it is.
const leastTimeout = 100 * time.Millisecond

// Run asks along the search path until a step has records.
func Run(ctx context.Context, o Options) (*Report, error) {
	switch {
	case o.Snapshot == nil || len(o.Types) == 0 || !o.Server.IsValid() || o.Domain == "":
		return nil, errors.New("query: Types, Server, Snapshot and Domain are required")
	case strings.Trim(o.Name, ".") == "" && o.Name != ".":
		return nil, errors.New("query: the name is missing")
	}
	if _, ok := dns.IsDomainName(o.Name); !ok {
		return nil, fmt.Errorf("%q is no domain name", o.Name)
	}
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Total == 0 {
		o.Total = 10 * time.Second
	}
	e, err := newExplainer(o.Snapshot, o.Domain)
	if err != nil {
		return nil, err
	}
	r := &Report{Server: o.Server.String(), Resolver: o.Resolver, Name: o.Name}
	until := time.Now().Add(o.Total)
	timeout := o.Timeout
	for _, name := range o.Resolver.Steps(o.Name) {
		if len(r.Steps) > 0 && !time.Now().Before(until) {
			r.Unasked = append(r.Unasked, name)
			continue
		}
		step := Step{Name: name}
		for _, qtype := range o.Types {
			// Of a step that has begun each type is asked for, with little patience if need be.
			o.Timeout = min(timeout, max(time.Until(until), leastTimeout))
			a, msg := o.ask(ctx, name, qtype)
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			a.Why = e.why(name, qtype, a, msg)
			step.Answers = append(step.Answers, a)
			r.Found = r.Found || hasType(msg, qtype)
		}
		r.Steps = append(r.Steps, step)
		if r.Found {
			break
		}
	}
	return r, nil
}

// hasType reports whether an answer has what was asked for.
func hasType(msg *dns.Msg, qtype uint16) bool {
	if msg == nil || msg.Rcode != dns.RcodeSuccess {
		return false
	}
	for _, rr := range msg.Answer {
		if rr.Header().Rrtype == qtype || qtype == dns.TypeANY {
			return true
		}
	}
	return false
}

// ask asks by UDP, and again by TCP where the answer is cut.
func (o *Options) ask(ctx context.Context, name string, qtype uint16) (Answer, *dns.Msg) {
	a := Answer{Type: dns.Type(qtype).String()}
	began := time.Now()
	msg, err := o.exchange(ctx, "udp", name, qtype)
	if err == nil && msg.Truncated {
		a.Truncated = true
		msg, err = o.exchange(ctx, "tcp", name, qtype)
	}
	a.Micros = time.Since(began).Microseconds()
	if err != nil {
		a.Error = err.Error()
		return a, nil
	}
	a.Rcode = dns.RcodeToString[msg.Rcode]
	for i, rr := range msg.Answer {
		a.Records = append(a.Records, text(rr))
		if ttl := rr.Header().Ttl; i == 0 || ttl < a.TTL {
			a.TTL = ttl
		}
	}
	for _, rr := range msg.Ns {
		a.Authority = append(a.Authority, text(rr))
		if soa, ok := rr.(*dns.SOA); ok && len(msg.Answer) == 0 {
			a.TTL = min(soa.Hdr.Ttl, soa.Minttl) // RFC 2308 section 5
		}
	}
	if opt := msg.IsEdns0(); opt != nil {
		for _, option := range opt.Option {
			if l, ok := option.(*dns.EDNS0_LOCAL); ok && l.Code == wire.OptionExplain {
				a.Source, a.Rules = explained(string(l.Data))
			}
		}
	}
	return a, msg
}

func text(rr dns.RR) string { return strings.ReplaceAll(rr.String(), "\t", " ") }

func (o *Options) exchange(ctx context.Context, network, name string, qtype uint16) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	q := new(dns.Msg).SetQuestion(name, qtype).SetEdns0(1232, false)
	q.Id = uint16(rand.Uint32())
	q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: wire.OptionExplain}}
	client := dns.Client{Net: network, Timeout: o.Timeout, UDPSize: 1232}
	msg, _, err := client.ExchangeContext(ctx, q, o.Server.String())
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return nil, fmt.Errorf("%s says nothing by %s within %s", o.Server, strings.ToUpper(network), o.Timeout.Round(10*time.Millisecond))
	}
	return msg, err
}
