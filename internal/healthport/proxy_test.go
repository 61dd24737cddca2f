package healthport

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/reconcile"
	"fairway.dev/fairway/internal/state"
)

// path is a data path as a Proxy sees it.
type path struct {
	store  *state.Store
	status reconcile.Status
	proxy  *Proxy
}

func newPath(t *testing.T, reg prometheus.Registerer) *path {
	p := &path{store: state.New()}
	p.store.Update(func(tx *state.Tx) {
		tx.PutNode(&model.Node{Name: "here"})
		tx.SetSynced()
	})
	p.status = reconcile.Status{Ready: true, Revision: p.store.Snapshot().Revision, Objects: 1}
	var err error
	p.proxy, err = NewProxy(ProxyOptions{Store: p.store, NodeName: "here", Status: func() reconcile.Status { return p.status }, Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *path) get(url string) (int, map[string]any) {
	w := httptest.NewRecorder()
	p.proxy.Handler().ServeHTTP(w, httptest.NewRequest("GET", url, nil))
	body := map[string]any{}
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
		panic(err)
	}
	return w.Code, body
}

// change makes the store newer than what the data path holds.
func (p *path) change(zone string) {
	p.store.Update(func(tx *state.Tx) { tx.PutNode(&model.Node{Name: "other", Zone: zone}) })
}

func (p *path) expect(t *testing.T, want int, when string) {
	t.Helper()
	p.proxy.Healthy() // as Run does each second
	for _, url := range []string{"/healthz", "/livez"} {
		if got, body := p.get(url); got != want {
			t.Errorf("%s: %s answers %d, want %d: %v", when, url, got, want, body)
		}
	}
}

func TestStuckDataPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPath(t, nil)
		p.expect(t, 200, "at first")
		time.Sleep(time.Hour)
		p.expect(t, 200, "after an hour in which nothing changed")
		p.change("a")
		p.expect(t, 200, "at a change")
		time.Sleep(stuckAfter - time.Second)
		p.expect(t, 200, "while the change is not late")
		time.Sleep(2 * time.Second)
		p.expect(t, 503, "after the change has waited for too long")
		p.change("b")
		p.status.Revision++ // the first of the two is applied
		p.expect(t, 200, "as the data path gets on")
		time.Sleep(2 * stuckAfter)
		p.expect(t, 503, "when it has stopped again")
		p.status.Revision = p.store.Snapshot().Revision
		p.expect(t, 200, "when all is applied")
	})
}

func TestNothingCanBeProgrammed(t *testing.T) {
	for name, status := range map[string]reconcile.Status{
		"not ready":       {Ready: false},
		"all have failed": {Ready: true, Failing: 3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPath(t, nil)
				status.Revision = p.store.Snapshot().Revision
				p.status = status
				p.expect(t, 200, "at first")
				for range 70 {
					time.Sleep(time.Second)
					p.change(time.Now().String())
					p.status.Revision++ // rounds go on, in vain
					p.proxy.Healthy()
				}
				p.expect(t, 503, "after more than a minute")
				p.status.Objects, p.status.Ready = 1, true
				p.expect(t, 200, "one Service that fails among others")
			})
		})
	}
}

func TestNodeThatGoes(t *testing.T) {
	reg := prometheus.NewRegistry()
	p := newPath(t, reg)
	check := func(node *model.Node, healthz int, eligible bool) {
		t.Helper()
		p.store.Update(func(tx *state.Tx) {
			if node == nil {
				tx.DeleteNode("here")
			} else {
				tx.PutNode(node)
			}
		})
		p.status.Revision = p.store.Snapshot().Revision
		code, body := p.get("/healthz")
		if code != healthz || body["nodeEligible"] != eligible || body["healthy"] != true {
			t.Errorf("node %+v: healthz %d %v", node, code, body)
		}
		for _, field := range []string{"lastUpdated", "currentTime"} {
			text, _ := body[field].(string)
			if at, err := time.Parse(time.RFC3339Nano, text); err != nil || time.Since(at) > time.Minute {
				t.Errorf("%s is %q", field, text)
			}
		}
		if code, body := p.get("/livez"); code != 200 || body["nodeEligible"] != nil {
			t.Errorf("node %+v: livez %d %v", node, code, body)
		}
	}
	check(&model.Node{Name: "here", Zone: "z"}, 200, true)
	check(&model.Node{Name: "here", Leaving: true}, 200, true) // only excluded from load balancers
	check(&model.Node{Name: "here", Leaving: true, Deleted: true}, 503, false)
	check(nil, 503, false)
	w := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, line := range []string{
		`kubeproxy_proxy_healthz_total{code="200"} 2`, `kubeproxy_proxy_healthz_total{code="503"} 2`, `kubeproxy_proxy_livez_total{code="200"} 4`,
	} {
		if !strings.Contains(w.Body.String(), line+"\n") {
			t.Errorf("metrics lack %q:\n%s", line, w.Body)
		}
	}
}
