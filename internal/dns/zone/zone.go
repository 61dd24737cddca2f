package zone

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/wire"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// SpecVersion is the version of the Kubernetes DNS specification that the zone
// follows; TXT dns-version.<domain> says so (specification section 2.2).
const SpecVersion = "1.1.0"

// Options say what a zone answers.
type Options struct {
	// Domain is the cluster domain, for example "cluster.local". Required.
	Domain string
	// Settings may be changed later.
	Settings
	// ReverseRanges are the ranges of Services and Pods: reverse names in them
	// are answered here even where nothing is known. Optional.
	ReverseRanges []netip.Prefix
	// DNSService is the Service whose cluster IPs are the zone's name server,
	// for example kube-system/kube-dns. Optional.
	DNSService model.Key
	// NameServers are the name server's addresses while there is no DNSService. Optional.
	NameServers []netip.Addr
}

// Settings are what may change while a zone answers.
type Settings struct {
	// TTL is that of every answer, positive or negative. Default 5 s, as CoreDNS.
	TTL time.Duration
	// NoPods has it that Pods have no names.
	NoPods bool
}

// check fills in the defaults and says what is wrong.
func (s Settings) check() (*Settings, error) {
	if s.TTL == 0 {
		s.TTL = 5 * time.Second
	}
	if s.TTL < time.Second || s.TTL > 24*time.Hour {
		return nil, fmt.Errorf("TTL %v is outside of 1 s to 24 h", s.TTL)
	}
	return &s, nil
}

// Zone answers from the newest index that it was given.
type Zone struct {
	domain      wire.Name
	text        string // of domain, fully qualified
	settings    atomic.Pointer[Settings]
	ranges      []netip.Prefix
	dnsService  model.Key
	nameServers []netip.Addr

	index atomic.Pointer[Index]
}

// New returns a zone that knows nothing yet and answers SERVFAIL in its domain.
func New(o Options) (*Zone, error) {
	if o.Domain == "" {
		return nil, fmt.Errorf("the cluster domain is missing")
	}
	settings, err := o.Settings.check()
	if err != nil {
		return nil, err
	}
	z := &Zone{
		text:       strings.ToLower(dns.Fqdn(o.Domain)),
		dnsService: o.DNSService, nameServers: o.NameServers,
	}
	if !z.domain.SetText(o.Domain) || z.domain.Labels() == 0 {
		return nil, fmt.Errorf("cluster domain %q is no DNS name", o.Domain)
	}
	for _, p := range o.ReverseRanges {
		z.ranges = append(z.ranges, p.Masked())
	}
	z.settings.Store(settings)
	z.index.Store(NewIndex())
	return z, nil
}

// Domain returns the cluster domain, fully qualified and in lower case.
func (z *Zone) Domain() string { return z.text }

// Update makes the zone answer from snap. It has one caller at a time; queries
// need not wait.
func (z *Zone) Update(snap *state.Snapshot) { z.index.Store(z.index.Load().Next(snap)) }

// Synced reports whether the zone knows all Services: until then it answers
// SERVFAIL and never that a name does not exist.
func (z *Zone) Synced() bool { return z.index.Load().snap.Synced }

// TTL is that of every answer, in seconds.
func (z *Zone) TTL() uint32 { return uint32(z.settings.Load().TTL / time.Second) }

// Set changes the settings.
func (z *Zone) Set(s Settings) error {
	settings, err := s.check()
	if err == nil {
		z.settings.Store(settings)
	}
	return err
}

// HasNamespace reports whether there is a namespace of this name, in lower case.
func (z *Zone) HasNamespace(name string) bool { return z.index.Load().hasNamespace(name) }

// HasService reports whether there is such a Service, with endpoints or without.
func (z *Zone) HasService(namespace, name string) bool {
	_, ok := z.index.Load().snap.Services.Get(model.Key{Namespace: namespace, Name: name})
	return ok
}

// Owns reports whether a name is the zone's to answer, whether there is
// something at it or not. It is for whoever has time, as Answer is.
func (z *Zone) Owns(name string) bool {
	_, ours := z.Answer(dns.Question{Name: name, Qtype: dns.TypeSOA, Qclass: dns.ClassINET})
	return ours
}

// Kind tells what a name stands for.
type Kind uint8

// The kinds of names. Nothing stands at a name of KindNone.
const (
	KindNone Kind = iota
	KindZone
	KindNamespace
	KindService
	KindEndpoint
	KindPod
	KindReverse
	KindLocalhost
)

// String returns the kind in a word.
func (k Kind) String() string {
	return [...]string{"none", "zone", "namespace", "service", "endpoint", "pod", "reverse", "localhost"}[k]
}

// Result says what an answer is made of.
type Result struct {
	// Ours is false where the name is not the zone's to answer: other servers
	// should be asked, and nothing is written.
	Ours bool
	// Target is set where the answer ends in a CNAME that leads out of the zone:
	// the records of that name belong to the answer too. It has no final dot.
	Target string
	// Kind is what was found; of an alias, what it stands at in the end.
	Kind    Kind
	service *model.Key // read only where it is wanted
	// Loop: ExternalName Services lead from one to the next and round again, or
	// through more than can be right. The answer is SERVFAIL, with the aliases.
	Loop bool
}

// Service is the one that the name belongs to; zero for none.
func (r Result) Service() model.Key {
	if r.service == nil {
		return model.Key{}
	}
	return *r.service
}

// maxChain bounds the ExternalName Services that one answer follows.
const maxChain = 8

// Write writes the answer to q: records, rcode and the AA bit. b has been reset
// for q. The class is not looked at. Without a record in the answer section,
// authority has the SOA that bounds the caching of that (RFC 2308).
func (z *Zone) Write(q *wire.Query, b *wire.Builder) Result {
	settings := z.settings.Load()
	w := writer{z: z, ix: z.index.Load(), b: b, qtype: q.Type, ttl: uint32(settings.TTL / time.Second), noPods: settings.NoPods}
	name, at, target := &q.Name, wire.HeaderSize, ""
	b.Authoritative = true
	var seen [maxChain + 1]*model.Service
	for i := range maxChain + 1 { // the last alias leads to a name, too
		w.found = Result{Ours: true}
		if !name.EndsWith(&z.domain) {
			if w.outside(name, at) {
				return w.found
			}
			if name == &q.Name {
				b.Authoritative = false
				return Result{}
			}
			w.found.Target = target
			return w.found
		}
		own := name.Labels() - z.domain.Labels()
		w.zoneAt, w.domainAt = at+name.Offset(own), 0
		if name != &q.Name || q.AskedInLowerCase(own) {
			w.domainAt = w.zoneAt
		}
		if target, at = w.inside(name, at); target == "" {
			return w.found
		}
		seen[i] = w.alias
		if !b.Alias.SetText(target) {
			w.fail()
			return w.found
		}
		if name = &b.Alias; slices.Contains(seen[:i+1], w.aliasAt(name)) {
			break
		}
	}
	w.found.Loop = true
	w.fail()
	return w.found
}

// Answer is what the zone says to a question, unpacked.
type Answer struct {
	// Rcode is NOERROR, NXDOMAIN or SERVFAIL.
	Rcode int
	// Answer, Authority and Additional are the sections.
	Answer, Authority, Additional []dns.RR
	// Target is that of [Result], fully qualified.
	Target string
}

// Answer answers q as Write does, for whoever has time. It reports false where
// the name is not the zone's to answer.
func (z *Zone) Answer(q dns.Question) (Answer, bool) {
	var query wire.Query
	var b wire.Builder
	packed, err := (&dns.Msg{Question: []dns.Question{q}}).Pack()
	if err != nil || query.Parse(packed) != nil {
		return Answer{}, false
	}
	b.Reset(nil, &query, wire.MaxSize)
	r := z.Write(&query, &b)
	if !r.Ours {
		return Answer{}, false
	}
	var m dns.Msg
	if err := m.Unpack(b.Finish()); err != nil {
		return Answer{Rcode: dns.RcodeServerFailure}, true
	}
	a := Answer{Rcode: b.Rcode, Answer: m.Answer, Authority: m.Ns, Additional: m.Extra}
	if r.Target != "" {
		a.Target = dns.Fqdn(r.Target)
	}
	return a, true
}
