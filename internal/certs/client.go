package certs

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"fairway.dev/fairway/internal/model"
)

// ClientPolicy is how clients' certificates are judged. Two that are equal ask
// for the same.
type ClientPolicy struct {
	// Authorities vouch for clients.
	Authorities *Authorities
	// Verify is what is asked of a client.
	Verify model.ClientVerify
	// Depth is how many authorities may stand between a client and those that are known.
	Depth int
}

// maxNamed is how long the names of authorities may be that a handshake tells of.
// They only help a client to choose, and a message with more than 64 KiB is none.
const maxNamed = 60000

// Config returns the configuration of a server for handshakes under the policy:
// that of base, and clients are asked for a certificate. Whatever they show, and
// if they show none, the handshake goes on, for it is an answer of HTTP that
// tells them what is wrong; but what is shown has to come with a proof that
// the client has its key.
//
// No session is resumed. A ticket would let a client in whose certificate has
// expired or was revoked since, or who has shown none, or one to another host; and
// who got refused without a certificate could not show one the next time.
func (p *ClientPolicy) Config(base *tls.Config) *tls.Config {
	c := base.Clone()
	c.ClientAuth = tls.RequestClientCert
	if p.Authorities.named <= maxNamed {
		c.ClientCAs = p.Authorities.pool
	}
	c.SessionTicketsDisabled = true
	c.GetConfigForClient = nil
	return c
}

// Client is the other end of a connection that was asked for a certificate. It
// may be used by several goroutines.
type Client struct {
	name    string
	shown   []*x509.Certificate
	any     bool
	verdict atomic.Pointer[verdict]
	texts   func() *ClientTexts
}

type verdict struct {
	policy ClientPolicy
	until  time.Time
	err    error
}

// refusedFor is how long it is not looked at again what has been refused.
const refusedFor = 10 * time.Second

// NewClient returns the client of a connection whose handshake is complete.
func NewClient(state *tls.ConnectionState) *Client {
	c := &Client{name: ServerName(state.ServerName), shown: state.PeerCertificates}
	c.texts = sync.OnceValue(c.describe)
	return c
}

// AnyClient stands for a client whose certificate everybody takes, where it is
// only asked what would become of its requests.
func AnyClient(serverName string) *Client {
	c := &Client{name: ServerName(serverName), any: true}
	c.texts = func() *ClientTexts {
		const text = "(of the client's certificate)"
		return &ClientTexts{Certificate: text, Subject: text, Issuer: text}
	}
	return c
}

// ServerName is the normal form of a name that a client asks for: lower case, no
// final dot.
func ServerName(name string) string { return lower(strings.TrimSuffix(name, ".")) }

// Name is the server name that the client asked for, in normal form; empty for none.
func (c *Client) Name() string { return c.name }

// HasShown reports whether the client has shown a certificate.
func (c *Client) HasShown() bool { return c.any || len(c.shown) > 0 }

// Verify returns nil if the certificate that the client has shown is good under a
// policy at that time, else why not, [ErrUnknownAuthority] if nobody has
// vouched for it. It is judged anew when the policy is another or time has gone by
// that matters.
func (c *Client) Verify(p *ClientPolicy, now time.Time) error {
	if c.any {
		return nil
	}
	if v := c.verdict.Load(); v != nil && v.policy == *p && now.Before(v.until) {
		return v.err
	}
	until, err := p.Authorities.verify(c.shown, p.Depth, now)
	if err != nil {
		until = now.Add(refusedFor)
	}
	c.verdict.Store(&verdict{*p, until, err})
	return err
}

// Named reports whether the common name in the client's certificate matches. A
// certificate with several has none, for nobody could tell which of them counts.
func (c *Client) Named(pattern *regexp.Regexp) bool {
	if c.any {
		return true
	}
	t := c.texts()
	return t.named && pattern.MatchString(t.commonName)
}

// ClientTexts are what others are told of a client's certificate, as by nginx.
type ClientTexts struct {
	// Certificate is the certificate in PEM, escaped as in a URL.
	Certificate string
	// Subject and Issuer are the names by RFC 2253.
	Subject, Issuer string

	commonName string
	named      bool
}

// Texts returns what can be told of the certificate that the client has shown.
func (c *Client) Texts() *ClientTexts { return c.texts() }

func (c *Client) describe() *ClientTexts {
	if len(c.shown) == 0 {
		return &ClientTexts{}
	}
	leaf := c.shown[0]
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})
	t := &ClientTexts{
		Certificate: strings.ReplaceAll(url.QueryEscape(string(text)), "+", "%20"),
		Subject:     dn(leaf.RawSubject), Issuer: dn(leaf.RawIssuer),
	}
	if names := commonNames(leaf.RawSubject); len(names) == 1 {
		t.commonName, t.named = names[0], true
	}
	return t
}

// ClientConn is a connection whose client was asked for a certificate.
type ClientConn struct {
	*tls.Conn
	Client *Client
}

// ClientOf returns the client of a connection that is a [ClientConn]; nil of
// any other.
func ClientOf(conn net.Conn) *Client {
	if c, ok := conn.(*ClientConn); ok {
		return c.Client
	}
	return nil
}
