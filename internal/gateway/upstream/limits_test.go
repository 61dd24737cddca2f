package upstream

import (
	"errors"
	"sync"
	"testing"
	"time"

	"fairway.dev/fairway/internal/model"
)

// limited returns a pool with limits.
func limited(l *model.UpstreamLimits, appProtocol string) *Pool {
	p := &Pool{key: webKey}
	p.members.Store(&members{limits: l, appProtocol: appProtocol})
	return p
}

func limitOf(err error) string {
	var l *LimitError
	if errors.As(err, &l) {
		return l.Limit
	}
	return ""
}

func TestLimits(t *testing.T) {
	const long = time.Minute
	p := limited(&model.UpstreamLimits{Requests: 4, Connections: 2, Pending: 1}, "")
	enter := func() Ticket {
		t.Helper()
		ticket, err := p.EnterRequest(model.BackendAuto, long, nil)
		if err != nil {
			t.Fatal(err)
		}
		return ticket
	}
	a, b := enter(), enter()
	got := make(chan Ticket)
	go func() {
		ticket, _ := p.EnterRequest(model.BackendAuto, long, nil)
		got <- ticket
	}()
	waitFor(t, func() bool {
		p.gate.mu.Lock()
		defer p.gate.mu.Unlock()
		return len(p.gate.waiting) == 1
	})
	if _, err := p.EnterRequest(model.BackendAuto, long, nil); limitOf(err) != LimitPending {
		t.Errorf("a second one that would wait: %v", err)
	}
	if _, err := p.EnterConnection(0); limitOf(err) != LimitConnections {
		t.Errorf("one that may not wait: %v", err)
	}
	a.Leave()
	c := <-got // has the connection of the first
	h2, err := p.EnterRequest(model.BackendGRPC, long, nil)
	if err != nil {
		t.Errorf("one that shares a connection: %v", err)
	}
	if _, err = p.EnterRequest(model.BackendGRPC, long, nil); err != nil {
		t.Errorf("the fourth request: %v", err)
	}
	if _, err = p.EnterRequest(model.BackendGRPC, long, nil); limitOf(err) != LimitRequests {
		t.Errorf("the fifth request: %v", err)
	}
	h2.Leave()
	begun := time.Now()
	if _, err = p.EnterRequest(model.BackendAuto, 20*time.Millisecond, nil); limitOf(err) != LimitConnections || time.Since(begun) < 20*time.Millisecond {
		t.Errorf("one that waited in vain: %v", err)
	}
	if len(p.gate.waiting) != 0 || p.gate.requests != 3 || p.gate.connections != 2 {
		t.Errorf("%+v", &p.gate)
	}
	// Limits that go let everybody in.
	go func() {
		ticket, _ := p.EnterRequest(model.BackendAuto, long, nil)
		got <- ticket
	}()
	waitFor(t, func() bool {
		p.gate.mu.Lock()
		defer p.gate.mu.Unlock()
		return len(p.gate.waiting) == 1
	})
	p.members.Store(&members{})
	b.Leave()
	(<-got).Leave()
	c.Leave()
	if free, err := p.EnterRequest(model.BackendAuto, 0, nil); err != nil || free.pool != nil {
		t.Errorf("without limits: %+v, %v", free, err)
	}
	if p.gate.connections != 0 || p.gate.requests != 1 { // h2's second
		t.Errorf("%+v", &p.gate)
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never happened")
		}
	}
}

// TestLimitsHold: never more than there may be, nobody waits for ever, and
// nothing is left in the end.
func TestLimitsHold(t *testing.T) {
	p := limited(&model.UpstreamLimits{Connections: 3, Pending: 1000}, "")
	var mu sync.Mutex
	var group sync.WaitGroup
	now, most, refused := 0, 0, 0
	for range 40 {
		group.Add(1)
		go func() {
			defer group.Done()
			for range 50 {
				ticket, err := p.EnterRequest(model.BackendAuto, 50*time.Microsecond, nil)
				mu.Lock()
				if err != nil {
					refused++
					mu.Unlock()
					continue
				}
				now++
				most = max(most, now)
				mu.Unlock()
				time.Sleep(20 * time.Microsecond)
				mu.Lock()
				now--
				mu.Unlock()
				ticket.Leave()
			}
		}()
	}
	group.Wait()
	if most > 3 || p.gate.connections != 0 || p.gate.requests != 0 || len(p.gate.waiting) != 0 {
		t.Errorf("up to %d at a time, %d refused, left %+v", most, refused, &p.gate)
	}
}

func TestNoLimitsCostNothing(t *testing.T) {
	p := limited(nil, "")
	if n := testing.AllocsPerRun(100, func() {
		ticket, _ := p.EnterRequest(model.BackendAuto, time.Second, nil)
		ticket.Leave()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
