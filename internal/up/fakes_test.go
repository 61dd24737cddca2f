package up

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// options are the flags of a fake, by name.
type options map[string][]string

func parseFlags(args []string) options {
	o := options{}
	for i := 0; i < len(args); i++ {
		name := strings.TrimPrefix(args[i], "--")
		if i+1 < len(args) && !strings.HasPrefix(args[i+1], "--") {
			o[name] = append(o[name], args[i+1])
			i++
			continue
		}
		o[name] = append(o[name], "")
	}
	return o
}

func (o options) get(name string) string {
	if len(o[name]) == 0 {
		return ""
	}
	return o[name][len(o[name])-1]
}

// note is what a fake leaves for the test to look at.
type note struct {
	PID       int
	Args      []string
	Namespace uint64
	Orphan    int
}

func leaveNote(dataDir, name string, n note) error {
	n.PID, n.Args = os.Getpid(), os.Args[1:]
	info, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		return err
	}
	n.Namespace = info.Sys().(*syscall.Stat_t).Ino
	if err := os.MkdirAll(filepath.Join(dataDir, "fake"), 0o755); err != nil {
		return err
	}
	return writeJSON(filepath.Join(dataDir, "fake", name), n)
}

func untilSignal() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	<-ctx.Done()
}

// exit reports an error as a real process would.
func exit(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		return 1
	}
	return 0
}

// fakeFairway is fairway: up with its Options as JSON in the environment, or a role.
func fakeFairway(args []string) int {
	flags := parseFlags(args[1:])
	switch args[0] {
	case "up":
		return exit(fakeUp(args[1:]))
	case "node":
		if _, cleanup := flags["cleanup"]; cleanup {
			return exit(eachTable(func(c *nftables.Conn, t *nftables.Table) {
				if t.Name == "fairway" {
					c.DelTable(t)
				}
			}))
		}
		c, err := nftables.New()
		if err != nil {
			return exit(err)
		}
		c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "fairway"})
		if err := c.Flush(); err != nil {
			return exit(err)
		}
		return exit(fakeRole("node-"+flags.get("node-name"), flags))
	}
	return exit(fakeRole(args[0], flags))
}

func eachTable(f func(*nftables.Conn, *nftables.Table)) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := c.ListTables()
	if err != nil {
		return err
	}
	for _, t := range tables {
		f(c, t)
	}
	return c.Flush()
}

func fakeRole(name string, flags options) error {
	dataDir := filepath.Dir(flags.get("kubeconfig"))
	if text, err := os.ReadFile(filepath.Join(dataDir, "fake", "fail-"+name)); err == nil {
		return errors.New(string(text))
	}
	if err := leaveNote(dataDir, name, note{}); err != nil {
		return err
	}
	ready := flags.get("ready-file")
	if err := os.WriteFile(ready, nil, 0o644); err != nil {
		return err
	}
	go func() {
		for now := range time.Tick(time.Second) {
			_ = os.Chtimes(ready, now, now) // a test may have removed it
		}
	}()
	untilSignal()
	return nil
}

// requestEnv carries a request, as JSON, to fakeUp.
const requestEnv = "FAIRWAY_TEST_REQUEST"

// request is what of Options a test may choose.
type request struct {
	DataDir, BinDir              string
	Nodes                        int
	Zones, Images                []string
	LBPool, ServiceCIDR, PodCIDR string
	APIPort                      int
}

func (r request) options() Options {
	return Options{
		DataDir: r.DataDir, BinDir: r.BinDir, Nodes: r.Nodes, Zones: r.Zones, Images: r.Images,
		LBPool: r.LBPool, ServiceCIDR: r.ServiceCIDR, PodCIDR: r.PodCIDR,
		HTTPPort: 80, HTTPSPort: 443, APIPort: r.APIPort, Dataplane: "auto",
	}
}

// fakeUp runs a real Cluster as cmd/fairway does, with options from the environment.
func fakeUp(args []string) error {
	var r request
	if err := json.Unmarshal([]byte(os.Getenv(requestEnv)), &r); err != nil {
		return err
	}
	o := r.options()
	out := io.Writer(os.Stdout)
	if len(args) > 0 && args[0] == "--detached" {
		d := OpenDetached()
		out, o.OnReady = d, d.Ready
	}
	o.Progress = NewProgress(out, false)
	o.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	c, err := New(o)
	if err == nil {
		err = c.Run(ctx)
	}
	if err != nil {
		fmt.Fprintln(out, "error:", err)
	}
	return err
}

func fakeStandalone(args []string) int {
	flags := parseFlags(args[1:])
	switch args[0] {
	case "control":
		return exit(fakeControl(flags))
	case "node":
		return exit(fakeKubelet(flags))
	}
	return exit(fmt.Errorf("unknown command %q", args[0]))
}

// fakeKubelet leaves a mount and a process in a session of its own behind, as a killed kubelet would.
func fakeKubelet(flags options) error {
	dataDir, name := flags.get("data-dir"), flags.get("node-name")
	volume := filepath.Join(dataDir, "nodes", name, "kubelet", "pods")
	if err := os.MkdirAll(volume, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("none", volume, "tmpfs", 0, ""); err != nil {
		return err
	}
	container := exec.Command("sleep", "1000")
	container.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := container.Start(); err != nil {
		return err
	}
	if err := leaveNote(dataDir, "kubelet-"+name, note{Orphan: container.Process.Pid}); err != nil {
		return err
	}
	untilSignal()
	return nil
}

// fakeControl serves what the supervisor asks of the API, with mutual TLS.
func fakeControl(flags options) error {
	dataDir := flags.get("data-dir")
	if text, err := os.ReadFile(filepath.Join(dataDir, "fake", "fail-control")); err == nil {
		return errors.New(string(text))
	}
	cert, pool, err := fakeCredentials(dataDir, flags.get("secure-port"))
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	mux.HandleFunc("GET /api/v1/nodes/{name}", func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("name")
		status := "True"
		if _, err := os.Stat(filepath.Join(dataDir, "fake", "notready-"+name)); err == nil {
			status = "False"
		}
		info, err := os.Stat(filepath.Join(dataDir, "fake", "kubelet-"+name))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		fmt.Fprintf(w, `{"status":{"conditions":[{"type":"Ready","status":%q,"reason":"KubeletX","message":"said so","lastHeartbeatTime":%q}]}}`,
			status, info.ModTime().UTC().Format(time.RFC3339))
	})
	mux.HandleFunc("GET /api/v1/nodes", func(w http.ResponseWriter, _ *http.Request) {
		files, err := filepath.Glob(filepath.Join(dataDir, "fake", "kubelet-*"))
		if err != nil {
			panic(err)
		}
		var list objectList
		for _, f := range files {
			list.Items = append(list.Items, objectItem{objectName{Name: strings.TrimPrefix(filepath.Base(f), "kubelet-")}})
		}
		_ = json.NewEncoder(w).Encode(list) // a client that is gone wants no answer
	})
	mux.HandleFunc("GET /api/v1/pods", func(w http.ResponseWriter, r *http.Request) {
		node := strings.TrimPrefix(r.URL.Query().Get("fieldSelector"), "spec.nodeName=")
		pod := objectItem{objectName{Namespace: "default", Name: "pod-on-" + node}}
		_ = json.NewEncoder(w).Encode(objectList{Items: []objectItem{pod}})
	})
	mux.HandleFunc("GET /api/v1/namespaces/kube-system/services/kube-dns", func(w http.ResponseWriter, r *http.Request) {
		if _, err := os.Stat(filepath.Join(dataDir, "fake", "no-dns")); err == nil {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, `{"metadata":{"labels":{"kubernetes.io/name":"Fairway"}}}`)
	})
	mux.HandleFunc("GET /apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices", func(w http.ResponseWriter, r *http.Request) {
		files, err := filepath.Glob(filepath.Join(dataDir, "fake", "kubelet-*"))
		if err != nil {
			panic(err)
		}
		var items []string
		for _, f := range files {
			node := strings.TrimPrefix(filepath.Base(f), "kubelet-")
			_, err := os.Stat(filepath.Join(dataDir, "fake", "no-dns-"+node))
			items = append(items, fmt.Sprintf(`{"endpoints":[{"nodeName":%q,"conditions":{"ready":%t}}]}`, node, err != nil))
		}
		fmt.Fprintf(w, `{"items":[%s]}`, strings.Join(items, ","))
	})
	remove := func(w http.ResponseWriter, r *http.Request) {
		deleted, err := os.OpenFile(filepath.Join(dataDir, "fake", "deleted"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			panic(err)
		}
		defer deleted.Close()
		fmt.Fprintln(deleted, r.URL)
		_ = os.Remove(filepath.Join(dataDir, "fake", "kubelet-"+filepath.Base(r.URL.Path))) // a Pod has none
		fmt.Fprint(w, "{}")
	}
	mux.HandleFunc("DELETE /api/v1/nodes/{name}", remove)
	mux.HandleFunc("DELETE /api/v1/namespaces/{namespace}/pods/{name}", remove)
	server := &http.Server{
		Addr: "127.0.0.1:" + flags.get("secure-port"), Handler: mux,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert},
	}
	if err := leaveNote(dataDir, "control", note{}); err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServeTLS("", "") }()
	ended := make(chan struct{})
	go func() { untilSignal(); close(ended) }()
	select {
	case err := <-failed:
		return err
	case <-ended:
		return server.Close()
	}
}

func fakeCredentials(dataDir, port string) (tls.Certificate, *x509.CertPool, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "fake"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	b64 := base64.StdEncoding.EncodeToString
	config := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: fairway
  cluster: {server: "https://127.0.0.1:%s", certificate-authority-data: %s}
users:
- name: admin
  user: {client-certificate-data: %s, client-key-data: %s}
`, port, b64(certPEM), b64(certPEM), b64(keyPEM))
	for _, path := range []string{dir(dataDir).kubeconfig(), dir(dataDir).nodeKubeconfig()} {
		if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
			return tls.Certificate{}, nil, err
		}
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return pair, pool, err
}
