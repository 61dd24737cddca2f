package ebpf

import (
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestSweepIsTriedAgain checks that a sweep that fails is not left to the next change.
func TestSweepIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sweeper{d: &Dataplane{log: slog.New(slog.DiscardHandler)}, work: make(chan struct{}, 1), done: make(chan struct{})}
		var sweeps atomic.Int32
		s.wg.Go(func() {
			s.run(func() error {
				if sweeps.Add(1) < 4 {
					return errors.New("the kernel is out of memory")
				}
				return nil
			})
		})
		defer s.close()
		after := func(d time.Duration, want int32) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if got := sweeps.Load(); got != want {
				t.Errorf("%d sweeps, want %d", got, want)
			}
		}
		after(time.Minute, 0)
		s.wake()
		after(0, 1)
		after(time.Minute, 4)
		after(time.Hour, 4)
		s.wake()
		after(time.Minute, 5)
	})
}
