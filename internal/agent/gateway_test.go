package agent

import (
	"testing"

	"fairway.dev/fairway/internal/gateway"
	"fairway.dev/fairway/internal/model"
)

// TestOnlyHere: each gateway tells of its own machine, by name, and of nothing that
// the controller tells for all.
func TestOnlyHere(t *testing.T) {
	ref := model.Ref{Kind: "ConfigMap", Key: model.Key{Namespace: "ns", Name: "tcp"}}
	all := model.Problems{
		{Object: ref, Reason: gateway.ReasonPortInUse, Field: "data", Message: "port TCP 5432 cannot be opened"},
		{Object: ref, Reason: "ServiceMissing", Message: "x"},
	}
	for node, want := range map[string]string{"": "port TCP 5432 cannot be opened", "a": "Node a: port TCP 5432 cannot be opened"} {
		got := onlyHere(node, all)
		if len(got) != 1 || got[0].Message != want || got[0].Field != "data" {
			t.Errorf("node %q: %+v", node, got)
		}
	}
}
