package staple

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/crypto/ocsp"
)

// Limits on asking.
const (
	// maxFetches is how many responders are asked at a time.
	maxFetches = 4
	// fetchTimeout is for one of them to answer, and maxAnswer what is read of it.
	fetchTimeout = 10 * time.Second
	maxAnswer    = 64 << 10
	// longestWait is between two questions about a certificate, whatever the answer allows.
	longestWait = 24 * time.Hour
	// clockSkew is how far ahead a responder's clock may be.
	clockSkew = 5 * time.Minute
)

// Options configure a [Stapler].
type Options struct {
	// Logger is told of responders that give no proof. Required.
	Logger *slog.Logger
	// OnFetch is told of each question, and what went wrong. Optional.
	OnFetch func(err error)
	// Retry is the time after which a question that failed is asked again the
	// first time, and the shortest between two; default 1 minute. For
	// certificates that clients refuse without a proof it is a tenth.
	Retry time.Duration
	// Dir is a directory of this stapler's alone, where proofs are kept for the
	// next start; optional. Without it certificates that clients refuse without a
	// proof are refused after a start until their responders have answered.
	Dir string
}

// Stapler keeps proofs. Make one with [New] and call Run.
type Stapler struct {
	options Options
	client  *http.Client
	ready   atomic.Pointer[map[*tls.Certificate]*proof]
	changed chan struct{}

	mu      sync.Mutex
	entries map[*tls.Certificate]*entry
}

// proof is a certificate with its staple.
type proof struct {
	cert  *tls.Certificate
	until time.Time
}

// entry is a certificate that names a responder.
type entry struct {
	cert         *tls.Certificate
	leaf, issuer *x509.Certificate
	must         bool // clients refuse it without a proof
	proof        *proof
	next         time.Time // when to ask
	failures     int       // in a row
	asking       bool
	err          error
}

// New returns a stapler that knows no certificates.
func New(o Options) *Stapler {
	if o.Retry <= 0 {
		o.Retry = time.Minute
	}
	dialer := &net.Dialer{Timeout: fetchTimeout, Control: public}
	s := &Stapler{options: o, changed: make(chan struct{}, 1), entries: map[*tls.Certificate]*entry{}}
	s.client = &http.Client{
		Transport: &http.Transport{DialContext: dialer.DialContext, Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, MaxResponseHeaderBytes: maxAnswer},
		Timeout:   fetchTimeout,
		// Whoever puts a certificate into a Secret chooses what is asked.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	s.ready.Store(&map[*tls.Certificate]*proof{})
	s.tidy(time.Now())
	return s
}

// public refuses responders on this machine or its links: what listens there
// trusts who asks from the machine.
func public(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if a := ap.Addr().Unmap(); a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() {
		return fmt.Errorf("responders at %s are not asked", a)
	}
	return nil
}

// Wrap has the certificates that get returns carry their proofs.
func (s *Stapler) Wrap(get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		cert, err := get(hello)
		if err != nil {
			return nil, err
		}
		if p := (*s.ready.Load())[cert]; p != nil && time.Now().Before(p.until) {
			return p.cert, nil
		}
		return cert, nil
	}
}

// State returns when the proof of a certificate expires, zero if there is none,
// and why the last question about it failed.
func (s *Stapler) State(cert *tls.Certificate) (until time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[cert]
	if e == nil {
		return time.Time{}, nil
	}
	if e.proof != nil {
		until = e.proof.until
	}
	return until, e.err
}

// Use makes list the certificates in use. Those that name no responder, or come
// without their issuer, are left alone. A certificate that has been renewed is a
// new one; one that stays keeps its proof.
func (s *Stapler) Use(list []*tls.Certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	used := map[*tls.Certificate]struct{}{}
	for _, cert := range list {
		used[cert] = struct{}{}
		if s.entries[cert] != nil || cert.Leaf == nil || len(cert.Leaf.OCSPServer) == 0 {
			continue
		}
		e := &entry{cert: cert, leaf: cert.Leaf, must: mustStaple(cert.Leaf)}
		if e.issuer = issuerOf(cert); e.issuer == nil {
			s.options.Logger.Warn("a certificate names an OCSP responder, but its issuer is not in its Secret, so it cannot be stapled; add the issuer to tls.crt",
				"names", cert.Leaf.DNSNames, "required", e.must)
			e.next = time.Now().Add(100 * 365 * 24 * time.Hour)
			e.err = errors.New("the issuer is not in the Secret")
		}
		s.entries[cert] = e
		s.recall(e)
	}
	for cert := range s.entries {
		if _, ok := used[cert]; !ok {
			delete(s.entries, cert)
		}
	}
	s.publishLocked()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func issuerOf(cert *tls.Certificate) *x509.Certificate {
	for _, der := range cert.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil && cert.Leaf.CheckSignatureFrom(c) == nil {
			return c
		}
	}
	return nil
}

// mustStaple reports whether a certificate has the TLS feature status_request (RFC 7633).
func mustStaple(leaf *x509.Certificate) bool {
	for _, x := range leaf.Extensions {
		// The value is a SEQUENCE of INTEGER: status_request is 5.
		if x.Id.String() == "1.3.6.1.5.5.7.1.24" && bytes.Contains(x.Value, []byte{2, 1, 5}) {
			return true
		}
	}
	return false
}

func (s *Stapler) publishLocked() {
	m := make(map[*tls.Certificate]*proof, len(s.entries))
	for cert, e := range s.entries {
		if e.proof != nil {
			m[cert] = e.proof
		}
	}
	s.ready.Store(&m)
}

// Run asks until ctx ends.
func (s *Stapler) Run(ctx context.Context) error {
	var asking sync.WaitGroup
	defer asking.Wait()
	slots := make(chan struct{}, maxFetches)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		e, wait := s.due(time.Now())
		if e != nil {
			asking.Go(func() {
				s.ask(ctx, e)
				<-slots
				select {
				case s.changed <- struct{}{}:
				default:
				}
			})
			continue
		}
		<-slots
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-s.changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// due returns the certificate to ask about next, nil if none is due, and when the
// next one is. It is chosen only once somebody can ask, so that those whose
// responders hang are not asked before one that has come meanwhile.
func (s *Stapler) due(now time.Time) (first *entry, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wait = longestWait
	for _, e := range s.entries {
		switch {
		case e.asking:
		case e.next.After(now):
			wait = min(wait, e.next.Sub(now))
		case first == nil || e.before(first):
			first = e
		}
	}
	if first != nil {
		first.asking = true
	}
	return first, wait
}

// before reports whether a certificate is asked about sooner than another: those
// that need it first, then those whose responders have failed less often.
func (e *entry) before(o *entry) bool {
	switch {
	case e.must != o.must:
		return e.must
	case e.failures != o.failures:
		return e.failures < o.failures
	}
	return e.next.Before(o.next)
}

// ask asks about a certificate and sets the time for the next question.
func (s *Stapler) ask(ctx context.Context, e *entry) {
	answer, raw, err := s.fetch(ctx, e)
	if ctx.Err() != nil {
		return
	}
	if s.options.OnFetch != nil {
		s.options.OnFetch(err)
	}
	if err == nil {
		s.keep(e, raw)
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	e.asking, e.err = false, err
	if err != nil {
		e.failures++
		e.next = now.Add(jitter(min(s.retry(e)<<min(e.failures-1, 6), time.Hour)))
		level := slog.LevelInfo
		if e.must {
			level = slog.LevelWarn
		}
		if e.failures == 1 {
			s.options.Logger.Log(ctx, level, "a certificate's OCSP responder gave no proof; it is asked again", "names", e.leaf.DNSNames, "responder", e.leaf.OCSPServer[0],
				"required", e.must, "error", err)
		}
		return
	}
	e.failures = 0
	s.accept(e, answer, raw, now)
	if s.entries[e.cert] == e {
		s.publishLocked()
	}
}

// accept makes an answer the proof of a certificate, and sets the time for the
// next question.
func (s *Stapler) accept(e *entry, answer *ocsp.Response, raw []byte, now time.Time) {
	stapled := *e.cert
	stapled.OCSPStaple = raw
	until := answer.NextUpdate
	if until.IsZero() {
		until = now.Add(longestWait) // newer ones are there at any time
	}
	e.proof = &proof{&stapled, until}
	e.next = now.Add(max(s.retry(e), jitter(min(answer.ThisUpdate.Add(until.Sub(answer.ThisUpdate)/2).Sub(now), longestWait))))
}

func (s *Stapler) retry(e *entry) time.Duration {
	if e.must {
		return s.options.Retry / 10
	}
	return s.options.Retry
}

// jitter takes up to a tenth off: many certificates are of one responder.
func jitter(d time.Duration) time.Duration {
	if d < 10 {
		return d
	}
	return d - rand.N(d/10)
}

// mayAnswer reports whether an answer may be signed with the key of a
// certificate that came with it, nil for the issuer's own: one that the issuer
// has made for that. That it has made it has been verified.
func mayAnswer(signer, issuer *x509.Certificate, now time.Time) bool {
	if signer == nil || signer.Equal(issuer) {
		return true
	}
	return slices.Contains(signer.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) && !now.After(signer.NotAfter) && !now.Before(signer.NotBefore)
}

// fetch asks the responder that the certificate names first.
func (s *Stapler) fetch(ctx context.Context, e *entry) (*ocsp.Response, []byte, error) {
	question, err := ocsp.CreateRequest(e.leaf, e.issuer, nil)
	if err != nil {
		return nil, nil, err
	}
	u, err := url.Parse(e.leaf.OCSPServer[0])
	if err != nil || u.Scheme != "http" && u.Scheme != "https" {
		return nil, nil, fmt.Errorf("responder %q is no URL of http or https", e.leaf.OCSPServer[0])
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(question))
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Content-Type", "application/ocsp-request")
	req.Header.Set("Accept", "application/ocsp-response")
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); resp.StatusCode != http.StatusOK || kind != "application/ocsp-response" {
		return nil, nil, fmt.Errorf("status %d, content type %q", resp.StatusCode, kind)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, nil, err
	}
	if len(raw) > maxAnswer {
		return nil, nil, errors.New("the answer is too long")
	}
	answer, err := judge(raw, e, time.Now())
	if err != nil {
		return nil, nil, err
	}
	return answer, raw, nil
}

// judge reports whether an answer proves that a certificate is good now.
func judge(raw []byte, e *entry, now time.Time) (*ocsp.Response, error) {
	answer, err := ocsp.ParseResponseForCert(raw, e.leaf, e.issuer)
	switch {
	case err != nil:
		return nil, err
	case !mayAnswer(answer.Certificate, e.issuer, now):
		return nil, errors.New("the answer is signed by a certificate that is not for that (RFC 6960, 4.2.2.2): clients would refuse it")
	case answer.Status == ocsp.Revoked:
		return nil, fmt.Errorf("the certificate was revoked at %s: get another one", answer.RevokedAt.UTC().Format(time.RFC3339))
	case answer.Status != ocsp.Good:
		return nil, errors.New("the responder does not know the certificate")
	case answer.ThisUpdate.After(now.Add(clockSkew)):
		return nil, fmt.Errorf("the answer is of %s, which is to come: is the clock right?", answer.ThisUpdate.UTC().Format(time.RFC3339))
	case !answer.NextUpdate.IsZero() && !answer.NextUpdate.After(now):
		return nil, fmt.Errorf("the answer expired at %s", answer.NextUpdate.UTC().Format(time.RFC3339))
	}
	return answer, nil
}
