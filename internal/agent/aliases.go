package agent

import (
	"fmt"
	"strings"

	"fairway.dev/fairway/internal/dns/zone"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/source/translate"
	"fairway.dev/fairway/internal/state"
)

// aliasesDiffer reports whether a Service of type ExternalName came, went or changed.
func aliasesDiffer(prev, next *state.Snapshot) bool {
	for d := range state.Diff(prev.Services, next.Services) {
		if d.HadOld && d.Old.Type == model.ExternalName || d.HasNew && d.New.Type == model.ExternalName {
			return true
		}
	}
	return false
}

// astray are the Services of type ExternalName that DNS answers with SERVFAIL for
// what they lead to. Of one that leads to itself right away its own object tells.
func astray(snap *state.Snapshot, domain string) model.Problems {
	var list model.Problems
	for _, a := range zone.AstrayAliases(snap, domain) {
		key := a.Path[0]
		if a.Circle && len(a.Path) == 2 {
			continue
		}
		svc, ok := snap.Services.Get(key)
		if !ok {
			continue
		}
		var names []string
		for _, k := range a.Path {
			names = append(names, k.String())
		}
		why := fmt.Sprintf("leads through more than %d Services of type ExternalName (%s), so that DNS answers SERVFAIL; write the name that the last one leads to",
			zone.MaxAliases, strings.Join(names, ", "))
		if a.Circle {
			why = fmt.Sprintf("leads round in a circle (%s), so that DNS answers SERVFAIL for each of these names; have one of these Services name something with an address",
				strings.Join(names, ", "))
		}
		list = append(list, model.Problem{
			Object: model.Ref{Kind: "Service", Key: key, UID: svc.UID}, Reason: translate.ReasonInvalid, Field: "spec.externalName",
			Message: fmt.Sprintf("%q %s", svc.ExternalName, why),
		})
	}
	return list
}
