package servicetls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// material is all that the TLS of a Service depends on. Rows of a snapshot are
// replaced and never changed, so the same pointers mean the same TLS.
type material struct {
	tls    *model.ServiceTLS
	ports  []model.ServicePort
	chosen []*model.Certificate // nil where the Secret is missing
	ca     *model.Certificate
}

func materialOf(snap *state.Snapshot, svc *model.Service) material {
	m := material{tls: svc.TLS, ports: svc.Ports}
	for _, key := range svc.TLS.Certificates {
		c, _ := snap.Certificates.Get(key)
		m.chosen = append(m.chosen, c)
	}
	if !svc.TLS.CA.IsZero() {
		m.ca, _ = snap.Certificates.Get(svc.TLS.CA)
	}
	return m
}

func (m material) equal(o material) bool {
	return m.tls == o.tls && slices.Equal(m.ports, o.ports) && slices.Equal(m.chosen, o.chosen) && m.ca == o.ca
}

// portTLS is how connections to one port of a Service are treated.
type portTLS struct {
	server *tls.Config
	// client is for the connection to the endpoint; nil goes on in plain.
	client *tls.Config
}

// compile returns the TLS of a Service by port number. On error all
// connections are to be refused.
func compile(svc *model.Service, m material, domain string) (map[uint16]portTLS, error) {
	index, err := certificates(m)
	if err != nil {
		return nil, err
	}
	var roots *x509.CertPool
	if svc.TLS.Mode == model.TLSReencrypt && !svc.TLS.CA.IsZero() {
		if m.ca == nil {
			return nil, fmt.Errorf("CA Secret %s is missing", svc.TLS.CA)
		}
		if roots, err = certs.Pool(m.ca.CA); err != nil {
			return nil, fmt.Errorf("CA Secret %s: %w", svc.TLS.CA, err)
		}
	}
	ports := map[uint16]portTLS{}
	for _, p := range svc.Ports {
		if !svc.TLS.Covers(p) {
			continue
		}
		protocols := applicationProtocols(p.AppProtocol)
		t := portTLS{server: serverConfig(index, svc.TLS.Hosts, protocols)}
		if svc.TLS.Mode == model.TLSReencrypt {
			t.client = clientConfig(svc, roots, domain, protocols)
		}
		ports[p.Port] = t
	}
	return ports, nil
}

// certificates indexes those that can be used; the first of them is for
// clients that ask for no name or for one that none is made out for.
func certificates(m material) (*certs.Index, error) {
	var usable []*tls.Certificate
	var problems []error
	for i, row := range m.chosen {
		key := m.tls.Certificates[i]
		if row == nil {
			problems = append(problems, fmt.Errorf("secret %s is missing", key))
			continue
		}
		cert, err := certs.Parse(row)
		if err != nil {
			problems = append(problems, fmt.Errorf("secret %s: %w", key, err))
			continue
		}
		usable = append(usable, cert)
	}
	if len(usable) == 0 {
		return nil, errors.Join(append(problems, errors.New("no certificate can be used"))...)
	}
	index := certs.NewIndex(usable[0])
	for _, cert := range usable {
		for _, name := range certs.Names(cert) {
			index.Add(name, cert)
		}
	}
	return index, nil
}

// serverConfig ends TLS with the certificate for the name that the client asks
// for. Other names than hosts, where there are some, get the alert
// unrecognized_name (RFC 6066 section 3), also on a resumed session.
func serverConfig(index *certs.Index, hosts, protocols []string) *tls.Config {
	config := certs.NewResolver(index).ServerConfig(protocols...)
	if len(hosts) == 0 {
		return config
	}
	refusal := &tls.Config{
		MinVersion: tls.VersionTLS12, SessionTicketsDisabled: true,
		// No certificate and no error is what crypto/tls answers with that alert.
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil },
	}
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if hello.ServerName == "" || matches(hosts, hello.ServerName) {
			return nil, nil // this config itself
		}
		return refusal, nil
	}
	return config
}

// matches reports whether name is among hosts, exact or by a wildcard for its
// first label. Hosts are in lower case.
func matches(hosts []string, name string) bool {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	_, parent, _ := strings.Cut(name, ".")
	return slices.ContainsFunc(hosts, func(h string) bool {
		suffix, wildcard := strings.CutPrefix(h, "*.")
		return h == name || wildcard && parent == suffix
	})
}

// clientConfig is for endpoints that speak TLS. Their certificate may be made
// out for the name in the annotation, or else for the Service's DNS name,
// with or without the cluster domain. Without roots it is not verified.
func clientConfig(svc *model.Service, roots *x509.CertPool, domain string, protocols []string) *tls.Config {
	names := []string{svc.TLS.ServerName}
	if svc.TLS.ServerName == "" {
		short := svc.Name + "." + svc.Namespace + ".svc"
		names = []string{short + "." + strings.TrimSuffix(domain, "."), short}
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: names[0], NextProtos: protocols,
		// The standard check knows one name only; verify does the whole of it.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if roots == nil {
				return nil
			}
			return verify(cs.PeerCertificates, roots, names)
		},
	}
}

// verify checks the endpoint's chain against roots and one of names.
func verify(chain []*x509.Certificate, roots *x509.CertPool, names []string) error {
	opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	var err error
	for _, opts.DNSName = range names {
		if _, err = chain[0].Verify(opts); err == nil {
			return nil
		}
	}
	return fmt.Errorf("verify the endpoint's certificate: %w", err)
}

// applicationProtocols are offered to clients by ALPN: what the endpoint is
// known to speak by the port's appProtocol (KEP-3726 and common use), for the
// bytes go through as they are. For all else there is no negotiation.
func applicationProtocols(appProtocol string) []string {
	switch strings.ToLower(appProtocol) {
	case "kubernetes.io/h2c", "h2c", "h2", "http2", "grpc", "grpcs":
		return []string{"h2"}
	case "http", "https", "kubernetes.io/ws", "kubernetes.io/wss", "ws", "wss":
		return []string{"http/1.1"}
	}
	return nil
}
