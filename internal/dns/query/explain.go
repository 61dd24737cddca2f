package query

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/wire"
	"fairway.dev/fairway/internal/dns/zone"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// explainer says what stands behind a name.
type explainer struct {
	snap   *state.Snapshot
	zone   *zone.Zone
	domain wire.Name
}

func newExplainer(snap *state.Snapshot, domain string) (*explainer, error) {
	z, err := zone.New(zone.Options{Domain: domain, DNSService: model.Key{Namespace: "kube-system", Name: "kube-dns"}})
	if err != nil {
		return nil, err
	}
	z.Update(snap)
	e := &explainer{snap: snap, zone: z}
	e.domain.SetText(domain)
	return e, nil
}

// why explains an answer; msg is nil where there is none.
func (e *explainer) why(name string, qtype uint16, a Answer, msg *dns.Msg) []string {
	if msg == nil {
		return []string{"the server cannot be reached, or does not answer clients here"}
	}
	if len(a.Rules) > 0 {
		var why []string
		for _, r := range a.Rules {
			why = append(why, fmt.Sprintf("%s is looked up as %s, by the Corefile's %q", r.From, r.To, r.Rule))
			if strings.EqualFold(name, r.From) {
				name = r.To
			}
		}
		a.Rules = nil
		return append(why, e.why(dns.Fqdn(name), qtype, a, msg)...)
	}
	var q wire.Query
	var b wire.Builder
	packed, err := new(dns.Msg).SetQuestion(name, qtype).Pack()
	if err != nil || q.Parse(packed) != nil {
		return []string{"the name cannot be asked for"}
	}
	b.Reset(nil, &q, wire.MaxSize)
	found := e.zone.Write(&q, &b)
	if !found.Ours {
		return e.outside(a, msg)
	}
	if found.Loop {
		return []string{fmt.Sprintf("Service %s, of type ExternalName, leads back to itself or through too many others: give it, or one that it leads to, the name of something with an address", found.Service())}
	}
	if msg.Rcode == dns.RcodeServerFailure && b.Rcode == dns.RcodeServerFailure && e.zone.Synced() {
		return []string{fmt.Sprintf("Service %s, of type ExternalName, has a name that DNS cannot give as an alias: correct spec.externalName", found.Service())}
	}
	if msg.Rcode == dns.RcodeServerFailure && found.Target == "" {
		return []string{"the server has not yet read all Services from the Kubernetes API"}
	}
	if msg.Rcode == dns.RcodeRefused {
		return []string{"the server does not answer this client, or not this type"}
	}
	if a.Source == "hosts" {
		return e.outside(a, msg)
	}
	var why []string
	if !e.same(&b, found, msg) {
		why = append(why, "the server's state is older or newer than what the API says now; what follows is what the API says now")
	}
	why = append(why, e.object(&q, found)...)
	if found.Target != "" {
		why = append(why, fmt.Sprintf("it is an alias to %s, outside of the cluster: %s", found.Target, e.outside(a, msg)[0]))
	}
	if b.Rcode == dns.RcodeSuccess && b.Count(wire.Answer) == 0 && found.Target == "" {
		why = append(why, e.noData(qtype, found))
	}
	if len(msg.Answer) > 0 && a.Source != "zone" && found.Target == "" && found.Kind == zone.KindNone {
		why = append(why, "the server went along the search path in place of the client (--dns-autopath)")
	}
	return why
}

// same reports whether the zone's answer, as made of the snapshot, has the
// result that the server gave.
func (e *explainer) same(b *wire.Builder, found zone.Result, msg *dns.Msg) bool {
	if found.Target != "" || msg.Truncated || len(msg.Answer) > 0 && found.Kind == zone.KindNone {
		return true // others have a part in it
	}
	return b.Rcode == msg.Rcode && (b.Count(wire.Answer) > 0) == (len(msg.Answer) > 0)
}

// outside explains an answer that is not of the zone.
func (e *explainer) outside(a Answer, msg *dns.Msg) []string {
	var from string
	switch {
	case a.Source == "cache":
		from = "from the server's cache"
	case a.Source == "stale":
		from = "from the server's cache past its time, for no upstream name server answers"
	case strings.HasPrefix(a.Source, "upstream "):
		from = "asked just now of " + a.Source
	case strings.HasPrefix(a.Source, wire.ExplainNone):
		from = "no name server of zone " + strings.TrimPrefix(a.Source, wire.ExplainNone)
		from = strings.Replace(from, ": ", " gave an answer: ", 1)
	case a.Source == "hosts":
		from = "one of the hosts in the Corefile"
	case a.Source == "zone":
		from = "the server answers this by itself"
	case msg.Rcode == dns.RcodeServerFailure:
		from = "no upstream name server gave an answer"
	case msg.Rcode == dns.RcodeRefused:
		from = "the server does not answer this client, or not this type"
	default:
		from = "not a name of the cluster, and the server does not say where the answer is from"
	}
	switch {
	case msg.Rcode == dns.RcodeNameError:
		from += ": there is no such name" + authority(msg)
	case msg.Rcode == dns.RcodeSuccess && len(msg.Answer) == 0:
		from += ": the name has no record of this type" + authority(msg)
	}
	why := []string{from}
	for _, rr := range msg.Answer {
		alias, ok := rr.(*dns.CNAME)
		if !ok || e.zone.Owns(alias.Hdr.Name) || !e.zone.Owns(alias.Target) {
			continue
		}
		var q wire.Query
		var b wire.Builder
		if packed, err := new(dns.Msg).SetQuestion(alias.Target, dns.TypeA).Pack(); err == nil && q.Parse(packed) == nil {
			b.Reset(nil, &q, wire.MaxSize)
			why = append(why, "it is an alias to "+alias.Target+", in the cluster: "+strings.Join(e.object(&q, e.zone.Write(&q, &b)), ", "))
		}
		break
	}
	return why
}

// authority names the zone that denies something.
func authority(msg *dns.Msg) string {
	for _, rr := range msg.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return ", says zone " + soa.Hdr.Name
		}
	}
	return ""
}

// object says which object the name stands for, or which is missing.
func (e *explainer) object(q *wire.Query, found zone.Result) []string {
	labels := make([]string, q.Name.Labels())
	for i := range labels {
		labels[i] = strings.Clone(q.Name.Label(i))
	}
	switch found.Kind {
	case zone.KindZone:
		return []string{"a name of the zone itself"}
	case zone.KindNamespace:
		return []string{"Namespace " + e.left(q, labels)[0]}
	case zone.KindPod:
		return []string{"an address written as a name; the namespace exists, and no Pod is looked for"}
	case zone.KindLocalhost:
		return []string{"localhost is answered by every server (RFC 6761)"}
	case zone.KindService:
		return e.service(found.Service())
	case zone.KindEndpoint:
		return e.endpoint(found.Service(), labels[0])
	case zone.KindReverse:
		if found.Service().IsZero() {
			return []string{"a reverse name of an address in the cluster"}
		}
		if svc, ok := e.snap.Services.Get(found.Service()); ok {
			for _, ip := range svc.ClusterIPs {
				if reverse, err := dns.ReverseAddr(ip.String()); err == nil && strings.EqualFold(reverse, dns.Fqdn(strings.Join(labels, "."))) {
					return []string{fmt.Sprintf("the cluster IP of Service %s, which has that Service's name alone", svc.Key)}
				}
			}
		}
		return []string{fmt.Sprintf("the address of a ready endpoint of Service %s", found.Service())}
	}
	return []string{e.missing(q, labels)}
}

// left is the labels left of the domain and of "svc" or "pod".
func (e *explainer) left(q *wire.Query, labels []string) []string {
	return labels[:max(0, q.Name.Labels()-e.domain.Labels()-1)]
}

// missing says why a name does not exist.
func (e *explainer) missing(q *wire.Query, labels []string) string {
	if !q.Name.EndsWith(&e.domain) {
		return "no Service and no endpoint has that address"
	}
	own := labels[:q.Name.Labels()-e.domain.Labels()]
	if len(own) == 0 {
		return "the zone itself"
	}
	kind := own[len(own)-1]
	rest := own[:len(own)-1]
	if kind != "svc" && kind != "pod" {
		return fmt.Sprintf("directly below the cluster domain there are svc and pod only, not %q", kind)
	}
	if len(rest) == 0 {
		return "the name of all Services"
	}
	namespace := rest[len(rest)-1]
	if _, ok := e.snap.Namespaces.Get(namespace); !ok {
		return fmt.Sprintf("there is no Namespace %q", namespace)
	}
	rest = rest[:len(rest)-1]
	if kind == "pod" {
		return fmt.Sprintf("%q is no address with dashes, as 10-244-0-5", strings.Join(rest, "."))
	}
	name := rest[len(rest)-1]
	key := model.Key{Namespace: namespace, Name: name}
	svc, ok := e.snap.Services.Get(key)
	if !ok {
		return fmt.Sprintf("there is no Service %q in Namespace %s%s", name, namespace, e.elsewhere(name))
	}
	set, _ := e.snap.Endpoints.Get(key)
	switch rest = rest[:len(rest)-1]; {
	case len(rest) == 0 && svc.Headless && (set == nil || len(set.Endpoints) == 0):
		return fmt.Sprintf("Service %s is headless and has no endpoints: its selector matches no Pod with an address", key)
	case len(rest) == 0 && svc.Headless:
		return fmt.Sprintf("Service %s is headless and none of its %d endpoints is ready (%s); publishNotReadyAddresses would publish them",
			key, len(set.Endpoints), endpoints(set.Endpoints))
	case svc.Type == model.ExternalName && len(rest) == 0:
		why := e.service(key)[0]
		var to wire.Query
		if packed, err := new(dns.Msg).SetQuestion(dns.Fqdn(svc.ExternalName), dns.TypeA).Pack(); err == nil && to.Parse(packed) == nil && to.Name.EndsWith(&e.domain) {
			labels := make([]string, to.Name.Labels()) // rounds have been told of before
			for i := range labels {
				labels[i] = strings.Clone(to.Name.Label(i))
			}
			why += ": " + e.missing(&to, labels)
		}
		return why
	case svc.Type == model.ExternalName:
		return fmt.Sprintf("Service %s is an alias, which has no names below it", key)
	case len(rest) > 0 && strings.HasPrefix(rest[0], "_"):
		return fmt.Sprintf("Service %s has no port of that name and protocol; it has %s", key, ports(svc))
	case !svc.Headless:
		return fmt.Sprintf("Service %s is not headless, so that its Pods have no names", key)
	}
	return fmt.Sprintf("Service %s has no ready endpoint with hostname %q", key, rest[0])
}

// elsewhere names namespaces that have such a Service.
func (e *explainer) elsewhere(name string) string {
	var in []string
	for key := range e.snap.Services.All() {
		if key.Name == name {
			in = append(in, key.Namespace)
		}
	}
	if len(in) == 0 {
		return ""
	}
	slices.Sort(in)
	return fmt.Sprintf("; there is one in %s", strings.Join(in[:min(3, len(in))], ", "))
}

func ports(svc *model.Service) string {
	if len(svc.Ports) == 0 {
		return "none"
	}
	var list []string
	for _, p := range svc.Ports {
		list = append(list, fmt.Sprintf("%q/%s", p.Name, p.Protocol))
	}
	return strings.Join(list, ", ")
}

// service describes what a Service's name stands for.
func (e *explainer) service(key model.Key) []string {
	svc, ok := e.snap.Services.Get(key)
	if !ok {
		return nil
	}
	switch {
	case svc.Type == model.ExternalName && svc.ExternalName == "":
		return []string{fmt.Sprintf("Service %s, of type ExternalName, without a name that DNS can give as an alias: its spec.externalName is none; an Event of the Service says why", key)}
	case svc.Type == model.ExternalName:
		return []string{fmt.Sprintf("Service %s, of type ExternalName: an alias to %s", key, svc.ExternalName)}
	case !svc.Headless:
		return []string{fmt.Sprintf("Service %s, with cluster IP %s", key, join(svc.ClusterIPs))}
	}
	set, ok := e.snap.Endpoints.Get(key)
	if !ok {
		return []string{fmt.Sprintf("Service %s, headless, without endpoints", key)}
	}
	return []string{fmt.Sprintf("Service %s, headless, with the ready ones of its endpoints: %s", key, endpoints(set.Endpoints))}
}

// endpoint describes the endpoint of a headless Service with a hostname.
func (e *explainer) endpoint(key model.Key, label string) []string {
	set, ok := e.snap.Endpoints.Get(key)
	if !ok {
		return nil
	}
	dashed := strings.NewReplacer(".", "-", ":", "-")
	var matching []model.Endpoint
	for _, ep := range set.Endpoints {
		if strings.EqualFold(ep.Hostname, label) || ep.Hostname == "" && dashed.Replace(ep.Addr.String()) == label {
			matching = append(matching, ep)
		}
	}
	return []string{fmt.Sprintf("of Service %s the endpoint %s", key, endpoints(matching))}
}

// maxEndpoints bounds how many are listed.
const maxEndpoints = 8

func endpoints(list []model.Endpoint) string {
	var out []string
	for i, ep := range list {
		if i == maxEndpoints {
			out = append(out, fmt.Sprintf("and %d more", len(list)-i))
			break
		}
		text := ep.Addr.String()
		if ep.About != nil && !ep.About.Pod.IsZero() {
			text += " (Pod " + ep.About.Pod.String() + ")"
		}
		if ep.Terminating {
			text += " terminating"
		} else if !ep.Ready {
			text += " not ready"
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

func join(addrs []netip.Addr) string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	if len(out) == 0 {
		return "none yet"
	}
	return strings.Join(out, " and ")
}

// noData says why a name that exists has no such record.
func (e *explainer) noData(qtype uint16, found zone.Result) string {
	family := map[uint16]string{dns.TypeA: "IPv4", dns.TypeAAAA: "IPv6"}[qtype]
	if family != "" && (found.Kind == zone.KindService || found.Kind == zone.KindEndpoint || found.Kind == zone.KindPod) {
		return fmt.Sprintf("the name exists, but has no %s address", family)
	}
	return fmt.Sprintf("the name exists, but has no record of type %s", dns.Type(qtype))
}
