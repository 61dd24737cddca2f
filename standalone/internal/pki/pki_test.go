package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func open(t *testing.T, dir string, now time.Time) *PKI {
	t.Helper()
	p, err := Open(Options{Dir: dir, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func serverIdentity() Identity {
	return Identity{
		CommonName: "kube-apiserver",
		DNSNames:   []string{"localhost", "kubernetes.default.svc"},
		Addresses:  []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("fd00:10:96::1")},
	}
}

func mustServer(t *testing.T, p *PKI, id Identity) Pair {
	t.Helper()
	pair, err := p.Server("apiserver", id)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func TestServerCertificateVerifies(t *testing.T) {
	now := time.Now()
	p := open(t, t.TempDir(), now)
	pair := mustServer(t, p, serverIdentity())
	if _, err := tls.X509KeyPair(pair.Cert, pair.Key); err != nil {
		t.Fatalf("certificate and key do not belong together: %v", err)
	}
	cert, err := decodeCertificate(pair.Cert)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.CA())
	for _, name := range []string{"localhost", "kubernetes.default.svc", "127.0.0.1", "fd00:10:96::1"} {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Errorf("as %s: %v", name, err)
		}
	}
	for _, name := range []string{"example.com", "10.0.0.1"} {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err == nil {
			t.Errorf("as %s: verified, but it was not asked for", name)
		}
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err == nil {
		t.Error("a serving certificate verifies as a client's")
	}
}

func TestServerReissue(t *testing.T) {
	now := time.Now()
	tests := []struct {
		name    string
		later   time.Duration
		change  func(id *Identity)
		break_  func(t *testing.T, dir string)
		reissue bool
	}{
		{name: "same", change: func(*Identity) {}},
		{name: "order and duplicates", change: func(id *Identity) {
			id.DNSNames = []string{"kubernetes.default.svc", "localhost", "localhost"}
			id.Addresses = []netip.Addr{netip.MustParseAddr("fd00:10:96::1"), netip.MustParseAddr("::ffff:127.0.0.1")}
		}},
		{name: "years later", later: 5 * 365 * 24 * time.Hour},
		{name: "name added", reissue: true, change: func(id *Identity) { id.DNSNames = append(id.DNSNames, "box") }},
		{name: "address added", reissue: true, change: func(id *Identity) {
			id.Addresses = append(id.Addresses, netip.MustParseAddr("192.0.2.7"))
		}},
		{name: "address removed", reissue: true, change: func(id *Identity) { id.Addresses = id.Addresses[:1] }},
		{name: "common name", reissue: true, change: func(id *Identity) { id.CommonName = "other" }},
		{name: "about to expire", reissue: true, later: lifetime - time.Hour},
		{name: "key lost", reissue: true, break_: func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "apiserver.key")); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "certificate damaged", reissue: true, break_: func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "apiserver.crt"), []byte("damaged"), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "other authority", reissue: true, break_: func(t *testing.T, dir string) {
			os.Remove(filepath.Join(dir, "ca.crt"))
			os.Remove(filepath.Join(dir, "ca.key"))
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			before := mustServer(t, open(t, dir, now), serverIdentity())
			id := serverIdentity()
			if test.change != nil {
				test.change(&id)
			}
			if test.break_ != nil {
				test.break_(t, dir)
			}
			p := open(t, dir, now.Add(test.later))
			after := mustServer(t, p, id)
			if reissued := !bytes.Equal(before.Cert, after.Cert); reissued != test.reissue {
				t.Errorf("re-issued = %v, want %v", reissued, test.reissue)
			}
			if onDisk, _ := os.ReadFile(after.CertFile); !bytes.Equal(onDisk, after.Cert) {
				t.Error("the file differs from the certificate returned")
			}
			cert, err := decodeCertificate(after.Cert)
			if err != nil {
				t.Fatal(err)
			}
			if err := cert.CheckSignatureFrom(p.cluster.cert); err != nil {
				t.Errorf("not signed by the cluster's authority: %v", err)
			}
		})
	}
}

func TestClientCertificate(t *testing.T) {
	p := open(t, t.TempDir(), time.Now())
	pair, err := p.Client("admin", Identity{CommonName: "admin", Groups: []string{"system:masters"}})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := decodeCertificate(pair.Cert)
	if err != nil {
		t.Fatal(err)
	}
	if cert.Subject.CommonName != "admin" || len(cert.Subject.Organization) != 1 || cert.Subject.Organization[0] != "system:masters" {
		t.Errorf("subject = %v, want user admin in group system:masters", cert.Subject)
	}
	if err := cert.CheckSignatureFrom(p.frontProxy.cert); err == nil {
		t.Error("a user's certificate is signed by the front proxy's authority: it could name any user")
	}
	proxy, err := p.FrontProxyClient("front-proxy-client", Identity{CommonName: "front-proxy-client"})
	if err != nil {
		t.Fatal(err)
	}
	if cert, err = decodeCertificate(proxy.Cert); err != nil {
		t.Fatal(err)
	}
	if err := cert.CheckSignatureFrom(p.cluster.cert); err == nil {
		t.Error("the front proxy's certificate is signed by the cluster's authority")
	}
}

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	p := open(t, dir, time.Now())
	mustServer(t, p, serverIdentity())
	if _, err := p.Client("admin", Identity{CommonName: "admin"}); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(dir); info.Mode().Perm() != 0o700 {
		t.Errorf("directory has mode %v, want 0700", info.Mode().Perm())
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 10 {
		t.Errorf("%d files, want 5 pairs", len(entries))
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", entry.Name(), info.Mode().Perm())
		}
	}
}

func TestOpenKeepsKeys(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	p := open(t, dir, now)
	key, err := os.ReadFile(p.ServiceAccountKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	again := open(t, dir, now.Add(lifetime-time.Hour))
	if after, _ := os.ReadFile(p.ServiceAccountKeyFile()); !bytes.Equal(key, after) {
		t.Error("the ServiceAccount key was replaced: every Pod's token would become invalid")
	}
	if bytes.Equal(p.CA(), again.CA()) {
		t.Error("an authority that is about to expire was kept")
	}
}

func TestOpenErrors(t *testing.T) {
	now := time.Now()
	t.Run("read-only before it was made", func(t *testing.T) {
		_, err := Open(Options{Dir: filepath.Join(t.TempDir(), "absent"), ReadOnly: true})
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("error = %v, want fs.ErrNotExist", err)
		}
	})
	t.Run("clock set back", func(t *testing.T) {
		dir := t.TempDir()
		open(t, dir, now)
		_, err := Open(Options{Dir: dir, Now: func() time.Time { return now.Add(-48 * time.Hour) }})
		if err == nil || !strings.Contains(err.Error(), "clock") {
			t.Errorf("error = %v, want one that speaks of the clock", err)
		}
	})
	t.Run("authority's key lost", func(t *testing.T) {
		dir := t.TempDir()
		open(t, dir, now)
		if err := os.Remove(filepath.Join(dir, "ca.key")); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "ca.key") {
			t.Errorf("error = %v, want one that names ca.key", err)
		}
	})
	t.Run("no common name", func(t *testing.T) {
		if _, err := open(t, t.TempDir(), now).Client("x", Identity{}); err == nil {
			t.Error("a certificate without a name was issued")
		}
	})
}
