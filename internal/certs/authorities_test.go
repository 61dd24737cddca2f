package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/testenv"
)

// shownBy is what the server sees of a client's certificate.
func shownBy(t *testing.T, c tls.Certificate) []*x509.Certificate {
	t.Helper()
	var out []*x509.Certificate
	for _, der := range c.Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, cert)
	}
	return out
}

func authorities(t *testing.T, ca, crl []byte) *Authorities {
	t.Helper()
	a, err := ParseAuthorities(ca, crl)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAuthoritiesVerify(t *testing.T) {
	root := testenv.NewAuthority(t, "root")
	one := root.Authority(t, "one")
	two := one.Authority(t, "two")
	three := two.Authority(t, "three")
	stranger := testenv.NewAuthority(t, "root") // of the same name
	narrow := testenv.NewAuthority(t, "narrow", func(c *x509.Certificate) {
		c.PermittedDNSDomainsCritical, c.PermittedDNSDomains = true, []string{"good.example"}
	})
	noCA := root.Authority(t, "no authority", func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature })
	usage := func(list ...x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage = list }
	}
	many := root.Client(t, "many")
	for range maxShown {
		many.Certificate = append(many.Certificate, stranger.Cert.Raw)
	}
	self := stranger.Client(t, "self")
	for _, tt := range []struct {
		name  string
		ca    []byte
		cert  tls.Certificate
		depth int
		want  string
	}{
		{"of the root", root.PEM(), root.Client(t, "a"), 1, ""},
		{"of the root, depth 0", root.PEM(), root.Client(t, "a"), 0, ""},
		{"one between", root.PEM(), one.Client(t, "a"), 1, ""},
		{"one between, depth 0", root.PEM(), one.Client(t, "a"), 0, "more than 0 authorities"},
		{"two between", root.PEM(), two.Client(t, "a"), 1, "more than 1 authorities"},
		{"two between, depth 2", root.PEM(), two.Client(t, "a"), 2, ""},
		{"three between, depth 2", root.PEM(), three.Client(t, "a"), 2, "more than 2 authorities"},
		{"the one between is known", append(root.PEM(), one.PEM()...), one.Client(t, "a"), 0, ""},
		{"only the one between is known", one.PEM(), one.Client(t, "a"), 0, ""},
		{"two roots", append(stranger.PEM(), root.PEM()...), root.Client(t, "a"), 1, ""},
		{"a stranger's of the same name", root.PEM(), self, 1, ErrUnknownAuthority.Error()},
		{"signed by what is no authority", root.PEM(), noCA.Client(t, "a"), 1, ErrUnknownAuthority.Error()},
		{"for servers", root.PEM(), root.Client(t, "a", usage(x509.ExtKeyUsageServerAuth)), 1, "extended key usage"},
		{"for anything", root.PEM(), root.Client(t, "a", usage(x509.ExtKeyUsageAny)), 1, ""},
		{"of no said usage", root.PEM(), root.Client(t, "a", usage()), 1, ""},
		{"expired", root.PEM(), root.Client(t, "a", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), 1, "it has expired"},
		{"not valid yet", root.PEM(), root.Client(t, "a", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), 1, "it has expired or is not valid yet"},
		{"constraints kept", narrow.PEM(), narrow.Client(t, "a", func(c *x509.Certificate) { c.DNSNames = []string{"a.good.example"} }), 1, ""},
		{"constraints broken", narrow.PEM(), narrow.Client(t, "a", func(c *x509.Certificate) { c.DNSNames = []string{"a.bad.example"} }), 1, "may not sign for its names"},
		{"a long chain of others", root.PEM(), many, 1, "more than 10 certificates"},
		{"a large one", root.PEM(), root.Client(t, strings.Repeat("a", maxShownSize)), 1, "larger than"},
	} {
		_, err := authorities(t, tt.ca, nil).verify(shownBy(t, tt.cert), tt.depth, time.Now())
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestAuthoritiesRevoke(t *testing.T) {
	root := testenv.NewAuthority(t, "root")
	sub := root.Authority(t, "sub")
	stranger := testenv.NewAuthority(t, "root") // of the same name
	later := time.Now().Add(time.Hour)
	good, bad, below := root.Client(t, "good"), root.Client(t, "bad"), sub.Client(t, "below")
	rootList := root.Revoked(t, later, bad.Leaf)
	for _, tt := range []struct {
		name string
		crl  []byte
		cert tls.Certificate
		want string
	}{
		{"not listed", rootList, good, ""},
		{"listed", rootList, bad, ErrRevoked.Error()},
		{"listed in the older of two", append(root.Revoked(t, later), rootList...), bad, ErrRevoked.Error()},
		{"an expired list", root.Revoked(t, time.Now().Add(-time.Minute)), good, "no revocation list of CN=root that is valid now"},
		{"listed in an expired list", root.Revoked(t, time.Now().Add(-time.Minute), bad.Leaf), bad, ErrRevoked.Error()},
		{"an expired list and a new one", append(root.Revoked(t, time.Now().Add(-time.Minute)), root.Revoked(t, later)...), good, ""},
		{"no list of the one between", rootList, below, "no revocation list of CN=sub that is valid now"},
		{"another's list in the name of the one between", append(testenv.NewAuthority(t, "sub").Revoked(t, later), rootList...), below, "no revocation list of CN=sub that is valid now"},
		{"lists of both", append(sub.Revoked(t, later), rootList...), below, ""},
		{"listed below", append(sub.Revoked(t, later, below.Leaf), rootList...), below, ErrRevoked.Error()},
		{"the one between is listed", append(sub.Revoked(t, later), root.Revoked(t, later, sub.Cert)...), below, ErrRevoked.Error()},
	} {
		_, err := authorities(t, root.PEM(), tt.crl).verify(shownBy(t, tt.cert), 1, time.Now())
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	partial := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: later,
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 0}}}}
	for _, tt := range []struct {
		name    string
		ca, crl []byte
		want    string
	}{
		{"no authority", nil, nil, "ca.crt is empty"},
		{"no PEM", []byte("x"), nil, "ca.crt holds no PEM certificate"},
		{"a damaged certificate", append(root.PEM(), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"...), nil, "ca.crt: certificate 2 is damaged"},
		{"no PEM list", root.PEM(), []byte("x"), "ca.crl holds no PEM revocation list"},
		{"a damaged list", root.PEM(), []byte("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"), "ca.crl: list 1 is damaged"},
		{"another's list in the same name", root.PEM(), stranger.Revoked(t, later), "ca.crl: list 1 is not signed by CN=root"},
		{"a list of a part", root.PEM(), root.SignList(t, partial), "ca.crl: list 1 has the critical extension 2.5.29.28"},
	} {
		if _, err := ParseAuthorities(tt.ca, tt.crl); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	for _, tt := range []struct {
		name    string
		ca, crl []byte
		at      time.Time
		want    string
	}{
		{"nothing wrong", root.PEM(), rootList, time.Now(), ""},
		{"expired list", root.PEM(), rootList, time.Now().Add(2 * time.Hour), "the revocation list of CN=root in ca.crl expired on"},
		{"expired authority", root.PEM(), nil, time.Now().Add(2 * time.Hour), "the certificate of CN=root in ca.crt expired on"},
		{"no list of one", append(root.PEM(), sub.PEM()...), rootList, time.Now(), "ca.crl has no list of CN=sub"},
	} {
		got := strings.Join(authorities(t, tt.ca, tt.crl).Check(tt.at), "\n")
		if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestClientIsJudgedAnew when the policy is another, or time has gone by.
func TestClientIsJudgedAnew(t *testing.T) {
	root := testenv.NewAuthority(t, "root")
	cert := root.Client(t, "a")
	c := NewClient(&tls.ConnectionState{ServerName: "A.test.", PeerCertificates: shownBy(t, cert)})
	p := &ClientPolicy{Authorities: authorities(t, root.PEM(), nil), Depth: 1}
	now := time.Now()
	if c.Name() != "a.test" || c.Verify(p, now) != nil {
		t.Errorf("name %q, %v", c.Name(), c.Verify(p, now))
	}
	if err := c.Verify(p, now.Add(2*time.Hour)); err == nil {
		t.Error("it has expired since, and is still taken")
	}
	revoking := &ClientPolicy{Authorities: authorities(t, root.PEM(), root.Revoked(t, now.Add(time.Hour), cert.Leaf)), Depth: 1}
	if err := c.Verify(revoking, now); err != ErrRevoked {
		t.Errorf("it has been revoked since: %v", err)
	}
	if err := c.Verify(p, now); err != nil {
		t.Errorf("under the policy of before: %v", err)
	}
}

// TestNamesAreWrittenAsByOpenSSL compares with openssl, whose way is nginx's.
func TestNamesAreWrittenAsByOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	root := testenv.NewAuthority(t, "root")
	value := func(id asn1.ObjectIdentifier, v any) pkix.AttributeTypeAndValue {
		return pkix.AttributeTypeAndValue{Type: id, Value: v}
	}
	cn, o, mail := asn1.ObjectIdentifier{2, 5, 4, 3}, asn1.ObjectIdentifier{2, 5, 4, 10}, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}
	for _, name := range []pkix.Name{
		{CommonName: "plain"},
		{CommonName: "a", Organization: []string{"One, Two + \"Three\" <x> ; \\ ="}, Country: []string{"DE"}, Province: []string{"ST"}, Locality: []string{"L"}, SerialNumber: "7", StreetAddress: []string{"s"}, PostalCode: []string{"p"}},
		{CommonName: " leading and trailing "},
		{CommonName: "#hash"},
		{CommonName: "Zoë 中文"},
		{CommonName: "line\r\nbreak\x00\x7f"},
		{ExtraNames: []pkix.AttributeTypeAndValue{value(mail, "a@b.test"), value(o, "x"), value(cn, "CN=admin,O=evil"), value(asn1.ObjectIdentifier{1, 2, 3, 4}, "unknown"),
			value(asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 25}, "dc"), value(asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}, "uid")}},
	} {
		cert := root.Client(t, "", func(c *x509.Certificate) { c.Subject = name })
		file := filepath.Join(t.TempDir(), "c.pem")
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Leaf.Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(openssl, "x509", "-in", file, "-noout", "-subject", "-nameopt", "RFC2253").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		want := strings.TrimPrefix(strings.TrimSuffix(string(out), "\n"), "subject=")
		if got := dn(cert.Leaf.RawSubject); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

// TestClientNames: only the common name counts, and only where there is one.
func TestClientNames(t *testing.T) {
	root := testenv.NewAuthority(t, "root")
	cn, o := asn1.ObjectIdentifier{2, 5, 4, 3}, asn1.ObjectIdentifier{2, 5, 4, 10}
	admin := regexp.MustCompile(`\A(?:admin)\z`)
	for _, tt := range []struct {
		name string
		list []pkix.AttributeTypeAndValue
		want bool
	}{
		{"the name", []pkix.AttributeTypeAndValue{{Type: cn, Value: "admin"}}, true},
		{"another", []pkix.AttributeTypeAndValue{{Type: cn, Value: "administrator"}}, false},
		{"in the organisation", []pkix.AttributeTypeAndValue{{Type: o, Value: "CN=admin"}, {Type: cn, Value: "mallory"}}, false},
		{"twice", []pkix.AttributeTypeAndValue{{Type: cn, Value: "mallory"}, {Type: cn, Value: "admin"}}, false},
		{"none", []pkix.AttributeTypeAndValue{{Type: o, Value: "admin"}}, false},
		{"a line break", []pkix.AttributeTypeAndValue{{Type: cn, Value: "admin\n"}}, false},
	} {
		cert := root.Client(t, "", func(c *x509.Certificate) { c.Subject = pkix.Name{ExtraNames: tt.list} })
		c := NewClient(&tls.ConnectionState{PeerCertificates: shownBy(t, cert)})
		if got := c.Named(admin); got != tt.want {
			t.Errorf("%s: got %v", tt.name, got)
		}
	}
}

// TestClientHandshake: whatever a client shows, the handshake goes on; but not
// without the key, and never by a ticket.
func TestClientHandshake(t *testing.T) {
	root := testenv.NewAuthority(t, "root")
	cert, key := testPair(t)
	index := NewIndex(&tls.Certificate{Certificate: [][]byte{cert}, PrivateKey: key})
	base := NewResolver(index).ServerConfig("h2")
	p := &ClientPolicy{Authorities: authorities(t, root.PEM(), nil), Verify: model.ClientVerifyOn, Depth: 1}
	base.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if ServerName(hello.ServerName) == "secure.test" {
			return p.Config(base), nil
		}
		return nil, nil
	}
	good, stranger := root.Client(t, "good"), testenv.NewAuthority(t, "stranger").Client(t, "bad")
	stolen := tls.Certificate{Certificate: good.Certificate, PrivateKey: stranger.PrivateKey}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, tt := range []struct {
			name string
			cert *tls.Certificate
			ok   bool
		}{{"good", &good, true}, {"none", nil, true}, {"a stranger's", &stranger, true}, {"without its key", &stolen, false}} {
			state, err := shake(t, base, "SECURE.test", version, tt.cert, nil)
			if (err == nil) != tt.ok {
				t.Errorf("%x, %s: %v", version, tt.name, err)
				continue
			}
			if err == nil && tt.cert != nil && !bytes.Equal(state.PeerCertificates[0].Raw, tt.cert.Certificate[0]) {
				t.Errorf("%x, %s: another certificate was seen", version, tt.name)
			}
		}
		// A ticket of a name that asks for nothing, and there is none of one that asks.
		sessions := &lastSession{}
		for _, name := range []string{"plain.test", "plain.test"} {
			if _, err := shake(t, base, name, version, &good, sessions); err != nil {
				t.Fatal(err)
			}
		}
		if sessions.ClientSessionState == nil {
			t.Fatal("no ticket for a name that asks for nothing")
		}
		state, err := shake(t, base, "secure.test", version, &good, sessions)
		if err != nil || state.DidResume || len(state.PeerCertificates) != 1 {
			t.Errorf("%x: %v, resumed %v", version, err, state.DidResume)
		}
		sessions = &lastSession{}
		if _, err := shake(t, base, "secure.test", version, &good, sessions); err != nil || sessions.ClientSessionState != nil {
			t.Errorf("%x: %v; there is a ticket: %v", version, err, sessions.ClientSessionState != nil)
		}
	}
}

// TestClientHandshakeManyAuthorities: names of authorities are left out of a
// handshake that they would be too long for, and what they have signed is good.
func TestClientHandshakeManyAuthorities(t *testing.T) {
	var bundle []byte
	var last *testenv.Authority
	for i := range 70 {
		last = testenv.NewAuthority(t, strings.Repeat("x", 1000)+strconv.Itoa(i))
		bundle = append(bundle, last.PEM()...)
	}
	cert, key := testPair(t)
	base := NewResolver(NewIndex(&tls.Certificate{Certificate: [][]byte{cert}, PrivateKey: key})).ServerConfig("h2")
	p := &ClientPolicy{Authorities: authorities(t, bundle, nil), Depth: 1}
	good := last.Client(t, "good")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		state, err := shake(t, p.Config(base), "secure.test", version, &good, nil)
		if err != nil {
			t.Errorf("%x: %v", version, err)
		} else if err := NewClient(&state).Verify(p, time.Now()); err != nil {
			t.Errorf("%x: %v", version, err)
		}
	}
}

// shake does a handshake over a real connection, and returns the server's view of it.
func shake(t *testing.T, server *tls.Config, name string, version uint16, cert *tls.Certificate, sessions tls.ClientSessionCache) (tls.ConnectionState, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type result struct {
		state tls.ConnectionState
		err   error
	}
	done := make(chan result, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			done <- result{err: err}
			return
		}
		defer conn.Close()
		s := tls.Server(conn, server)
		err = s.Handshake()
		if err == nil {
			_, _ = s.Write([]byte("x"))
		}
		done <- result{s.ConnectionState(), err}
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{ServerName: name, InsecureSkipVerify: true, MinVersion: version, MaxVersion: version, ClientSessionCache: sessions, NextProtos: []string{"h2"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if cert == nil {
				return &tls.Certificate{}, nil
			}
			return cert, nil
		}})
	if err == nil {
		_, _ = c.Read(make([]byte, 1)) // the ticket comes before it
		_ = c.Close()
	}
	r := <-done
	return r.state, r.err
}

func testPair(t *testing.T) ([]byte, any) {
	t.Helper()
	c, err := SelfSigned("server", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return c.Certificate[0], c.PrivateKey
}

// TestAuthoritiesVouched: of what a client shows only that counts which leads to an
// authority, in whatever order it comes. With the keys and names of the rest
// anybody could keep x509 busy.
func TestAuthoritiesVouched(t *testing.T) {
	root := testenv.NewAuthority(t, "root")
	one := root.Authority(t, "one")
	two := one.Authority(t, "two")
	stranger := testenv.NewAuthority(t, "root") // of the same name
	false1 := stranger.Authority(t, "one")
	false2 := false1.Authority(t, "two")
	want := x509.NewCertPool()
	want.AddCert(one.Cert)
	want.AddCert(two.Cert)
	a := authorities(t, root.PEM(), nil)
	for _, shown := range [][]*x509.Certificate{
		{one.Cert, two.Cert},
		{two.Cert, one.Cert},
		{false2.Cert, two.Cert, false1.Cert, one.Cert, stranger.Cert},
	} {
		if got := a.vouched(shown); !got.Equal(want) {
			t.Errorf("%d shown: others count than those two", len(shown))
		}
	}
}
