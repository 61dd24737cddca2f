package scenario

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// certificate makes a self-signed certificate as the article does and returns
// the paths of certificate and key.
func certificate(t *testing.T, name string, extra ...string) (crt, key string) {
	t.Helper()
	dir := t.TempDir()
	crt, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	must(t, env.node, append([]string{"openssl", "req", "-x509", "-nodes", "-days", "365", "-newkey", "rsa:2048",
		"-out", crt, "-keyout", key, "-subj", "/CN=" + name}, extra...)...)
	return crt, key
}

func serial(t *testing.T, crt string) string {
	t.Helper()
	return strings.TrimSpace(must(t, env.node, "openssl", "x509", "-in", crt, "-noout", "-serial"))
}

// served returns the serial number of the certificate that a server shows.
func served(ns, addr, name string) (string, error) {
	r := env.runInput(ns, "", "bash", "-c", fmt.Sprintf("timeout 5 openssl s_client -connect %s -servername %s </dev/null 2>/dev/null | openssl x509 -noout -serial", addr, name))
	if r.err != nil {
		return "", fmt.Errorf("%w: %s", r.err, r.all())
	}
	return strings.TrimSpace(r.stdout), nil
}

func wantServed(t *testing.T, ns, addr, name, serial string) {
	t.Helper()
	eventually(t, 15*time.Second, func() error {
		got, err := served(ns, addr, name)
		if err == nil && got != serial {
			err = fmt.Errorf("%s shows certificate %s for %s, want %s", addr, got, name, serial)
		}
		return err
	})
}

func TestSection06ServiceTLS(t *testing.T) {
	ns := namespace(t, "s06")
	apply(t, ns, "06-service-tls/workload.yaml")
	if said := apply(t, ns, "06-service-tls/09-service-tls.yaml"); !strings.Contains(said, "spec.tls") {
		t.Errorf("stderr does not say what was changed: %q", said)
	}
	waitReady(t, ns, "deploy/myapp")
	ip := field(t, ns, "svc/myservice", "{.spec.clusterIP}")

	// Without the Secret: refused, and an Event says what to do.
	refused(t, env.node, "https://"+ip)
	wantEvent(t, ns, "Service/myservice", "mytlssecret")

	const host = "myservice.example.com"
	crt, key := certificate(t, host, "-addext", "subjectAltName=DNS:"+host)
	kubectl(t, "-n", ns, "create", "secret", "tls", "mytlssecret", "--cert="+crt, "--key="+key)
	to := func(addr string) []string {
		return []string{"--cacert", crt, "--connect-to", host + ":443:" + addr, "https://" + host + "/secure"}
	}
	a := wantStatus(t, env.node, 200, to(ip+":443")...)
	if a.Path != "/secure" || a.Pod == "" {
		t.Errorf("the endpoint saw %+v", a)
	}
	t.Run("from a Pod", func(t *testing.T) {
		kubectl(t, "-n", ns, "create", "configmap", "ca", "--from-file=ca.crt="+crt)
		r := inPod(ns, "deploy/myapp", append([]string{"curl", "-sS", "--max-time", "5"}, to("myservice:443")...)...)
		if r.err != nil || !strings.Contains(r.stdout, `"/secure"`) {
			t.Errorf("%v %s", r.err, r.all())
		}
	})
	t.Run("wrong name", func(t *testing.T) {
		r := env.run(env.node, "bash", "-c", "timeout 5 openssl s_client -connect "+ip+":443 -servername other.example.com </dev/null")
		if !strings.Contains(r.all(), "alert") || strings.Contains(r.stdout, "BEGIN CERTIFICATE") {
			t.Errorf("a name that tls-hosts does not list gets %s", r.all())
		}
	})
	t.Run("plain HTTP gets no answer", func(t *testing.T) {
		if status, _, err := curl(env.node, "http://"+ip+":443/"); err == nil && status < 400 {
			t.Errorf("plain HTTP on the TLS port: status %d", status)
		}
	})
	t.Run("NodePort and LoadBalancer", func(t *testing.T) {
		kubectl(t, "-n", ns, "patch", "svc/myservice", "-p", `{"spec":{"type":"LoadBalancer"}}`)
		port := field(t, ns, "svc/myservice", "{.spec.ports[0].nodePort}")
		wantStatus(t, env.outside, 200, to(nodeAddr+":"+port)...)
		eventually(t, 15*time.Second, func() error {
			vip := field(t, ns, "svc/myservice", "{.status.loadBalancer.ingress[0].ip}")
			status, _, err := curl(env.outside, to(vip+":443")...)
			if err == nil && status != 200 {
				err = fmt.Errorf("status %d", status)
			}
			return err
		})
	})
	t.Run("rotation keeps connections", func(t *testing.T) { testRotation(t, ns, ip, host) })
	t.Run("a Secret that is no certificate", func(t *testing.T) {
		kubectl(t, "-n", ns, "delete", "secret", "mytlssecret")
		kubectl(t, "-n", ns, "create", "secret", "generic", "mytlssecret", "--from-literal=tls.crt=nonsense", "--from-literal=tls.key=nonsense")
		refused(t, env.node, "https://"+ip)
		wantEvent(t, ns, "Service/myservice", "mytlssecret", "tls.crt")
		kubectl(t, "-n", ns, "delete", "secret", "mytlssecret")
		kubectl(t, "-n", ns, "create", "secret", "tls", "mytlssecret", "--cert="+crt, "--key="+key)
		wantStatus(t, env.node, 200, to(ip+":443")...)
	})
}

// testRotation holds a TLS connection open over a change of the Secret.
func testRotation(t *testing.T, ns, ip, host string) {
	cmd := env.command(t.Context(), env.node, "openssl", "s_client", "-quiet", "-connect", ip+":443", "-servername", host)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	lines := bufio.NewReader(out)
	ask := func() string {
		fmt.Fprintf(in, "GET /kept HTTP/1.1\r\nHost: %s\r\n\r\n", host)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				t.Fatalf("the kept connection ended: %v", err)
			}
			if strings.HasPrefix(line, "HTTP/1.1 ") {
				return line
			}
		}
	}
	if got := ask(); !strings.Contains(got, "200") {
		t.Fatalf("first answer %q", got)
	}
	crt, key := certificate(t, host, "-addext", "subjectAltName=DNS:"+host)
	replaceSecret(t, ns, "mytlssecret", crt, key)
	wantServed(t, env.node, ip+":443", host, serial(t, crt))
	if got := ask(); !strings.Contains(got, "200") {
		t.Errorf("after the rotation the kept connection answers %q", got)
	}
}

func replaceSecret(t *testing.T, ns, name, crt, key string) {
	t.Helper()
	manifest := kubectl(t, "-n", ns, "create", "secret", "tls", name, "--cert="+crt, "--key="+key, "--dry-run=client", "-o", "yaml")
	applySecret := env.runInput(env.node, manifest, env.fairway(), "kubectl", "-n", ns, "replace", "-f", "-")
	if applySecret.err != nil {
		t.Fatal(applySecret.all())
	}
}

func TestSection10IngressTLS(t *testing.T) {
	ns := namespace(t, "s10")
	apply(t, ns, "10-ingress-tls/workload.yaml")
	apply(t, ns, "10-ingress-tls/14-ingress-tls.yaml")
	waitReady(t, ns, "deploy/service-name")
	wantEvent(t, ns, "Ingress/example-ingress-tls", "example-tls") // the Secret is missing so far

	crt, key := certificate(t, "example.com")
	kubectl(t, "-n", ns, "create", "secret", "tls", "example-tls", "--cert="+crt, "--key="+key)
	https := []string{"--cacert", crt, "--connect-to", "example.com:443:" + nodeAddr + ":443", "https://example.com/"}
	a := wantStatus(t, env.outside, 200, https...)
	if got := a.Headers["X-Forwarded-Proto"]; len(got) != 1 || got[0] != "https" {
		t.Errorf("X-Forwarded-Proto is %q", got)
	}
	wantStatus(t, env.outside, 200, append([]string{"--http2"}, https...)...)

	t.Run("http is sent to https", func(t *testing.T) {
		r := env.run(env.outside, "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", "-H", "Host: example.com", "http://"+nodeAddr+"/x?y=z")
		if r.stdout != "308 https://example.com/x?y=z" {
			t.Errorf("got %q", r.all())
		}
	})
	t.Run("another name gets another certificate", func(t *testing.T) {
		wantServed(t, env.outside, nodeAddr+":443", "example.com", serial(t, crt))
		got, err := served(env.outside, nodeAddr+":443", "wrong.example.org")
		if err == nil && got == serial(t, crt) {
			t.Error("the certificate of example.com is shown for wrong.example.org")
		}
		wantStatus(t, env.outside, 404, "-k", "--connect-to", "wrong.example.org:443:"+nodeAddr+":443", "https://wrong.example.org/")
	})
	t.Run("a new Secret is used at once", func(t *testing.T) {
		crt2, key2 := certificate(t, "example.com")
		replaceSecret(t, ns, "example-tls", crt2, key2)
		wantServed(t, env.outside, nodeAddr+":443", "example.com", serial(t, crt2))
	})
	t.Run("clients show certificates", func(t *testing.T) { testClientCertificates(t, ns) })
	t.Run("status", func(t *testing.T) {
		if got := field(t, ns, "ingress/example-ingress-tls", "{.status.loadBalancer.ingress[0].ip}"); net.ParseIP(got) == nil {
			t.Errorf("status address %q", got)
		}
	})
}

// testClientCertificates has the Ingress ask its clients for certificates.
func testClientCertificates(t *testing.T, ns string) {
	dir := t.TempDir()
	openssl := func(args ...string) { must(t, env.node, append([]string{"openssl"}, args...)...) }
	path := func(name string) string { return filepath.Join(dir, name) }
	openssl("req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", path("ca.key"), "-out", path("ca.crt"), "-subj", "/CN=clients")
	openssl("req", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", path("client.key"), "-out", path("client.csr"), "-subj", "/CN=orders-1")
	openssl("x509", "-req", "-in", path("client.csr"), "-CA", path("ca.crt"), "-CAkey", path("ca.key"), "-CAcreateserial", "-out", path("client.crt"))
	url := []string{"-k", "--connect-to", "example.com:443:" + nodeAddr + ":443", "https://example.com/"}
	shown := append([]string{"--cert", path("client.crt"), "--key", path("client.key")}, url...)
	annotate := func(values ...string) {
		kubectl(t, append([]string{"-n", ns, "annotate", "--overwrite", "ingress/example-ingress-tls"}, values...)...)
	}
	const prefix = "nginx.ingress.kubernetes.io/auth-tls-"

	annotate(prefix + "secret=" + ns + "/clients")
	wantStatus(t, env.outside, 503, shown...) // nobody is let in without the Secret
	wantEvent(t, ns, "Ingress/example-ingress-tls", "Secret "+ns+"/clients does not exist", "ca.crt")
	kubectl(t, "-n", ns, "create", "secret", "generic", "clients", "--from-file=ca.crt="+path("ca.crt"))
	wantStatus(t, env.outside, 400, url...)
	a := wantStatus(t, env.outside, 200, append([]string{"-H", "ssl-client-verify: FAILED", "-H", "ssl_client_verify: FAILED"}, shown...)...)
	if verify, name := a.Headers["Ssl-Client-Verify"], a.Headers["Ssl-Client-Subject-Dn"]; fmt.Sprint(verify, name) != "[SUCCESS] [CN=orders-1]" {
		t.Errorf("the backend was told %q, %q", verify, name)
	}
	annotate(prefix + "match-cn=CN=stock-[0-9]+")
	wantStatus(t, env.outside, 403, shown...)
	annotate(prefix+"match-cn-", prefix+"verify-client=optional")
	wantStatus(t, env.outside, 200, url...)
	said := must(t, env.node, env.fairway(), "explain", "--data-dir", env.data, "https://example.com/")
	if !strings.Contains(said, "asks clients for a certificate by Secret "+ns+"/clients, who may come without") {
		t.Errorf("explain says %s", said)
	}
	annotate(prefix+"secret-", prefix+"verify-client-")
}

// file writes a scratch file.
func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
