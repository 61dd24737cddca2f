package translate

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"fairway.dev/fairway/internal/model"
)

const (
	annotationAuthTLSSecret    = prefixNginx + "auth-tls-secret"
	annotationAuthTLSVerify    = prefixNginx + "auth-tls-verify-client"
	annotationAuthTLSDepth     = prefixNginx + "auth-tls-verify-depth"
	annotationAuthTLSErrorPage = prefixNginx + "auth-tls-error-page"
	annotationAuthTLSPass      = prefixNginx + "auth-tls-pass-certificate-to-upstream"
	annotationAuthTLSMatchCN   = prefixNginx + "auth-tls-match-cn"
)

var annotationsClientAuth = []string{
	annotationAuthTLSSecret, annotationAuthTLSVerify, annotationAuthTLSDepth,
	annotationAuthTLSErrorPage, annotationAuthTLSPass, annotationAuthTLSMatchCN,
}

// defaultClientDepth is nginx's: one authority between a client and the known ones.
const defaultClientDepth = 1

// clientAuth reads what clients have to prove. A mistake must not let anybody in
// who would not have been let in without it: then nobody is.
func (in *ingress) clientAuth() *model.ClientAuth {
	secret, ok := in.annotation(annotationAuthTLSSecret)
	if !ok {
		for _, name := range annotationsClientAuth[1:] {
			if _, ok := in.annotation(name); ok {
				in.add(ReasonIneffective, annotationField(name), "has no effect without annotation %s: no client is asked for a certificate; add that with the name of a Secret that has %s", annotationAuthTLSSecret, CAKey)
			}
		}
		return nil
	}
	a := &model.ClientAuth{Field: annotationField(annotationAuthTLSSecret), Depth: defaultClientDepth, Pass: in.boolean(annotationAuthTLSPass, false)}
	refuse := func(name string, err error) {
		a.Refused = fmt.Sprintf("annotation %s cannot be used", name)
		in.invalid(annotationField(name), "%v. Until then requests for the hosts of the Ingress are answered with 503", err)
	}
	var err error
	if a.Secret, err = in.secretKey(secret); err != nil {
		refuse(annotationAuthTLSSecret, err)
	}
	if v, ok := in.annotation(annotationAuthTLSVerify); ok {
		modes := []model.ClientVerify{model.ClientVerifyOn, model.ClientVerifyOptional, model.ClientVerifyOptionalNoCA, model.ClientVerifyOff}
		if i := slices.IndexFunc(modes, func(m model.ClientVerify) bool { return m.String() == v }); i >= 0 {
			a.Verify = modes[i]
		} else {
			in.invalid(annotationField(annotationAuthTLSVerify), "%q is none of on, off, optional and optional_no_ca; it is taken as on", v)
		}
	}
	if n, ok := in.number(annotationAuthTLSDepth, 0, 100); ok {
		a.Depth = int(n)
	}
	if page, ok := in.place(annotationAuthTLSErrorPage); ok {
		if isURL(page) {
			a.ErrorPage = page
		} else {
			in.invalid(annotationField(annotationAuthTLSErrorPage), "%q is no URL; write one such as https://www.example.com/no-certificate, of a host that asks for no certificate. Until then clients get 400", page)
		}
	}
	if v, ok := in.annotation(annotationAuthTLSMatchCN); ok {
		if a.CommonName, err = commonNamePattern(v); err != nil {
			refuse(annotationAuthTLSMatchCN, err)
		}
	}
	return a
}

// otherAttribute is what would follow the common name in a whole name.
var otherAttribute = regexp.MustCompile(`,\s*[A-Za-z]+\s*=`)

// commonNamePattern reads "CN=" and a regular expression for the common name.
// ingress-nginx looks for it anywhere in the whole name, where who asks an
// authority for a certificate may choose other parts of it freely
// ("O=CN=admin"), and "CN=admin" is also found in "CN=administrator". Here it is
// about the common name alone, and all of it.
func commonNamePattern(v string) (string, error) {
	pattern, ok := strings.CutPrefix(v, "CN=")
	switch {
	case !ok:
		return "", fmt.Errorf(`%q does not begin with CN=; write it as "CN=(name|other)", with a regular expression for the common name`, v)
	case pattern == "":
		return "", errors.New(`has no name after CN=; write one, or "CN=.*" for any`)
	case otherAttribute.MatchString(pattern):
		return "", fmt.Errorf("%q goes on behind the common name, which alone is compared; leave the other parts of the name out", v)
	}
	// By itself as well: it must not end the group that it is put into.
	for _, text := range []string{pattern, "(?:" + pattern + ")"} {
		if _, err := regexp.Compile(text); err != nil {
			return "", fmt.Errorf("%q is no regular expression: %w (Go syntax: no look-around, no back-references)", pattern, err)
		}
	}
	return pattern, nil
}

// clientAuthHosts are the hosts that the Ingress names, whether or not its rules
// for them can be used.
func (in *ingress) clientAuthHosts() []string {
	var out []string
	for _, r := range in.object.Spec.Rules {
		if host := normalHost(r.Host); host == "" || isHost(host) {
			out = append(out, host)
		}
	}
	if len(in.object.Spec.Rules) == 0 {
		out = append(out, "")
	}
	slices.Sort(out)
	return slices.Compact(out)
}
