package control

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// askInterval is how often the API server is asked whether it is well.
	askInterval = time.Second
	// absentAfter is how late an answer is that counts as none. A machine that is merely busy is faster.
	absentAfter = 5 * time.Second
	// returnGrace is how long nodes have, from the API's return, to say that they are alive: a kubelet renews its lease
	// each 10 s, waits 10 s for an answer, and up to 7 s before it tries again.
	returnGrace = 30 * time.Second
)

// absence knows whether the API server was away a short while ago: it did not answer, or this whole process stood still.
// The node lifecycle controller does not. Nodes renew their leases through the API; after an absence longer than its
// grace period every lease is old, and if the controller looks before the nodes have written, it takes them all for lost
// and their Pods out of every Service.
type absence struct {
	now func() time.Time

	mu       sync.Mutex
	answered time.Time // last
	returned time.Time // when the last absence ended; zero when there was none
}

func newAbsence(now func() time.Time) *absence {
	return &absence{now: now, answered: now()}
}

// answer notes that the API server has just answered.
func (a *absence) answer() {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if now.Sub(a.answered) > absentAfter {
		a.returned = now
	}
	a.answered = now
}

// recent tells whether the API server is away or has returned so recently that old leases mean nothing.
func (a *absence) recent() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	return now.Sub(a.answered) > absentAfter || !a.returned.IsZero() && now.Sub(a.returned) < returnGrace
}

// watch asks again and again, and notes each answer, until the context ends.
func (a *absence) watch(ctx context.Context, ask func(context.Context) error) {
	tick := time.NewTicker(askInterval)
	defer tick.Stop()
	for {
		try, cancel := context.WithTimeout(ctx, absentAfter)
		err := ask(try)
		cancel()
		if err == nil {
			a.answer()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// leases are where nodes say that they are alive.
const leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/"

// wrap returns a transport for the controller manager. Its node lifecycle controller reads a lease from the API itself
// before it declares that node lost, and waits for its next round when it cannot: that read is refused after an absence.
// Kubernetes does so since 1.37 (feature gate NodeControllerLeaseCircuitBreaker, on by default).
func (a *absence) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		if node, ok := strings.CutPrefix(r.URL.Path, leases); ok && node != "" && r.Method == http.MethodGet && a.recent() {
			return refuse(r, node)
		}
		return next.RoundTrip(r)
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// refuse answers in place of the API server.
func refuse(r *http.Request, node string) (*http.Response, error) {
	body, err := json.Marshal(metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure,
		Reason:   metav1.StatusReasonServiceUnavailable,
		Code:     http.StatusServiceUnavailable,
		Message:  "the API was away until now: node " + node + " has " + returnGrace.String() + " to renew its lease before it counts as lost",
	})
	if err != nil {
		return nil, err
	}
	return &http.Response{
		Status: "503 Service Unavailable", StatusCode: http.StatusServiceUnavailable,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {"application/json"}},
		Body:   io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
		Request: r,
	}, nil
}
