package dns

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// A query in the zone costs no memory, all of it counted: the reader's limits,
// look-up, answer, metrics.
func TestNothingIsAllocated(t *testing.T) {
	s := newServer(t, Options{
		ClientRate: 1e6, AllowFrom: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")},
	})
	for _, tt := range []struct {
		name  string
		qtype uint16
	}{
		{"web.default.svc.cluster.local.", dns.TypeA}, {"wEB.default.svc.cluster.local.", dns.TypeAAAA}, {"_http._tcp.web.default.svc.cluster.local.", dns.TypeSRV},
		{"crowd.default.svc.cluster.local.", dns.TypeA}, {"crowd.default.svc.cluster.local.", dns.TypeSRV}, {"db-0.db.default.svc.cluster.local.", dns.TypeA},
		{"gone.default.svc.cluster.local.", dns.TypeA}, {"example.com.default.svc.cluster.local.", dns.TypeAAAA}, {"out.default.svc.cluster.local.", dns.TypeCNAME},
		{"20.0.96.10.in-addr.arpa.", dns.TypePTR}, {"dns-version.cluster.local.", dns.TypeTXT}, {"web.default.svc.cluster.local.", dns.TypeANY},
		{"cluster.local.", dns.TypeSOA}, {"10-244-0-1.default.pod.cluster.local.", dns.TypeA}, {"cluster.local.", dns.TypeAXFR},
	} {
		for _, tcp := range []bool{false, true} {
			for _, from := range []string{"10.244.0.9:1234", "[fd00:244::9]:1234"} {
				packed, err := question(tt.name, tt.qtype).SetEdns0(1232, false).Pack()
				if err != nil {
					t.Fatal(err)
				}
				w := s.handler.newWorker(local, tcp, s.handler.metrics.counts(local))
				w.client, w.start = netip.MustParseAddrPort(from), time.Now()
				buf := make([]byte, 0, 65535)
				if n := testing.AllocsPerRun(50, func() {
					if answer, _ := s.handler.begin(w, packed, buf); answer == nil {
						t.Fatal("no answer")
					}
				}); n != 0 {
					t.Errorf("%s %s from %s, TCP %v: %v allocations", tt.name, dns.TypeToString[tt.qtype], from, tcp, n)
				}
			}
		}
	}
}

// TestMalformed sends the packets of testdata/malformed.txt: each line has a
// name, what is due ("none", or an rcode), and the packet.
func TestMalformed(t *testing.T) {
	s := newServer(t, Options{})
	n := 0
	for name, p := range malformed(t) {
		n++
		t.Run(name, func(t *testing.T) {
			for _, tcp := range []bool{false, true} {
				got := "none"
				if m := exchangeRaw(t, s, p.packet, tcp); m != nil {
					if got = dns.RcodeToString[m.Rcode]; m.Rcode == dns.RcodeBadVers {
						got = "BADVERS" // the library has TSIG's name for it
					}
					if len(m.Answer) > 0 {
						t.Errorf("an answer: %v", m)
					}
				}
				if got != p.want {
					t.Errorf("TCP %v: %s, want %s", tcp, got, p.want)
				}
			}
		})
	}
	if n < 25 {
		t.Errorf("only %d packets", n)
	}
}

type malformedPacket struct {
	want   string
	packet []byte
}

func malformed(t testing.TB) map[string]malformedPacket {
	t.Helper()
	f, err := os.Open("testdata/malformed.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string]malformedPacket{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, rest, _ := strings.Cut(line, ":")
		want, text, _ := strings.Cut(strings.TrimSpace(rest), " ")
		packet, err := unhex(text)
		if err != nil || out[name].want != "" {
			t.Fatalf("%s: %v, or there twice", name, err)
		}
		out[name] = malformedPacket{want, packet}
	}
	return out
}

// unhex reads bytes in hexadecimal; "xx*n" is a byte n times.
func unhex(text string) ([]byte, error) {
	var out []byte
	for _, word := range strings.Fields(text) {
		b, times, many := strings.Cut(word, "*")
		n := 1
		if many {
			var err error
			if n, err = strconv.Atoi(times); err != nil {
				return nil, err
			}
		}
		raw, err := hex.DecodeString(b)
		if err != nil {
			return nil, err
		}
		for range n {
			out = append(out, raw...)
		}
	}
	return out, nil
}

// A headless Service with thousands of endpoints: a part of them by UDP, with
// TC, and all of them by TCP, as far as a message goes.
func TestThousandsOfEndpoints(t *testing.T) {
	for _, n := range []int{3000, 6000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			store := cluster()
			k := model.Key{Namespace: "default", Name: "huge"}
			store.Update(func(tx *state.Tx) {
				tx.PutService(&model.Service{Key: k, Headless: true})
				for i := range n / 1000 {
					sl := &model.EndpointSlice{Key: model.Key{Namespace: "default", Name: fmt.Sprintf("huge-%d", i)}, Service: k}
					for e := range 1000 {
						sl.Endpoints = append(sl.Endpoints, model.Endpoint{
							Addr: netip.AddrFrom4([4]byte{10, 200 + byte(i), byte(e >> 8), byte(e)}), Ready: true,
							Ports: []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 80}},
						})
					}
					tx.PutSlice(sl)
				}
			})
			s := newServer(t, Options{Store: store})
			addr := run(t, s)
			q := question("huge.default.svc.cluster.local.", dns.TypeA)
			first := map[string]bool{}
			for range 30 {
				m := exchange(t, s, q, false)
				if !m.Truncated || len(m.Answer) < 25 {
					t.Fatalf("by UDP: %d addresses, TC %v", len(m.Answer), m.Truncated)
				}
				first[m.Answer[0].String()] = true
			}
			if len(first) < 15 {
				t.Errorf("of 30 answers only %d begin differently", len(first))
			}
			m := lookup(t, "tcp", addr, "huge.default.svc.cluster.local.")
			seen := map[string]bool{}
			for _, rr := range m.Answer {
				seen[rr.(*dns.A).A.String()] = true
			}
			want := min(n, (65535-12-len("huge.default.svc.cluster.local.")-1-4)/16)
			if len(seen) != want || len(m.Answer) != want || m.Truncated != (want < n) {
				t.Errorf("by TCP: %d addresses, %d different, TC %v; want %d", len(m.Answer), len(seen), m.Truncated, want)
			}
			// SRV records are larger: what follows them must still be a message.
			if m := exchange(t, s, question("_http._tcp.huge.default.svc.cluster.local.", dns.TypeSRV), true); !m.Truncated || len(m.Answer) < 500 {
				t.Errorf("SRV by TCP: %d records, TC %v", len(m.Answer), m.Truncated)
			}
		})
	}
}

func BenchmarkInZone(b *testing.B) {
	s := newServer(b, Options{})
	for _, tt := range []struct {
		name  string
		qtype uint16
	}{
		{"web.default.svc.cluster.local.", dns.TypeA}, {"_http._tcp.web.default.svc.cluster.local.", dns.TypeSRV},
		{"crowd.default.svc.cluster.local.", dns.TypeA}, {"gone.default.svc.cluster.local.", dns.TypeA},
		{"20.0.96.10.in-addr.arpa.", dns.TypePTR},
	} {
		b.Run(dns.TypeToString[tt.qtype]+" "+tt.name, func(b *testing.B) {
			packed, err := question(tt.name, tt.qtype).Pack()
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
