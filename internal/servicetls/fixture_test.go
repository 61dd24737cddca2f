package servicetls

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// authority signs certificates for the tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	a.cert, a.key = issue(t, nil, "test authority")
	return a
}

// issue signs a certificate; without an authority it is one itself.
func issue(t *testing.T, by *authority, names ...string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: names[0]},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
	}
	parent, signer := template, key
	if by == nil {
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
	} else {
		template.DNSNames, parent, signer = names, by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// secret is a Secret with a certificate for names.
func (a *authority) secret(t *testing.T, name string, names ...string) *model.Certificate {
	t.Helper()
	cert, key := issue(t, a, names...)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &model.Certificate{
		Key:        secretKey(name),
		Chain:      pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}),
		PrivateKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	}
}

func (a *authority) server(t *testing.T, names ...string) *tls.Config {
	t.Helper()
	cert, key := issue(t, a, names...)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}}
}

func secretKey(name string) model.Key { return model.Key{Namespace: "default", Name: name} }

// lab is a node with a proxy and one Service with TLS, default/web.
type lab struct {
	t     *testing.T
	ca    *authority
	store *state.Store
	proxy *Proxy
	// service is a copy of the Service; change it and call put.
	service model.Service
	stop    func() error
}

func newLab(t *testing.T, edit func(*Options)) *lab {
	t.Helper()
	l := &lab{t: t, ca: newAuthority(t), store: state.New()}
	l.service = model.Service{
		Key: secretKey("web"), Type: model.NodePort, ClusterIPs: []netip.Addr{vip4, vip6}, IPv4: true, IPv6: true,
		Ports: []model.ServicePort{{Name: "https", Protocol: model.TCP, Port: 443, NodePort: nodePort}},
		TLS:   &model.ServiceTLS{Certificates: []model.Key{secretKey("tls")}},
	}
	l.store.Update(func(tx *state.Tx) {
		tx.PutNode(&model.Node{Name: "node-1", Addrs: []netip.Addr{node4, node6}, Ready: true})
		tx.SetSynced()
	})
	o := Options{
		Store: l.store, Node: "node-1", Logger: slog.New(slog.DiscardHandler), DrainTimeout: -1,
		Listen:  []netip.AddrPort{netip.AddrPortFrom(node4, proxyPort), netip.AddrPortFrom(node6, proxyPort)},
		Cluster: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
	}
	if edit != nil {
		edit(&o)
	}
	proxy, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	l.proxy = proxy
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- proxy.Run(ctx) }()
	l.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := l.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	eventually(t, proxy.Ready)
	return l
}

// put makes the Service, with certificates, what the proxy goes by.
func (l *lab) put(secrets ...*model.Certificate) {
	l.t.Helper()
	svc := l.service
	l.store.Update(func(tx *state.Tx) {
		for _, s := range secrets {
			tx.PutCertificate(s)
		}
		tx.PutService(&svc)
	})
	l.settle()
}

// settle waits until the proxy goes by the newest snapshot.
func (l *lab) settle() {
	l.t.Helper()
	want := l.store.Snapshot()
	eventually(l.t, func() bool {
		l.proxy.table.mu.RLock()
		defer l.proxy.table.mu.RUnlock()
		return l.proxy.table.revision >= want.Revision
	})
}

// endpoints replaces the Service's endpoints.
func (l *lab) endpoints(list ...netip.AddrPort) {
	l.t.Helper()
	var slices []*model.EndpointSlice
	for i, a := range list {
		slices = append(slices, &model.EndpointSlice{
			Key: secretKey("web-" + string(rune('a'+i))), Service: l.service.Key,
			Endpoints: []model.Endpoint{{
				Addr: a.Addr(), Ready: true, Serving: true,
				Ports: []model.EndpointPort{{Name: "https", Protocol: model.TCP, Port: a.Port()}},
			}},
		})
	}
	l.store.Update(func(tx *state.Tx) {
		for i := range 8 {
			tx.DeleteSlice(secretKey("web-" + string(rune('a'+i))))
		}
		for _, s := range slices {
			tx.PutSlice(s)
		}
	})
	l.settle()
}

// backend serves handle on a Pod's address until the test ends.
func backend(t *testing.T, pod netip.Addr, config *tls.Config, handle func(net.Conn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(pod, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr).AddrPort()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if config != nil {
				c = tls.Server(c, config)
			}
			wg.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return addr
}

// dial opens TLS to a Service address.
func (l *lab) dial(addr netip.AddrPort, config *tls.Config) (*tls.Conn, error) {
	l.t.Helper()
	if config == nil {
		config = &tls.Config{}
	}
	config = config.Clone()
	config.RootCAs = l.ca.pool()
	if config.ServerName == "" {
		config.ServerName = "web.example.com"
	}
	d := net.Dialer{Timeout: 5 * time.Second}
	c, err := tls.DialWithDialer(&d, "tcp", addr.String(), config)
	if err != nil {
		return nil, err
	}
	l.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		l.t.Fatal(err)
	}
	return c, nil
}

func (l *lab) mustDial(config *tls.Config) *tls.Conn {
	l.t.Helper()
	c, err := l.dial(netip.AddrPortFrom(vip4, 443), config)
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

func commonName(c *tls.Conn) string {
	return c.ConnectionState().PeerCertificates[0].Subject.CommonName
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("never came about")
}

// web is a certificate for web.example.com in Secret tls.
func (l *lab) web() *model.Certificate { return l.ca.secret(l.t, "tls", "web.example.com") }
