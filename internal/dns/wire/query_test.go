package wire

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func pack(t testing.TB, name string, qtype uint16, edit func(*dns.Msg)) []byte {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, qtype)
	if edit != nil {
		edit(m)
	}
	p, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// FuzzParse holds our reading of a query against the library's. We may refuse
// what it takes in the cases that stricter names, and nothing else.
func FuzzParse(f *testing.F) {
	f.Add(pack(f, "Web.Default.svc.cluster.local.", dns.TypeA, nil))
	f.Add(pack(f, ".", dns.TypeNS, func(m *dns.Msg) { m.SetEdns0(1232, true) }))
	f.Add(pack(f, `a\.b\000.example.com.`, dns.TypeMX, func(m *dns.Msg) {
		m.SetEdns0(4096, false)
		m.IsEdns0().Option = append(m.IsEdns0().Option,
			&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"}, &dns.EDNS0_PADDING{Padding: make([]byte, 40)})
	}))
	f.Add(pack(f, strings.Repeat("a.", 126), dns.TypeA, nil))
	f.Add(pack(f, strings.Repeat(strings.Repeat("x", 62)+".", 4), dns.TypeA, nil))
	f.Add(pack(f, "zone.example.", dns.TypeIXFR, func(m *dns.Msg) {
		m.Ns = append(m.Ns, &dns.SOA{Hdr: dns.RR_Header{Name: "zone.example.", Rrtype: dns.TypeSOA, Class: 1}, Ns: "a.", Mbox: "b."})
	}))
	f.Add(pack(f, "a.example.", dns.TypeA, func(m *dns.Msg) { m.SetEdns0(1, false); m.SetEdns0(2, false) }))
	f.Add(pack(f, "a.example.", dns.TypeA, func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }))
	f.Fuzz(func(t *testing.T, packet []byte) {
		var q Query
		err := q.Parse(packet)
		var m dns.Msg
		libErr := m.Unpack(packet)
		switch {
		case errors.Is(err, ErrNoQuery):
			if len(packet) >= HeaderSize && packet[2]&0x80 == 0 {
				t.Fatal("a query is not taken for one")
			}
			return
		case errors.Is(err, ErrOpcode):
			if libErr == nil && m.Opcode == dns.OpcodeQuery {
				t.Fatal("opcode")
			}
			return
		case err != nil:
			if libErr == nil && len(m.Question) == 1 && m.Opcode == 0 && !stricter(packet, &m) {
				t.Fatalf("refused %x: %v", packet, &m)
			}
			return
		case libErr != nil:
			return // it looks into the data of records, which a query has no use for
		}
		want := make([]byte, 300)
		n, err := dns.PackDomainName(strings.ToLower(m.Question[0].Name), want, 0, nil, false)
		if err != nil || string(q.Name.Packed()) != string(want[:n]) {
			t.Fatalf("name %x, want %x (%v)", q.Name.Packed(), want[:n], err)
		}
		if again := q.Name.String(); !strings.EqualFold(again, m.Question[0].Name) && dns.CanonicalName(again) != dns.CanonicalName(m.Question[0].Name) {
			back := make([]byte, 300)
			if n2, err := dns.PackDomainName(again, back, 0, nil, false); err != nil || string(back[:n2]) != string(want[:n]) {
				t.Fatalf("%q is not %q", again, m.Question[0].Name)
			}
		}
		if q.ID != m.Id || q.RD != m.RecursionDesired || q.CD != m.CheckingDisabled || q.AD != m.AuthenticatedData ||
			q.Type != m.Question[0].Qtype || q.Class != m.Question[0].Qclass {
			t.Fatalf("%+v, want %v", q, &m)
		}
		o := m.IsEdns0()
		if (o != nil) != q.EDNS.Present {
			t.Fatalf("EDNS %+v, want %v", q.EDNS, o)
		}
		if o != nil && (o.UDPSize() != q.EDNS.UDPSize || o.Do() != q.EDNS.DO || o.Version() != q.EDNS.Version) {
			t.Fatalf("EDNS %+v, want %v", q.EDNS, o)
		}
		var b Builder
		b.Reset(nil, &q, MaxSize)
		var answer dns.Msg
		if err := answer.Unpack(b.Finish()); err != nil || answer.Question[0] != m.Question[0] || answer.Id != m.Id {
			t.Fatalf("answer %v: %v", &answer, err)
		}
	})
}

// stricter reports whether a packet that the library takes breaks a rule that
// it does not look at.
func stricter(packet []byte, m *dns.Msg) bool {
	off := HeaderSize
	for ; off < len(packet) && packet[off] != 0; off += 1 + int(packet[off]) {
		if packet[off] >= 0xc0 {
			return true // the first name points into the header
		}
	}
	if off+5 > len(packet) {
		return true // no type or class, which the library takes for 0
	}
	opts := 0
	for _, rr := range m.Extra {
		if rr.Header().Rrtype == dns.TypeOPT {
			opts++
			if rr.Header().Name != "." {
				return true
			}
		}
	}
	for i := HeaderSize; i+1 < len(packet); i++ { // a pointer that does not lead back, perhaps
		if packet[i] >= 0xc0 && int(binary.BigEndian.Uint16(packet[i:])&0x3fff) >= i {
			return true
		}
	}
	// The header counts more records than there are: the library stops at the end of the packet.
	counted := int(binary.BigEndian.Uint16(packet[6:])) + int(binary.BigEndian.Uint16(packet[8:])) + int(binary.BigEndian.Uint16(packet[10:]))
	return opts > 1 || counted > len(m.Answer)+len(m.Ns)+len(m.Extra)
}

func TestEDNS(t *testing.T) {
	var q Query
	check := func(what string, packet []byte, want error) {
		t.Helper()
		if err := q.Parse(packet); !errors.Is(err, want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	good := pack(t, "a.example.", dns.TypeA, func(m *dns.Msg) {
		m.SetEdns0(1400, true)
		m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte{1, 2, 3}})
	})
	check("an unknown option", good, nil)
	if q.EDNS != (EDNS{Present: true, UDPSize: 1400, DO: true}) {
		t.Errorf("%+v", q.EDNS)
	}
	bad := append([]byte(nil), good...)
	bad[len(bad)-4] = 4 // the option's length: one more than there is
	check("an option that is cut off", bad, ErrFormat)
	check("EDNS that is cut off", good[:len(good)-1], ErrFormat)
	bad = append([]byte(nil), good...)
	at := strings.Index(string(good), "\x00\x00\x29")
	bad = append(append(bad[:at:at], 1, 'x', 0), good[at+1:]...)
	check("EDNS with a name", bad, ErrFormat)
	check("without EDNS", pack(t, "a.example.", dns.TypeA, nil), nil)
	if q.EDNS.Present {
		t.Error("EDNS of the query before")
	}
}

func TestSetText(t *testing.T) {
	for text, want := range map[string]string{
		"": ".", ".": ".", "a": "a.", "A.Bc.": "a.bc.", strings.Repeat("x", 63) + ".y": strings.Repeat("x", 63) + ".y.",
		"..": "", ".a": "", "a..b": "", "a..": "", strings.Repeat("x", 64): "", strings.Repeat("a.", 127): strings.Repeat("a.", 127), strings.Repeat("a.", 128): "",
	} {
		var n Name
		got := ""
		if n.SetText(text) {
			got = n.String()
		}
		if got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestEndsWith(t *testing.T) {
	name := func(s string) *Name {
		n := new(Name)
		n.SetText(s)
		return n
	}
	for _, tt := range []struct {
		name, suffix string
		want         bool
	}{
		{"a.cluster.local", "cluster.local", true}, {"cluster.local", "cluster.local", true}, {"local", "cluster.local", false},
		{"xcluster.local", "cluster.local", false}, {"a.b", "", true}, {"", "a", false},
	} {
		if got := name(tt.name).EndsWith(name(tt.suffix)); got != tt.want {
			t.Errorf("%q ends with %q: %v", tt.name, tt.suffix, got)
		}
	}
	// A label that holds what looks like the domain's bytes.
	var q Query
	packet := append(make([]byte, HeaderSize), 15)
	packet[5] = 1
	packet = append(append(packet, "a\x07cluster\x05local"...), 0, 0, 1, 0, 1)
	packet[HeaderSize] = byte(len("a\x07cluster\x05local"))
	if err := q.Parse(packet); err != nil || q.Name.EndsWith(name("cluster.local")) {
		t.Errorf("%v, %v", q.Name.String(), err)
	}
}

func TestRecordsThatDoNotFit(t *testing.T) {
	var q Query
	if err := q.Parse(pack(t, "a.example.", dns.TypeTXT, func(m *dns.Msg) { m.SetEdns0(512, false) })); err != nil {
		t.Fatal(err)
	}
	txt := func(b *Builder, s string) bool {
		b.Open()
		b.Pointer(HeaderSize)
		b.Head(dns.TypeTXT, 5)
		b.String(s)
		return b.Close()
	}
	var b Builder
	b.Reset([]byte{0xaa, 0xbb}, &q, 200)
	if !txt(&b, strings.Repeat("x", 80)) || txt(&b, strings.Repeat("y", 80)) || txt(&b, "z") {
		t.Error("what fits does not, or what does not does")
	}
	out := b.Finish()
	var m dns.Msg
	if err := m.Unpack(out[2:]); err != nil || !m.Truncated || len(m.Answer) != 1 || m.IsEdns0() == nil || len(out) > 202 || out[0] != 0xaa {
		t.Errorf("%v: %v", &m, err)
	}
	b.Reset(nil, &q, 200)
	txt(&b, "x")
	b.Begin(Additional)
	if txt(&b, strings.Repeat("y", 250)) {
		t.Error("it fits")
	}
	if err := m.Unpack(b.Finish()); err != nil || m.Truncated || len(m.Answer) != 1 || len(m.Extra) != 1 {
		t.Errorf("additional data that is missing is no truncation: %v, %v", &m, err)
	}
	b.Reset(nil, &q, MaxSize)
	b.Open()
	b.Label(strings.Repeat("x", 64))
	b.Name(&q.Name)
	b.Head(dns.TypeTXT, 5)
	b.String("x")
	if b.Close() {
		t.Error("a record of a name that is none")
	}
	if err := m.Unpack(b.Finish()); err != nil || m.Truncated || len(m.Answer) != 0 {
		t.Errorf("%v, %v", &m, err)
	}
}
