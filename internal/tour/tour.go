package tour

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"time"
)

//go:embed manifest.yaml
var manifest string

const (
	namespace   = "tour"
	ingressHost = "tour.example.com"
	tlsHost     = "shop.tour.svc"
)

// Options configure a tour.
type Options struct {
	// Fairway is the path of the fairway executable. Required.
	Fairway string
	// DataDir is the data directory of the run to visit. Required.
	DataDir string
	// DataDirFlag names it in a command, with a blank before it; empty where none is needed.
	DataDirFlag string
	// Domain is the domain of the cluster's names. Required.
	Domain string
	// Out gets the account. Required.
	Out io.Writer
}

// Run applies the tour's application and visits it. It returns an error that
// names the step that did not work.
func Run(ctx context.Context, o Options) error {
	g := &guide{Options: o}
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"an application: Deployment, Service, Ingress, Secret", g.apply},
		{"a request through Ingress", g.ingress},
		{"a request to the LoadBalancer address", g.loadBalancer},
		{"a request to the Service's TLS port, ended with the certificate of Secret tour-tls", g.serviceTLS},
		{"a DNS lookup inside a Pod", g.dns},
		{"the environment inside a Pod", g.environment},
	} {
		fmt.Fprintf(o.Out, "\n# %s\n", step.what)
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	fmt.Fprintf(o.Out, "\nEverything answered. The application stays in namespace %q; `fairway kubectl%s delete namespace %s` removes it.\n", namespace, o.DataDirFlag, namespace)
	return nil
}

// guide carries what one step learns and the next one needs.
type guide struct {
	Options
	cert []byte // PEM
}

// fairway runs one of Fairway's own commands, shows it, and returns its output.
func (g *guide) fairway(ctx context.Context, input string, args ...string) (string, error) {
	fmt.Fprintf(g.Out, "$ fairway %s\n", strings.Join(args, " "))
	return g.quiet(ctx, input, args...)
}

func (g *guide) quiet(ctx context.Context, input string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, g.Fairway, args...)
	cmd.Env = append(cmd.Environ(), "FAIRWAY_DATA_DIR="+g.DataDir, "KUBECONFIG="+g.DataDir+"/kubeconfig")
	cmd.Stdin = strings.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("fairway %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

func (g *guide) show(text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintf(g.Out, "  %s\n", strings.TrimRight(line, "\n"))
	}
}

func (g *guide) apply(ctx context.Context) error {
	cert, key, err := selfSigned(tlsHost)
	if err != nil {
		return err
	}
	g.cert = cert
	text := strings.NewReplacer(
		"{{CERT}}", base64.StdEncoding.EncodeToString(cert),
		"{{KEY}}", base64.StdEncoding.EncodeToString(key)).Replace(manifest)
	out, err := g.fairway(ctx, text, "apply", "-f", "-")
	if err != nil {
		return err
	}
	g.show(out)
	out, err = g.fairway(ctx, "", "kubectl", "-n", namespace, "rollout", "status", "deploy/shop", "--timeout=90s")
	if err != nil {
		return err
	}
	lines := strings.Split(out, "\n")
	g.show(lines[len(lines)-1])
	return nil
}

// get reads a field of an object, waiting until it has a value.
func (g *guide) get(ctx context.Context, object, path string) (string, error) {
	deadline := time.Now().Add(30 * time.Second)
	for {
		out, err := g.quiet(ctx, "", "kubectl", "-n", namespace, "get", object, "-o", "jsonpath="+path)
		switch {
		case err != nil:
			return "", err
		case out != "":
			return out, nil
		case time.Now().After(deadline):
			return "", fmt.Errorf("%s has no %s; `fairway kubectl -n %s describe %s` may tell why", object, path, namespace, object)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (g *guide) ingress(ctx context.Context) error {
	if _, err := g.get(ctx, "ingress/shop", "{.status.loadBalancer.ingress[0].ip}"); err != nil {
		return err
	}
	status, err := g.status(ctx)
	if err != nil {
		return err
	}
	for _, url := range status.Addresses.Gateway {
		if strings.HasPrefix(url, "http://") {
			return g.ask(ctx, url+"/cart", ingressHost, http.DefaultTransport)
		}
	}
	return errors.New("fairway status names no http address of the gateway")
}

// status is what the tour needs of `fairway status -o json`.
type status struct {
	Addresses struct{ Gateway, Pool []string }
}

func (g *guide) status(ctx context.Context) (s status, err error) {
	out, err := g.quiet(ctx, "", "status", "--data-dir", g.DataDir, "-o", "json")
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return s, fmt.Errorf("fairway status: %w", err)
	}
	return s, nil
}

func (g *guide) loadBalancer(ctx context.Context) error {
	if status, err := g.status(ctx); err != nil {
		return err
	} else if slices.Equal(status.Addresses.Pool, []string{"none"}) {
		fmt.Fprintln(g.Out, "  left out: this cluster was started with --lb-pool none")
		return nil
	}
	address, err := g.get(ctx, "svc/shop", "{.status.loadBalancer.ingress[0].ip}")
	if err != nil {
		return err
	}
	return g.ask(ctx, "http://"+net.JoinHostPort(address, "8080")+"/", "", http.DefaultTransport)
}

func (g *guide) serviceTLS(ctx context.Context) error {
	address, err := g.get(ctx, "svc/shop", "{.spec.clusterIP}")
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(g.cert)
	t := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: tlsHost}}
	defer t.CloseIdleConnections()
	return g.ask(ctx, "https://"+net.JoinHostPort(address, "8443")+"/", tlsHost, t)
}

// ask sends a GET until it is answered with 200, and shows the answer.
func (g *guide) ask(ctx context.Context, url, host string, transport http.RoundTripper) error {
	fmt.Fprintf(g.Out, "GET %s", url)
	if host != "" {
		fmt.Fprintf(g.Out, "   Host: %s", host)
	}
	fmt.Fprintln(g.Out)
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	var last error
	for ctx.Err() == nil {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		req.Host = host
		resp, err := client.Do(req)
		if err == nil {
			err = g.showAnswer(resp)
		}
		if err == nil {
			return nil
		}
		last = err
		time.Sleep(200 * time.Millisecond)
	}
	return errors.Join(errors.New("no answer within 20 s"), last)
}

func (g *guide) showAnswer(resp *http.Response) error {
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s: %s", resp.Status, bytes.TrimSpace(body))
	}
	var echo struct{ Pod, Host, Path, RemoteAddress string }
	if err := json.Unmarshal(body, &echo); err != nil {
		return fmt.Errorf("the answer is not the echo's: %w", err)
	}
	how := resp.Proto
	if resp.TLS != nil {
		how += ", " + tls.VersionName(resp.TLS.Version) + ", certificate for " + strings.Join(resp.TLS.PeerCertificates[0].DNSNames, " ")
	}
	fmt.Fprintf(g.Out, "  %s (%s) from Pod %s, which saw client %s asking for %s%s\n", resp.Status, how, echo.Pod, echo.RemoteAddress, echo.Host, echo.Path)
	return nil
}

func (g *guide) dns(ctx context.Context) error {
	out, err := g.fairway(ctx, "", "kubectl", "-n", namespace, "exec", "deploy/shop", "--", "getent", "ahosts", "shop.tour.svc."+g.Domain)
	if err != nil {
		return err
	}
	g.show(out)
	return nil
}

func (g *guide) environment(ctx context.Context) error {
	out, err := g.fairway(ctx, "", "kubectl", "-n", namespace, "exec", "deploy/shop", "--", "env")
	if err != nil {
		return err
	}
	shown := 0
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "SHOP_SERVICE_") {
			g.show(line)
			shown++
		}
	}
	if shown == 0 {
		return errors.New("there is no SHOP_SERVICE_HOST in it")
	}
	return nil
}

// selfSigned makes a certificate for a name, and its key, both in PEM.
func selfSigned(name string) (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		DNSNames:     []string{name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
}
