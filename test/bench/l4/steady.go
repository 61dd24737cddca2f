package main

import (
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The pace of a steady load: short pauses, so that no moment goes unnoticed,
// but far from what the machine can do.
const (
	pauseNew  = 4 * time.Millisecond
	pauseKept = 10 * time.Millisecond
	// steadyPatience is how long a client of the steady load waits.
	steadyPatience = 3 * time.Second
)

// steady is a load in the background of a worker: new connections, and
// connections that are kept.
type steady struct {
	mu  sync.Mutex
	sum outcome
}

func (s *steady) start(o order) {
	for thread := range o.Threads {
		go func() {
			runtime.LockOSThread()
			for i := thread; ; i++ {
				begin := monotonic()
				c, err := dial(o.Targets[i%len(o.Targets)], steadyPatience)
				if err == nil {
					_, err = ask(c, make([]byte, payload))
					_ = unix.Close(c)
				}
				s.note(begin, err, false)
				time.Sleep(pauseNew)
			}
		}()
	}
	for i := range o.Kept {
		go func() {
			runtime.LockOSThread()
			c := -1
			for {
				begin := monotonic()
				var err error
				if c < 0 {
					c, err = dial(o.Targets[i%len(o.Targets)], steadyPatience)
				}
				if err == nil {
					_, err = ask(c, make([]byte, payload))
				}
				if err != nil && c >= 0 {
					_ = unix.Close(c)
					c = -1
				}
				s.note(begin, err, true)
				time.Sleep(pauseKept)
			}
		}()
	}
}

// note counts one connection, or one question on a kept one.
func (s *steady) note(begin time.Duration, err error, kept bool) {
	took := monotonic() - begin
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil && kept:
		s.sum.Broken++
	case err != nil:
		s.sum.Failed++
	case kept:
		s.sum.Pings++
	default:
		s.sum.Count++
	}
	if err != nil && s.sum.Why == "" {
		s.sum.Why = err.Error()
	}
	s.sum.Longest = max(s.sum.Longest, took)
}

// count returns what was counted since the last time.
func (s *steady) count() outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.sum
	s.sum = outcome{}
	return out
}
