package upstream

import (
	"cmp"
	"slices"
	"time"
)

// PoolState is a pool as it is now, for people.
type PoolState struct {
	Service string `json:"service"`
	Port    string `json:"port"`
	// Speaks is the protocol where no route asks for another.
	Speaks string `json:"speaks,omitempty"`
	// Error is why the pool cannot serve.
	Error string `json:"error,omitempty"`
	// Requests are those since the pool is there.
	Requests uint64 `json:"requests"`
	// Limited is what is under way, where the Service has limits.
	Limited   *GateState      `json:"limited,omitempty"`
	Endpoints []EndpointState `json:"endpoints"`
}

// GateState is what counts for the limits of a Service.
type GateState struct {
	Requests    int `json:"requests"`
	Connections int `json:"connections"`
	Waiting     int `json:"waiting"`
}

// EndpointState is an endpoint as it is now, for people.
type EndpointState struct {
	Address string `json:"address"`
	// State is "in use", "ejected", "unhealthy", or "sessions only".
	State    string `json:"state"`
	InFlight int64  `json:"inFlight"`
	// Kept are the connections by HTTP/1.1 that wait for a request.
	Kept int `json:"kept"`
	// EjectedUntil is when it gets its next request.
	EjectedUntil *time.Time `json:"ejectedUntil,omitempty"`
	// Failures are the requests in a row without an answer, and BrokenOff the
	// answers in a row that broke off.
	Failures  int32 `json:"failures,omitempty"`
	BrokenOff int32 `json:"brokenOff,omitempty"`
	// Share is how much of its share it gets while it warms up.
	Share float64 `json:"share,omitempty"`
	// LatencySeconds is the mean that EWMA goes by, where it is in use.
	LatencySeconds float64 `json:"latencySeconds,omitempty"`
	// Check is how its last health check went: "ok" or what was wrong.
	Check string `json:"check,omitempty"`
}

// State returns all pools, in the order of their names.
func (s *Set) State(now time.Time) []PoolState {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]PoolState, 0, len(s.pools))
	for _, e := range s.pools {
		out = append(out, e.state(now))
	}
	slices.SortFunc(out, func(a, b PoolState) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Port, b.Port))
	})
	return out
}

func (en *entry) state(now time.Time) PoolState {
	p := en.pool
	m := p.members.Load()
	out := PoolState{Service: p.key.Service.String(), Port: p.key.PortText(), Requests: p.requests(), Endpoints: []EndpointState{}}
	if m.err != nil {
		out.Error = m.err.Error()
		return out
	}
	if p.key.Protocol.String() == "TCP" {
		out.Speaks = protocolOf(0, m.appProtocol).String()
	}
	if m.limits != nil {
		p.gate.mu.Lock()
		out.Limited = &GateState{p.gate.requests, p.gate.connections, len(p.gate.waiting)}
		p.gate.mu.Unlock()
		out.Limited.Connections += p.shares()
		out.Limited.Waiting += p.waiting()
	}
	for _, e := range m.endpoints {
		s := e.state(now)
		if w := m.warmth(e, now); w < 1 {
			s.Share = w
		}
		if c := en.checks[e]; c != nil {
			s.Check = c.last()
		}
		out.Endpoints = append(out.Endpoints, s)
	}
	for _, e := range m.others {
		s := e.state(now)
		s.State = "sessions only"
		out.Endpoints = append(out.Endpoints, s)
	}
	return out
}

func (e *endpoint) state(now time.Time) EndpointState {
	s := EndpointState{Address: e.addr, State: "in use", InFlight: e.inflight.Load(), Failures: e.strikes.Load(), BrokenOff: e.broken.Load()}
	s.Kept = e.kepts()
	if until := e.ejected.Load(); until != 0 {
		at := time.Unix(0, until).UTC()
		s.State, s.EjectedUntil = "ejected", &at
	}
	if e.down.Load() {
		s.State = "unhealthy"
	}
	s.LatencySeconds, _ = e.latency.get(now)
	return s
}

// kepts counts connections that wait for a request, those of single clients and
// by other settings of TLS as well.
func (e *endpoint) kepts() (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, list := range e.idle {
		n += len(list)
	}
	for _, o := range e.owners {
		n += o.kepts()
	}
	if list := e.variants.Load(); list != nil {
		for _, v := range *list {
			n += v.kepts()
		}
	}
	return n
}

// last tells how the last check went; "" before the first.
func (c *check) last() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return c.err.Error()
	case c.good > 0:
		return "ok"
	}
	return ""
}
