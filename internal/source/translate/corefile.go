package translate

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"fairway.dev/fairway/internal/corefile"
	"fairway.dev/fairway/internal/model"
)

// CorefileKey is the key of a ConfigMap that has the Corefile.
const CorefileKey = "Corefile"

// CustomSuffix ends the name of the ConfigMap that k3s and AKS have for what users
// add to the Corefile; before it stands the name of the Corefile's.
const CustomSuffix = "-custom"

// stays is what happens where a Corefile cannot be read.
const stays = "nothing of this Corefile is used; nodes go on with the last one that could be read, or with Fairway's defaults where there was none"

// Corefile translates a ConfigMap with CoreDNS' configuration; its other keys
// are the files that import and hosts may read, and so are the keys of custom,
// which may be nil. The addresses of self are the cluster's DNS. The result is
// nil where the Corefile cannot be read: what was in use before should then stay.
// Problems are of either object.
func Corefile(o, custom *corev1.ConfigMap, domain string, self []netip.Addr, env func(string) (string, bool)) (*model.DNSConfig, model.Problems) {
	r := newReport("ConfigMap", o)
	text, ok := o.Data[CorefileKey]
	if !ok {
		r.invalid("data["+CorefileKey+"]", "the key is missing; %s", stays)
		return nil, r.problems
	}
	files := corefile.FilesOf(o.Data, nil)
	if custom != nil {
		files = corefile.FilesOf(o.Data, custom.Data)
	}
	// at makes the problems that follow those of the object that has a file.
	at := func(file string, line int) string {
		key, own := strings.CutPrefix(file, corefile.Custom+"/")
		r.object = refOf("ConfigMap", o)
		if own && custom != nil {
			r.object = refOf("ConfigMap", custom)
		}
		return lineField(key, line)
	}
	c, notes, err := corefile.Parse(corefile.Options{
		Name: CorefileKey, Text: text, Files: files, Env: env, Domain: domain, Self: self,
	})
	if err != nil {
		field := "data[" + CorefileKey + "]"
		var where *corefile.Error
		if errors.As(err, &where) {
			field = at(where.File, where.Line)
			err = errors.New(where.Message)
		}
		r.invalid(field, "%v; %s", err, stays)
		return nil, r.problems
	}
	for _, n := range notes {
		r.add(ReasonUnsupported, at(n.File, n.Line), "%s is ignored: %s", n.What, n.Why)
	}
	return c, r.problems
}

// lineField is the path of a line of a ConfigMap's value.
func lineField(key string, line int) string { return fmt.Sprintf("data[%s] line %d", key, line) }
