package explain

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"fairway.dev/fairway/internal/gateway"
	"fairway.dev/fairway/internal/gateway/request"
	"fairway.dev/fairway/internal/gateway/router"
	"fairway.dev/fairway/internal/gateway/upstream"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/state"
)

// RequestOptions say which HTTP request to explain.
type RequestOptions struct {
	// Snapshot is the state of the cluster, synced. Required.
	Snapshot *state.Snapshot
	// URL is what is asked for, with its scheme. Required.
	URL string
	// Method is GET unless given.
	Method string
	// Header is sent, each a "name: value"; a Host goes before that of the URL.
	Header []string
	// Client is where the request comes from; without it some address that the
	// route lets in.
	Client netip.Addr
	// Node is the node that the gateway runs on, for topology hints. Optional.
	Node string
	// HTTPPort and HTTPSPort are the gateway's, the latter where redirects to
	// https lead; 0 means 80 and 443.
	HTTPPort, HTTPSPort uint16
	// ClusterDomain is the domain of the names of Services; default cluster.local.
	ClusterDomain string
	// Problems are what is wrong between objects, beside what the snapshot has.
	Problems map[model.Ref]model.Problems
}

// RequestReport is the explanation of a request. Its JSON is for programs.
type RequestReport struct {
	Method string `json:"method"`
	URL    string `json:"url"`
	Client string `json:"client"`
	// Reaches is true when every such request has a backend with an endpoint to
	// go to.
	Reaches bool `json:"reaches"`
	// Answer is what the gateway itself answers before it comes to a backend;
	// nil if it does not.
	Answer *Answer `json:"answer,omitempty"`
	// Host, Path and Query are how the request was read; empty where it was
	// refused before that.
	Host  string `json:"host"`
	Path  string `json:"path"`
	Query string `json:"query,omitempty"`
	// Notes are what else is to be known.
	Notes []string `json:"notes"`
	// Route is the rule that takes it; nil if none does.
	Route *RouteRule `json:"route,omitempty"`
	// Candidates are the other rules, in order of precedence: those for the host
	// and path or, where there is no route, for the host.
	Candidates []RouteRule `json:"candidates"`
	// More is how many candidates were left out.
	More     int              `json:"more,omitempty"`
	TLS      *RequestTLS      `json:"tls,omitempty"`
	Filters  []RequestFilter  `json:"filters"`
	Sent     *SentRequest     `json:"sent,omitempty"`
	Backends []RequestBackend `json:"backends"`
	Problems []string         `json:"problems"`
}

// Answer is an answer of the gateway's own.
type Answer struct {
	Status   int    `json:"status"`
	Reason   string `json:"reason,omitempty"`
	Location string `json:"location,omitempty"`
}

// RouteRule is a rule of a route.
type RouteRule struct {
	// Object is "Ingress namespace/name", and Field where in it the rule stands.
	Object string `json:"object"`
	Field  string `json:"field"`
	// Host is empty for every host, and PathType for a default backend.
	Host     string `json:"host"`
	PathType string `json:"pathType,omitempty"`
	Path     string `json:"path,omitempty"`
	// Why says why the rule takes the request, or why it does not.
	Why string `json:"why"`
}

// RequestTLS is what TLS has to do with a request.
type RequestTLS struct {
	// ServerName is what a client asks for (SNI); empty for none.
	ServerName string `json:"serverName"`
	// Names are what the certificate is made out for that clients are shown, and
	// NotAfter ends its time; empty for plain http where the host has none.
	Names    []string `json:"names,omitempty"`
	NotAfter string   `json:"notAfter,omitempty"`
	// Secret is where it is from; empty for the gateway's own.
	Secret string `json:"secret,omitempty"`
	// Refused is why clients refuse the certificate; empty if nothing but
	// perhaps its issuer speaks against it.
	Refused string `json:"refused,omitempty"`
	// ClientAuth is how clients are asked for a certificate of their own; empty if
	// they are not. A request by https is taken as one with a good certificate.
	ClientAuth string `json:"clientAuth,omitempty"`
	// Redirect says whether plain http is redirected to https, and why.
	Redirect string `json:"redirect,omitempty"`
}

// RequestFilter is a filter of the route.
type RequestFilter struct {
	What string `json:"what"`
	// Answers marks the one that answers: those after it do not run.
	Answers bool `json:"answers,omitempty"`
}

// SentRequest is what a backend gets. Headers that are not named are those of
// the client.
type SentRequest struct {
	Method string `json:"method"`
	Target string `json:"target"`
	Host   string `json:"host"`
	// Set are set in place of what the client sent, and Removed are not passed on.
	Set     []string `json:"set"`
	Removed []string `json:"removed"`
}

// RequestBackend is a Service that gets a part of such requests, or none: with
// no Service, it is a rule without backends.
type RequestBackend struct {
	// Object is the Ingress that asks for it, and Canary tells that it is one.
	Object string `json:"object"`
	Canary bool   `json:"canary,omitempty"`
	// Percent is its share, and Why what decides on it.
	Percent float64 `json:"percent"`
	Why     string  `json:"why,omitempty"`
	Service string  `json:"service,omitempty"`
	Port    string  `json:"port,omitempty"`
	// Protocol is spoken to it, and TLS says who trusts whom by what there.
	Protocol  string            `json:"protocol,omitempty"`
	TLS       string            `json:"tls,omitempty"`
	Endpoints []RequestEndpoint `json:"endpoints"`
	// Answer is what clients get if no endpoint serves; else nil.
	Answer *Answer `json:"answer,omitempty"`
}

// RequestEndpoint is an endpoint of a Service, and whether the gateway sends
// requests to it and why.
type RequestEndpoint struct {
	Address string `json:"address"`
	Pod     string `json:"pod,omitempty"`
	Node    string `json:"node,omitempty"`
	Zone    string `json:"zone,omitempty"`
	Standing
	// Now is how a gateway that runs has it; empty if none was asked, or it has
	// not got it.
	Now string `json:"now,omitempty"`
}

// someClient stands for a client of which nothing is known (RFC 5737).
var someClient = netip.AddrFrom4([4]byte{192, 0, 2, 1})

// shownCandidates is how many rules that do not take a request are told of.
const shownCandidates = 20

// Request explains an HTTP request: it asks a rehearsal of the gateway.
func Request(o RequestOptions) (*RequestReport, error) {
	if o.Snapshot == nil {
		return nil, errors.New("explain: Snapshot is required")
	}
	attempt, err := o.attempt()
	if err != nil {
		return nil, err
	}
	stage, err := gateway.NewRehearsal(gateway.RehearsalOptions{Snapshot: o.Snapshot, NodeName: o.Node, HTTPSPort: o.HTTPSPort, ClusterDomain: o.ClusterDomain})
	if err != nil {
		return nil, err
	}
	x := requestExplainer{RequestOptions: o, attempt: attempt, report: &RequestReport{
		Method: attempt.Method, URL: o.URL,
		Notes: []string{}, Candidates: []RouteRule{}, Filters: []RequestFilter{}, Backends: []RequestBackend{}, Problems: []string{},
	}}
	x.node, _ = o.Snapshot.Nodes.Get(o.Node)
	if err := x.noStream(); err != nil {
		return nil, err
	}
	x.did = stage.Try(attempt)
	if !o.Client.IsValid() && x.did.Match != nil && len(x.did.Match.Spec.Filters.AllowFrom) > 0 {
		allowed := x.did.Match.Spec.Filters.AllowFrom[0]
		if x.attempt.Client = allowed.Addr(); allowed.Contains(allowed.Addr().Next()) {
			x.attempt.Client = allowed.Addr().Next() // the first is the network's own
		}
		x.note("only some clients are let in, and it is told for one of them; --from names another")
		x.did = stage.Try(x.attempt)
	}
	x.explain()
	return x.report, nil
}

// noStream refuses a request to a port at which the gateway reads no HTTP; the
// error says what it does there.
func (x *requestExplainer) noStream() error {
	if x.attempt.Port == cmp.Or(x.HTTPPort, 80) || x.attempt.Port == cmp.Or(x.HTTPSPort, 443) {
		return nil // which no route can have
	}
	var first *model.StreamRoute
	var services []string
	for _, routes := range x.Snapshot.Streams.All() {
		for i := range routes {
			r := &routes[i]
			if r.Port == 0 || r.Port != x.attempt.Port || r.Protocol != model.TCP {
				continue
			}
			if first == nil || r.Ref.Compare(first.Ref) < 0 {
				first = r
			}
			if s := r.Backend.Service.String(); !slices.Contains(services, s) {
				services = append(services, s)
			}
		}
	}
	if first == nil {
		return nil
	}
	slices.Sort(services)
	return fmt.Errorf("%s: the gateway reads no HTTP at port %d: %s (%s) has TCP connections to it go on as they are, to Service %s; fairway explain svc/NAME tells of that",
		x.URL, first.Port, first.Ref, first.Field, strings.Join(services, " or "))
}

// Check refuses what is no request; the error names the cure.
func (o *RequestOptions) Check() error {
	_, err := o.attempt()
	return err
}

// attempt reads the request.
func (o *RequestOptions) attempt() (gateway.Attempt, error) {
	a := gateway.Attempt{Method: o.Method, Header: http.Header{}, Client: o.Client}
	if a.Method == "" {
		a.Method = http.MethodGet
	}
	if !a.Client.IsValid() {
		a.Client = someClient
	}
	scheme, rest, ok := strings.Cut(o.URL, "://")
	switch {
	case !ok:
		return a, fmt.Errorf("%s: say http:// or https:// before it, since the two may be served differently", o.URL)
	case strings.EqualFold(scheme, "https"):
		a.TLS, a.Port = true, 443
	case strings.EqualFold(scheme, "http"):
		a.Port = 80
	default:
		return a, fmt.Errorf("%s: the scheme must be http or https", o.URL)
	}
	rest, _, _ = strings.Cut(rest, "#") // clients keep the fragment for themselves
	a.Authority, a.Target = rest, "/"
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		a.Authority, a.Target = rest[:i], rest[i:]
		if rest[i] == '?' {
			a.Target = "/" + rest[i:]
		}
	}
	switch {
	case a.Authority == "":
		return a, fmt.Errorf("%s: has no host; write it as http://www.example.com/path", o.URL)
	case strings.Contains(a.Authority, "@"):
		return a, fmt.Errorf("%s: leave user and password out; clients send them in a header, as -H 'Authorization: ...'", o.URL)
	}
	if host, port, err := request.ParseHost(a.Authority); err == nil {
		if port != 0 {
			a.Port = port
		}
		if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err != nil {
			a.ServerName = host // an address is never sent (RFC 6066, 3)
		}
	}
	for _, line := range o.Header {
		name, value, ok := strings.Cut(line, ":")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		switch {
		case !ok || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value):
			return a, fmt.Errorf("-H %q: want a header as 'name: value'", line)
		case strings.EqualFold(name, "Host"):
			a.Authority = value
		default:
			a.Header.Add(name, value)
		}
	}
	return a, nil
}

type requestExplainer struct {
	RequestOptions
	attempt gateway.Attempt
	did     *gateway.Rehearsed
	node    *model.Node
	report  *RequestReport
}

func (x *requestExplainer) note(format string, args ...any) {
	x.report.Notes = append(x.report.Notes, fmt.Sprintf(format, args...))
}

func (x *requestExplainer) explain() {
	r := x.report
	r.Client = x.attempt.Client.String()
	r.Answer = answerOf(x.did.Outcome)
	if r.Answer != nil && strings.HasPrefix(r.Answer.Location, "https://") && !x.attempt.TLS {
		x.note("what comes then: fairway explain %s", r.Answer.Location)
	}
	r.Host, r.Path, r.Query = x.did.View.Host, x.did.View.Path, x.did.View.Query
	if x.did.Passed != nil {
		x.passed()
		return
	}
	x.candidates()
	x.tls()
	for i, what := range x.did.Filters {
		r.Filters = append(r.Filters, RequestFilter{what, i == x.did.Answered})
	}
	if r.Answer == nil {
		x.sent()
		r.Reaches = true
		for _, share := range x.did.Shares {
			x.share(share)
		}
	}
	x.problems()
}

// passed tells where TLS goes that passes through.
func (x *requestExplainer) passed() {
	r, rule := x.report, ruleOf(x.did.Passed, "TLS for the host passes through (annotation ssl-passthrough)")
	r.Route, r.Reaches = &rule, true
	x.note("the gateway sees the name that the client asks for (SNI) and nothing of the request: certificate and answer are the backend's")
	for _, share := range x.did.Shares {
		x.share(share)
	}
	if len(x.did.Shares[0].Backends[0].Endpoints) == 0 {
		r.Reaches = false
		x.note("no endpoint serves, so connections are reset")
	}
	x.problems()
}

func answerOf(o gateway.Outcome) *Answer {
	if o.Status == 0 {
		return nil
	}
	return &Answer{o.Status, o.Reason, o.Location}
}

func ruleOf(r *router.Rule, why string) RouteRule {
	out := RouteRule{Object: r.Ref().String(), Field: r.Spec.Field, Host: r.Spec.Host, Why: why}
	if !r.Spec.Default {
		out.PathType, out.Path = r.Spec.Path.Type.String(), r.Spec.Path.Value
	}
	return out
}

// candidates tells of the rules. Without a route those for other paths are of
// interest as well.
func (x *requestExplainer) candidates() {
	r, matching := x.report, 0
	for _, c := range x.did.Candidates {
		if c.Rule == x.did.Match || x.did.Match != nil && !c.Near {
			continue
		}
		if c.Near {
			matching++
		}
		if len(r.Candidates) == shownCandidates {
			r.More++
			continue
		}
		r.Candidates = append(r.Candidates, ruleOf(c.Rule, c.Reason))
	}
	if x.did.Match != nil {
		why := "no other rule is for this host and path"
		if matching > 0 {
			why = "it goes before the others for this host and path"
		}
		rule := ruleOf(x.did.Match, why)
		r.Route = &rule
	} else if x.did.View.Path != "" && len(x.did.Candidates) == 0 {
		x.note("no Ingress that Fairway serves has a rule for host %s; %s", strconv.Quote(x.did.View.Host), x.hosts())
	}
}

// hosts tells which hosts there are.
func (x *requestExplainer) hosts() string {
	seen := map[string]bool{}
	for _, route := range x.Snapshot.Routes.All() {
		for i := range route.Rules {
			seen[route.Rules[i].Host] = true
		}
	}
	delete(seen, "")
	var names []string
	for name := range seen {
		names = append(names, name)
	}
	if len(names) == 0 {
		return "there are no rules for hosts at all"
	}
	slices.Sort(names)
	more := ""
	if len(names) > shownCandidates {
		more = fmt.Sprintf(" and %d more", len(names)-shownCandidates)
		names = names[:shownCandidates]
	}
	return "the hosts that there are: " + strings.Join(names, ", ") + more
}

// tls tells of the certificate, also where only a redirect leads to it.
func (x *requestExplainer) tls() {
	out := RequestTLS{ServerName: x.attempt.ServerName, ClientAuth: x.did.ClientAuth}
	if x.attempt.TLS || x.did.HasTLS {
		c := x.did.Certificate
		out.Names, out.NotAfter, out.Refused = c.Names, c.NotAfter.UTC().Format(time.RFC3339), c.Refused
		if !c.Secret.IsZero() {
			out.Secret = c.Secret.String()
		}
	}
	if x.did.Match != nil && !x.attempt.TLS {
		redirect := x.did.Match.Spec.Filters.HTTPSRedirect
		switch {
		case redirect == nil && x.did.ClientAuth != "":
			out.Redirect = "plain http is not redirected, and a client that comes by it has shown no certificate"
		case redirect == nil && len(x.did.Match.Route.TLS) == 0:
			out.Redirect = fmt.Sprintf("plain http is served: %s has no spec.tls", x.did.Match.Ref())
		case redirect == nil:
			out.Redirect = fmt.Sprintf(`plain http is served: spec.tls of %s does not name the host, or an annotation switches the redirect off (ssl-redirect: "false")`, x.did.Match.Ref())
		case x.did.Match.Spec.Filters.PassedThrough:
			out.Redirect = "plain http is redirected to https: TLS for the host passes through to its backend (annotation ssl-passthrough)"
			out.Names, out.Secret, out.Refused = nil, "", ""
		case redirect.Force:
			out.Redirect = "plain http is redirected to https: annotation force-ssl-redirect asks for it"
		case x.did.HasTLS:
			out.Redirect = fmt.Sprintf("plain http is redirected to https: spec.tls of %s covers the host", x.did.Match.Ref())
		default:
			out.Redirect = "plain http is served: the host has no certificate"
		}
	}
	if out.Names != nil || out.Redirect != "" || out.ClientAuth != "" {
		x.report.TLS = &out
	}
}

func (x *requestExplainer) sent() {
	out := &SentRequest{Method: x.did.View.Method, Target: x.did.Path, Host: x.did.View.Authority, Set: []string{}, Removed: []string{}}
	if x.did.Query != "" {
		out.Target += "?" + x.did.Query
	}
	for _, f := range x.did.Header {
		switch {
		case f.Value != "" && f.Name == "X-Request-Id" && x.did.View.Header.Values(f.Name) == nil:
			out.Set = append(out.Set, f.Name+": (a new one for each request)")
		case f.Value != "":
			out.Set = append(out.Set, f.Name+": "+f.Value)
		case len(x.did.View.Header.Values(f.Name)) > 0:
			out.Removed = append(out.Removed, f.Name)
		}
	}
	x.report.Sent = out
}

// share tells of the backends of a rule.
func (x *requestExplainer) share(s gateway.RehearsedShare) {
	out := RequestBackend{Object: s.Rule.Ref().String(), Canary: s.Rule.Spec.Canary != nil, Percent: 100 * s.Part, Why: s.Why, Endpoints: []RequestEndpoint{}}
	add := func(b RequestBackend) {
		if b.Answer != nil && b.Percent > 0 {
			x.report.Reaches = false
		}
		x.report.Backends = append(x.report.Backends, b)
	}
	if len(s.Backends) == 0 {
		out.Answer = answerOf(s.Outcome)
		add(out)
	}
	for i := range s.Backends {
		b := &s.Backends[i]
		to := out
		to.Percent = 100 * s.Part * float64(b.Weight) / float64(b.Total)
		to.Service, to.Protocol, to.TLS, to.Answer = b.Key.Service.String(), b.Protocol, b.TLS, answerOf(b.Outcome)
		if to.Port = b.Key.Port.Name; to.Port == "" {
			to.Port = strconv.Itoa(int(b.Key.Port.Number))
		}
		to.Endpoints = x.endpoints(b)
		add(to)
	}
}

// endpoints tells which endpoints are asked, as the gateway has them, and why,
// as plan says.
func (x *requestExplainer) endpoints(b *gateway.RehearsedBackend) []RequestEndpoint {
	list := []RequestEndpoint{}
	svc, _ := x.Snapshot.Services.Get(b.Key.Service)
	if svc == nil {
		return list
	}
	port, _ := upstream.ServicePort(svc, b.Key)
	if svc.Type == model.ExternalName {
		for _, name := range b.Endpoints {
			list = append(list, RequestEndpoint{Address: name, Standing: Standing{true, "the Service stands for this name, which the gateway looks up"}})
		}
		return list
	}
	// The gateway goes to endpoints itself, whatever cluster IPs there are.
	direct := *svc
	direct.ClusterIPs = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	set, _ := x.Snapshot.Endpoints.Get(b.Key.Service)
	for _, v := range plan.Verdicts(plan.Input{Service: &direct, Endpoints: set, Node: x.node}, port) {
		e := RequestEndpoint{Address: v.Addr.String(), Node: v.Endpoint.Node, Standing: Standing(v.Cluster)}
		if v.Addr.Port() == 0 {
			e.Address = v.Addr.Addr().String()
		}
		if about := v.Endpoint.About; about != nil {
			e.Zone, e.Pod = about.Zone, about.Pod.Name
		}
		if in := slices.Contains(b.Endpoints, e.Address); in != e.In {
			e.Standing = Standing{in, "the gateway weighs the endpoints of both address families together"}
		}
		list = append(list, e)
	}
	return list
}

// problems collects what is wrong with the objects that have to do with the
// request.
func (x *requestExplainer) problems() {
	seen := map[string]bool{}
	add := func(list []model.Problem) {
		for _, p := range list {
			if text := p.String(); !seen[text] {
				seen[text] = true
				x.report.Problems = append(x.report.Problems, text)
			}
		}
	}
	of := func(ref model.Ref) {
		ref.UID = ""
		list, _ := x.Snapshot.Problems.Get(ref)
		add(list)
		add(x.Problems[ref])
	}
	if x.did.Passed != nil {
		of(x.did.Passed.Ref())
	}
	if x.did.Match != nil {
		of(x.did.Match.Ref())
		for _, canary := range x.did.Match.Canaries {
			of(canary.Ref())
		}
	} else {
		x.unserved(add)
	}
	for _, c := range x.did.Candidates {
		if c.Near && (x.did.Match == nil || x.did.Match.Spec.Default || !c.Rule.Spec.Default) {
			of(c.Rule.Ref())
		}
	}
	for _, s := range x.did.Shares {
		for i := range s.Backends {
			key := s.Backends[i].Key.Service
			of(model.Ref{Kind: "Service", Key: key})
			if p, ok := (plan.View{Options: plan.Options{ExternalIPs: true, SCTP: true}}).Compile(x.Snapshot, key); ok {
				add(p.Problems)
			}
		}
	}
}

// unserved collects the problems of Ingresses that nobody serves: one of them
// may have been meant to.
func (x *requestExplainer) unserved(add func([]model.Problem)) {
	var refs []model.Ref
	for ref := range x.Snapshot.Problems.All() {
		_, routed := x.Snapshot.Routes.Get(ref)
		_, streamed := x.Snapshot.Streams.Get(ref)
		if ref.Kind == "Ingress" && !routed && !streamed {
			refs = append(refs, ref)
		}
	}
	slices.SortFunc(refs, model.Ref.Compare)
	for _, ref := range refs[:min(len(refs), shownCandidates)] {
		list, _ := x.Snapshot.Problems.Get(ref)
		add(list)
	}
}
