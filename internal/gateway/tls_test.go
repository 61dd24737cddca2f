package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"fairway.dev/fairway/internal/gateway/gatewaytest"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// withTLS binds a Secret to hosts.
func withTLS(r *model.Route, secret string, hosts ...string) *model.Route {
	return gatewaytest.WithTLS(r, secret, hosts...)
}

func TestTLSBySNI(t *testing.T) {
	backendServer(t, "10.99.20.1:80", nil)
	w := newWorld(t, nil)
	w.service("a", "", "10.99.20.1:80")
	good := secret(t, "good", "tls.test", "*.wild.test")
	w.update(func(tx *state.Tx) {
		tx.PutCertificate(good)
		tx.PutCertificate(&model.Certificate{Key: key("garbage"), Chain: []byte("no"), PrivateKey: []byte("no")})
		tx.PutRoute(withTLS(withTLS(withTLS(withTLS(ingress("main", rule("", "/", "a")),
			"good", "tls.test", "*.wild.test"), "absent", "absent.test"), "garbage", "garbage.test"), "good", "alien.test"))
	})
	for name, want := range map[string]string{
		"tls.test": "good", "x.wild.test": "good", "alien.test": "good",
		"absent.test": DefaultCertificateName, "garbage.test": DefaultCertificateName, "other.test": DefaultCertificateName, "": DefaultCertificateName,
	} {
		if got := w.presented(name); got != want {
			t.Errorf("%q is shown the certificate %q, want %q", name, got, want)
		}
	}
	for _, want := range []string{
		"spec.tls[1] SecretNotFound: Secret default/absent does not exist",
		"spec.tls[2] CertificateInvalid: Secret default/garbage: tls.crt is not PEM",
		"spec.tls[3] CertificateNameMismatch: Secret default/good: the certificate is made out for tls.test, *.wild.test and not for alien.test",
	} {
		if !strings.Contains(w.problemText(), want) {
			t.Errorf("problems do not say %q:\n%s", want, w.problemText())
		}
	}
	// The Secret appears and heals; another goes bad and keeps serving.
	w.update(func(tx *state.Tx) {
		tx.PutCertificate(secret(t, "absent", "absent.test"))
		tx.PutCertificate(&model.Certificate{Key: key("good"), Chain: []byte("broken"), PrivateKey: good.PrivateKey})
	})
	if got := w.presented("absent.test"); got != "absent" {
		t.Errorf("after the Secret appeared got %q", got)
	}
	if got := w.presented("tls.test"); got != "good" {
		t.Errorf("after the Secret was broken got %q", got)
	}
	if text := w.problemText(); !strings.Contains(text, "its last good certificate is still served") || strings.Contains(text, "SecretNotFound") {
		t.Errorf("problems:\n%s", text)
	}
}

// TestDefaultCertificate shows the certificate of a Secret where no other is known,
// and one of the gateway's own as long as that Secret is of no use.
func TestDefaultCertificate(t *testing.T) {
	backendServer(t, "10.99.20.2:80", nil)
	w := newWorld(t, func(o *Options) { o.DefaultCertificate = key("standard") })
	w.service("a", "", "10.99.20.2:80")
	w.update(func(tx *state.Tx) {
		tx.PutCertificate(secret(t, "good", "tls.test"))
		r := withTLS(withTLS(ingress("main", rule("tls.test", "/", "a"), rule("plain.test", "/", "a")), "good", "tls.test"), "absent", "absent.test")
		r.TLS = append(r.TLS, model.RouteTLS{Hosts: []string{"plain.test"}})
		tx.PutRoute(r)
	})
	shown := func(want string) {
		t.Helper()
		for _, name := range []string{"plain.test", "absent.test", "other.test", ""} {
			if got := w.presented(name); got != want {
				t.Errorf("%q is shown the certificate %q, want %q", name, got, want)
			}
		}
		if got := w.presented("tls.test"); got != "good" {
			t.Errorf("tls.test is shown %q", got)
		}
	}
	shown(DefaultCertificateName)
	if want := "--default-certificate SecretNotFound: Secret default/standard does not exist"; !strings.Contains(w.problemText(), want) {
		t.Errorf("problems do not say %q:\n%s", want, w.problemText())
	}
	standard := secret(t, "standard", "*.test")
	w.update(func(tx *state.Tx) { tx.PutCertificate(standard) })
	shown("standard")
	w.update(func(tx *state.Tx) {
		tx.PutCertificate(&model.Certificate{Key: key("standard"), Chain: []byte("broken"), PrivateKey: standard.PrivateKey})
	})
	shown("standard")
	if want := "its last good certificate is still the default"; !strings.Contains(w.problemText(), want) {
		t.Errorf("problems do not say %q:\n%s", want, w.problemText())
	}
	w.update(func(tx *state.Tx) { tx.DeleteCertificate(key("standard")) })
	shown(DefaultCertificateName)
}

// TestTLSRotation changes the certificate while a connection is in use: it
// goes on, and new connections see the new certificate.
func TestTLSRotation(t *testing.T) {
	backendServer(t, "10.99.21.1:80", nil)
	w := newWorld(t, nil)
	w.service("a", "", "10.99.21.1:80")
	first := secret(t, "pair", "tls.test")
	w.update(func(tx *state.Tx) {
		tx.PutCertificate(first)
		tx.PutRoute(withTLS(ingress("main", rule("tls.test", "/", "a")), "pair", "tls.test"))
	})
	client := w.tlsClient(t, first, "tls.test")
	if proto, err := fetch(client, "https://tls.test/"); err != nil || proto != "HTTP/2.0" {
		t.Fatalf("%s, %v", proto, err)
	}
	second := secret(t, "pair", "tls.test")
	w.update(func(tx *state.Tx) { tx.PutCertificate(second) })
	if _, err := fetch(client, "https://tls.test/"); err != nil {
		t.Errorf("the kept connection broke: %v", err)
	}
	if _, err := fetch(w.tlsClient(t, second, "tls.test"), "https://tls.test/"); err != nil {
		t.Errorf("a new connection does not see the new certificate: %v", err)
	}
}

// TestTLSVersionsAndSuites shakes hands with what a gateway is told to allow, and
// with what it is not.
func TestTLSVersionsAndSuites(t *testing.T) {
	const chosen, other = tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
	for _, c := range []struct {
		name    string
		options func(*Options)
		version uint16
		suite   uint16 // of TLS 1.2
		refused bool
	}{
		{"by default, TLS 1.1", nil, tls.VersionTLS11, 0, true},
		{"by default, TLS 1.2", nil, tls.VersionTLS12, other, false},
		{"from 1.3 on, TLS 1.2", func(o *Options) { o.TLSMinVersion = tls.VersionTLS13 }, tls.VersionTLS12, other, true},
		{"from 1.3 on, TLS 1.3", func(o *Options) { o.TLSMinVersion = tls.VersionTLS13 }, tls.VersionTLS13, 0, false},
		{"one suite, and that one", func(o *Options) { o.TLSCipherSuites = []uint16{chosen} }, tls.VersionTLS12, chosen, false},
		{"one suite, and another one", func(o *Options) { o.TLSCipherSuites = []uint16{chosen} }, tls.VersionTLS12, other, true},
		{"one suite, and TLS 1.3", func(o *Options) { o.TLSCipherSuites = []uint16{chosen} }, tls.VersionTLS13, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, c.options)
			config := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: c.version}
			if c.suite != 0 {
				config.CipherSuites = []uint16{c.suite}
			}
			raw, err := w.dialHTTPS(t.Context(), "tcp", "")
			if err != nil {
				t.Fatal(err)
			}
			conn := tls.Client(raw, config)
			defer conn.Close()
			err = conn.HandshakeContext(t.Context())
			if (err != nil) != c.refused {
				t.Fatalf("%v, want refused: %t", err, c.refused)
			}
			if s := conn.ConnectionState(); err == nil && (s.Version != c.version || c.suite != 0 && s.CipherSuite != c.suite) {
				t.Errorf("%s with %s", tls.VersionName(s.Version), tls.CipherSuiteName(s.CipherSuite))
			}
		})
	}
}

// tlsClient trusts one certificate and finds every host at the gateway.
func (w *world) tlsClient(t *testing.T, trust *model.Certificate, serverName string) *http.Client {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(trust.Chain)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: serverName}, ForceAttemptHTTP2: true, DialContext: w.dialHTTPS}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: plainClient.CheckRedirect}
}

func fetch(c *http.Client, url string) (proto string, err error) {
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.Proto, err
}

func TestHTTPSRedirect(t *testing.T) {
	backendServer(t, "10.99.22.1:80", nil)
	w := newWorld(t, nil)
	w.service("a", "", "10.99.22.1:80")
	redirect := filters(model.Filters{HTTPSRedirect: &model.HTTPSRedirect{Status: 308}})
	pair := secret(t, "pair", "tls.test")
	w.update(func(tx *state.Tx) {
		tx.PutCertificate(pair)
		tx.PutRoute(withTLS(ingress("main", rule("tls.test", "/", "a", redirect), rule("plain.test", "/", "a", redirect)), "pair", "tls.test"))
	})
	resp, _ := w.do("GET", "tls.test", "/x?q=1", nil)
	if resp.StatusCode != 308 || resp.Header.Get("Location") != "https://tls.test/x?q=1" {
		t.Errorf("got %d to %q", resp.StatusCode, resp.Header.Get("Location"))
	}
	if status, _ := w.get("plain.test", "/"); status != 200 {
		t.Errorf("a host without TLS got %d", status)
	}
	resp, err := w.tlsClient(t, pair, "tls.test").Get("https://tls.test/x")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("https got %d", resp.StatusCode)
	}
}

// TestCurl asks with a client that is not Go.
func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed")
	}
	backendServer(t, "10.99.23.1:80", nil)
	w := newWorld(t, nil)
	w.service("a", "", "10.99.23.1:80")
	pair := secret(t, "pair", "curl.test")
	w.update(func(tx *state.Tx) {
		tx.PutCertificate(pair)
		tx.PutRoute(withTLS(ingress("main", rule("curl.test", "/", "a")), "pair", "curl.test"))
	})
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pair.Chain, 0o600); err != nil {
		t.Fatal(err)
	}
	big := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(big, make([]byte, 5<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	plainPort, tlsPort := portOf(w.g.HTTPAddr()), portOf(w.g.HTTPSAddr())
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"http/1.1", []string{"--http1.1", fmt.Sprintf("http://curl.test:%d/x", plainPort)}, "200 1.1"},
		{"http/1.0", []string{"--http1.0", fmt.Sprintf("http://curl.test:%d/x", plainPort)}, "200 1.1"},
		{"h2c by prior knowledge", []string{"--http2-prior-knowledge", fmt.Sprintf("http://curl.test:%d/x", plainPort)}, "200 2"},
		{"https, http/2 by ALPN", []string{"--http2", fmt.Sprintf("https://curl.test:%d/x", tlsPort)}, "200 2"},
		{"https, http/1.1", []string{"--http1.1", fmt.Sprintf("https://curl.test:%d/x", tlsPort)}, "200 1.1"},
		{"100-continue and a large body", []string{"--http1.1", "-H", "Expect: 100-continue", "--data-binary", "@" + big, fmt.Sprintf("https://curl.test:%d/x", tlsPort)}, "200 1.1"},
		{"HEAD", []string{"--head", fmt.Sprintf("http://curl.test:%d/x", plainPort)}, "200 1.1"},
		{"dot segments as they are", []string{"--path-as-is", fmt.Sprintf("http://curl.test:%d/a/..;/b", plainPort)}, "400 1.1"},
		{"http at the https port", []string{fmt.Sprintf("http://curl.test:%d/", tlsPort)}, "400 1.1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{"-sS", "-m", "20", "-o", os.DevNull, "-w", "%{http_code} %{http_version}", "--cacert", ca,
				"--resolve", fmt.Sprintf("curl.test:%d:127.0.0.1", plainPort), "--resolve", fmt.Sprintf("curl.test:%d:127.0.0.1", tlsPort)}, tt.args...)
			out, err := exec.Command(curl, args...).CombinedOutput()
			if err != nil || string(out) != tt.want {
				t.Errorf("got %q, %v, want %q", out, err, tt.want)
			}
		})
	}
}
