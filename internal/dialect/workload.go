package dialect

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// workload converts what apps/v1 made stricter.
func (w *work) workload(was string, spec *yaml.Node) {
	if !isMapping(spec) {
		return
	}
	if !isSet(lookup(spec, "selector")) {
		w.selector(spec)
	}
	for _, gone := range []struct{ kind, field, reason string }{
		{"Deployment", "rollbackTo", "kubectl rollout undo takes its place"},
		{"DaemonSet", "templateGeneration", "the API counts by itself"},
	} {
		if w.Kind == gone.kind && lookup(spec, gone.field) != nil {
			remove(spec, gone.field)
			w.changed("spec."+gone.field, "is no longer known: %s; removed", gone.reason)
		}
	}
	onDelete := w.Kind == "DaemonSet" && was == "extensions/v1beta1" || w.Kind == "StatefulSet" && was == "apps/v1beta1"
	if onDelete && lookup(spec, "updateStrategy") == nil {
		w.remark("spec.updateStrategy", "is not set, which means RollingUpdate now and meant OnDelete in %s; left so", was)
	}
}

// selector takes the labels of the template, as the API did of old.
func (w *work) selector(spec *yaml.Node) {
	labels := at(spec, "template", "metadata", "labels")
	if !isMapping(labels) || len(labels.Content) == 0 {
		w.problem("spec.selector", "is missing, and the template has no labels to take it from; set spec.template.metadata.labels and spec.selector.matchLabels")
		return
	}
	same, err := expand(labels)
	if err != nil {
		w.problem("spec.template.metadata.labels", "%v", err)
		return
	}
	setBefore(spec, "template", "selector", mapping(text("matchLabels"), same))
	w.changed("spec.selector", "was not set; set to the template's labels (%s)", strings.Join(keys(labels), ", "))
}

// disruptionBudget keeps the meaning of an empty selector: no Pod in
// policy/v1beta1, every Pod in policy/v1.
func (w *work) disruptionBudget(spec *yaml.Node) {
	selector := lookup(spec, "selector")
	if !isMapping(selector) {
		return
	}
	for _, part := range []string{"matchLabels", "matchExpressions"} {
		if n := lookup(selector, part); n != nil && len(n.Content) > 0 {
			return
		}
	}
	remove(spec, "selector")
	w.changed("spec.selector", "is empty, which chooses every Pod now and chose none before; removed, which chooses none")
}

// topology labels that became fields of an endpoint.
const (
	labelHostname = "kubernetes.io/hostname"
	labelZone     = "topology.kubernetes.io/zone"
)

// endpointSlice writes the topology of endpoints as the fields of v1.
func (w *work) endpointSlice() {
	for i, e := range items(lookup(w.node, "endpoints")) {
		topology := lookup(e, "topology")
		if !isMapping(topology) {
			continue
		}
		for _, move := range []struct{ label, field string }{{labelHostname, "nodeName"}, {labelZone, "zone"}} {
			value := lookup(topology, move.label)
			if value == nil {
				continue
			}
			remove(topology, move.label)
			if !isSet(lookup(e, move.field)) {
				set(e, move.field, value)
			}
		}
		if len(topology.Content) == 0 {
			remove(e, "topology")
		} else {
			rename(e, "topology", "deprecatedTopology")
		}
		w.changed(fmt.Sprintf("endpoints[%d].topology", i), "written as nodeName, zone and deprecatedTopology")
	}
}
