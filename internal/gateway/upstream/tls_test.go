package upstream

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/proxyproto"
)

// TestSecured: connections are kept apart by the settings that they were made by,
// and end with those; all else of an endpoint is one.
func TestSecured(t *testing.T) {
	e := newEndpoint("10.0.0.1:443", nil, mark{})
	p := &Pool{}
	p.members.Store(&members{endpoints: []*endpoint{e}})
	now := time.Now()
	keep := func(o *endpoint) net.Conn {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { _ = theirs.Close() })
		b := http1.NewBackend(ours)
		b.Done(now)
		if !o.keep(https1, b, now) {
			_ = ours.Close()
		}
		return theirs
	}
	ended := func(c net.Conn) bool {
		_ = c.SetReadDeadline(time.Now())
		_, err := c.Read(make([]byte, 1))
		return errors.Is(err, io.EOF)
	}
	a, b := NewTLS(&TLSSettings{}), NewTLS(&TLSSettings{})
	va, vb := e.secure(a), e.secure(b)
	if va == e || va == vb || e.secure(a) != va || va.self() != e {
		t.Fatal("connections are not told apart by their settings alone")
	}
	ownA, ownB := va.owned(proxyproto.V1, Ends{}, now), vb.owned(proxyproto.V1, Ends{}, now)
	if ownA == ownB || ownA.self() != e || ownA.secured != va.secured {
		t.Fatal("those of one client are not apart, or not the endpoint's")
	}
	plain, _, keptOwnA, keptB := keep(e), keep(va), keep(ownA), keep(vb)
	if n := e.state(now).Kept; n != 4 {
		t.Errorf("%d are kept", n)
	}
	if va.kept(https1, true, false, now) == nil || va.kept(https1, true, false, now) != nil || vb.kept(h1, true, false, now) != nil {
		t.Error("a connection is not for those alone that it was kept for")
	}
	keptA := keep(va)
	va.acquire()
	if e.inflight.Load() != 1 {
		t.Error("the endpoint does not count what is under way")
	}

	busy := keep(va)
	old := a.Settings()
	a.Set(&TLSSettings{})
	p.Retire()
	if !ended(keptA) || !ended(keptOwnA) || !ended(busy) || ended(keptB) || ended(plain) {
		t.Error("not just what was made by the settings that are gone has ended")
	}
	if e.secure(a) == va {
		t.Error("new settings use what the old ones did")
	}
	if c := keep(va); !ended(c) {
		t.Error("a connection by old settings is kept once it is free")
	}
	va.release()
	// A request that began before the change, and asks only now.
	late := &TLS{}
	late.now.Store(old)
	if v := e.secure(late); !ended(keep(v)) || e.securedBy(old) != nil {
		t.Error("what a late request makes is kept")
	}
	e.remove()
	if !ended(keptB) || !ended(plain) || !ended(keep(e.secure(b))) {
		t.Error("something is left of an endpoint that is gone")
	}
}

// TestPickSecure: endpoints that TLS came to nothing with are passed over by the
// settings that this was by, and by a request that was tried in vain already.
func TestPickSecure(t *testing.T) {
	p := &Pool{}
	m := &members{}
	for i := range 4 {
		m.endpoints = append(m.endpoints, newEndpoint(fmt.Sprintf("10.0.0.%d:443", i), nil, mark{}))
	}
	p.members.Store(m)
	mine, others := NewTLS(&TLSSettings{}), NewTLS(&TLSSettings{})
	now := time.Now()
	for _, e := range m.endpoints[1:] {
		p.blame(e.secure(mine), &TLSError{Fault: FaultName, Err: errors.New("x")}, now)
	}
	seen := map[string]int{}
	for range 200 {
		for name, by := range map[string]*TLS{"mine": mine, "others": others, "nothing": nil} {
			e, err := p.pick(&Choice{TLS: by}, nil, now)
			if err != nil {
				t.Fatal(err)
			}
			seen[name+e.addr]++
		}
	}
	if seen["mine10.0.0.0:443"] != 200 || len(seen) != 1+4+4 {
		t.Errorf("chosen: %v", seen)
	}
	// Long after that they are tried again, but not by one request after another.
	later := now.Add(time.Minute)
	first := m.endpoints[1].secure(mine)
	for range 20 {
		if e, _ := p.pick(&Choice{TLS: mine}, []*endpoint{first}, later); e.self() != m.endpoints[0] {
			t.Fatalf("after one in vain %s is tried", e.addr)
		}
	}
	again := false
	for range 20 {
		e, _ := p.pick(&Choice{TLS: mine}, nil, later)
		again = again || e.self() != m.endpoints[0]
	}
	if !again || first.secured.refuses(later, true) != nil || first.secured.refuses(later, true) == nil {
		t.Error("they are not tried again by one request at a time")
	}
	// With nobody else there it is known what is wrong.
	p.members.Store(&members{endpoints: m.endpoints[2:3]})
	if e, _ := p.pick(&Choice{TLS: mine}, nil, now); e == nil || e.secured.refuses(now, true) == nil {
		t.Error("a request with no endpoint that is trusted does not learn why")
	}
}

// TestNamesInWords: what a certificate says of itself goes into lines of logs and
// Events as text, and no more of it than people read.
func TestNamesInWords(t *testing.T) {
	c := &x509.Certificate{DNSNames: []string{"a\nb", strings.Repeat("x", 5000)}}
	for range 100 {
		c.DNSNames = append(c.DNSNames, "more.test")
	}
	err := misnamed(c, []string{"app.test"}).Error()
	if strings.Contains(err, "\n") || len(err) > 1000 || !strings.Contains(err, `"a\nb", xxx`) || !strings.Contains(err, "and not for app.test") {
		t.Errorf("%s", err)
	}
}
