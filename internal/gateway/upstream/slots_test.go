package upstream

import (
	"context"
	"testing"
)

// TestSlots: a namespace whose checks take long leaves room for those of others,
// and who waits gets a turn.
func TestSlots(t *testing.T) {
	s := newSlots()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	waiting := func(namespace string) int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.waiting[namespace])
	}
	got := make(chan string, 100)
	wait := func(namespace string) {
		t.Helper()
		before := waiting(namespace)
		go func() {
			if s.take(ctx, namespace) {
				got <- namespace
			}
		}()
		waitFor(t, func() bool { return waiting(namespace) == before+1 })
	}
	for range mostOfOne {
		s.take(ctx, "slow")
	}
	wait("slow")
	wait("slow")
	for range maxChecks - mostOfOne {
		s.take(ctx, "other")
	}
	wait("third")
	wait("other")
	s.give("other")
	if n := <-got; n != "third" {
		t.Errorf("%s came before one that waits and has none", n)
	}
	s.give("third")
	if n := <-got; n != "other" {
		t.Errorf("%s came before one whose turn it was", n)
	}
	s.give("slow")
	if n := <-got; n != "slow" {
		t.Errorf("%s has waited for nothing", n)
	}
	if n := waiting("slow"); n != 1 || s.free != 0 {
		t.Errorf("%d wait, %d are free", n, s.free)
	}
	cancel()
	if s.take(ctx, "slow") {
		t.Error("a check began after the end")
	}
}
