package translate

import (
	"crypto/tls"
	"net/netip"
	"slices"
	"strings"

	"fairway.dev/fairway/internal/model"
)

const (
	annotationProxySSLSecret      = prefixNginx + "proxy-ssl-secret"
	annotationProxySSLVerify      = prefixNginx + "proxy-ssl-verify"
	annotationProxySSLVerifyDepth = prefixNginx + "proxy-ssl-verify-depth"
	annotationProxySSLName        = prefixNginx + "proxy-ssl-name"
	annotationProxySSLServerName  = prefixNginx + "proxy-ssl-server-name"
	annotationProxySSLProtocols   = prefixNginx + "proxy-ssl-protocols"
	annotationProxySSLCiphers     = prefixNginx + "proxy-ssl-ciphers"
)

var annotationsProxySSL = []string{
	annotationProxySSLSecret, annotationProxySSLVerify, annotationProxySSLVerifyDepth, annotationProxySSLName,
	annotationProxySSLServerName, annotationProxySSLProtocols, annotationProxySSLCiphers,
}

// closedUntil is what a mistake does that leaves open what is to be checked.
const closedUntil = "Requests to backends over TLS are answered with 502 until then"

// proxySSLAnnotations read what is asked of TLS to the backend. A mistake must
// not leave a check out: then no connection is opened until it is cured.
func (in *ingress) proxySSLAnnotations(s *settings) {
	if !slices.ContainsFunc(annotationsProxySSL, func(name string) bool { _, ok := in.annotation(name); return ok }) {
		return
	}
	t := &model.BackendTLS{Depth: 1}
	s.tls = t
	if v, ok := in.annotation(annotationProxySSLSecret); ok {
		var err error
		if t.Certificate, err = in.secretKey(v); err != nil {
			in.invalid(annotationField(annotationProxySSLSecret), "%v. %s", err, closedUntil)
			mistaken(t, annotationProxySSLSecret)
		}
	}
	var ok bool
	if t.Verify, ok = in.onOff(annotationProxySSLVerify, closedUntil); !ok {
		mistaken(t, annotationProxySSLVerify)
	}
	if t.Verify && !t.Certificate.IsZero() {
		t.CA = []model.Key{t.Certificate}
	}
	if depth, ok := in.number(annotationProxySSLVerifyDepth, 1, 100); ok {
		t.Depth = int(depth)
		if !t.Verify && t.Mistake == "" {
			in.add(ReasonIneffective, annotationField(annotationProxySSLVerifyDepth), `has no effect without %s: "on"`, annotationProxySSLVerify)
		}
	}
	in.proxySSLName(t)
	in.proxySSLProtocols(t)
	in.proxySSLCiphers(t)
}

// onOff reads "on" or "off", as nginx has it; off is what it is without. Effect
// says what comes of a mistake.
func (in *ingress) onOff(name, effect string) (on, ok bool) {
	v, has := in.annotation(name)
	if !has || v == "on" || v == "off" {
		return v == "on", true
	}
	in.invalid(annotationField(name), `%q is neither "on" nor "off"; write one of them. %s`, v, effect)
	return false, false
}

// mistaken keeps connections from being opened.
func mistaken(t *model.BackendTLS, annotation string) {
	if t.Mistake == "" {
		t.Mistake = "annotation " + annotation + " cannot be used"
	}
}

func (in *ingress) proxySSLName(t *model.BackendTLS) {
	if v, ok := in.annotation(annotationProxySSLName); ok {
		name := normalHost(v)
		addr, err := netip.ParseAddr(name)
		switch {
		case err == nil && addr.Zone() == "":
			t.Name = addr.String()
		case isDNSName(name):
			t.Name = name
		default:
			in.invalid(annotationField(annotationProxySSLName), "%q is neither a host name nor an address, without port; write one that is in the backend's certificate. %s", v, closedUntil)
			mistaken(t, annotationProxySSLName)
		}
	}
	if _, has := in.annotation(annotationProxySSLServerName); has {
		on, ok := in.onOff(annotationProxySSLServerName, "It is ignored")
		switch {
		case on:
			t.ServerName = model.ServerNameOn
		case ok:
			t.ServerName = model.ServerNameOff
		}
	}
}

// proxySSLProtocols reads the versions that may be spoken. Those before TLS 1.2
// are not spoken at all.
func (in *ingress) proxySSLProtocols(t *model.BackendTLS) {
	v, ok := in.annotation(annotationProxySSLProtocols)
	if !ok {
		return
	}
	field := annotationField(annotationProxySSLProtocols)
	var old []string
	has := map[uint16]bool{}
	for _, name := range strings.Fields(v) {
		switch name {
		case "TLSv1.2":
			has[tls.VersionTLS12] = true
		case "TLSv1.3":
			has[tls.VersionTLS13] = true
		case "SSLv2", "SSLv3", "TLSv1", "TLSv1.1":
			old = append(old, name)
		default:
			in.invalid(field, "%q is no version of TLS; use TLSv1.2 and TLSv1.3, separated by spaces. %s", name, closedUntil)
			mistaken(t, annotationProxySSLProtocols)
			return
		}
	}
	switch {
	case len(has) == 0:
		in.add(ReasonUnsupported, field, "%q has no version that is spoken; use TLSv1.2 and TLSv1.3. %s", v, closedUntil)
		mistaken(t, annotationProxySSLProtocols)
		return
	case len(old) > 0:
		in.add(ReasonUnsupported, field, "only TLSv1.2 and TLSv1.3 are spoken; leave %s out. The others hold", strings.Join(old, ", "))
	}
	if !has[tls.VersionTLS12] {
		t.MinVersion = tls.VersionTLS13
	}
	if !has[tls.VersionTLS13] {
		t.MaxVersion = tls.VersionTLS12
	}
}

// opensslSuites are the suites of TLS 1.2 that are safe, by the names of OpenSSL,
// which those of ingress-nginx are.
var opensslSuites = map[string]uint16{
	"ECDHE-ECDSA-AES128-GCM-SHA256": tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	"ECDHE-ECDSA-AES256-GCM-SHA384": tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	"ECDHE-RSA-AES128-GCM-SHA256":   tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	"ECDHE-RSA-AES256-GCM-SHA384":   tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	"ECDHE-ECDSA-CHACHA20-POLY1305": tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	"ECDHE-RSA-CHACHA20-POLY1305":   tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	"ECDHE-ECDSA-AES128-SHA":        tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA,
	"ECDHE-ECDSA-AES256-SHA":        tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA,
	"ECDHE-RSA-AES128-SHA":          tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,
	"ECDHE-RSA-AES256-SHA":          tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA,
}

// proxySSLCiphers reads a plain list of suites. Rules of OpenSSL such as
// HIGH:!aNULL mean what its version makes of them.
func (in *ingress) proxySSLCiphers(t *model.BackendTLS) {
	v, ok := in.annotation(annotationProxySSLCiphers)
	if !ok || v == "DEFAULT" {
		return
	}
	for name := range strings.SplitSeq(v, ":") {
		id, known := opensslSuites[name]
		if !known {
			in.add(ReasonUnsupported, annotationField(annotationProxySSLCiphers), "%q is none of the suites of TLS 1.2 that are spoken, by their names in OpenSSL: %s. The annotation has no effect, all of them may be chosen",
				name, strings.Join(sortedKeys(opensslSuites), ", "))
			t.CipherSuites = nil
			return
		}
		t.CipherSuites = append(t.CipherSuites, id)
	}
}
