package control

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

func TestAbsence(t *testing.T) {
	now := time.Unix(1000, 0)
	a := newAbsence(func() time.Time { return now })
	step := func(d time.Duration, answer bool, want bool, why string) {
		t.Helper()
		now = now.Add(d)
		if answer {
			a.answer()
		}
		if got := a.recent(); got != want {
			t.Errorf("%s: recent() is %v", why, got)
		}
	}
	step(time.Second, true, false, "it has always answered")
	step(absentAfter, false, false, "an answer is on its way")
	step(time.Second, false, true, "it is away")
	step(time.Minute, true, true, "it has just returned")
	step(returnGrace-time.Second, true, true, "nodes still have time, although the next answer is late as well")
	for range int(returnGrace / time.Second) {
		now = now.Add(time.Second)
		a.answer()
	}
	step(time.Second, true, false, "every node has had its time")
}

// TestNoLeaseAfterAbsence asks by the controllers' client for what decides over a node's life, and for other things.
func TestNoLeaseAfterAbsence(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"node-1"}}`))
	}))
	defer server.Close()
	now := time.Unix(1000, 0)
	a := newAbsence(func() time.Time { return now })
	config := &rest.Config{Host: server.URL}
	config.Wrap(a.wrap)
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	get := func(namespace string) error {
		_, err := client.CoordinationV1().Leases(namespace).Get(t.Context(), "node-1", metav1.GetOptions{})
		return err
	}
	if err := get("kube-node-lease"); err != nil {
		t.Errorf("without an absence: %v", err)
	}
	now = now.Add(time.Minute)
	a.answer()
	if err := get("kube-node-lease"); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("after an absence: %v", err)
	}
	if err := get("kube-system"); err != nil {
		t.Errorf("a lease of no node, after an absence: %v", err)
	}
}
