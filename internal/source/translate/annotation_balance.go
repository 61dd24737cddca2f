package translate

import (
	"net/http"
	"regexp"
	"strings"
	"time"

	"fairway.dev/fairway/internal/model"
)

const (
	annotationAffinity        = prefixNginx + "affinity"
	annotationAffinityMode    = prefixNginx + "affinity-mode"
	annotationAffinityCanary  = prefixNginx + "affinity-canary-behavior"
	annotationCookieName      = prefixNginx + "session-cookie-name"
	annotationCookiePath      = prefixNginx + "session-cookie-path"
	annotationCookieDomain    = prefixNginx + "session-cookie-domain"
	annotationCookieSameSite  = prefixNginx + "session-cookie-samesite"
	annotationCookieSecure    = prefixNginx + "session-cookie-secure"
	annotationCookieMaxAge    = prefixNginx + "session-cookie-max-age"
	annotationCookieExpires   = prefixNginx + "session-cookie-expires"
	annotationCookieOnFailure = prefixNginx + "session-cookie-change-on-failure"
	annotationHashBy          = prefixNginx + "upstream-hash-by"
	annotationLoadBalance     = prefixNginx + "load-balance"
)

var annotationsBalance = []string{
	annotationAffinity, annotationAffinityMode, annotationAffinityCanary, annotationCookieName, annotationCookiePath,
	annotationCookieDomain, annotationCookieSameSite, annotationCookieSecure, annotationCookieMaxAge, annotationCookieExpires,
	annotationCookieOnFailure, annotationHashBy, annotationLoadBalance,
}

// defaultSessionCookie is ingress-nginx's.
const defaultSessionCookie = "INGRESSCOOKIE"

// balanceAnnotations reads how the endpoint for a request is chosen: by a
// cookie, else by a hash, else by the way of sharing.
func (in *ingress) balanceAnnotations(s *settings) {
	s.filters.Session = in.session()
	if v, ok := in.annotation(annotationHashBy); ok {
		s.filters.HashBy = in.hashParts(v)
		if s.filters.Session != nil {
			in.add(ReasonIneffective, annotationField(annotationHashBy), "has no effect beside %s, which goes first; remove one of them", annotationAffinity)
		}
	}
	v, ok := in.annotation(annotationLoadBalance)
	switch {
	case !ok || v == "round_robin":
	case v == "ewma":
		s.filters.Balance = model.BalanceEWMA
	case v == "ip_hash":
		in.invalid(annotationField(annotationLoadBalance), "ip_hash is not known; use %s: $remote_addr. Requests go round", annotationHashBy)
	default:
		in.invalid(annotationField(annotationLoadBalance), "%q is no way to balance; use round_robin or ewma. Requests go round", v)
	}
}

// session reads the annotations of the cookie; nil if there is to be none.
func (in *ingress) session() *model.Session {
	v, ok := in.annotation(annotationAffinity)
	if ok && v != "cookie" {
		in.invalid(annotationField(annotationAffinity), `%q is not known; use cookie. Clients do not stay at an endpoint`, v)
	}
	if v != "cookie" {
		for _, name := range annotationsBalance[1:] {
			if _, has := in.annotation(name); has && !ok && name != annotationHashBy && name != annotationLoadBalance {
				in.add(ReasonIneffective, annotationField(name), `has no effect without %s: "cookie"`, annotationAffinity)
			}
		}
		return nil
	}
	s := &model.Session{
		Cookie:          in.matching(annotationCookieName, token, defaultSessionCookie, "name of a cookie; %s is used"),
		Path:            in.matching(annotationCookiePath, cookiePath, "", "path of a cookie; write a path such as /shop. The path of the rule is used"),
		Domain:          in.matching(annotationCookieDomain, cookieDomain, "", "domain; write a name such as example.com. The cookie is for the host alone"),
		ChangeOnFailure: in.boolean(annotationCookieOnFailure, false),
		Persistent:      in.oneOf(annotationAffinityMode, "balanced", "persistent") == "persistent",
		LegacyCanary:    in.oneOf(annotationAffinityCanary, "sticky", "legacy") == "legacy",
		SameSite:        in.oneOf(annotationCookieSameSite, "", "Strict", "Lax", "None"),
	}
	if v, ok := in.annotation(annotationCookieSecure); ok {
		switch v {
		case "true", "false":
			secure := v == "true"
			s.Secure = &secure
		default:
			in.invalid(annotationField(annotationCookieSecure), `%q is neither "true" nor "false"; the cookie is for TLS only if it was set by TLS`, v)
		}
	}
	if s.SameSite == "None" && s.Secure != nil && !*s.Secure {
		in.add(ReasonIneffective, annotationField(annotationCookieSameSite), `browsers refuse cookies with SameSite=None that are not Secure; remove %s: "false"`, annotationCookieSecure)
	}
	if n, ok := in.number(annotationCookieMaxAge, 1, 1<<31); ok {
		s.MaxAge = time.Duration(n) * time.Second
	}
	if n, ok := in.number(annotationCookieExpires, 1, 1<<31); ok {
		s.Expires = time.Duration(n) * time.Second
	}
	return s
}

// What may stand in a cookie's attributes (RFC 6265, 4.1.1): nothing that ends
// one of them.
var (
	cookiePath   = regexp.MustCompile(`^/[!-:<-~]*$`)
	cookieDomain = regexp.MustCompile(`^\.?([a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?\.)*[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?$`)
)

// matching reads an annotation that has to match an expression.
func (in *ingress) matching(name string, re *regexp.Regexp, fallback, what string) string {
	v, ok := in.annotation(name)
	switch {
	case !ok:
		return fallback
	case !re.MatchString(v):
		in.invalid(annotationField(name), "%q is no "+strings.ReplaceAll(what, "%s", fallback), v)
		return fallback
	}
	return v
}

// oneOf reads an annotation that is one of some words, whatever their case; the
// first is the default.
func (in *ingress) oneOf(name string, words ...string) string {
	v, ok := in.annotation(name)
	if !ok {
		return words[0]
	}
	for _, w := range words {
		if w != "" && strings.EqualFold(v, w) {
			return w
		}
	}
	if words[0] == "" {
		in.invalid(annotationField(name), "%q is not known; use %s. It is left out", v, strings.Join(words[1:], ", "))
	} else {
		in.invalid(annotationField(name), "%q is not known; use %s. It is taken as %s", v, strings.Join(words, " or "), words[0])
	}
	return words[0]
}

// variable is one of nginx's, in both spellings.
var variable = regexp.MustCompile(`\$(?:\{([A-Za-z0-9_]+)\}|([A-Za-z0-9_]+))`)

// variables are those that say something of a request that a client can have.
var variables = map[string]model.HashSource{
	"request_uri": model.HashURI, "uri": model.HashPath, "document_uri": model.HashPath, "args": model.HashQuery, "query_string": model.HashQuery,
	"remote_addr": model.HashClient, "binary_remote_addr": model.HashClient, "host": model.HashHost, "http_host": model.HashHost,
	"request_method": model.HashMethod, "scheme": model.HashScheme,
}

// hashParts reads text with variables; nil where there is nothing to hash by.
func (in *ingress) hashParts(v string) []model.HashPart {
	field := annotationField(annotationHashBy)
	const cure = "use $request_uri, $uri, $args, $remote_addr, $host, $request_method, $scheme, $http_NAME, $arg_NAME or $cookie_NAME. Requests go round"
	var parts []model.HashPart
	text := func(s string) {
		if s != "" {
			parts = append(parts, model.HashPart{Source: model.HashText, Name: s})
		}
	}
	end, found := 0, false
	for _, m := range variable.FindAllStringSubmatchIndex(v, -1) {
		text(v[end:m[0]])
		end = m[1]
		name := strings.Trim(v[m[0]+1:m[1]], "{}")
		part, ok := hashPart(name)
		if !ok {
			in.invalid(field, "$%s is no variable that requests can be hashed by; %s", name, cure)
			return nil
		}
		parts, found = append(parts, part), true
	}
	text(v[end:])
	if !found {
		in.invalid(field, "%q has no variable, so that all requests are alike; %s", v, cure)
		return nil
	}
	return parts
}

func hashPart(name string) (model.HashPart, bool) {
	if source, ok := variables[name]; ok {
		return model.HashPart{Source: source}, true
	}
	for prefix, source := range map[string]model.HashSource{"http_": model.HashHeader, "arg_": model.HashArg, "cookie_": model.HashCookie} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok || rest == "" {
			continue
		}
		if source == model.HashHeader {
			rest = http.CanonicalHeaderKey(strings.ReplaceAll(rest, "_", "-"))
		}
		return model.HashPart{Source: source, Name: rest}, true
	}
	return model.HashPart{}, false
}
