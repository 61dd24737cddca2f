package servicetls

import (
	"net/netip"
	"sync"
	"time"

	"fairway.dev/fairway/internal/model"
)

// maxStuck bounds the clients that affinity remembers.
const maxStuck = 100_000

// affinity remembers which endpoint a client of a Service port was sent to
// (sessionAffinity: ClientIP). Each new connection renews it.
type affinity struct {
	now func() time.Time

	mu      sync.Mutex
	clients map[stuck]choice
}

type stuck struct {
	service model.Key
	port    uint16
	client  netip.Addr
}

type choice struct {
	backend netip.AddrPort
	until   time.Time
}

func newAffinity(now func() time.Time) *affinity {
	return &affinity{now: now, clients: map[stuck]choice{}}
}

// get returns the endpoint of the client's last connection, if it still holds.
func (a *affinity) get(s stuck) (netip.AddrPort, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c, ok := a.clients[s]
	if !ok || !a.now().Before(c.until) {
		return netip.AddrPort{}, false
	}
	return c.backend, true
}

// set remembers the endpoint for timeout from now.
func (a *affinity) set(s stuck, backend netip.AddrPort, timeout time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if _, known := a.clients[s]; !known && len(a.clients) >= maxStuck {
		a.shrink(now)
	}
	a.clients[s] = choice{backend, now.Add(timeout)}
}

// shrink forgets what has expired and, where that is not enough, any other tenth.
func (a *affinity) shrink(now time.Time) {
	for s, c := range a.clients {
		if !now.Before(c.until) {
			delete(a.clients, s)
		}
	}
	for s := range a.clients {
		if len(a.clients) <= maxStuck*9/10 {
			return
		}
		delete(a.clients, s)
	}
}
