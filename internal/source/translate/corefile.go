package translate

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
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
// which may be nil. The addresses of self are the cluster's DNS, and own, which may be
// nil, reports whether a node's answers somewhere. The result is
// nil where the Corefile cannot be read: what was in use before should then stay.
// Problems are of either object.
func Corefile(o, custom *corev1.ConfigMap, domain string, self []netip.Addr, own func(netip.AddrPort) bool, env func(string) (string, bool)) (*model.DNSConfig, model.Problems) {
	r := newReport("ConfigMap", o)
	text, ok := o.Data[CorefileKey]
	if !ok {
		r.invalid("data["+CorefileKey+"]", "the key is missing; %s", stays)
		return nil, r.problems
	}
	used := map[string]bool{} // files of custom
	files := corefile.FilesOf(o.Data, nil)
	if custom != nil {
		all := corefile.FilesOf(o.Data, custom.Data)
		files = func(name string) map[string]string {
			found := all(name)
			for file := range found {
				used[file] = true
			}
			return found
		}
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
		Name: CorefileKey, Text: text, Files: files, Env: env, Domain: domain, Self: self, Own: own,
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
	if custom != nil {
		r.object = refOf("ConfigMap", custom)
		said := 0
		for _, key := range slices.Sorted(maps.Keys(custom.Data)) {
			if used[corefile.Custom+"/"+key] {
				continue
			}
			if said++; said > maxUnused {
				break
			}
			r.add(ReasonIneffective, "data["+key+"]", "no import of the Corefile in ConfigMap %s leads to this key, so that it is not used; write import %s/%s into that Corefile, "+
				"or name the key as one that is there says, mostly NAME.server and NAME.override", keyOf(o), corefile.Custom, key)
		}
	}
	return c, r.problems
}

// maxUnused bounds how many keys of a ConfigMap are said to be of no use.
const maxUnused = 5

// CustomAlone is what is wrong with a ConfigMap of additions to a Corefile that is
// not there.
func CustomAlone(custom *corev1.ConfigMap, main model.Key) model.Problems {
	r := newReport("ConfigMap", custom)
	r.add(ReasonIneffective, "data", "nothing of this ConfigMap is used, as there is no ConfigMap %s, whose Corefile would import it; make that one, with a key %s in which import %s/*.server stands behind a block .:53 { with forward . /etc/resolv.conf in it",
		main, CorefileKey, corefile.Custom)
	return r.problems
}

// lineField is the path of a line of a ConfigMap's value.
func lineField(key string, line int) string { return fmt.Sprintf("data[%s] line %d", key, line) }
