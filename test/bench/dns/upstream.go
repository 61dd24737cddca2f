package main

import (
	"fmt"
	"net"
	"strings"

	"github.com/miekg/dns"
)

// serveUpstream is the authority for example.com on addr, by UDP and TCP. Names
// below gone. are not there, alias.example.com is an alias, every other has one
// address of each family.
func serveUpstream(addr string) error {
	packets, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	for _, s := range []*dns.Server{{PacketConn: packets}, {Listener: listener}} {
		s.Handler = dns.HandlerFunc(answerUpstream)
		go func() {
			if err := s.ActivateAndServe(); err != nil {
				panic(fmt.Sprintf("upstream: %v", err))
			}
		}()
	}
	return nil
}

func answerUpstream(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	name := strings.ToLower(q.Question[0].Name)
	header := func(n string, t uint16) dns.RR_Header {
		return dns.RR_Header{Name: n, Rrtype: t, Class: dns.ClassINET, Ttl: 300}
	}
	soa := &dns.SOA{Hdr: header("example.com.", dns.TypeSOA), Ns: "ns.example.com.", Mbox: "root.example.com.", Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: 300}
	address := func(n string) {
		switch q.Question[0].Qtype {
		case dns.TypeA:
			m.Answer = append(m.Answer, &dns.A{Hdr: header(n, dns.TypeA), A: net.IPv4(192, 0, 2, 80)})
		case dns.TypeAAAA:
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: header(n, dns.TypeAAAA), AAAA: net.ParseIP("2001:db8::80")})
		default:
			m.Ns = []dns.RR{soa}
		}
	}
	switch {
	case !dns.IsSubDomain("example.com.", name):
		soa.Hdr.Name = "."
		m.Rcode, m.Ns = dns.RcodeNameError, []dns.RR{soa}
	case dns.IsSubDomain("gone.example.com.", name):
		m.Rcode, m.Ns = dns.RcodeNameError, []dns.RR{soa}
	case name == "alias.example.com.":
		m.Answer = []dns.RR{&dns.CNAME{Hdr: header(q.Question[0].Name, dns.TypeCNAME), Target: "host-1.example.com."}}
		if q.Question[0].Qtype != dns.TypeCNAME {
			address("host-1.example.com.")
		}
	default:
		address(q.Question[0].Name)
	}
	_ = w.WriteMsg(m)
}
