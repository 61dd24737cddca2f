package plan

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

func TestReview(t *testing.T) {
	store := state.New()
	service := func(name string, age time.Duration, externalIP string) *model.Service {
		return &model.Service{
			Key: model.Key{Namespace: "default", Name: name}, UID: name + "-uid", Created: time.Unix(1000000, 0).Add(-age),
			ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0." + map[string]string{"old": "1", "young": "2"}[name])}, IPv4: true,
			ExternalIPs: []netip.Addr{netip.MustParseAddr(externalIP)},
			Ports:       []model.ServicePort{{Name: "a", Protocol: model.TCP, Port: 80}, {Name: "b", Protocol: model.UDP, Port: 443}},
		}
	}
	var review Review
	view := View{Options: Options{ExternalIPs: true}}
	prev := store.Snapshot()
	problems := func(change func(tx *state.Tx)) model.Problems {
		store.Update(func(tx *state.Tx) { change(tx); tx.SetSynced() })
		next := store.Snapshot()
		review.Follow(view, prev, next)
		prev = next
		return review.Problems()
	}
	if got := problems(func(tx *state.Tx) { tx.PutService(service("old", time.Hour, "192.0.2.1")) }); len(got) != 0 {
		t.Fatalf("one Service alone: %v", got)
	}
	got := problems(func(tx *state.Tx) { tx.PutService(service("young", time.Minute, "192.0.2.1")) })
	if len(got) != 1 || got[0].Object.Name != "young" || got[0].Object.UID != "young-uid" || got[0].Reason != ReasonAddressTaken || !strings.Contains(got[0].Message, "192.0.2.1 port 443/UDP, 80/TCP is served by Service default/old") {
		t.Errorf("two claims: %v", got)
	}
	got = problems(func(tx *state.Tx) { tx.PutService(service("young", time.Minute, "192.0.2.2")) })
	if len(got) != 0 {
		t.Errorf("cured by another address: %v", got)
	}
	got = problems(func(tx *state.Tx) {
		tx.PutNode(&model.Node{Name: "node-1", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.2")}})
	})
	if len(got) != 2 || got[0].Reason != ReasonExternalIPOfNode || got[0].Object.Name != "young" || !strings.Contains(got[0].Message, "192.0.2.2 is the address of Node node-1") {
		t.Errorf("an external IP that is a node's: %v", got)
	}
	if got = problems(func(tx *state.Tx) { tx.DeleteNode("node-1") }); len(got) != 0 {
		t.Errorf("the node has gone: %v", got)
	}
	got = problems(func(tx *state.Tx) {
		k := model.Key{Namespace: "default", Name: "young"}
		tx.PutSlice(&model.EndpointSlice{Key: k, Service: k, Endpoints: []model.Endpoint{
			{Addr: netip.MustParseAddr("127.0.0.1"), Ports: []model.EndpointPort{{Protocol: model.TCP, Port: 80}}, Ready: true, Serving: true},
		}})
	})
	if len(got) != 1 || got[0].Reason != "EndpointInvalid" {
		t.Errorf("an endpoint on loopback: %v", got)
	}
	if got = problems(func(tx *state.Tx) { tx.DeleteService(model.Key{Namespace: "default", Name: "young"}) }); len(got) != 0 {
		t.Errorf("after its end: %v", got)
	}
}

// TestEveryReasonIsDocumented holds the pages where Events are listed to the
// reasons: a node tells what only it leaves out, the controller all else.
func TestEveryReasonIsDocumented(t *testing.T) {
	for _, r := range Reasons {
		page := "../../docs/commands/controller.md"
		if r == ReasonProtocolUnsupported || r == ReasonExternalIPsIgnored {
			page = "../../docs/commands/node.md"
		}
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "| `"+r+"` |") {
			t.Errorf("%s does not tell of Event %s", page, r)
		}
	}
}
