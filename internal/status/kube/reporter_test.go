package kube

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"fairway.dev/fairway/internal/model"
)

// TestReporter: Events are written without an election, one for each problem.
func TestReporter(t *testing.T) {
	f := newFixture(t)
	var mu sync.Mutex
	var now model.Problems
	changed := make(chan struct{}, 1)
	set := func(list ...model.Problem) {
		mu.Lock()
		defer mu.Unlock()
		now = list
		changed <- struct{}{}
	}
	r, err := NewReporter(ReporterOptions{
		Client: f.client, Logger: slog.New(slog.DiscardHandler), Now: f.clock.now, Changed: changed,
		Problems: func() model.Problems { mu.Lock(); defer mu.Unlock(); return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	events := func() (out []string) {
		list, err := f.client.CoreV1().Events("").List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list.Items {
			out = append(out, e.InvolvedObject.Name+" "+e.Reason+" "+e.Message)
		}
		return out
	}
	p := model.Problem{Object: model.Ref{Kind: "Service", Key: key("a"), UID: "uid-a"}, Reason: "NotProgrammed", Message: "no room"}
	set(p, p)
	f.eventually("an Event", func() bool { return len(events()) == 1 })
	if got := events()[0]; got != "a NotProgrammed no room" {
		t.Errorf("Event %q", got)
	}
	q := p
	q.Object.Name, q.Object.UID = "b", "uid-b"
	set(q)
	f.eventually("a second Event", func() bool { return len(events()) == 2 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, a := range f.client.Actions() {
		if a.GetResource().Resource == "leases" {
			t.Error("it asks for a Lease")
		}
	}
}

// TestReporterSettles: what is over soon is not told.
func TestReporterSettles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		var now atomic.Pointer[model.Problems]
		changed := make(chan struct{}, 1)
		set := func(list ...model.Problem) {
			p := model.Problems(list)
			now.Store(&p)
			changed <- struct{}{}
			synctest.Wait()
		}
		r, err := NewReporter(ReporterOptions{
			Client: f.client, Logger: slog.New(slog.DiscardHandler), Changed: changed, Settle: 3 * time.Second,
			Problems: func() model.Problems { return *now.Load() },
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		set(problem("a", "passing"))
		time.Sleep(time.Second)
		set()
		set(problem("a", "lasting"))
		time.Sleep(time.Second)
		if got := f.events(); len(got) > 0 {
			t.Errorf("Events %v of problems that are new", got)
		}
		time.Sleep(3 * time.Second)
		if got := f.events(); len(got) != 1 || got[0].Message != "spec.x: lasting" {
			t.Errorf("Events %v, want that of the problem that lasts", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestReporterOptionsAreChecked(t *testing.T) {
	good := ReporterOptions{
		Client: fake.NewClientset(), Logger: slog.New(slog.DiscardHandler),
		Problems: func() model.Problems { return nil }, Changed: make(chan struct{}),
	}
	if _, err := NewReporter(good); err != nil {
		t.Error(err)
	}
	for name, breakIt := range map[string]func(*ReporterOptions){
		"logger": func(o *ReporterOptions) { o.Logger = nil }, "problems": func(o *ReporterOptions) { o.Problems = nil },
		"changed": func(o *ReporterOptions) { o.Changed = nil }, "client": func(o *ReporterOptions) { o.Client = nil },
	} {
		o := good
		breakIt(&o)
		if _, err := NewReporter(o); err == nil {
			t.Errorf("no error without %s", name)
		}
	}
}
