package upstream

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/state"
)

func TestEjectionGrows(t *testing.T) {
	e, now := &endpoint{}, time.Now()
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
		e.unreachable(now, now)
		if got := time.Unix(0, e.ejected.Load()).Sub(now).Round(time.Second); got != want*time.Second {
			t.Errorf("ejected for %v, want %v", got, want*time.Second)
		}
	}
	e.succeeded()
	if !e.healthy() || !e.admits(now, true) {
		t.Error("still ejected after a success")
	}
	e.unreachable(now, now)
	if got := time.Unix(0, e.ejected.Load()).Sub(now).Round(time.Second); got != time.Second {
		t.Errorf("ejected for %v after it had served, want 1s", got)
	}
}

// TestTrial: after its ejection an endpoint gets one request, and the others once that has succeeded.
func TestTrial(t *testing.T) {
	e, now := &endpoint{}, time.Now()
	e.unreachable(now, now)
	if e.admits(now.Add(ejectMin-time.Millisecond), true) {
		t.Fatal("admitted while it is ejected")
	}
	now = now.Add(ejectMin)
	if !e.admits(now, true) {
		t.Fatal("not tried after its ejection")
	}
	if e.admits(now.Add(trialTime-time.Millisecond), true) {
		t.Error("a second request is risked while the first is under way")
	}
	if !e.admits(now.Add(trialTime), true) {
		t.Error("a trial without outcome keeps the endpoint out for ever")
	}
	e.succeeded()
	for range 2 {
		if !e.admits(now, true) {
			t.Error("not back after it has served")
		}
	}
}

func TestStrikes(t *testing.T) {
	var told []string
	p := &Pool{onFailure: func(_ Key, why, _ string) { told = append(told, why) }}
	e := &endpoint{}
	broken := errors.New("broken")
	for range maxStrikes - 1 {
		p.blame(e, broken, time.Now())
	}
	e.succeeded()
	for range maxStrikes - 1 {
		p.blame(e, ErrTimeout, time.Now())
		p.blame(e, http1.ErrGone, time.Now()) // not the endpoint's fault
	}
	if !e.healthy() || len(told) != 0 {
		t.Fatalf("ejected after %d failures in a row: %v", maxStrikes-1, told)
	}
	if p.blame(e, broken, time.Now()); e.healthy() || len(told) != 1 || told[0] != "ejected" {
		t.Errorf("healthy %v after %d failures in a row: %v", e.healthy(), maxStrikes, told)
	}
	if !p.blame(e, &DialError{"a", broken}, time.Now()) || told[len(told)-1] != "connect" {
		t.Errorf("a failed connection: %v", told)
	}
}

// TestTrialCanBeRepeated: an endpoint that was ejected gets a request that can be repeated, if
// one comes within a second, however requests find their endpoints.
func TestTrialCanBeRepeated(t *testing.T) {
	for name, choice := range map[string]func(c *Choice){
		"turns": func(*Choice) {}, "hash": func(c *Choice) { c.Hashed = true },
		"session": func(c *Choice) { s := NewSession("", false, false, netip.Addr{}); c.Session = &s },
	} {
		s := NewSet(Options{})
		s.Sync(map[Key]struct{}{webKey: {}}, put(state.New(), httpPort, "10.0.0.1", "10.0.0.2"))
		p, now := s.Pool(webKey), time.Now()
		sick := p.members.Load().endpoints[0]
		tried := func(repeatable bool, at time.Time) bool {
			for i := range 200 {
				c := Choice{Repeatable: repeatable, Hash: uint64(i) * 0x9e3779b97f4a7c15}
				choice(&c)
				if e, err := p.pick(&c, nil, at); err != nil {
					t.Fatal(err)
				} else if e == sick {
					return true
				}
			}
			return false
		}
		sick.eject(now, now)
		over := now.Add(ejectMin)
		if tried(false, over) || !tried(true, over) {
			t.Errorf("%s: the trial is one that cannot be repeated", name)
		}
		sick.eject(over, over)
		if over = over.Add(2*ejectMin + trialPatience); !tried(false, over) {
			t.Errorf("%s: there is no trial without requests that can be repeated", name)
		}
	}
}

// TestOneFailure: however many requests were under way when an endpoint failed, it is ejected once for them.
func TestOneFailure(t *testing.T) {
	p, e := &Pool{}, &endpoint{}
	begun := time.Now()
	broken := errors.New("broken")
	for range 10 * maxStrikes {
		p.blame(e, broken, begun)
		p.ended(e, broken, begun)
		p.blame(e, &DialError{"a", broken}, begun)
	}
	if n := e.ejections.Load(); n != 1 {
		t.Errorf("ejected %d times", n)
	}
	if p.blame(e, broken, time.Now()); e.ejections.Load() != 2 {
		t.Errorf("ejected %d times after a trial has failed", e.ejections.Load())
	}
}

// TestAllEjected: with nobody left, those that can at least be connected to share the load.
func TestAllEjected(t *testing.T) {
	s := NewSet(Options{})
	s.Sync(map[Key]struct{}{webKey: {}}, put(state.New(), httpPort, "10.0.0.1", "10.0.0.2", "10.0.0.3"))
	p, now := s.Pool(webKey), time.Now()
	all := p.members.Load().endpoints
	all[0].unreachable(now, now)
	for _, e := range all[1:] {
		for range maxStrikes {
			e.unanswered(now, now)
		}
	}
	counts := map[*endpoint]int{}
	for range 300 {
		e, err := p.pick(&Choice{}, nil, now)
		if err != nil {
			t.Fatal(err)
		}
		counts[e]++
	}
	if counts[all[0]] != 0 || counts[all[1]] < 90 || counts[all[2]] < 90 {
		t.Errorf("%d for the one that is gone, %d and %d for the others", counts[all[0]], counts[all[1]], counts[all[2]])
	}
	if e, _ := p.pick(&Choice{}, all[1:], now); e != all[0] {
		t.Error("the last one is not tried")
	}
}

func TestBudget(t *testing.T) {
	var b budget
	now := time.Now()
	take := func(requests int64) (n int) {
		for b.take(requests, now) {
			n++
		}
		return n
	}
	if n := take(0); n != budgetMax {
		t.Errorf("%d at once, want %d", n, budgetMax)
	}
	if n := take(50); n != 10 {
		t.Errorf("%d for 50 requests, want 10", n)
	}
	now = now.Add(2 * time.Second)
	if n := take(50); n != 20 {
		t.Errorf("%d for 2 seconds, want 20", n)
	}
	now = now.Add(time.Hour)
	if n := take(1e6); n != budgetMax {
		t.Errorf("%d after a long time, want %d", n, budgetMax)
	}
}

// TestBudgetIsOfRequests: a repetition is no request of which a fifth may be repeated.
func TestBudgetIsOfRequests(t *testing.T) {
	f := newFleet(t, "uid", 1, 2)
	t.Cleanup(f.set.Close)
	const n = 5000
	repeated, begun := 0, time.Now()
	for range n {
		e, err := f.pool.pick(&Choice{}, nil, begun)
		if err != nil {
			t.Fatal(err)
		}
		if f.pool.mayRepeat() {
			repeated++
			_, _ = f.pool.pick(&Choice{}, []*endpoint{e}, begun)
		}
	}
	if most := budgetMax + n*budgetShare + time.Since(begun).Seconds()*budgetPerSecond; float64(repeated) > most+1 {
		t.Errorf("%d of %d requests are repeated, at most %.0f may be", repeated, n, most)
	}
}
