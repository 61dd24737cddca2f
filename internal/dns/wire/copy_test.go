package wire

import (
	"bytes"
	"testing"

	"github.com/miekg/dns"
)

func TestCopy(t *testing.T) {
	stored := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)
	stored.Compress, stored.Rcode = true, dns.RcodeNameError
	for _, r := range []string{"www.example.com. 300 IN CNAME web.example.com.", "web.example.com. 60 IN A 192.0.2.1"} {
		rr, err := dns.NewRR(r)
		if err != nil {
			t.Fatal(err)
		}
		stored.Answer = append(stored.Answer, rr)
	}
	message, err := stored.Pack()
	if err != nil {
		t.Fatal(err)
	}
	asked, err := new(dns.Msg).SetQuestion("wWw.example.com.", dns.TypeA).SetEdns0(1232, true).Pack()
	if err != nil {
		t.Fatal(err)
	}
	var q Query
	if err := q.Parse(asked); err != nil {
		t.Fatal(err)
	}
	b := Builder{UDPSize: 1232}
	before := []byte("before")
	for limit, want := range map[int]bool{len(message) + optSize: true, len(message) + optSize - 1: false} {
		b.Reset(bytes.Clone(before), &q, limit)
		if got := b.Copy(message); got != want {
			t.Errorf("%d bytes in %d: %v", len(message), limit, got)
		}
		b.Authentic = true
		answer := b.Finish()
		if !bytes.HasPrefix(answer, before) || len(answer)-len(before) > limit {
			t.Fatalf("answer %q", answer)
		}
		var m dns.Msg
		if err := m.Unpack(answer[len(before):]); err != nil || !m.AuthenticatedData || m.Question[0].Name != "wWw.example.com." || m.IsEdns0() == nil {
			t.Fatalf("%v: %v", err, &m)
		}
		if want && (len(m.Answer) != 2 || m.Rcode != dns.RcodeNameError || m.Answer[0].Header().Name != "wWw.example.com.") || !want && len(m.Answer) > 0 {
			t.Errorf("limit %d: %v", limit, &m)
		}
	}
	b.Reset(nil, &q, MaxSize)
	if b.Copy(message[:20]) {
		t.Error("copied half a question")
	}
}

// FuzzEachTTL reads whatever, and sets TTLs of what the library reads.
func FuzzEachTTL(f *testing.F) {
	m := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)
	rr, _ := dns.NewRR("www.example.com. 300 IN A 192.0.2.1")
	m.Answer = []dns.RR{rr, rr}
	m.Ns = []dns.RR{&dns.SOA{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeSOA, Class: 1, Ttl: 3}, Ns: "a.", Mbox: "b."}}
	for _, compress := range []bool{false, true} {
		m.Compress = compress
		p, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		var at []int
		if !EachTTL(message, func(i int) { at = append(at, i) }) {
			return
		}
		for _, i := range at {
			copy(message[i:i+4], []byte{0, 0, 0, 77})
		}
		var m dns.Msg
		if m.Unpack(message) != nil || len(m.Question) != 1 {
			return // records' data is not looked into
		}
		for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
			for _, rr := range section {
				if rr.Header().Ttl != 77 {
					t.Errorf("TTL %d of %v", rr.Header().Ttl, rr)
				}
			}
		}
	})
}
