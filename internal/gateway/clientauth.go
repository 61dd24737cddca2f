package gateway

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/gateway/filter"
	"fairway.dev/fairway/internal/gateway/router"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// The reasons of problems with certificates of clients.
const (
	ReasonBadAuthorities     = "AuthoritiesInvalid"
	ReasonClientAuthConflict = "ClientAuthConflict"
)

// clientAuth knows what clients have to prove. Handshakes go by its table, and
// requests by the one that their config has: a route that goes takes what it asked
// for with it, and neither before the other. The rest belongs to who syncs.
type clientAuth struct {
	table    atomic.Pointer[filter.ClientTable] // nil while nobody asks for anything
	known    map[model.Key]*authorities
	routes   state.Table[model.Ref, *model.Route]
	rows     state.Table[model.Key, *model.Certificate]
	problems []model.Problem
	checked  time.Time
}

// authorities are those of a Secret, with the row that they were last read from.
type authorities struct {
	row  *model.Certificate
	good *certs.Authorities // the last good ones; nil if there never were any
	err  error              // what is wrong with row
	used bool
}

// config returns what chooses the configuration for a handshake: base, or one that
// asks for a certificate where the host does that the client asks for.
func (c *clientAuth) config(base *tls.Config) func(*tls.ClientHelloInfo) (*tls.Config, error) {
	return func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		t := c.table.Load()
		if t == nil {
			return nil, nil
		}
		p := t.Policy(certs.ServerName(hello.ServerName))
		if p == nil {
			return nil, nil
		}
		return p.Config(base), nil
	}
}

// client returns what is to be known of the client of a connection; nil if
// it was asked for no certificate.
func (c *clientAuth) client(secure *tls.ConnectionState) *certs.Client {
	if !c.asks(secure.ServerName) {
		return nil
	}
	return certs.NewClient(secure)
}

// anyone is client for one that shows a certificate that everybody takes, if it is
// asked for one at all.
func (c *clientAuth) anyone(serverName string) *certs.Client {
	if !c.asks(serverName) {
		return nil
	}
	return certs.AnyClient(serverName)
}

// asks reports whether handshakes for a name ask for a certificate.
func (c *clientAuth) asks(serverName string) bool {
	t := c.table.Load()
	return t != nil && t.Policy(certs.ServerName(serverName)) != nil
}

// due tells that it is time to sync even without a change.
func (c *clientAuth) due(now time.Time) bool {
	return len(c.known) > 0 && now.Sub(c.checked) >= recheckCertificates
}

// sync makes the table anew if routes or Secrets changed, and returns what is wrong.
func (c *clientAuth) sync(snap *state.Snapshot) []model.Problem {
	now := time.Now()
	if c.routes == snap.Routes && c.rows == snap.Certificates && !c.due(now) {
		return c.problems
	}
	c.routes, c.rows, c.checked, c.problems = snap.Routes, snap.Certificates, now, nil
	routes := oldestFirst(snap, func(r *model.Route) bool { return r.ClientAuth != nil })
	if len(routes) == 0 {
		c.known = map[model.Key]*authorities{}
		c.table.Store(nil)
		return nil
	}
	for _, a := range c.known {
		a.used = false
	}
	t := &filter.ClientTable{Hosts: map[string]*filter.ClientAuth{}, Routes: map[model.Key]*filter.ClientAuth{}, Strangers: map[filter.ClientStranger]struct{}{}}
	for _, r := range snap.Routes.All() {
		for i := range r.Rules {
			if rule := &r.Rules[i]; !rule.Default {
				t.Hosts[rule.Host] = nil
			}
		}
	}
	for _, r := range routes {
		t.Routes[r.Key] = c.compile(snap, r, now)
	}
	owners := model.ClientAuthOwners(oldestFirst(snap, func(*model.Route) bool { return true }))
	for host, owner := range owners {
		if owner.Decides != nil {
			t.Hosts[host] = t.Routes[owner.Decides.Key]
		}
	}
	for _, r := range routes {
		for _, host := range r.ClientAuthHosts {
			switch owner := owners[host]; {
			case owner.First.Namespace != r.Namespace:
				if r.ClientAuth.Asks() {
					t.Strangers[filter.ClientStranger{Route: r.Key, Host: host}] = struct{}{}
				}
				c.report(r, ReasonClientAuthConflict, "%s of another namespace is older and serves host %q as well, so its namespace decides what clients of it are asked for; those who come for rules of this one need what both ask for: choose another host, or have the auth-tls annotations there", owner.First.Ref, host)
			case owner.Decides != r && *owner.Decides.ClientAuth != *r.ClientAuth:
				c.report(r, ReasonClientAuthConflict, "the older %s asks something else of the clients of host %q, and that counts for all of it; make the auth-tls annotations of both alike, or leave them to one of them", owner.Decides.Ref, host)
			}
		}
	}
	for key, a := range c.known {
		if !a.used {
			delete(c.known, key)
		}
	}
	c.table.Store(t)
	return c.problems
}

func (c *clientAuth) report(r *model.Route, reason, format string, args ...any) {
	c.problems = append(c.problems, model.Problem{Object: r.Ref, Reason: reason, Field: r.ClientAuth.Field, Message: fmt.Sprintf(format, args...)})
}

// compile makes what a route asks for. A Secret that was good and is no longer
// keeps its last good authorities; without any nobody is let in.
func (c *clientAuth) compile(snap *state.Snapshot, r *model.Route, now time.Time) *filter.ClientAuth {
	spec := r.ClientAuth
	if spec.Refused != "" {
		return filter.NewClientAuth(spec, nil, "")
	}
	row, ok := snap.Certificates.Get(spec.Secret)
	if !ok {
		c.report(r, ReasonSecretNotFound, "Secret %s does not exist: create it (kubectl create secret generic --from-file=ca.crt=FILE); until then nobody is let in", spec.Secret)
		return filter.NewClientAuth(spec, nil, fmt.Sprintf("Secret %s does not exist", spec.Secret))
	}
	a := c.get(row)
	switch {
	case a.err != nil && a.good == nil:
		c.report(r, ReasonBadAuthorities, "Secret %s: %v; until then nobody is let in", spec.Secret, a.err)
		return filter.NewClientAuth(spec, nil, fmt.Sprintf("Secret %s: %v", spec.Secret, a.err))
	case a.err != nil:
		c.report(r, ReasonBadAuthorities, "Secret %s: %v; its last good authorities still count", spec.Secret, a.err)
	}
	for _, text := range a.good.Check(now) {
		c.report(r, ReasonExpired, "Secret %s: %s", spec.Secret, text)
	}
	return filter.NewClientAuth(spec, a.good, "")
}

func (c *clientAuth) get(row *model.Certificate) *authorities {
	a := c.known[row.Key]
	if a == nil {
		a = &authorities{}
		c.known[row.Key] = a
	}
	a.used = true
	if a.row != row {
		// What has not changed stays as it is: clients that were found to be good are
		// not looked at again.
		if a.row == nil || a.err != nil || !bytes.Equal(a.row.CA, row.CA) || !bytes.Equal(a.row.CRL, row.CRL) {
			var good *certs.Authorities
			if good, a.err = certs.ParseAuthorities(row.CA, row.CRL); a.err == nil {
				a.good = good
			}
		}
		a.row = row
	}
	return a
}

// guard returns who asks clients of a rule for certificates; nil for nobody. A
// rule for more than one host takes requests of hosts that ask for something, or
// is reached beside a rule that does.
func guard(rule *router.Rule, table *atomic.Pointer[filter.ClientTable]) *filter.ClientGuard {
	t := table.Load()
	if t == nil {
		return nil
	}
	g := &filter.ClientGuard{Table: table, Host: rule.Spec.Host}
	if _, stranger := t.Strangers[filter.ClientStranger{Route: rule.Route.Key, Host: g.Host}]; stranger || rule.Spec.Default {
		g.Route = &rule.Route.Key
		return g
	}
	if t.Hosts[g.Host] != nil || g.Host == "" {
		return g
	}
	if suffix, wild := strings.CutPrefix(g.Host, "*"); wild {
		for host, a := range t.Hosts {
			if label, ok := strings.CutSuffix(host, suffix); a != nil && ok && !strings.Contains(label, ".") {
				return g
			}
		}
	}
	return nil
}

// state tells what clients of each host have to prove that asks for something.
func (c *clientAuth) state() []ClientAuthState {
	t := c.table.Load()
	if t == nil {
		return nil
	}
	var list []ClientAuthState
	for host, a := range t.Hosts {
		if a == nil {
			continue
		}
		s := ClientAuthState{Host: host, What: a.String(), Secret: a.Spec.Secret.String()}
		if known := c.known[a.Spec.Secret]; known != nil {
			if known.good != nil {
				s.Authorities = known.good.Names()
			}
			if known.err != nil {
				s.Error = known.err.Error()
			}
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b ClientAuthState) int { return strings.Compare(a.Host, b.Host) })
	return list
}
