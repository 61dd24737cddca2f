package translate

import (
	"errors"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"fairway.dev/fairway/internal/corefile"
	"fairway.dev/fairway/internal/model"
)

// CorefileKey is the key of a ConfigMap that has the Corefile.
const CorefileKey = "Corefile"

// Corefile translates a ConfigMap with CoreDNS' configuration; its other keys
// are the files that import and hosts may read. The addresses of self are the
// cluster's DNS. The result is nil where the Corefile cannot be read: what was in
// use before should then stay.
func Corefile(o *corev1.ConfigMap, domain string, self []netip.Addr, env func(string) (string, bool)) (*model.DNSConfig, model.Problems) {
	r := newReport("ConfigMap", o)
	text, ok := o.Data[CorefileKey]
	if !ok {
		r.invalid("data["+CorefileKey+"]", "the Corefile is missing; the last one stays in use")
		return nil, r.problems
	}
	c, notes, err := corefile.Parse(corefile.Options{
		Name: CorefileKey, Text: text, Files: corefile.FilesOf(o.Data), Env: env, Domain: domain, Self: self,
	})
	if err != nil {
		field := "data[" + CorefileKey + "]"
		var where *corefile.Error
		if errors.As(err, &where) {
			field = lineField(where.File, where.Line)
			err = errors.New(where.Message)
		}
		r.invalid(field, "%v; nothing of this Corefile is used, and the last one stays in use", err)
		return nil, r.problems
	}
	for _, n := range notes {
		r.add(ReasonUnsupported, lineField(n.File, n.Line), "%s is ignored: %s", n.What, n.Why)
	}
	return c, r.problems
}

// lineField is the path of a line of a ConfigMap's value.
func lineField(key string, line int) string { return fmt.Sprintf("data[%s] line %d", key, line) }
