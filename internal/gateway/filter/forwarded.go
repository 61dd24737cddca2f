package filter

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"

	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/request"
)

// maxRequestID bounds the request IDs that are taken over from clients.
const maxRequestID = 128

// RequestID returns the client's X-Request-ID, if it has a sane one.
func RequestID(v *request.View) (string, bool) {
	id, ok := v.First("X-Request-Id")
	return id, ok && isToken(id)
}

// NewRequestID makes a new one, of 32 hexadecimal digits as in ingress-nginx.
func NewRequestID(id *[32]byte) {
	var b [16]byte
	binary.NativeEndian.PutUint64(b[:8], rand.Uint64()) // seeded by the system, and a tenth of asking it
	binary.NativeEndian.PutUint64(b[8:], rand.Uint64())
	hex.Encode(id[:], b[:])
}

func isToken(s string) bool {
	if s == "" || len(s) > maxRequestID {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// Forward tells the backend who is asking, by the headers that ingress-nginx
// sends. What the client sent under these names is replaced, unless a trusted
// proxy sent it. It runs after the chain, for every request.
func Forward(x *Exchange) {
	v := x.View
	client := v.PeerText
	if client == "" || v.Client != v.Peer {
		client = v.Client.Unmap().String()
	}
	x.setHeader("X-Request-Id", x.RequestID)
	x.setHeader("X-Real-Ip", client)
	x.setHeader("X-Forwarded-Proto", v.Scheme)
	x.setHeader("X-Forwarded-Scheme", v.Scheme)
	x.setHeader("X-Scheme", v.Scheme)
	sent, port, host := strings.Join(v.Header.Values("X-Forwarded-For"), ", "), "", ""
	if v.Trusted {
		port, _ = v.First("X-Forwarded-Port")
		host, _ = v.First("X-Forwarded-Host")
	} else {
		x.setHeader("Forwarded", "")
		x.setHeader("X-Forwarded-Prefix", "")
		x.setHeader("X-Forwarded-Server", "")
	}
	if v.Trusted && sent != "" {
		x.setHeader("X-Forwarded-For", sent+", "+v.Peer.Unmap().String())
	} else {
		x.setHeader("X-Forwarded-For", client)
	}
	x.setHeader("X-Original-Forwarded-For", sent) // nothing where nothing was sent
	if port == "" {
		port = v.PortText
	}
	if port == "" {
		port = strconv.Itoa(int(v.Port))
	}
	if host == "" {
		host = v.Authority
	}
	x.setHeader("X-Forwarded-Port", port)
	x.setHeader("X-Forwarded-Host", host)
	if x.TraceParent != "" {
		x.setHeader("Traceparent", x.TraceParent)
		x.setHeader("Tracestate", x.TraceState)
	}
	// CGI programs read a Proxy header as their HTTP_PROXY (httpoxy, CVE-2016-5385).
	x.setHeader("Proxy", "")
}

// Spoofs reports whether a header that the client sent would be taken by some
// backends (CGI, WSGI) for one of those that Forward sets, or for one that frames
// the request, because they do not tell "_" from "-". The engine drops it.
func Spoofs(name string) bool {
	return strings.Contains(name, "_") && http1.Claims(name)
}

// Trust finds the client behind trusted proxies.
type Trust []netip.Prefix

// Has reports whether an address is a trusted proxy.
func (t Trust) Has(a netip.Addr) bool {
	a = a.Unmap().WithZone("") // a range has none, and contains none
	for _, p := range t {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Resolve fills in Client, Scheme and Trusted of a view that has Peer, TLS and
// Header: behind a trusted proxy the client is the last address in
// X-Forwarded-For that is no trusted proxy itself. Addresses lose their zone, which
// means something on one machine only.
func (t Trust) Resolve(v *request.View) {
	v.Peer = v.Peer.WithZone("")
	v.Client, v.Scheme, v.Trusted = v.Peer, "http", false
	if v.TLS {
		v.Scheme = "https"
	}
	if len(t) == 0 || !t.Has(v.Peer) {
		return
	}
	v.Trusted = true
	if proto, _ := v.First("X-Forwarded-Proto"); proto == "http" || proto == "https" {
		v.Scheme = proto
	}
	list := strings.Split(strings.Join(v.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(list) - 1; i >= 0; i-- {
		a, err := parseForwarded(strings.TrimSpace(list[i]))
		if err != nil {
			return
		}
		v.Client = a
		if !t.Has(a) {
			return
		}
	}
}

// parseForwarded reads an address with an optional port.
func parseForwarded(s string) (netip.Addr, error) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap().WithZone(""), nil
	}
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	return a.Unmap().WithZone(""), err
}
