package forward

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// Server is a name server to ask.
type Server struct {
	// Addr is where it listens.
	Addr netip.AddrPort
	// TLS asks it by DNS over TLS (RFC 7858), and never in the clear.
	TLS bool
	// Name is the one that its certificate must be good for. Without it, the
	// certificate must be good for the address.
	Name string
}

// String returns the server as [ParseServer] takes it.
func (s Server) String() string {
	switch {
	case !s.TLS:
		return s.Addr.String()
	case s.Name == "":
		return "tls://" + s.Addr.String()
	}
	return "tls://" + s.Addr.String() + "#" + s.Name
}

// ParseServer reads ADDRESS, ADDRESS:PORT or tls://ADDRESS[:PORT][#NAME]. The
// port is 53, or 853 by TLS.
func ParseServer(text string) (Server, error) {
	var s Server
	rest, port := text, uint16(53)
	if after, ok := strings.CutPrefix(rest, "tls://"); ok {
		rest, port, s.TLS = after, 853, true
		var named bool
		if rest, s.Name, named = strings.Cut(rest, "#"); named {
			if _, ok := dns.IsDomainName(s.Name); !ok || s.Name == "" {
				return Server{}, fmt.Errorf("name server %q: %q is no name of a certificate", text, s.Name)
			}
		}
	}
	var err error
	if s.Addr, err = netip.ParseAddrPort(rest); err == nil {
		if s.Addr.Port() == 0 {
			return Server{}, fmt.Errorf("name server %q: the port must be 1 to 65535", text)
		}
		return s, nil
	}
	addr, err := netip.ParseAddr(strings.Trim(rest, "[]"))
	if err != nil {
		return Server{}, fmt.Errorf("name server %q: want ADDRESS, ADDRESS:PORT or tls://ADDRESS#NAME, with an IP address", text)
	}
	s.Addr = netip.AddrPortFrom(addr, port)
	return s, nil
}

// Plain returns servers that are asked by UDP and TCP.
func Plain(addrs ...netip.AddrPort) []Server {
	var list []Server
	for _, a := range addrs {
		list = append(list, Server{Addr: a})
	}
	return list
}

// Stub has the names of a domain asked of servers of its own.
type Stub struct {
	// Domain is asked with all names below it.
	Domain  string
	Servers []Server
}

// ParseStub reads DOMAIN=SERVER[,SERVER...], servers as in [ParseServer].
func ParseStub(text string) (Stub, error) {
	domain, list, ok := strings.Cut(text, "=")
	if _, good := dns.IsDomainName(domain); !ok || !good || strings.Trim(domain, ".") == "" {
		return Stub{}, fmt.Errorf("stub domain %q: want DOMAIN=SERVER, for example corp.example=192.0.2.53", text)
	}
	s := Stub{Domain: domain}
	for one := range strings.SplitSeq(list, ",") {
		server, err := ParseServer(strings.TrimSpace(one))
		if err != nil {
			return Stub{}, fmt.Errorf("stub domain %s: %w", domain, err)
		}
		s.Servers = append(s.Servers, server)
	}
	return s, nil
}

// Policy says in which order the servers that are up are asked.
type Policy string

// The policies.
const (
	// Sequential asks the first one, and others when it is slow or fails.
	Sequential Policy = "sequential"
	// RoundRobin begins with the next one each time.
	RoundRobin Policy = "round_robin"
	// Random begins with any.
	Random Policy = "random"
)
