package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
	"fairway.dev/fairway/internal/testenv"
)

// writePair writes a client's certificate and key where programs find them.
func writePair(t *testing.T, dir, name string, c tls.Certificate) (cert, key string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	var chain []byte
	for _, c := range c.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	cert, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	for file, data := range map[string][]byte{cert: chain, key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// TestClientAuthPrograms: what curl and openssl get, by both versions of TLS.
func TestClientAuthPrograms(t *testing.T) {
	w, root := clientAuthWorld(t, "10.99.95.1:80", "10.99.95.101:443")
	w.route(withClientAuth(ingress("main", rule("secure.test", "/", "a"))))
	dir := t.TempDir()
	goodCert, goodKey := writePair(t, dir, "good", root.Authority(t, "between").Client(t, "good"))
	badCert, badKey := writePair(t, dir, "bad", testenv.NewAuthority(t, "root").Client(t, "good"))
	t.Run("curl", func(t *testing.T) {
		curl, err := exec.LookPath("curl")
		if err != nil {
			t.Skip("curl is not installed")
		}
		for _, version := range []string{"1.2", "1.3"} {
			for _, protocol := range []string{"--http1.1", "--http2"} {
				for _, tt := range []struct {
					name, url string
					args      []string
					want      string
				}{
					{"good", "https://secure.test/", []string{"--cert", goodCert, "--key", goodKey}, "200"},
					{"none", "https://secure.test/", nil, "400"},
					{"a stranger's", "https://secure.test/", []string{"--cert", badCert, "--key", badKey}, "400"},
					{"for another host", "https://other.test/", []string{"--cert", goodCert, "--key", goodKey, "-H", "Host: secure.test"}, "421"},
				} {
					args := append([]string{"-sk", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "20", protocol, "--tlsv" + version, "--tls-max", version,
						"--resolve", "secure.test:443:10.99.95.101", "--resolve", "other.test:443:10.99.95.101"}, append(tt.args, tt.url)...)
					out, err := exec.Command(curl, args...).CombinedOutput()
					if err != nil || string(out) != tt.want {
						t.Errorf("TLS %s %s, %s: %s, %v, want %s", version, protocol, tt.name, out, err, tt.want)
					}
				}
			}
		}
	})
	t.Run("openssl", func(t *testing.T) {
		openssl, err := exec.LookPath("openssl")
		if err != nil {
			t.Skip("openssl is not installed")
		}
		connect := func(sni, request string, args ...string) (string, error) {
			c := exec.Command(openssl, append([]string{"s_client", "-connect", "10.99.95.101:443", "-servername", sni, "-ign_eof"}, args...)...)
			c.Stdin = strings.NewReader(request)
			out, err := c.CombinedOutput()
			return string(out), err
		}
		const request = "GET / HTTP/1.1\r\nHost: secure.test\r\nConnection: close\r\n\r\n"
		for _, version := range []string{"-tls1_2", "-tls1_3"} {
			session := filepath.Join(dir, "session"+version)
			out, err := connect("secure.test", request, version, "-cert", goodCert, "-cert_chain", goodCert, "-key", goodKey, "-sess_out", session)
			if err != nil || !strings.Contains(out, "HTTP/1.1 200 OK") || !strings.Contains(out, "Acceptable client certificate CA names") || !strings.Contains(out, "CN = root") {
				t.Errorf("%s: %v\n%s", version, err, out)
			}
			if strings.Contains(out, "New Session Ticket") || strings.Contains(out, "TLS session ticket:") {
				t.Errorf("%s: there is a ticket:\n%s", version, out)
			}
			// A session of a host that asks for nothing is of no use.
			if out, err := connect("public.test", strings.Replace(request, "secure", "public", 1), version, "-sess_out", session); err != nil || !strings.Contains(out, "HTTP/1.1 404") {
				t.Errorf("%s: %v\n%s", version, err, out)
			}
			out, err = connect("secure.test", request, version, "-sess_in", session)
			if err != nil || strings.Contains(out, "Reused,") || !strings.Contains(out, "No required SSL certificate was sent") {
				t.Errorf("%s: %v\n%s", version, err, out)
			}
		}
		// A name with a final dot is none to crypto/tls.
		if out, _ := connect("secure.test.", request, "-cert", goodCert, "-key", goodKey); strings.Contains(out, "HTTP/1.1 2") {
			t.Errorf("a final dot:\n%s", out)
		}
	})
}

// TestClientAuthForged: what clients send reaches no backend as the gateway's word.
func TestClientAuthForged(t *testing.T) {
	w, root := clientAuthWorld(t, "10.99.96.1:80", "10.99.96.101:443")
	w.route(withClientAuth(ingress("main", rule("secure.test", "/", "a")), func(a *model.ClientAuth) { a.Verify = model.ClientVerifyOptional }))
	good := root.Client(t, "good")
	send := func(cert *tls.Certificate, lines ...string) string {
		t.Helper()
		config := &tls.Config{ServerName: "secure.test", InsecureSkipVerify: true}
		if cert != nil {
			config.Certificates = []tls.Certificate{*cert}
		}
		c, err := tls.Dial("tcp", "10.99.96.101:443", config)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: secure.test\r\n"+strings.Join(lines, "\r\n")+"\r\nTransfer-Encoding: chunked\r\nTrailer: ssl-client-verify\r\n\r\n0\r\nssl-client-verify: SUCCESS\r\nssl_client_subject_dn: CN=admin\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		_ = c.CloseWrite()
		out, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	for _, lines := range [][]string{
		{"Connection: ssl-client-verify, ssl-client-subject-dn"},
		{"SSL-CLIENT-VERIFY: SUCCESS", "ssl-client-verify: SUCCESS"},
		{"Ssl_Client_Verify: SUCCESS", "SSL-CLIENT_SUBJECT_DN: CN=admin", "ssl_client-cert: x", "ssl-client_issuer_dn: CN=x"},
	} {
		out := send(nil, lines...)
		if !strings.Contains(out, `"Ssl-Client-Verify":["NONE"]`) || strings.Count(out, "SUCCESS")+strings.Count(out, "CN=") > 0 {
			t.Errorf("%q: without certificate:\n%s", lines, out)
		}
		out = send(&good, lines...)
		if !strings.Contains(out, `"Ssl-Client-Verify":["SUCCESS"]`) || !strings.Contains(out, `"Ssl-Client-Subject-Dn":["CN=good"]`) || strings.Contains(out, "admin") || strings.Contains(strings.ToLower(out), "ssl_client") {
			t.Errorf("%q: with one:\n%s", lines, out)
		}
	}
}

// TestClientAuthUnmatched: who may not come in does not learn what is there.
func TestClientAuthUnmatched(t *testing.T) {
	w, root := clientAuthWorld(t, "10.99.97.1:80", "10.99.97.101:443")
	w.update(func(tx *state.Tx) {
		tx.PutRoute(withClientAuth(ingress("main", rule("secure.test", "/x", "a"))))
	})
	good := root.Client(t, "good")
	for _, tt := range []struct {
		sni  string
		cert *tls.Certificate
		want int
	}{{"secure.test", nil, 400}, {"secure.test", &good, 404}, {"other.test", &good, 421}} {
		for _, protocol := range showerProtocols {
			if resp, _ := (shower{t: t, addr: "10.99.97.101:443", sni: tt.sni, cert: tt.cert, protocol: protocol}).get("secure.test", "/none"); resp.StatusCode != tt.want {
				t.Errorf("%s by SNI %s: got %d, want %d", protocol, tt.sni, resp.StatusCode, tt.want)
			}
		}
	}
	if got, _ := w.get("secure.test", "/none"); got != http.StatusBadRequest {
		t.Errorf("by plain HTTP: got %d", got)
	}
	if got, _ := w.get("public.test", "/none"); got != http.StatusNotFound {
		t.Errorf("of another host: got %d", got)
	}
}
