package request

import (
	"net"
	"net/netip"
	"net/url"
	"strings"

	"fairway.dev/fairway/internal/certs"
)

// Header is how headers are looked up.
type Header interface {
	// Values returns the values of a header, whose name is given in canonical
	// form (http.CanonicalHeaderKey); nil for none. Do not modify them.
	Values(name string) []string
}

// Conn is the client's connection.
type Conn interface {
	// LocalAddr is the gateway's address that was connected to. It may take a
	// system call.
	LocalAddr() net.Addr
	// Client is the client if it was asked for a certificate; nil if it was not.
	Client() *certs.Client
}

// View is one request. The engine fills it; router and filters only read it.
type View struct {
	Method string
	// Authority is the Host header or :authority as the client sent it.
	Authority string
	// Host is its normal form without port (see [ParseHost]); "" if there was none.
	Host string
	// Path is the normal form of the escaped path (see [ParsePath]).
	Path string
	// Query is the raw query without "?", as the client sent it.
	Query  string
	Header Header
	// TLS tells that the client's connection to the gateway is encrypted.
	TLS bool
	// Scheme is "http" or "https" as the client sees it: a trusted proxy in
	// front may have ended TLS.
	Scheme string
	// Port is the gateway's port that the request came in at.
	Port uint16
	// Peer is the other end of the connection, Client the address of the
	// client itself: they differ behind a trusted proxy.
	Peer, Client netip.Addr
	// PeerPort is the port at the other end, and Local the connection. Optional.
	PeerPort uint16
	Local    Conn
	// PeerText and PortText are Peer and Port in text form, which an engine
	// makes once per connection. Optional.
	PeerText, PortText string
	// Trusted tells that Peer is a trusted proxy, so that its X-Forwarded-*
	// headers are kept.
	Trusted bool
}

// First returns the first value of a header, and whether there is one. Like
// [Header.Values] it takes the name in canonical form.
func (v *View) First(name string) (string, bool) {
	if h, ok := v.Header.(interface{ First(string) (string, bool) }); ok {
		return h.First(name) // without making a list
	}
	if list := v.Header.Values(name); len(list) > 0 {
		return list[0], true
	}
	return "", false
}

// QueryValue returns the first value of a query parameter, and whether there
// is one. Pairs that are not well-formed are skipped.
func (v *View) QueryValue(name string) (string, bool) {
	for rest := v.Query; rest != ""; {
		var pair string
		pair, rest, _ = strings.Cut(rest, "&")
		key, value, _ := strings.Cut(pair, "=")
		if k, err := url.QueryUnescape(key); err != nil || k != name {
			continue
		}
		if value, err := url.QueryUnescape(value); err == nil {
			return value, true
		}
	}
	return "", false
}

// Cookie returns the value of the first cookie of that name (RFC 6265, 5.4),
// and whether there is one.
func (v *View) Cookie(name string) (string, bool) {
	for _, line := range v.Header.Values("Cookie") {
		for rest := line; rest != ""; {
			var pair string
			pair, rest, _ = strings.Cut(rest, ";")
			key, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
			if !ok || key != name {
				continue
			}
			if len(value) > 1 && value[0] == '"' && value[len(value)-1] == '"' {
				value = value[1 : len(value)-1]
			}
			return value, true
		}
	}
	return "", false
}
