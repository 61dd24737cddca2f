package certs

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Of a client's certificates no more are looked at, and none that is larger: to
// verify them costs us more than it costs a client to send them.
const (
	maxShown     = 10
	maxShownSize = 16 << 10
)

// The reasons why a client's certificate is refused that others than people
// have to tell apart.
var (
	// ErrUnknownAuthority means that nobody is known who vouches for it.
	ErrUnknownAuthority = errors.New("none of the authorities has signed it")
	// ErrRevoked means that its authority has taken it back.
	ErrRevoked = errors.New("it is revoked")
)

// Authorities are those who sign certificates of clients, and what they have
// revoked. They do not change.
type Authorities struct {
	pool  *x509.CertPool
	roots []*x509.Certificate
	named int // bytes of their names in a handshake
	// lists are by their issuers, in DER. Where there is one there has to be one of
	// every authority of a chain, as in nginx.
	lists map[string][]*revocations
}

// ParseAuthorities reads ca.crt and ca.crl of a Secret; crl may be empty. Errors
// name the field of the Secret and the cure.
func ParseAuthorities(ca, crl []byte) (*Authorities, error) {
	a := &Authorities{pool: x509.NewCertPool(), lists: map[string][]*revocations{}}
	if len(bytes.TrimSpace(ca)) == 0 {
		return nil, errors.New("ca.crt is empty: put the certificates of the authorities into it as PEM")
	}
	for rest := ca; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("ca.crt: certificate %d is damaged: %w", len(a.roots)+1, err)
		}
		a.roots = append(a.roots, cert)
		a.named += 2 + len(cert.RawSubject)
		a.pool.AddCert(cert)
	}
	if len(a.roots) == 0 {
		return nil, errors.New(`ca.crt holds no PEM certificate: it must begin with "-----BEGIN CERTIFICATE-----"`)
	}
	return a, a.readLists(crl)
}

func (a *Authorities) readLists(data []byte) error {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil
	}
	n := 0
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "X509 CRL" {
			continue
		}
		n++
		if err := a.readList(block.Bytes); err != nil {
			return fmt.Errorf("ca.crl: list %d %w", n, err)
		}
	}
	if n == 0 {
		return errors.New(`ca.crl holds no PEM revocation list: it must begin with "-----BEGIN X509 CRL-----"; remove it to go without`)
	}
	return nil
}

func (a *Authorities) readList(der []byte) error {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return fmt.Errorf("is damaged: %w", err)
	}
	// A list that is about a part of the certificates only, or says what has changed
	// since another one, says so by what has to be understood (RFC 5280, 5.2).
	if id, ok := unknownCritical(list.Extensions); ok {
		return fmt.Errorf("has the critical extension %s, which is not known here: use a complete list of the authority's own certificates", id)
	}
	// Of the list all stays but its entries, which are large.
	r := &revocations{
		list: &x509.RevocationList{
			RawTBSRevocationList: list.RawTBSRevocationList, Signature: list.Signature, SignatureAlgorithm: list.SignatureAlgorithm,
			ThisUpdate: list.ThisUpdate, NextUpdate: list.NextUpdate,
		},
		serials: make(map[string]struct{}, len(list.RevokedCertificateEntries)),
	}
	for i := range list.RevokedCertificateEntries {
		e := &list.RevokedCertificateEntries[i]
		if id, ok := unknownCritical(e.Extensions); ok {
			return fmt.Errorf("has an entry with the critical extension %s, which is not known here: use a list of the authority's own certificates", id)
		}
		r.serials[string(e.SerialNumber.Bytes())] = struct{}{}
	}
	named, signed := false, false
	for _, root := range a.roots {
		if bytes.Equal(root.RawSubject, list.RawIssuer) {
			named, signed = true, signed || r.signedBy(root)
		}
	}
	if named && !signed {
		return fmt.Errorf("is not signed by %s of ca.crt, in whose name it is: put the authority's own list there", dn(list.RawIssuer))
	}
	a.lists[string(list.RawIssuer)] = append(a.lists[string(list.RawIssuer)], r)
	return nil
}

var (
	oidAuthorityKeyID = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidListNumber     = asn1.ObjectIdentifier{2, 5, 29, 20}
	oidReason         = asn1.ObjectIdentifier{2, 5, 29, 21}
	oidInvalidity     = asn1.ObjectIdentifier{2, 5, 29, 24}
)

func unknownCritical(list []pkix.Extension) (string, bool) {
	for _, e := range list {
		if e.Critical && !e.Id.Equal(oidAuthorityKeyID) && !e.Id.Equal(oidListNumber) && !e.Id.Equal(oidReason) && !e.Id.Equal(oidInvalidity) {
			return e.Id.String(), true
		}
	}
	return "", false
}

// Check returns what speaks against the authorities at that time, one sentence
// each, with the cure.
func (a *Authorities) Check(now time.Time) []string {
	var out []string
	for _, root := range a.roots {
		switch {
		case now.After(root.NotAfter):
			out = append(out, fmt.Sprintf("the certificate of %s in ca.crt expired on %s, so what it has signed is refused: renew it", dn(root.RawSubject), root.NotAfter.UTC().Format(time.RFC3339)))
		case now.Before(root.NotBefore):
			out = append(out, fmt.Sprintf("the certificate of %s in ca.crt is valid from %s only, so what it has signed is refused: check it and the clock", dn(root.RawSubject), root.NotBefore.UTC().Format(time.RFC3339)))
		}
		if len(a.lists) > 0 && len(a.lists[string(root.RawSubject)]) == 0 {
			out = append(out, fmt.Sprintf("ca.crl has no list of %s, so what it has signed is refused: add its list, an empty one if it has revoked nothing", dn(root.RawSubject)))
		}
	}
	for issuer, lists := range a.lists {
		latest, current := lists[0], false
		for _, r := range lists {
			current = current || r.current(now)
			if r.list.NextUpdate.After(latest.list.NextUpdate) {
				latest = r
			}
		}
		switch {
		case current:
		case now.Before(latest.list.ThisUpdate):
			out = append(out, fmt.Sprintf("the revocation list of %s in ca.crl is valid from %s only, so what it has signed is refused: check it and the clock", dn([]byte(issuer)), latest.list.ThisUpdate.UTC().Format(time.RFC3339)))
		default:
			out = append(out, fmt.Sprintf("the revocation list of %s in ca.crl expired on %s, so what it has signed is refused: put a new one there", dn([]byte(issuer)), latest.list.NextUpdate.UTC().Format(time.RFC3339)))
		}
	}
	return out
}

// Names returns the names of the authorities, for people.
func (a *Authorities) Names() []string {
	names := make([]string, len(a.roots))
	for i, root := range a.roots {
		names[i] = dn(root.RawSubject)
	}
	return names
}

// verify tells whether a client's certificate, the first of those that it has
// shown, is signed by one of the authorities, with depth of others in between at
// most, and until when that is so. Whether the client has the key of it is for
// TLS to say.
func (a *Authorities) verify(shown []*x509.Certificate, depth int, now time.Time) (time.Time, error) {
	if len(shown) > maxShown {
		return time.Time{}, fmt.Errorf("the client shows more than %d certificates", maxShown)
	}
	for _, c := range shown {
		if len(c.Raw) > maxShownSize {
			return time.Time{}, fmt.Errorf("a certificate is larger than %d bytes", maxShownSize)
		}
	}
	chains, err := shown[0].Verify(x509.VerifyOptions{Roots: a.pool, Intermediates: a.vouched(shown[1:]), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return time.Time{}, refusal(err)
	}
	for _, chain := range chains {
		var until time.Time
		if len(chain)-2 > depth {
			err = fmt.Errorf("there are more than %d authorities between it and the ones that are known", depth)
		} else if until, err = a.unrevoked(chain, now); err == nil {
			return until, nil
		}
	}
	return time.Time{}, err
}

// vouched returns those of a client's certificates that lead to an authority.
// x509 seeks a chain from the client's end, and would try a hundred signatures by
// keys, and a million names against constraints, that anybody has made up: some
// 100 ms for a connection. From this end only keys count that are known.
func (a *Authorities) vouched(shown []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	rest := slices.Clone(shown)
	for known := slices.Clone(a.roots); len(known) > 0 && len(rest) > 0; known = known[1:] {
		by := known[0]
		rest = slices.DeleteFunc(rest, func(c *x509.Certificate) bool {
			if !bytes.Equal(c.RawIssuer, by.RawSubject) || c.CheckSignatureFrom(by) != nil {
				return false
			}
			pool.AddCert(c)
			known = append(known, c)
			return true
		})
	}
	return pool
}

// refusal says why a certificate is no good in words of our own: those of x509
// repeat what stands in it, and these go to clients.
func refusal(err error) error {
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, new(x509.UnknownAuthorityError)):
		return ErrUnknownAuthority
	case !errors.As(err, &invalid):
	case invalid.Reason == x509.Expired:
		return errors.New("it has expired or is not valid yet, or one of its authorities")
	case invalid.Reason == x509.IncompatibleUsage:
		return errors.New("it is not made out for clients (extended key usage)")
	case invalid.Reason == x509.CANotAuthorizedForThisName, invalid.Reason == x509.NameConstraintsWithoutSANs, invalid.Reason == x509.UnconstrainedName, invalid.Reason == x509.TooManyConstraints:
		return errors.New("its authority may not sign for its names")
	case invalid.Reason == x509.NotAuthorizedToSign, invalid.Reason == x509.TooManyIntermediates, invalid.Reason == x509.CANotAuthorizedForExtKeyUsage:
		return errors.New("one of its authorities may not sign it")
	}
	return errors.New("it cannot be verified")
}

// unrevoked tells until when a chain is known to be valid.
func (a *Authorities) unrevoked(chain []*x509.Certificate, now time.Time) (time.Time, error) {
	until := chain[0].NotAfter
	for i, c := range chain {
		until = earlier(until, c.NotAfter)
		if len(a.lists) == 0 || i == len(chain)-1 {
			continue
		}
		next, err := a.listed(c, chain[i+1], now)
		if err != nil {
			return time.Time{}, err
		}
		until = earlier(until, next)
	}
	return until, nil
}

// listed tells until when it is known that issuer has not revoked c.
func (a *Authorities) listed(c, issuer *x509.Certificate, now time.Time) (time.Time, error) {
	var until time.Time
	known := false
	for _, r := range a.lists[string(issuer.RawSubject)] {
		if !r.signedBy(issuer) {
			continue
		}
		if _, ok := r.serials[string(c.SerialNumber.Bytes())]; ok {
			return time.Time{}, ErrRevoked
		}
		if r.current(now) {
			known = true
			if next := r.list.NextUpdate; next.After(until) {
				until = next
			}
		}
	}
	if !known {
		return time.Time{}, fmt.Errorf("there is no revocation list of %s that is valid now", dn(issuer.RawSubject))
	}
	if until.IsZero() {
		until = c.NotAfter // a list without end
	}
	return until, nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// revocations is a list of what an authority has revoked.
type revocations struct {
	list    *x509.RevocationList
	serials map[string]struct{}
	signers sync.Map // certificates by their hashes -> whether they have signed it
}

func (r *revocations) current(now time.Time) bool {
	return !now.Before(r.list.ThisUpdate) && (r.list.NextUpdate.IsZero() || !now.After(r.list.NextUpdate))
}

func (r *revocations) signedBy(issuer *x509.Certificate) bool {
	key := sha256.Sum256(issuer.Raw)
	if ok, known := r.signers.Load(key); known {
		return ok.(bool)
	}
	ok := r.list.CheckSignatureFrom(issuer) == nil
	r.signers.Store(key, ok)
	return ok
}
