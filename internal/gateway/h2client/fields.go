package h2client

import (
	"net/http"
	"strings"
)

// Byte classes of names (RFC 9110, 5.6.2; lower case in HTTP/2) and values.
const (
	tokenByte = 1 << iota
	lowerByte
	valueByte
)

var class = func() (t [256]uint8) {
	for c := range 256 {
		switch {
		case 'A' <= c && c <= 'Z':
			t[c] |= tokenByte
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c != 0 && strings.IndexByte("!#$%&'*+-.^_`|~", byte(c)) >= 0:
			t[c] |= tokenByte | lowerByte
		}
		if c >= ' ' && c != 0x7f || c == '\t' {
			t[c] |= valueByte
		}
	}
	return t
}()

func all(s string, want uint8) bool {
	for i := range len(s) {
		if class[s[i]]&want == 0 {
			return false
		}
	}
	return true
}

// isHop tells fields of HTTP/1's connections, which HTTP/2 has not (RFC 9113, 8.2.2).
func isHop(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade":
		return true
	}
	return false
}

// Canonical is http.CanonicalHeaderKey for names in lower case, without work for
// those in use.
func Canonical(name string) string {
	if c, ok := canonicalNames[name]; ok {
		return c
	}
	return http.CanonicalHeaderKey(name)
}

var canonicalNames = func() map[string]string {
	m := map[string]string{}
	for name := range strings.FieldsSeq(`accept accept-charset accept-encoding accept-language accept-ranges access-control-allow-credentials
		access-control-allow-headers access-control-allow-methods access-control-allow-origin access-control-expose-headers access-control-max-age
		age allow alt-svc authorization cache-control content-disposition content-encoding content-language content-length content-location content-range
		content-security-policy content-type cookie cross-origin-opener-policy cross-origin-resource-policy date etag expect expires from
		grpc-accept-encoding grpc-encoding grpc-message grpc-status grpc-status-details-bin grpc-timeout host if-match if-modified-since
		if-none-match if-range if-unmodified-since last-modified link location max-forwards origin permissions-policy pragma proxy-authenticate
		proxy-authorization range referer referrer-policy refresh retry-after server server-timing set-cookie strict-transport-security te trailer
		traceparent tracestate transfer-encoding user-agent vary via www-authenticate x-content-type-options x-forwarded-for x-forwarded-host
		x-forwarded-port x-forwarded-proto x-forwarded-scheme x-frame-options x-powered-by x-real-ip x-request-id x-scheme x-xss-protection`) {
		m[name] = http.CanonicalHeaderKey(name)
	}
	return m
}()
