package filter

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/gateway/request"
	"fairway.dev/fairway/internal/model"
)

// ClientAuth is what clients of a host have to prove (auth-tls-secret and its
// kin of ingress-nginx).
type ClientAuth struct {
	Spec *model.ClientAuth
	// Policy is how certificates are judged; nil if nobody is asked, or if Refused
	// says why nobody can be let in.
	Policy  *certs.ClientPolicy
	Refused string

	name *regexp.Regexp // of the whole common name; nil for any
}

// NewClientAuth makes what spec asks for. Authorities are those of its Secret;
// nil if there are none, and refused is why then.
func NewClientAuth(spec *model.ClientAuth, authorities *certs.Authorities, refused string) *ClientAuth {
	a := &ClientAuth{Spec: spec}
	switch {
	case !spec.Asks():
	case spec.Refused != "":
		a.Refused = spec.Refused
	case authorities == nil:
		a.Refused = refused
	default:
		a.Policy = &certs.ClientPolicy{Authorities: authorities, Verify: spec.Verify, Depth: spec.Depth}
	}
	if spec.CommonName != "" {
		var err error
		if a.name, err = regexp.Compile(`\A(?:` + spec.CommonName + `)\z`); err != nil {
			a.Policy, a.Refused = nil, "the pattern of the common name is no regular expression"
		}
	}
	return a
}

// String says what clients have to prove, in words for people.
func (a *ClientAuth) String() string {
	var text string
	switch {
	case a.Refused != "":
		return "lets in nobody, for certificates of clients cannot be judged: " + a.Refused
	case a.Policy == nil:
		text = "asks clients for no certificate, and says so to the backend"
	default:
		text = fmt.Sprintf("asks clients for a certificate by Secret %s", a.Spec.Secret)
		switch a.Spec.Verify {
		case model.ClientVerifyOptional:
			text += ", who may come without"
		case model.ClientVerifyOptionalNoCA:
			text += ", who may come without or with one that nobody known has signed"
		}
	}
	if a.name != nil {
		text += fmt.Sprintf(", and lets in common names that match %s", a.Spec.CommonName)
	}
	return text
}

// ClientTable is what clients have to prove, of all hosts and routes. It does
// not change.
type ClientTable struct {
	// Hosts are by name, wildcard "*.example.com", and "" for all that is not named.
	// Those that ask for nothing stand there with nil.
	Hosts map[string]*ClientAuth
	// Routes are by route, for default backends, which take requests to any host,
	// and for Strangers.
	Routes map[model.Key]*ClientAuth
	// Strangers are the routes that ask something of a host about which another
	// namespace decides. It is asked of the requests that they take.
	Strangers map[ClientStranger]struct{}
}

// ClientStranger is a route with a host of another namespace.
type ClientStranger struct {
	Route model.Key
	Host  string
}

// Host returns what is asked of clients of a host, by its normal form; nil for
// nothing. As in nginx that is a matter of the most exact name that is served, and
// not of others that it falls under as well.
func (t *ClientTable) Host(name string) *ClientAuth {
	if a, ok := t.Hosts[name]; ok {
		return a
	}
	if i := strings.IndexByte(name, '.'); i > 0 {
		if a, ok := t.Hosts["*"+name[i:]]; ok {
			return a
		}
	}
	return t.Hosts[""]
}

// Policy returns the policy for handshakes of clients that ask for a name; nil if
// they are asked for no certificate.
func (t *ClientTable) Policy(name string) *certs.ClientPolicy {
	if a := t.Host(name); a != nil {
		return a.Policy
	}
	return nil
}

// Refuse answers for a request to a host that nothing takes there, as long as it
// does not meet what the host asks for; nil if it does. Who may not come in does
// not learn what is there.
func (t *ClientTable) Refuse(v *request.View) *Answer {
	if a := t.Host(v.Host); a != nil {
		return a.judge(v, t, true).answer
	}
	return nil
}

// ClientGuard is who asks clients of a rule for certificates.
type ClientGuard struct {
	// Table has the newest table; nil in it if nobody asks for anything.
	Table *atomic.Pointer[ClientTable]
	// Host is the rule's, and Route its route if it is a default backend, or a
	// stranger at its host.
	Host  string
	Route *model.Key
}

func (g *ClientGuard) own(t *ClientTable) *ClientAuth {
	if g.Route != nil {
		return t.Routes[*g.Route]
	}
	return t.Hosts[g.Host]
}

func newClientAuth(_ *model.Filters, env Environment) Filter {
	if env.Clients == nil {
		return nil
	}
	return env.Clients
}

// String implements fmt.Stringer.
func (g *ClientGuard) String() string {
	if t := g.Table.Load(); t != nil {
		if a := g.own(t); a != nil {
			return a.String()
		}
	}
	return "asks clients for a certificate where their host does"
}

// Apply implements Filter. A request has to meet what its host asks for, and what
// the rule does that takes it, which may be one for more hosts.
func (g *ClientGuard) Apply(x *Exchange) *Answer {
	t := g.Table.Load()
	if t == nil {
		return nil
	}
	host, own := t.Host(x.View.Host), g.own(t)
	var last finding
	if host != nil {
		if last = host.judge(x.View, t, true); last.answer != nil {
			return last.answer
		}
	}
	if own != nil && own != host {
		if last = own.judge(x.View, t, false); last.answer != nil {
			return last.answer
		}
	}
	if last.verified != "" {
		last.tell(x)
	}
	return nil
}

// finding is what was found out about a client.
type finding struct {
	answer *Answer // for one that may not go on
	// What the backend is told.
	verified string
	client   *certs.Client // nil for one without certificate
	pass     bool
}

// judge finds out whether a client may go on. Its tells that it is the request's
// host that asks, so that the handshake has to have been under the same policy.
func (a *ClientAuth) judge(v *request.View, t *ClientTable, its bool) finding {
	if a.Refused != "" {
		return finding{answer: &Answer{Status: http.StatusServiceUnavailable, Reason: "certificates of clients cannot be judged, so nobody is let in"}}
	}
	if a.Policy == nil {
		return a.goOn(nil, "NONE")
	}
	var client *certs.Client
	if v.TLS && v.Local != nil {
		client = v.Local.Client()
		if its && (client == nil || !same(t.Policy(client.Name()), a.Policy)) {
			return finding{answer: &Answer{Status: http.StatusMisdirectedRequest, Leave: true,
				Reason: "the connection was opened for a host that asks other things of its clients; open one for this host"}}
		}
	}
	if client == nil || !client.HasShown() {
		if a.Spec.Verify == model.ClientVerifyOn {
			return a.refuse("No required SSL certificate was sent")
		}
		return a.goOn(nil, "NONE")
	}
	err := client.Verify(a.Policy, time.Now())
	switch {
	case err == nil:
		return a.goOn(client, verifiedSuccess)
	case a.Spec.Verify == model.ClientVerifyOptionalNoCA && errors.Is(err, certs.ErrUnknownAuthority):
		return a.goOn(client, "FAILED:"+err.Error())
	}
	return a.refuse("The SSL certificate error: " + err.Error())
}

// verifiedSuccess is what nginx says of a good certificate.
const verifiedSuccess = "SUCCESS"

func same(a, b *certs.ClientPolicy) bool { return a != nil && b != nil && *a == *b }

func (a *ClientAuth) refuse(reason string) finding {
	if a.Spec.ErrorPage != "" {
		return finding{answer: &Answer{Status: http.StatusFound, Location: a.Spec.ErrorPage}}
	}
	return finding{answer: &Answer{Status: http.StatusBadRequest, Reason: reason}}
}

// goOn lets a client in if its name is right. That counts only if somebody known
// vouches for it.
func (a *ClientAuth) goOn(client *certs.Client, verified string) finding {
	if a.name != nil && (client == nil || verified != verifiedSuccess || !client.Named(a.name)) {
		return finding{answer: &Answer{Status: http.StatusForbidden, Reason: "client certificate unauthorized"}}
	}
	return finding{verified: verified, client: client, pass: a.Spec.Pass}
}

// tell sets the headers that tell the backend of the client, in place of what the
// client has sent under their names.
func (f *finding) tell(x *Exchange) {
	texts := &noTexts
	if f.client != nil {
		texts = f.client.Texts()
	}
	cert := texts.Certificate
	if !f.pass {
		cert = ""
	}
	x.setHeader("Ssl-Client-Verify", f.verified)
	x.setHeader("Ssl-Client-Subject-Dn", texts.Subject)
	x.setHeader("Ssl-Client-Issuer-Dn", texts.Issuer)
	x.setHeader("Ssl-Client-Cert", cert)
}

var noTexts certs.ClientTexts
