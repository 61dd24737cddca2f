package upstream

import "fairway.dev/fairway/internal/model"

// String returns the protocol in words for people.
func (p protocol) String() string {
	return [...]string{"HTTP/1.1", "HTTP/1.1 over TLS", "HTTP/2 without TLS", "HTTP/2 over TLS"}[p]
}

// Speaks tells, for people, which protocol the pool's endpoints are spoken to
// when a route asks for one.
func (p *Pool) Speaks(asked model.BackendProtocol) string {
	return protocolOf(asked, p.members.Load().appProtocol).String()
}

// Secure reports whether they are spoken to over TLS then.
func (p *Pool) Secure(asked model.BackendProtocol) bool {
	return asked.Secure(p.members.Load().appProtocol)
}

// Addresses returns the endpoints of a pool, for people.
func (p *Pool) Addresses() []string {
	var list []string
	for _, e := range p.members.Load().endpoints {
		list = append(list, e.addr)
	}
	return list
}

// ServicePort returns the port of a Service that k names; false if there is none.
func ServicePort(svc *model.Service, k Key) (model.ServicePort, bool) { return findPort(svc, k) }
