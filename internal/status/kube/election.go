package kube

import (
	"context"
	"fmt"
	"sync"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

// elect calls lead whenever this process becomes the leader, with a context
// that ends when it no longer is, until ctx ends.
func (w *Writer) elect(ctx context.Context, lead func(context.Context)) error {
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: w.Lease.Namespace, Name: w.Lease.Name},
		Client:     w.Client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: w.Identity},
	}
	// Held during a term: the next one begins when lead has returned.
	var term sync.Mutex
	config := leaderelection.LeaderElectionConfig{
		Lock:            lock,
		LeaseDuration:   w.LeaseDuration,
		RenewDeadline:   w.LeaseDuration * 5 / 8,
		RetryPeriod:     w.LeaseDuration / 8,
		ReleaseOnCancel: true,
		Name:            w.Lease.String(),
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				term.Lock()
				defer term.Unlock()
				if ctx.Err() == nil {
					w.Logger.Info("leading", "lease", w.Lease.String(), "identity", w.Identity)
					lead(ctx)
				}
			},
			OnStoppedLeading: func() {},
		},
	}
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(w.Logger.Handler()))
	for ctx.Err() == nil {
		elector, err := leaderelection.NewLeaderElector(config)
		if err != nil {
			return fmt.Errorf("leader election by Lease %s: %w", w.Lease, err)
		}
		elector.Run(ctx)
		waitFor(&term)
		if ctx.Err() == nil {
			w.Logger.Warn("no longer leading", "lease", w.Lease.String())
		}
	}
	return nil
}

// waitFor returns when nobody holds m.
func waitFor(m *sync.Mutex) {
	m.Lock()
	defer m.Unlock()
}
