package corefile

import (
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/model"
)

// maxServers is CoreDNS' bound on the servers of a forward.
const maxServers = 15

// forward reads forward FROM TO... with options in its braces.
func (c *compiler) forward(b *model.DNSBlock, d directive) error {
	if len(d.args) < 2 {
		return d.name.errorf("forward takes a zone and its servers, for example forward . /etc/resolv.conf")
	}
	if len(d.args)-1 > maxServers {
		return d.name.errorf("forward to %d servers; at most %d", len(d.args)-1, maxServers)
	}
	from, err := zoneList(d.args[:1])
	if err != nil {
		return err
	}
	f := model.DNSForward{From: from[0], Policy: "random"}
	name := ""
	for _, line := range d.body {
		if line[0].text == "tls_servername" {
			if len(line) != 2 {
				return line[0].errorf("tls_servername takes one name")
			}
			name = line[1].text
			continue
		}
		if err := c.forwardOption(&f, line[0], line[1:]); err != nil {
			return err
		}
	}
	for _, to := range d.args[1:] {
		if err := c.server(&f, to, name); err != nil {
			return err
		}
	}
	if len(f.Servers) == 0 && !f.NodeServers {
		fail := "all names of " + f.From
		if f.From == "." {
			fail = "all names of " + strings.Join(b.Zones, ", ")
		}
		c.add(d.name, "forward "+f.From, "it has no server that can be asked, so that %s fail; give addresses of other servers, or /etc/resolv.conf", fail)
	}
	b.Forwards = append(b.Forwards, f)
	return nil
}

func (c *compiler) forwardOption(f *model.DNSForward, name token, args []token) (err error) {
	switch name.text {
	case "except":
		if len(args) == 0 {
			return name.errorf("except takes zones")
		}
		f.Except, err = zoneList(args)
	case "policy":
		if len(args) != 1 {
			return name.errorf("policy takes one of random, round_robin and sequential")
		}
		switch f.Policy = args[0].text; f.Policy {
		case "random", "round_robin", "sequential":
		default:
			return name.errorf("policy %s: want random, round_robin or sequential", f.Policy)
		}
	case "max_concurrent":
		f.MaxConcurrent, err = number(name, args, 0, 1<<20)
	case "max_fails":
		f.MaxFails, err = number(name, args, 0, 1<<20)
		if f.MaxFails == 0 {
			f.MaxFails = -1
		}
	case "force_tcp":
		f.TCP = true
	case "prefer_udp": // as servers are asked in any case
	case "health_check":
		return c.healthCheck(f, name, args)
	case "tls":
		if len(args) > 0 {
			c.add(name, "forward tls", "servers by TLS are verified by the node's authorities; certificates of clients are not known")
		}
	case "expire", "max_age", "max_idle_conns", "read_timeout", "failfast_all_unhealthy_upstreams", "max_connect_attempts":
		c.add(name, "forward "+name.text, "Fairway keeps connections, and waits for servers, by rules of its own")
	default:
		c.add(name, "forward "+name.text, "Fairway's DNS does not have it")
	}
	return err
}

func (c *compiler) healthCheck(f *model.DNSForward, name token, args []token) (err error) {
	if len(args) == 0 {
		return name.errorf("health_check takes a time such as 5s")
	}
	if f.HealthCheck, err = duration(name, args[0]); err != nil {
		return err
	}
	for i := 1; i < len(args); i++ {
		switch args[i].text {
		case "no_rec":
			c.add(name, "forward health_check no_rec", "servers are asked with the RD bit, as for clients")
		case "domain":
			if i++; i == len(args) {
				return name.errorf("health_check domain takes a name")
			}
			f.HealthDomain = strings.ToLower(dns.Fqdn(args[i].text))
			if _, ok := dns.IsDomainName(f.HealthDomain); !ok {
				return args[i].errorf("health_check domain %q is no name", args[i].text)
			}
		default:
			return args[i].errorf("health_check %s: want no_rec or domain NAME", args[i].text)
		}
	}
	return nil
}

// server reads one that is forwarded to: an address, dns:// or tls:// with one
// and, by TLS, %NAME of the certificate; or a resolv.conf.
func (c *compiler) server(f *model.DNSForward, to token, name string) error {
	transport, rest, ok := strings.Cut(to.text, "://")
	if !ok {
		transport, rest = "dns", to.text
	}
	switch transport {
	case "dns", "tls":
	default:
		c.add(to, "forward to "+to.text, "servers are asked by UDP, TCP and TLS")
		return nil
	}
	if transport == "dns" && path.Base(rest) == "resolv.conf" {
		f.NodeServers = true
		return nil
	}
	s := model.DNSServer{TLS: transport == "tls"}
	port := uint16(53)
	if s.TLS {
		port, s.Name = 853, name
		host, own, ok := cutName(rest)
		if ok && name != "" {
			return to.errorf("%s names its certificate, and so does tls_servername; leave one off", to.text)
		}
		if rest = host; ok {
			s.Name = own
		}
		if _, good := dns.IsDomainName(s.Name); s.Name != "" && !good {
			return to.errorf("%q is no name of a certificate", s.Name)
		}
	}
	addr, err := netip.ParseAddr(strings.Trim(rest, "[]"))
	if err == nil {
		s.Addr = netip.AddrPortFrom(addr.Unmap(), port)
	} else if s.Addr, err = netip.ParseAddrPort(rest); err != nil || s.Addr.Port() == 0 {
		if hostName(rest) {
			c.add(to, "forward to "+to.text, "servers are given by their addresses, as a name would have to be asked for first")
			return nil
		}
		return to.errorf("forward to %q: want an address, with a port if it is not %d, or /etc/resolv.conf", to.text, port)
	}
	if s.Addr.Port() == 53 && slices.Contains(c.self, s.Addr.Addr()) {
		c.add(to, "forward to "+to.text, "it is the cluster's DNS itself; give another server")
		return nil
	}
	if c.own != nil && c.own(s.Addr) {
		c.add(to, "forward to "+to.text, "it is a node's own DNS, which would ask itself; give another server")
		return nil
	}
	f.Servers = append(f.Servers, s)
	return nil
}

// cutName takes %NAME out of ADDRESS%NAME:PORT.
func cutName(text string) (rest, name string, ok bool) {
	rest, name, ok = strings.Cut(text, "%")
	if !ok {
		return text, "", false
	}
	if i := strings.LastIndexByte(name, ':'); i >= 0 {
		rest, name = rest+name[i:], name[:i]
	}
	return rest, strings.TrimSuffix(name, "]"), true
}

// hostName reports whether text looks like the name of a machine.
func hostName(text string) bool {
	_, ok := dns.IsDomainName(text)
	other := func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '-' || c == '_')
	}
	return ok && strings.IndexFunc(text, other) < 0
}
