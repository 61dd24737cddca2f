package upstream

import "fairway.dev/fairway/internal/model"

// protocol is how the gateway speaks to an endpoint.
type protocol uint8

const (
	h1     protocol = iota // HTTP/1.1
	https1                 // HTTP/1.1 over TLS
	h2c                    // HTTP/2 with prior knowledge
	h2                     // HTTP/2 over TLS
	protocols
)

func (p protocol) scheme() string {
	if p == https1 || p == h2 {
		return "https"
	}
	return "http"
}

// http2 tells protocols that carry streams which may be silent for long.
func (p protocol) http2() bool { return p == h2c || p == h2 }

// protocolOf decides by what the route asks for, else by the Service port's appProtocol.
func protocolOf(asked model.BackendProtocol, appProtocol string) protocol {
	switch asked.Or(appProtocol) {
	case model.BackendHTTPS:
		return https1
	case model.BackendH2C:
		return h2c
	case model.BackendGRPCS:
		return h2
	}
	return h1
}
