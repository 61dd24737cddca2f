package plan

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

func TestView(t *testing.T) {
	store := state.New()
	view := View{Node: "node-1", Options: Options{TLSProxy: []netip.AddrPort{netip.MustParseAddrPort("10.245.0.1:443")}}}
	plain, tls, headless := service(), service(), service()
	plain.Name, tls.Name, headless.Name = "plain", "tls", "headless"
	headless.Headless = true
	cert := model.Key{Namespace: "ns", Name: "cert"}
	tls.TLS = &model.ServiceTLS{Certificates: []model.Key{cert}}

	steps := []struct {
		name  string
		edit  func(tx *state.Tx)
		dirty []string
		want  map[string]string // cluster IP action by Service; "" for no plan
	}{{
		name: "some Services, before everything is known",
		edit: func(tx *state.Tx) { tx.PutService(plain); tx.PutService(tls) },
	}, {
		name:  "everything is known",
		edit:  func(tx *state.Tx) { tx.PutService(headless); tx.SetSynced() },
		dirty: []string{"headless", "plain", "tls"},
		want:  map[string]string{"plain": "reject", "tls": "reject", "headless": "", "unknown": ""},
	}, {
		name: "endpoints",
		edit: func(tx *state.Tx) {
			for _, name := range []string{"plain", "tls"} {
				key := model.Key{Namespace: "ns", Name: name}
				tx.PutSlice(&model.EndpointSlice{Key: key, Service: key, Endpoints: endpoints(t, "10.0.0.1 ready zones=a", "10.0.0.2 ready zones=b").Endpoints})
			}
		},
		dirty: []string{"plain", "tls"},
		want:  map[string]string{"plain": "forward 10.0.0.1:80 10.0.0.2:80", "tls": "reject"},
	}, {
		name:  "the node",
		edit:  func(tx *state.Tx) { tx.PutNode(&model.Node{Name: "node-1", Zone: "a"}) },
		dirty: []string{"headless", "plain", "tls"},
		want:  map[string]string{"plain": "forward 10.0.0.1:80"},
	}, {
		name: "another node",
		edit: func(tx *state.Tx) { tx.PutNode(&model.Node{Name: "node-2", Zone: "a"}) },
	}, {
		name:  "broken certificate",
		edit:  func(tx *state.Tx) { tx.PutCertificate(&model.Certificate{Key: cert, Problem: "tls.key is missing"}) },
		dirty: []string{"tls"},
		want:  map[string]string{"tls": "reject"},
	}, {
		name:  "good certificate",
		edit:  func(tx *state.Tx) { tx.PutCertificate(&model.Certificate{Key: cert}) },
		dirty: []string{"tls"},
		want:  map[string]string{"tls": "redirect 10.0.0.1:80"},
	}, {
		name: "certificate of nobody",
		edit: func(tx *state.Tx) { tx.PutCertificate(&model.Certificate{Key: model.Key{Namespace: "ns", Name: "x"}}) },
	}, {
		name:  "Service gone",
		edit:  func(tx *state.Tx) { tx.DeleteService(plain.Key) },
		dirty: []string{"plain"},
		want:  map[string]string{"plain": ""},
	}}
	prev := store.Snapshot()
	for _, step := range steps {
		store.Update(step.edit)
		next := store.Snapshot()
		var dirty []string
		view.Dirty(prev, next, func(k model.Key) { dirty = append(dirty, k.Name) })
		slices.Sort(dirty)
		if diff := cmp.Diff(step.dirty, slices.Compact(dirty)); diff != "" {
			t.Errorf("%s: dirty: %s", step.name, diff)
		}
		for name, want := range step.want {
			got := ""
			if s, ok := view.Compile(next, model.Key{Namespace: "ns", Name: name}); ok {
				got = showPool(s.Frontends[0].Internal)
			}
			if got != want {
				t.Errorf("%s: %s: got %q, want %q", step.name, name, got, want)
			}
		}
		prev = next
	}
}
