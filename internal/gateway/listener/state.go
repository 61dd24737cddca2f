package listener

import (
	"cmp"
	"slices"
)

// State is an open port as it is now, for people.
type State struct {
	Address string `json:"address"`
	// Protocols are what is spoken there.
	Protocols []string `json:"protocols"`
	// Connections are those that are open, by protocol; sessions for UDP.
	Connections map[string]int64 `json:"connections"`
	// Routes are the objects that a TCP or UDP port belongs to, or whose TLS passes
	// through at the HTTPS ports.
	Routes []string `json:"routes,omitempty"`
}

// State returns the server's ports. Connections are those of all of them.
func (h *HTTP) State() []State {
	protocols := []string{"HTTP/1.1", "HTTP/2"}
	streams := int64(h.http2.Open())
	// The rest speaks HTTP/1.1, or has not said what it speaks.
	connections := map[string]int64{"HTTP/1.1": max(h.serving.Load()-streams-h.passing.Load(), 0), "HTTP/2": streams}
	if h.http3 != nil {
		protocols = append(protocols, "HTTP/3")
		connections["HTTP/3"] = h.http3.open.Load()
	}
	if h.Secure() {
		protocols = append(protocols, "TLS")
	}
	var list []State
	for _, a := range h.Addrs() {
		list = append(list, State{Address: a.String(), Protocols: protocols, Connections: connections})
	}
	return list
}

// State returns the ports of routes, in order.
func (s *Streams) State() []State {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []State
	for key, p := range s.ports {
		t, open := p.state()
		one := State{Address: key.String(), Protocols: []string{key.protocol.String()}, Connections: map[string]int64{key.protocol.String(): open}}
		for _, r := range t.all {
			one.Routes = append(one.Routes, r.Ref.String()+" "+r.Field)
		}
		list = append(list, one)
	}
	if t := s.through.Load(); t != nil {
		one := State{Address: "HTTPS", Protocols: []string{"TLS passed through"}, Connections: map[string]int64{"TCP": s.passing.Load()}}
		for _, r := range t.all {
			one.Routes = append(one.Routes, r.Ref.String()+" "+r.Field)
		}
		list = append(list, one)
	}
	slices.SortFunc(list, func(a, b State) int { return cmp.Compare(a.Address, b.Address) })
	return list
}

func (p *tcpPort) state() (*table, int64) { return p.table.Load(), p.open.Load() }

func (p *udpPort) state() (*table, int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.table.Load(), int64(len(p.sessions))
}
