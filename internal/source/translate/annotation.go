package translate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"fairway.dev/fairway/internal/model"
)

const prefixNginx = "nginx.ingress.kubernetes.io/"

// The annotations of Ingresses that are read, by topic. What is not in this
// list is reported as not supported.
var ingressAnnotations = slices.Concat(
	annotationsRewrite, annotationsRedirect, annotationsCanary, annotationsBackend,
	annotationsAccess, annotationsBody, annotationsTimeout, annotationsBalance, annotationsTrace, annotationsStream,
	annotationsClientAuth, annotationsProxySSL,
)

// unknownAnnotations reports annotations of Fairway and ingress-nginx that
// nothing reads.
func (in *ingress) unknownAnnotations() {
	for _, name := range sortedKeys(in.object.Annotations) {
		if slices.Contains(ingressAnnotations, name) {
			continue
		}
		switch {
		case strings.HasSuffix(name, "-snippet") && strings.HasPrefix(name, prefixNginx):
			in.add(ReasonUnsupported, annotationField(name), "is not supported: snippets are configuration of nginx, which does not run here; use the other annotations, or do it in the backend")
		case name == prefixNginx+"secure-backends":
			in.add(ReasonUnsupported, annotationField(name), "is not supported; use %s: HTTPS instead", annotationBackendProtocol)
		case strings.HasPrefix(name, prefixNginx):
			in.add(ReasonUnsupported, annotationField(name), "is not supported and has no effect; remove it, or see the page on annotations for what there is instead")
		case strings.HasPrefix(name, "fairway.dev/"):
			in.add(ReasonUnsupported, annotationField(name), "is not known for an Ingress; check its spelling, or remove it")
		}
	}
}

// annotation returns an annotation without spaces around it.
func (in *ingress) annotation(name string) (string, bool) {
	v, ok := in.object.Annotations[name]
	return strings.TrimSpace(v), ok
}

// place reads an annotation that says where clients or requests are sent. Its text
// goes into a line of HTTP, which nothing of it may end: what came behind that
// would be a header, or an answer, of the Ingress' making on a connection that is
// not its own.
func (in *ingress) place(name string) (string, bool) {
	v, ok := in.annotation(name)
	if strings.ContainsFunc(v, unicode.IsControl) {
		in.invalid(annotationField(name), "%q has a line break or another control character; write it in one line without. It is ignored", v)
		return "", false
	}
	return v, ok
}

// secretKey reads the name of a Secret, as namespace/name or alone. Another
// namespace's is not for whoever writes an Ingress here: what it proves would be
// theirs to use.
func (in *ingress) secretKey(v string) (model.Key, error) {
	key := model.Key{Namespace: in.object.Namespace, Name: v}
	if namespace, name, ok := strings.Cut(v, "/"); ok {
		key = model.Key{Namespace: namespace, Name: name}
	}
	if !isDNSName(key.Name) || !isDNSName(key.Namespace) {
		return model.Key{}, fmt.Errorf("%q is no name of a Secret; write it as %s/NAME", v, in.object.Namespace)
	}
	if key.Namespace != in.object.Namespace {
		return model.Key{}, fmt.Errorf("%s is a Secret of another namespace, which an Ingress may not use; put a copy into namespace %s", key, in.object.Namespace)
	}
	return key, nil
}

// boolean reads "true" or "false", and fallback where there is neither.
func (in *ingress) boolean(name string, fallback bool) bool {
	v, ok := in.annotation(name)
	if !ok {
		return fallback
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		in.invalid(annotationField(name), `%q is neither "true" nor "false"; it is taken as %t`, v, fallback)
		return fallback
	}
	return b
}

// number reads a number from lowest to highest.
func (in *ingress) number(name string, lowest, highest uint64) (uint64, bool) {
	v, ok := in.annotation(name)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil || n < lowest || n > highest {
		in.invalid(annotationField(name), "%q is no number from %d to %d; it is ignored", v, lowest, highest)
		return 0, false
	}
	return n, true
}

// seconds reads a time: a plain number of seconds as in ingress-nginx, or one
// with a unit of nginx (ms, s, m, h).
func (in *ingress) seconds(name string) time.Duration {
	v, ok := in.annotation(name)
	if !ok {
		return 0
	}
	d, ok := parseTime(v)
	if !ok {
		in.invalid(annotationField(name), "%q is no time; write seconds as a number, for example \"60\". The default is used", v)
		return 0
	}
	return d
}

// parseTime reads a time above zero, as [ingress.seconds] does.
func parseTime(v string) (time.Duration, bool) {
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(n) * time.Second, n > 0
	}
	d, err := time.ParseDuration(v)
	return d, err == nil && d > 0
}
