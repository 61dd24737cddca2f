package upstream

import (
	"context"
	"slices"
	"sync"
)

// How many health checks run at a time: in all, enough for 10,000 endpoints each
// 10 s that answer within 60 ms, and those of one namespace.
const (
	maxChecks = 64
	mostOfOne = maxChecks * 3 / 4
)

// slots share out how many checks run at a time. A namespace has mostOfOne of them
// at most, and those that wait get theirs in turns: one whose endpoints let every
// check run into its time limit does not keep others from being checked.
type slots struct {
	mu      sync.Mutex
	free    int
	taken   map[string]int             // by namespace
	waiting map[string][]chan struct{} // by namespace
	turns   []string                   // the namespaces that wait
}

func newSlots() *slots {
	return &slots{free: maxChecks, taken: map[string]int{}, waiting: map[string][]chan struct{}{}}
}

// take waits for a slot, which is to be given back; false if ctx ends before.
func (s *slots) take(ctx context.Context, namespace string) bool {
	come := make(chan struct{})
	s.mu.Lock()
	if len(s.waiting[namespace]) == 0 {
		s.turns = append(s.turns, namespace)
	}
	s.waiting[namespace] = append(s.waiting[namespace], come)
	s.serve()
	s.mu.Unlock()
	select {
	case <-come:
		return true
	case <-ctx.Done(): // with which all checks end
		return false
	}
}

// give gives a slot back.
func (s *slots) give(namespace string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free++
	if s.taken[namespace]--; s.taken[namespace] == 0 {
		delete(s.taken, namespace)
	}
	s.serve()
}

// serve gives slots that are free to those that wait and may have one.
func (s *slots) serve() {
	for i := 0; s.free > 0 && i < len(s.turns); {
		namespace := s.turns[i]
		if s.taken[namespace] >= mostOfOne {
			i++
			continue
		}
		list := s.waiting[namespace]
		close(list[0])
		s.free--
		s.taken[namespace]++
		s.turns = slices.Delete(s.turns, i, i+1)
		if list = list[1:]; len(list) == 0 {
			delete(s.waiting, namespace)
			continue
		}
		s.waiting[namespace] = list
		s.turns = append(s.turns, namespace)
	}
}
