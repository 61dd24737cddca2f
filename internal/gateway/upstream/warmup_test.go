package upstream

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"fairway.dev/fairway/internal/model"
)

// slowFleet is a fleet of two endpoints that serve, and a third one that has
// just come and warms up for a minute.
func slowFleet(t *testing.T) (f *fleet, cold *endpoint, begun time.Time) {
	f = newFleet(t, "uid", 1, 2)
	t.Cleanup(f.set.Close)
	f.slowStart = time.Minute
	f.change([]int{1, 2, 3}, nil, nil)
	list := f.pool.members.Load().endpoints
	for _, e := range list[:2] {
		if e.since.Load() != 0 {
			t.Fatal("an endpoint that was there from the start is new")
		}
	}
	return f, list[2], time.Unix(0, list[2].since.Load())
}

// TestSlowStartShare: a new endpoint gets a growing part of its share.
func TestSlowStartShare(t *testing.T) {
	f, cold, begun := slowFleet(t)
	const n = 30000
	for _, balance := range []model.Balance{model.BalanceTurns, model.BalanceEWMA} {
		before := 0.0
		for _, after := range []time.Duration{0, 15, 30, 45, 60} {
			at, got := begun.Add(after*time.Second), 0
			for range n {
				if e, _ := f.pool.pick(&Choice{Balance: balance}, nil, at); e == cold {
					got++
				}
			}
			share, want := float64(got)/n, max(float64(after)/60, coldest)/3
			if share < want*0.75-0.01 || share > want*1.25+0.01 || share < before {
				t.Errorf("balance %d: after %d s it gets %.3f of all, want about %.3f", balance, after, share, want)
			}
			before = share
		}
	}
}

// TestSlowStartHash: keys move to a new endpoint once, and none between the others.
func TestSlowStartHash(t *testing.T) {
	f, cold, begun := slowFleet(t)
	const n = 3000
	for _, all := range []bool{false, true} {
		last, moved := map[uint64]*endpoint{}, 0
		for _, after := range []time.Duration{0, 15, 30, 45, 60, 90} {
			at, got := begun.Add(after*time.Second), 0
			for key := range uint64(n) {
				m := f.pool.members.Load()
				e := m.byHash(mix(key), all, &Choice{}, nil, at)
				if owner, _ := m.owner(mix(key), at); owner != e {
					t.Fatal("a session's owner is not whom its hash leads to")
				}
				if e == cold {
					got++
				}
				if last[key] != nil && last[key] != e {
					if moved++; e != cold {
						t.Fatal("a key moved to an endpoint that was there before")
					}
				}
				last[key] = e
			}
			share, want := float64(got)/n, min(max(float64(after)/60, coldest), 1)/3
			if share < want*0.8 || share > want*1.2 {
				t.Errorf("after %d s it has %.3f of the keys, want about %.3f", after, share, want)
			}
		}
		if moved == 0 || moved > n/2 {
			t.Errorf("%d keys moved", moved)
		}
	}
}

// TestSlowStartNobodyElse: endpoints that warm up serve everything where they
// are alone, or the others are left out.
func TestSlowStartNobodyElse(t *testing.T) {
	f, cold, begun := slowFleet(t)
	for _, e := range f.pool.members.Load().endpoints[:2] {
		e.down.Store(true)
	}
	for i := range uint64(200) {
		for _, c := range []Choice{{}, {Hashed: true, Hash: mix(i)}, {Session: &Session{}}, {Session: &Session{persistent: true}}} {
			if e, err := f.pool.pick(&c, nil, begun); e != cold || err != nil {
				t.Fatalf("%+v: got %v, %v", c, e, err)
			}
		}
	}
}

// TestSlowStartBegins tells when an endpoint is new.
func TestSlowStartBegins(t *testing.T) {
	f, cold, begun := slowFleet(t)
	m := func() *members { return f.pool.members.Load() }
	late := begun.Add(time.Hour)
	if m().warmth(cold, begun) != coldest || m().warmth(cold, late) != 1 {
		t.Errorf("at the start %v, later %v", m().warmth(cold, begun), m().warmth(cold, late))
	}
	f.change([]int{1, 2, 3}, nil, nil)
	if m().endpoints[2] != cold || cold.since.Load() != begun.UnixNano() {
		t.Error("a change of nothing begins it anew")
	}

	// It was not well, and is again.
	old := m().endpoints[0]
	old.unreachable(time.Now(), time.Now())
	old.succeeded()
	if m().warmth(old, time.Now()) == 1 {
		t.Error("an endpoint that could not be connected to is back with all its share")
	}
	old.since.Store(0)
	old.succeeded() // nothing had been wrong
	if old.since.Load() != 0 {
		t.Error("a success begins it anew")
	}
	c := &check{checks: f.set.checks, pool: f.pool, endpoint: old}
	c.use(&model.HealthCheck{Interval: time.Hour, HealthyAfter: 1, UnhealthyAfter: 1}, h1)
	c.ended(errors.New("bad"))
	c.ended(nil)
	c.end()
	if m().warmth(old, time.Now()) == 1 {
		t.Error("an endpoint that was unwell is back with all its share")
	}

	// Where nobody served, all are new alike.
	f.change(nil, nil, nil)
	f.change([]int{7, 8}, nil, nil)
	for _, e := range m().endpoints {
		if m().warmth(e, time.Now()) != 1 {
			t.Error("the first endpoints warm up, beside none")
		}
	}
}

// TestSlowStartSessions: sessions that are there stay at a new endpoint, and new
// ones come to it as it warms up.
func TestSlowStartSessions(t *testing.T) {
	f, cold, begun := slowFleet(t)
	for _, persistent := range []bool{true, false} {
		got := map[string]int{}
		for range 3000 {
			s := NewSession("", persistent, false, netip.Addr{})
			e, _ := f.pool.pick(&Choice{Session: &s}, nil, begun)
			cookie, ok := s.Renewed()
			if !ok {
				t.Fatal("no cookie")
			}
			again := NewSession(cookie, persistent, false, netip.Addr{})
			if to, _ := f.pool.pick(&Choice{Session: &again}, nil, begun); to != e {
				t.Fatal("a session left its endpoint")
			}
			got[fmt.Sprint(e == cold)]++
		}
		if n := got["true"]; n < 20 || n > 300 {
			t.Errorf("persistent %v: %d of 3000 sessions began at the new endpoint, want about 100", persistent, n)
		}
	}
}

// TestSlowStartTrial: while the one endpoint that there is has its trial, and
// warms up, requests that come at the same moment go to it all the same.
func TestSlowStartTrial(t *testing.T) {
	f := newFleet(t, "uid", 1)
	t.Cleanup(f.set.Close)
	f.slowStart = time.Minute
	f.change([]int{1}, nil, nil)
	e := f.pool.members.Load().endpoints[0]
	now := time.Now()
	e.since.Store(now.UnixNano())
	var askers sync.WaitGroup
	for range 2 {
		askers.Go(func() {
			for range 200_000 {
				e.ejected.Store(now.Add(-time.Second).UnixNano()) // its time is over
				if got, err := f.pool.pick(&Choice{}, nil, now); got != e || err != nil {
					t.Errorf("got %v, %v", got, err)
					return
				}
			}
		})
	}
	askers.Wait()
}
