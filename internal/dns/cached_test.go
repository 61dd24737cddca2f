package dns

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/cache"
	"fairway.dev/fairway/internal/dns/dnstest"
	"fairway.dev/fairway/internal/dns/forward"
	"fairway.dev/fairway/internal/dns/wire"
	"fairway.dev/fairway/internal/dns/zone"
)

// outside is an upstream that knows a few names.
func outside(t testing.TB) *dnstest.Server {
	return dnstest.New(t, func(q *dns.Msg, _ string) [][]byte {
		switch strings.ToLower(q.Question[0].Name) {
		case "www.example.com.":
			return dnstest.Reply(t, q, func(m *dns.Msg) { m.AuthenticatedData = true },
				"www.example.com. 300 IN CNAME web.example.com.", "web.example.com. 60 IN A 192.0.2.1", "web.example.com. 60 IN A 192.0.2.2")
		case "many.example.com.":
			var records []string
			for i := range 100 {
				records = append(records, fmt.Sprintf("many.example.com. 60 IN A 192.0.2.%d", i))
			}
			return dnstest.Reply(t, q, nil, records...)
		}
		return dnstest.Reply(t, q, func(m *dns.Msg) { m.Rcode = dns.RcodeNameError }, "example.com. 600 IN SOA ns.example.com. mail.example.com. 1 2 3 4 120")
	})
}

// An answer from the cache costs no memory.
func TestNothingIsAllocatedForCachedAnswers(t *testing.T) {
	s := newServer(t, Options{Upstreams: forward.Plain(outside(t).Addr)})
	for _, name := range []string{"www.example.com.", "wWw.Example.com.", "gone.example.com.", "many.example.com."} {
		for _, tcp := range []bool{false, true} {
			q := question(name, dns.TypeA).SetEdns0(1232, false)
			if name == "many.example.com." && !tcp {
				continue // cut by the library
			}
			exchange(t, s, q, tcp)
			packed, err := q.Pack()
			if err != nil {
				t.Fatal(err)
			}
			w := s.handler.newWorker(local, tcp, s.handler.metrics.counts(local))
			w.client, w.start = client, time.Now()
			buf := make([]byte, 0, 65535)
			if n := testing.AllocsPerRun(50, func() {
				if answer, _ := s.handler.begin(w, packed, buf); answer == nil {
					t.Fatal("no answer")
				}
			}); n != 0 {
				t.Errorf("%s, TCP %v: %v allocations", name, tcp, n)
			}
		}
	}
}

func BenchmarkCached(b *testing.B) {
	s := newServer(b, Options{Upstreams: forward.Plain(outside(b).Addr)})
	for _, name := range []string{"www.example.com.", "gone.example.com."} {
		b.Run(name, func(b *testing.B) {
			q := question(name, dns.TypeA)
			exchange(b, s, q, false)
			packed, err := q.Pack()
			if err != nil {
				b.Fatal(err)
			}
			w := s.handler.newWorker(local, false, s.handler.metrics.counts(local))
			w.client, w.start = client, time.Now()
			buf := make([]byte, 0, 4096)
			b.ReportAllocs()
			for b.Loop() {
				s.handler.begin(w, packed, buf)
			}
		})
	}
}

// TestCachedAnswersAreThoseOfTheLibrary asks clients of all kinds for answers of
// all shapes, at all ages, twice: as copied from the cache, and as the library
// packs the same answer.
func TestCachedAnswersAreThoseOfTheLibrary(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 4000 {
		compareCached(t, r)
	}
}

func FuzzCached(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed, seed)
	}
	f.Fuzz(func(t *testing.T, a, b uint64) { compareCached(t, rand.New(rand.NewPCG(a, b))) })
}

func compareCached(t *testing.T, r *rand.Rand) {
	t.Helper()
	now := time.Unix(1e9, 0)
	c, err := cache.New(cache.Options{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	f, err := forward.New(forward.Options{Cache: c, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t, Options{})
	s.handler.forward = f

	names := []string{"www.example.com.", "example.com.", "a.b.example.com.", `od\.d\032.example.com.`, ".", "other.test.", "example.net."}
	pick := func(list []string) string { return list[r.IntN(len(list))] }
	name := pick(names)
	types := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeMX, dns.TypeTXT, dns.TypeCNAME, dns.TypeSRV, dns.TypeSOA, dns.TypeNS, dns.TypeHTTPS}
	qtype := types[r.IntN(len(types))]
	stored := question(name, qtype)
	stored.Response, stored.AuthenticatedData = true, r.IntN(2) == 0
	if r.IntN(4) == 0 {
		stored.Rcode = dns.RcodeNameError
	}
	record := func(section *[]dns.RR, name string, rtype uint16) {
		text := map[uint16]string{
			dns.TypeA: "192.0.2.1", dns.TypeAAAA: "2001:db8::1", dns.TypeMX: "10 " + pick(names), dns.TypeTXT: `"some text"`,
			dns.TypeCNAME: pick(names), dns.TypeSRV: "1 2 3 " + pick(names), dns.TypeNS: pick(names),
			dns.TypeSOA: pick(names) + " " + pick(names) + " 1 2 3 4 60", dns.TypeHTTPS: "1 . alpn=h2",
		}[rtype]
		rr, err := dns.NewRR(fmt.Sprintf("%s %d IN %s %s", name, 1+r.IntN(400), dns.TypeToString[rtype], text))
		if err != nil {
			t.Fatal(err)
		}
		*section = append(*section, rr)
	}
	for range r.IntN(40) {
		record(&stored.Answer, pick([]string{name, name, pick(names)}), pick2(r, qtype, types[r.IntN(len(types))]))
	}
	if r.IntN(2) == 0 {
		record(&stored.Ns, pick(names), dns.TypeSOA)
	}
	for range r.IntN(4) {
		record(&stored.Extra, pick(names), dns.TypeA)
	}

	q := question(anyCase(r, name), qtype)
	q.RecursionDesired, q.AuthenticatedData, q.CheckingDisabled = r.IntN(2) == 0, r.IntN(2) == 0, r.IntN(2) == 0
	do := r.IntN(2) == 0
	if do || r.IntN(2) == 0 {
		q.SetEdns0(uint16([]int{0, 512, 600, 1232, 4096}[r.IntN(5)]), do)
	}
	tcp := r.IntN(2) == 0
	packed, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	var parsed wire.Query
	if err := parsed.Parse(packed); err != nil {
		t.Fatal(err)
	}
	key := cache.Key{Name: string(parsed.Name.Packed()), Type: qtype, DNSSECOK: do, CheckingDisabled: q.CheckingDisabled}
	c.Put(key, stored.Copy())
	age := uint32(r.IntN(500))
	if all := slices.Concat(stored.Answer, stored.Ns, stored.Extra); len(all) > 0 && r.IntN(4) == 0 {
		age = all[r.IntN(len(all))].Header().Ttl // just when one is over
	}
	now = now.Add(time.Duration(age)*time.Second + time.Duration(r.IntN(1000))*time.Millisecond)
	c.Failed(key) // stale answers are given, too
	hit := c.Get(key)
	if hit.Freshness == cache.Miss {
		return // not to be stored
	}

	w := s.handler.newWorker(local, tcp, s.handler.metrics.counts(local))
	w.client, w.start = netip.MustParseAddrPort("10.1.2.3:4567"), time.Now()
	got, rest := s.handler.begin(w, packed, nil)
	if rest != nil {
		t.Fatalf("%v is not answered from the cache", q)
	}
	want, _ := s.handler.hand(w, packed, zone.Result{}, hit)
	limit := s.handler.limit(w)
	var a, b dns.Msg
	if err := a.Unpack(got); err != nil || len(got) > limit {
		t.Fatalf("answer of %d bytes, at most %d: %v", len(got), limit, err)
	}
	if err := b.Unpack(want); err != nil {
		t.Fatal(err)
	}
	if b.Truncated && !a.Truncated {
		return // mixed case costs the library room
	}
	if a.Question[0] != q.Question[0] {
		t.Errorf("question %v, asked %v", a.Question[0], q.Question[0])
	}
	if x, y := strings.ToLower(a.String()), strings.ToLower(b.String()); x != y {
		t.Errorf("asked\n%v\nfrom the cache:\n%s\nby the library:\n%s", q, x, y)
	}
	checkTTLs(t, stored, &a, qtype, age)
}

// checkTTLs holds the TTLs of an answer from the cache to what was stored, by
// rules of its own: both ways to answer read the age of the same entry.
func checkTTLs(t *testing.T, stored, got *dns.Msg, qtype uint16, age uint32) {
	t.Helper()
	life, positive := uint32(3600), false
	for _, rr := range stored.Answer {
		life = min(life, rr.Header().Ttl)
		positive = positive || rr.Header().Rrtype == qtype
	}
	if !positive || stored.Rcode != dns.RcodeSuccess {
		soa := stored.Ns[0].(*dns.SOA) // else it is not stored
		life = min(life, 300, soa.Hdr.Ttl, soa.Minttl)
	}
	for i, pair := range [][2][]dns.RR{{stored.Answer, got.Answer}, {stored.Ns, got.Ns}, {stored.Extra, withoutOPT(got.Extra)}} {
		if len(pair[1]) != len(pair[0]) {
			if !got.Truncated && i < 2 {
				t.Errorf("section %d has %d records, stored were %d", i, len(pair[1]), len(pair[0]))
			}
			continue // additional records may be left out
		}
		for j, rr := range pair[1] {
			want := min(pair[0][j].Header().Ttl, life)
			switch {
			case age >= life:
				want = cache.StaleTTL
			case want <= age: // its own time is over, that of the answer not yet
				want = 1
			default:
				want -= age
			}
			if i == 0 && age < life {
				want = life - age // an answer is kept as a whole
			}
			if got := rr.Header().Ttl; got != want {
				t.Errorf("section %d: TTL %d after %d s of %d, stored with %d: want %d", i, got, age, life, pair[0][j].Header().Ttl, want)
			}
		}
	}
}

func withoutOPT(list []dns.RR) []dns.RR {
	return slices.DeleteFunc(slices.Clone(list), func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
}

func pick2(r *rand.Rand, a, b uint16) uint16 {
	if r.IntN(2) == 0 {
		return a
	}
	return b
}

func anyCase(r *rand.Rand, name string) string {
	if r.IntN(2) == 0 {
		return name
	}
	b := []byte(name)
	for i, c := range b {
		if c >= 'a' && c <= 'z' && r.IntN(2) == 0 {
			b[i] = c - 32
		}
	}
	return string(b)
}
