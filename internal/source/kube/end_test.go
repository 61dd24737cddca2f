package kube

import (
	"context"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// refusing is an API that is away. As a real one it can stream lists, unlike the
// fake client.
type refusing struct{}

func (refusing) List(metav1.ListOptions) (runtime.Object, error) { return nil, syscall.ECONNREFUSED }

func (refusing) Watch(metav1.ListOptions) (watch.Interface, error) { return nil, syscall.ECONNREFUSED }

// TestEndsSoonWithoutTheAPI ends a source that sleeps between its tries, in time of
// its own, at several moments.
func TestEndsSoonWithoutTheAPI(t *testing.T) {
	for _, after := range []time.Duration{time.Second, 10 * time.Second, 31 * time.Second, 63 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, Options{Kinds: ForNode})
			for _, w := range f.source.watchers {
				w.lw = refusing{}
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- f.source.Run(ctx) }()
			time.Sleep(after)
			began := time.Now()
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took > endPatience {
				t.Errorf("ended %v after it was told to, %v after its start", took, after)
			}
			time.Sleep(time.Minute) // until those that sleep have ended too
		})
	}
}
