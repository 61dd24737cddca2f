package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/gateway/filter"
	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/request"
	"fairway.dev/fairway/internal/gateway/router"
	"fairway.dev/fairway/internal/gateway/upstream"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// RehearsalOptions say what a [Rehearsal] knows.
type RehearsalOptions struct {
	// Snapshot is the state of the cluster, synced. Required.
	Snapshot *state.Snapshot
	// NodeName is the node that the gateway runs on, for topology hints. Optional.
	NodeName string
	// HTTPSPort is where redirects to https lead; 0 means 443.
	HTTPSPort uint16
	// ClusterDomain is the domain of the names of Services; default cluster.local.
	ClusterDomain string
}

// Rehearsal is a gateway without ports and connections: requests go through
// all that decides about them in one that serves, and end before a backend is
// connected to.
type Rehearsal struct{ g *Gateway }

// NewRehearsal makes a rehearsal of a snapshot.
func NewRehearsal(o RehearsalOptions) (*Rehearsal, error) {
	if o.Snapshot == nil || !o.Snapshot.Synced {
		return nil, errors.New("gateway: a rehearsal needs a Snapshot that is synced")
	}
	g, err := New(Options{Store: state.New(), Logger: slog.New(slog.DiscardHandler), NodeName: o.NodeName, ClusterDomain: o.ClusterDomain})
	if err != nil {
		return nil, err
	}
	if g.env.HTTPSPort = o.HTTPSPort; o.HTTPSPort == 0 {
		g.env.HTTPSPort = 443
	}
	snap := *o.Snapshot
	snap.Streams = onlyThrough(snap.Streams)
	g.sync(context.Background(), &snap)
	return &Rehearsal{g}, nil
}

// onlyThrough leaves routes out that would open ports.
func onlyThrough(all state.Table[model.Ref, []model.StreamRoute]) state.Table[model.Ref, []model.StreamRoute] {
	store := state.New()
	store.Update(func(tx *state.Tx) {
		for ref, list := range all.All() {
			tx.PutStreams(ref, slices.DeleteFunc(slices.Clone(list), func(r model.StreamRoute) bool { return r.Port != 0 }))
		}
	})
	return store.Snapshot().Streams
}

// Attempt is a request to rehearse.
type Attempt struct {
	// Method, Target and Authority are as a client would send them, Target a
	// path with a query.
	Method, Target, Authority string
	Header                    http.Header
	// TLS tells that the client comes by https, and ServerName is what it asks
	// for then (SNI); empty for none.
	TLS        bool
	ServerName string
	// Client is where it comes from, and Port the port of the gateway that it
	// connects to.
	Client netip.Addr
	Port   uint16
}

// Outcome is what becomes of a request.
type Outcome struct {
	// Status is that of an answer by the gateway itself, with what it says and,
	// of a redirect, where it leads; 0 if the request goes to a backend.
	Status           int
	Reason, Location string
}

// Rehearsed is how a request fared.
type Rehearsed struct {
	// View is the request as router and filters see it. Where Outcome is that
	// it could not be read, it is read as far as that.
	View request.View
	// Match is the rule that takes the request, nil if none does, and
	// Candidates are all that there are for its host, in order of precedence.
	Match      *router.Rule
	Candidates []router.Candidate
	// Filters are those of the rule, in order; Answered is the number of the one
	// that answered, -1 if none did.
	Filters  []string
	Answered int
	// Outcome is what came before a backend; its Status is 0 if nothing did.
	Outcome Outcome
	// Path, Query and Header are what a backend is sent: each of Header is set
	// in place of what the client sent, or removed if it is empty. Only where
	// no answer came before.
	Path, Query string
	Header      []http1.Field
	// Shares are how such requests are divided, the rule first, then canaries.
	// Only where no answer came before.
	Shares []RehearsedShare
	// Passed is the rule by which TLS for the server name passes through, so that
	// nothing else counts than its one of Shares; nil if it does not.
	Passed *router.Rule
	// ClientAuth is how clients of the host are asked for a certificate; empty if
	// they are not. Who comes by TLS is taken to show a good one, if the handshake
	// asks for any: that goes by the server name.
	ClientAuth string
	// HasTLS tells whether the host has TLS, and Certificate is what a client
	// that asks for the name is shown.
	HasTLS      bool
	Certificate RehearsedCertificate
}

// RehearsedShare is a rule with its part of the requests.
type RehearsedShare struct {
	filter.Share
	// Outcome is what those get that have no backend to go to.
	Outcome  Outcome
	Backends []RehearsedBackend
}

// RehearsedBackend is a backend of a rule.
type RehearsedBackend struct {
	Key upstream.Key
	// Weight is of Total.
	Weight, Total uint64
	// Protocol is spoken to it, and TLS is, in words, who trusts whom by what;
	// empty without TLS.
	Protocol, TLS string
	// Endpoints are asked, as "address:port".
	Endpoints []string
	// Outcome is what clients get if there are none.
	Outcome Outcome
}

// RehearsedCertificate is a certificate with the Secret that it is from, zero
// for the gateway's own.
type RehearsedCertificate struct {
	Secret   model.Key
	Names    []string
	NotAfter time.Time
	// Refused is why clients will not take it; empty if nothing speaks against it
	// but perhaps who signed it.
	Refused string
}

// Try sends a request through.
func (r *Rehearsal) Try(a Attempt) *Rehearsed {
	c := &rehearsalClient{}
	t := &transaction{g: r.g, client: c, target: a.Target, protocol: "HTTP/1.1"}
	t.view = request.View{Method: a.Method, Authority: a.Authority, Header: a.Header, TLS: a.TLS, Peer: a.Client, Port: a.Port,
		PeerText: a.Client.String(), PortText: strconv.Itoa(int(a.Port))}
	if a.TLS {
		t.view.Local = rehearsalConn{r.g.clients.anyone(a.ServerName)}
	}
	t.begin()
	defer t.finished()
	out := &Rehearsed{Answered: -1}
	if isTarget(t.target) {
		if config := t.admit(); config != nil {
			out.shares(t, config)
		}
	} else {
		t.fail(http.StatusBadRequest, "the request target has a character that must be escaped")
	}
	out.View, out.Outcome, out.Match = t.view, c.outcome(t), t.rule
	if out.View.Path != "" {
		out.Candidates = r.g.config.Load().router.Explain(&out.View)
		out.HasTLS = r.g.env.HasTLS(out.View.Host)
	}
	if t.rule != nil {
		out.filters(t)
	}
	out.Certificate = r.g.certificate(a.ServerName)
	if a.TLS {
		out.passed(r.g, a.ServerName)
	}
	if c := r.g.clients.table.Load(); c != nil {
		if asked := c.Host(out.View.Host); asked != nil && asked.Policy != nil {
			out.ClientAuth = asked.String()
		}
	}
	return out
}

// passed finds out whether TLS passes through, and where to.
func (out *Rehearsed) passed(g *Gateway, serverName string) {
	s := g.streams.Passed(serverName)
	if s == nil {
		return
	}
	// Not by the router: another route may have host and path there, and takes
	// nothing by TLS all the same.
	for _, route := range g.applied.Routes.All() {
		for i := range route.Rules {
			if spec := &route.Rules[i]; spec.Filters.PassedThrough && route.Ref.Compare(s.Ref) == 0 && spec.Field == s.Field {
				out.Passed = &router.Rule{Route: route, Spec: spec}
			}
		}
	}
	if out.Passed == nil {
		return
	}
	out.Outcome, out.Filters, out.Answered = Outcome{}, nil, -1
	out.Shares = []RehearsedShare{{Share: filter.Share{Rule: out.Passed, Part: 1}, Backends: []RehearsedBackend{{
		Key: s.Pool.Key(), Weight: 1, Total: 1, Protocol: "TLS, as it comes", Endpoints: s.Pool.Addresses(),
	}}}}
}

// filters lists those of the rule, and finds out which one answered.
func (out *Rehearsed) filters(t *transaction) {
	x := filter.Exchange{View: &t.view, Match: t.exchange.Match, BodyLength: t.bodyLength, RequestID: t.id, Path: t.view.Path, Query: t.view.Query}
	for i, f := range t.site.chain {
		out.Filters = append(out.Filters, f.String())
		if out.Answered < 0 && f.Apply(&x) != nil {
			out.Answered = i
		}
	}
}

// shares does what transaction.forward does, for all that it could choose.
func (out *Rehearsed) shares(t *transaction, c *config) {
	filter.Forward(&t.exchange)
	out.Path, out.Query, out.Header = t.exchange.Path, t.exchange.Query, slices.Clone(t.exchange.Header)
	held := t.held(c)
	for _, share := range t.site.canaries.Shares(t.rule, &t.view) {
		if held != nil && t.site.canaries != nil {
			share.Part, share.Why = 0, "the session's cookie decides"
			if share.Rule == held {
				share.Part = 1
			}
		}
		s := &c.sites[share.Rule.ID]
		list := RehearsedShare{Share: share}
		if s.total == 0 {
			list.Outcome = t.instead(share.Rule, func(t *transaction) { t.fail(http.StatusServiceUnavailable, noBackend) })
		}
		for i := range s.backends {
			b := &s.backends[i]
			to := RehearsedBackend{Key: b.pool.Key(), Weight: b.weight, Total: s.total, Protocol: b.pool.Speaks(b.protocol), Endpoints: b.pool.Addresses()}
			err := b.pool.Err()
			if b.pool.Secure(b.protocol) {
				to.TLS = t.g.backendTLS.describe(b.tls)
				if b.tls != nil && err == nil && b.tls.Settings().Err != nil {
					err = &upstream.TLSError{Fault: upstream.FaultSettings, Err: b.tls.Settings().Err}
				}
			}
			if err != nil {
				to.Outcome = t.instead(share.Rule, func(t *transaction) {
					t.pool = b.pool
					t.proxyFailed(err)
				})
			}
			list.Backends = append(list.Backends, to)
		}
		out.Shares = append(out.Shares, list)
	}
}

// instead returns what a client gets in a case that is not the transaction's own.
func (t *transaction) instead(rule *router.Rule, fail func(*transaction)) Outcome {
	c := &rehearsalClient{}
	other := *t
	other.client, other.rule = c, rule
	fail(&other)
	return c.outcome(&other)
}

// certificate tells which one clients of today are shown.
func (g *Gateway) certificate(serverName string) RehearsedCertificate {
	cert, err := g.certs.index.GetCertificate(&tls.ClientHelloInfo{
		ServerName: serverName, SupportedVersions: []uint16{tls.VersionTLS13}, CipherSuites: []uint16{tls.TLS_AES_128_GCM_SHA256},
		SupportedCurves:  []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521},
		SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256, tls.ECDSAWithP384AndSHA384, tls.ECDSAWithP521AndSHA512, tls.Ed25519, tls.PSSWithSHA256},
	})
	if err != nil {
		return RehearsedCertificate{Refused: err.Error()}
	}
	out := RehearsedCertificate{Names: certs.Names(cert), NotAfter: cert.Leaf.NotAfter}
	for key, p := range g.certs.parsed {
		if p.cert == cert {
			out.Secret = key
		}
	}
	switch {
	case out.Secret.IsZero():
		out.Refused = "it is the gateway's own, which nobody has signed (unless its --default-certificate names another)"
	case serverName != "":
		if err := certs.CheckHost(cert, serverName); err != nil {
			out.Refused = err.Error()
		}
	}
	if err := certs.CheckValidity(cert, time.Now()); err != nil && out.Refused == "" {
		out.Refused = err.Error()
	}
	return out
}

// rehearsalConn is the connection of a client that shows whatever certificate it
// is asked for, nil if its handshake asks for none.
type rehearsalConn struct{ client *certs.Client }

// LocalAddr implements request.Conn.
func (c rehearsalConn) LocalAddr() net.Addr { return nil }

// Client implements request.Conn.
func (c rehearsalConn) Client() *certs.Client { return c.client }

// rehearsalClient is told what a client would be.
type rehearsalClient struct {
	status   int
	location string
}

// answer implements client.
func (c *rehearsalClient) answer(_ *transaction, status int, header []http1.Field, _ string) {
	c.status = status
	for _, f := range header {
		if f.Name == "Location" {
			c.location = f.Value
		}
	}
}

// proxy implements client. A rehearsal ends before.
func (c *rehearsalClient) proxy(*transaction, *backend) {}

// sent implements client.
func (c *rehearsalClient) sent() (int, int64) { return c.status, 0 }

// closeAfter implements client.
func (c *rehearsalClient) closeAfter() {}

// leave implements client.
func (c *rehearsalClient) leave() {}

// left implements client.
func (c *rehearsalClient) left() bool { return false }

// cut implements client.
func (c *rehearsalClient) cut() bool { return false }

// bodyFailed implements client.
func (c *rehearsalClient) bodyFailed() {}

func (c *rehearsalClient) outcome(t *transaction) Outcome {
	return Outcome{Status: c.status, Reason: t.failure, Location: c.location}
}
