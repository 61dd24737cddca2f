package staple

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"fairway.dev/fairway/internal/gateway/gatewaytest"
)

// TestMain runs the tests in a network namespace of their own.
func TestMain(m *testing.M) { gatewaytest.Main(m) }

// authority signs certificates and answers for them.
type authority struct {
	t    *testing.T
	url  string
	cert *x509.Certificate
	key  crypto.Signer

	asked  atomic.Int32
	mu     sync.Mutex
	answer func(w http.ResponseWriter, serial *big.Int)
}

func newAuthority(t *testing.T, addr string) *authority {
	t.Helper()
	a := &authority{t: t, url: "http://" + addr}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.cert, _ = x509.ParseCertificate(der)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: a}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return a
}

// ServeHTTP implements http.Handler.
func (a *authority) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.asked.Add(1)
	body, _ := io.ReadAll(r.Body)
	q, err := ocsp.ParseRequest(body)
	if err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/ocsp-request" {
		a.t.Errorf("asked %s %v: %v", r.Method, r.Header, err)
		return
	}
	a.mu.Lock()
	answer := a.answer
	a.mu.Unlock()
	answer(w, q.SerialNumber)
}

func (a *authority) answers(f func(w http.ResponseWriter, serial *big.Int)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = f
}

// good answers with a template filled in.
func (a *authority) good(t ocsp.Response) func(http.ResponseWriter, *big.Int) {
	return func(w http.ResponseWriter, serial *big.Int) {
		t.SerialNumber = serial
		raw, err := ocsp.CreateResponse(a.cert, a.cert, t, a.key)
		if err != nil {
			a.t.Error(err)
		}
		w.Header().Set("Content-Type", "application/ocsp-response")
		_, _ = w.Write(raw)
	}
}

func (a *authority) issue(serial int64, must bool, url string) *tls.Certificate {
	a.t.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: []string{"a.test"}, OCSPServer: []string{url},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	if url == "" {
		template.OCSPServer = nil
	}
	if must {
		template.ExtraExtensions = []pkix.Extension{{Id: []int{1, 3, 6, 1, 5, 5, 7, 1, 24}, Value: []byte{0x30, 3, 2, 1, 5}}}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	return &tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key, Leaf: leaf}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// run runs a stapler that asks again soon, and counts what went wrong.
func run(t *testing.T, retry time.Duration) (*Stapler, *atomic.Int32) {
	failed := new(atomic.Int32)
	s := New(Options{Logger: slog.New(slog.DiscardHandler), Retry: retry, OnFetch: func(err error) {
		if err != nil {
			failed.Add(1)
		}
	}})
	done := make(chan error)
	ctx := t.Context()
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, failed
}

// shown returns the staple that a client sees.
func shown(t *testing.T, s *Stapler, cert *tls.Certificate) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	server := tls.Server(a, &tls.Config{GetCertificate: s.Wrap(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil })})
	go func() { _ = server.Handshake() }()
	client := tls.Client(b, &tls.Config{InsecureSkipVerify: true})
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	return client.ConnectionState().OCSPResponse
}

func TestStaples(t *testing.T) {
	a := newAuthority(t, "10.99.80.1:80")
	now := time.Now()
	a.answers(a.good(ocsp.Response{Status: ocsp.Good, ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(100 * time.Hour)}))
	s, failed := run(t, time.Hour)
	stapled, without := a.issue(2, false, a.url), a.issue(3, false, "")
	s.Use([]*tls.Certificate{stapled, without})
	eventually(t, "the proof is there", func() bool { return len(shown(t, s, stapled)) > 0 })
	answer, err := ocsp.ParseResponseForCert(shown(t, s, stapled), stapled.Leaf, a.cert)
	if err != nil || answer.Status != ocsp.Good {
		t.Errorf("%+v, %v", answer, err)
	}
	if len(shown(t, s, without)) != 0 || a.asked.Load() != 1 || failed.Load() != 0 {
		t.Errorf("asked %d times, %d failed", a.asked.Load(), failed.Load())
	}
	// It stays with other certificates beside it, and goes with its own.
	other := a.issue(4, false, a.url)
	s.Use([]*tls.Certificate{stapled, other})
	eventually(t, "the other proof is there", func() bool { return len(shown(t, s, other)) > 0 })
	if len(shown(t, s, stapled)) == 0 || a.asked.Load() != 2 {
		t.Errorf("asked %d times", a.asked.Load())
	}
	s.Use(nil)
	if until, _ := s.State(stapled); len(shown(t, s, stapled)) != 0 || !until.IsZero() {
		t.Error("a certificate that is not in use has a proof")
	}
}

// TestRefresh: a proof is renewed when half of its time is over, kept while that
// fails, and not shown once it has expired.
func TestRefresh(t *testing.T) {
	a := newAuthority(t, "10.99.80.2:80")
	now := time.Now().Truncate(time.Second)
	first := ocsp.Response{Status: ocsp.Good, ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(50 * time.Minute)}
	a.answers(a.good(first))
	s, failed := run(t, 5*time.Millisecond)
	cert := a.issue(2, false, a.url)
	s.Use([]*tls.Certificate{cert})
	eventually(t, "it is asked again", func() bool { return a.asked.Load() >= 3 })
	a.answers(func(w http.ResponseWriter, _ *big.Int) { w.WriteHeader(http.StatusInternalServerError) })
	eventually(t, "that fails", func() bool { return failed.Load() >= 3 })
	if until, err := s.State(cert); !until.Equal(first.NextUpdate) || err == nil || len(shown(t, s, cert)) == 0 {
		t.Errorf("the proof is lost: until %v, %v", until, err)
	}
	second := ocsp.Response{Status: ocsp.Good, ThisUpdate: now, NextUpdate: now.Add(100 * time.Hour)}
	a.answers(a.good(second))
	eventually(t, "the new proof is there", func() bool { until, err := s.State(cert); return until.Equal(second.NextUpdate) && err == nil })
	asked := a.asked.Load()

	// Expired.
	s.mu.Lock()
	s.entries[cert].proof = &proof{s.entries[cert].proof.cert, time.Now().Add(-time.Second)}
	s.publishLocked()
	s.mu.Unlock()
	if len(shown(t, s, cert)) != 0 {
		t.Error("a proof is shown that has expired")
	}
	if a.asked.Load() != asked {
		t.Error("it is asked again although the proof is new")
	}
}

// TestBadAnswers: what proves nothing is not shown, and asked for again.
func TestBadAnswers(t *testing.T) {
	a := newAuthority(t, "10.99.80.3:80")
	stranger := newAuthority(t, "10.99.80.4:80")
	now := time.Now()
	valid := ocsp.Response{Status: ocsp.Good, ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour)}
	revoked, unknown, old, early := valid, valid, valid, valid
	revoked.Status, revoked.RevokedAt = ocsp.Revoked, now
	unknown.Status = ocsp.Unknown
	old.NextUpdate = now.Add(-time.Minute)
	early.ThisUpdate = now.Add(30 * time.Minute)
	for name, answer := range map[string]func(http.ResponseWriter, *big.Int){
		"revoked": a.good(revoked), "unknown": a.good(unknown), "expired": a.good(old), "of the future": a.good(early),
		"of another authority":   stranger.good(valid),
		"of another certificate": func(w http.ResponseWriter, _ *big.Int) { a.good(valid)(w, big.NewInt(99)) },
		"no answer":              func(w http.ResponseWriter, _ *big.Int) { w.Header().Set("Content-Type", "application/ocsp-response") },
		"text":                   func(w http.ResponseWriter, _ *big.Int) { _, _ = io.WriteString(w, "hello") },
		"moved": func(w http.ResponseWriter, _ *big.Int) {
			w.Header().Set("Location", stranger.url)
			w.WriteHeader(http.StatusTemporaryRedirect)
		},
		"long": func(w http.ResponseWriter, _ *big.Int) {
			w.Header().Set("Content-Type", "application/ocsp-response")
			_, _ = w.Write(make([]byte, maxAnswer+1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			a.answers(answer)
			s, failed := run(t, time.Millisecond)
			cert := a.issue(2, false, a.url)
			s.Use([]*tls.Certificate{cert})
			eventually(t, "it is asked twice", func() bool { return failed.Load() >= 2 })
			if len(shown(t, s, cert)) != 0 {
				t.Error("it is shown")
			}
			s.Use(nil)
		})
	}
	if stranger.asked.Load() != 0 {
		t.Error("a redirect was followed")
	}
}

// TestDelegates: an authority may have others answer for it, if their
// certificates say so. Else whoever has one of its certificates could.
func TestDelegates(t *testing.T) {
	a := newAuthority(t, "10.99.80.8:80")
	now := time.Now()
	for name, tt := range map[string]struct {
		usage []x509.ExtKeyUsage
		until time.Time
		shown bool
	}{
		"named as such":         {[]x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}, now.Add(time.Hour), true},
		"no longer":             {[]x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}, now.Add(-time.Minute), false},
		"another server":        {[]x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, now.Add(time.Hour), false},
		"nothing in particular": {nil, now.Add(time.Hour), false},
	} {
		t.Run(name, func(t *testing.T) {
			key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(7), ExtKeyUsage: tt.usage,
				NotBefore: now.Add(-time.Hour), NotAfter: tt.until}, a.cert, key.Public(), a.key)
			if err != nil {
				t.Fatal(err)
			}
			delegate, _ := x509.ParseCertificate(der)
			a.answers(func(w http.ResponseWriter, serial *big.Int) {
				raw, err := ocsp.CreateResponse(a.cert, delegate, ocsp.Response{Status: ocsp.Good, SerialNumber: serial, Certificate: delegate,
					ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour)}, key)
				if err != nil {
					t.Error(err)
				}
				w.Header().Set("Content-Type", "application/ocsp-response")
				_, _ = w.Write(raw)
			})
			s, failed := run(t, time.Millisecond)
			cert := a.issue(2, false, a.url)
			s.Use([]*tls.Certificate{cert})
			if tt.shown {
				eventually(t, "it is shown", func() bool { return len(shown(t, s, cert)) > 0 })
			} else {
				eventually(t, "it is asked twice", func() bool { return failed.Load() >= 2 || len(shown(t, s, cert)) > 0 })
				if len(shown(t, s, cert)) > 0 {
					t.Error("it is shown")
				}
			}
			s.Use(nil)
		})
	}
}

// TestNoWait: a responder that hangs delays no handshake, nor other certificates.
func TestNoWait(t *testing.T) {
	slow, a := newAuthority(t, "10.99.80.5:80"), newAuthority(t, "10.99.80.6:80")
	release := make(chan struct{})
	defer close(release)
	slow.answers(func(http.ResponseWriter, *big.Int) { <-release })
	now := time.Now()
	a.answers(a.good(ocsp.Response{Status: ocsp.Good, ThisUpdate: now, NextUpdate: now.Add(100 * time.Hour)}))
	s, _ := run(t, time.Hour)
	stuck, well := slow.issue(2, false, slow.url), a.issue(2, true, a.url)
	s.Use([]*tls.Certificate{stuck, slow.issue(3, false, slow.url), well})
	eventually(t, "a responder is asked", func() bool { return slow.asked.Load() > 0 })
	if len(shown(t, s, stuck)) != 0 {
		t.Error("a proof from nowhere")
	}
	eventually(t, "the other proof is there", func() bool { return len(shown(t, s, well)) > 0 })
}

// TestNewBeforeStuck: one that comes while many responders hang is asked about
// next, and not after all of them.
func TestNewBeforeStuck(t *testing.T) {
	slow, a := newAuthority(t, "10.99.80.8:80"), newAuthority(t, "10.99.80.9:80")
	release := make(chan struct{})
	slow.answers(func(http.ResponseWriter, *big.Int) { <-release })
	now := time.Now()
	a.answers(a.good(ocsp.Response{Status: ocsp.Good, ThisUpdate: now, NextUpdate: now.Add(100 * time.Hour)}))
	s, _ := run(t, time.Hour)
	list := []*tls.Certificate{}
	for i := range int64(3 * maxFetches) {
		list = append(list, slow.issue(2+i, false, slow.url))
	}
	s.Use(list)
	eventually(t, "as many as may be are asked", func() bool { return slow.asked.Load() == maxFetches })
	well := a.issue(2, true, a.url)
	s.Use(append(list, well))
	release <- struct{}{} // one of them
	eventually(t, "the other proof is there", func() bool { return len(shown(t, s, well)) > 0 })
	close(release)
}

// TestMustStapleFirst: certificates that clients refuse without a proof go first.
func TestMustStapleFirst(t *testing.T) {
	a := newAuthority(t, "10.99.80.7:80")
	s := New(Options{Logger: slog.New(slog.DiscardHandler)})
	var list []*tls.Certificate
	for i := range int64(20) {
		list = append(list, a.issue(2+i, i == 13, a.url))
	}
	s.Use(list)
	s.entries[list[5]].failures = 1
	seen := map[*tls.Certificate]int{}
	for range list {
		e, _ := s.due(time.Now())
		if e == nil || seen[e.cert] != 0 {
			t.Fatalf("after %d: %v", len(seen), e)
		}
		seen[e.cert] = len(seen) + 1
	}
	if e, _ := s.due(time.Now()); e != nil {
		t.Error("one is asked about twice at a time")
	}
	if seen[list[13]] != 1 || seen[list[5]] != len(list) {
		t.Errorf("the one that must have a proof is number %d, the one whose responder failed %d", seen[list[13]], seen[list[5]])
	}
}

// TestWhoIsNotAsked: no responder on the machine itself, and none without the issuer.
// TestKept: the next start shows what this one was told, before anybody is
// asked; but nothing that is no proof, or another certificate's.
func TestKept(t *testing.T) {
	a := newAuthority(t, "10.99.80.20:80")
	a.answers(a.good(ocsp.Response{NextUpdate: time.Now().Add(time.Hour)}))
	dir := filepath.Join(t.TempDir(), "ocsp")
	start := func() *Stapler { return New(Options{Logger: slog.New(slog.DiscardHandler), Dir: dir}) }
	s := start()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	cert, other := a.issue(20, true, a.url), a.issue(21, true, "http://10.99.80.21")
	s.Use([]*tls.Certificate{cert})
	eventually(t, "the certificate is stapled", func() bool { return shown(t, s, cert) != nil })
	eventually(t, "it is kept", func() bool { _, err := os.Stat(s.path(s.entries[cert])); return err == nil })
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(s.path(s.entries[cert]))
	if err != nil {
		t.Fatal(err)
	}

	s = start() // and nobody asks
	s.Use([]*tls.Certificate{cert, other})
	if !bytes.Equal(shown(t, s, cert), raw) || shown(t, s, other) != nil {
		t.Error("after a start the proof is not there")
	}
	if until, err := s.State(cert); err != nil || !until.After(time.Now()) {
		t.Errorf("%v, %v", until, err)
	}
	if e, _ := s.due(time.Now()); e == nil || e.cert != other {
		t.Errorf("asked about next: %v", e)
	}
	if err := os.WriteFile(s.path(s.entries[other]), raw, 0o600); err != nil { // of the other one
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path(s.entries[cert]), raw[:len(raw)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	s = start()
	s.Use([]*tls.Certificate{cert, other})
	if shown(t, s, cert) != nil || shown(t, s, other) != nil {
		t.Error("what is no proof is shown")
	}
	s.tidy(time.Now().Add(keptFor + time.Hour))
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
		t.Errorf("%v are left for ever", left)
	}
}

func TestWhoIsNotAsked(t *testing.T) {
	a := newAuthority(t, "127.0.0.1:8099")
	s, failed := run(t, time.Millisecond)
	cert := a.issue(2, false, a.url)
	named := a.issue(3, false, "http://localhost:8099")
	other := a.issue(4, false, "file:///etc/passwd")
	alone := a.issue(5, true, a.url)
	alone.Certificate = alone.Certificate[:1]
	s.Use([]*tls.Certificate{cert, named, other, alone})
	eventually(t, "they are asked about", func() bool { return failed.Load() >= 6 })
	if a.asked.Load() != 0 {
		t.Error("a responder on the machine was asked")
	}
	if _, err := s.State(alone); err == nil || !strings.Contains(err.Error(), "issuer") {
		t.Errorf("without issuer: %v", err)
	}
	for _, c := range []*tls.Certificate{cert, other} {
		if _, err := s.State(c); err == nil {
			t.Error("no error is told")
		}
	}
	if public("tcp", "169.254.169.254:80", nil) == nil {
		t.Error("a link-local address may be asked")
	}
	if err := public("tcp", "10.0.0.1:80", nil); err != nil {
		t.Errorf("a private address may not be asked: %v", err)
	}
}
