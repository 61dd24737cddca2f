package upstream

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"fairway.dev/fairway/internal/gateway/http1"
)

// refusedFor is how long an endpoint is not asked again, by the settings that
// its TLS came to nothing with, before another handshake is risked: each costs
// more than the request would.
const refusedFor = time.Second

// maxSkipped is how many endpoints are passed over for one request because of
// that.
const maxSkipped = 8

// TLS is what some routes ask of TLS to a pool's endpoints. What comes of it
// can change while requests go on, such as with a Secret: connections are kept
// with the settings that they were made by, and serve no request that is to have
// others.
type TLS struct{ now atomic.Pointer[TLSSettings] }

// NewTLS returns a TLS with its first settings.
func NewTLS(s *TLSSettings) *TLS {
	t := &TLS{}
	t.now.Store(s)
	return t
}

// Settings are those of the moment.
func (t *TLS) Settings() *TLSSettings { return t.now.Load() }

// Set changes the settings for all connections from now on; nil ends what is
// kept without having others. Then call [Pool.Retire].
func (t *TLS) Set(s *TLSSettings) {
	old := t.now.Load()
	if s != nil {
		t.now.Store(s)
	}
	old.retired.Store(true)
}

// TLSSettings are what a connection over TLS is made by. Not to be changed once
// they are in use.
type TLSSettings struct {
	// Err is why no connection is to be made; nil if one may.
	Err error
	// Verify has the endpoint's certificate verified: by Roots, or the system's
	// where that is nil, with at most Depth certificates in between, -1 for any
	// number. It has to be made out for one of Names.
	Verify bool
	Roots  *x509.CertPool
	Depth  int
	Names  []string
	// ServerName is what the endpoint is asked for (SNI); empty for nothing.
	ServerName string
	// Certificate is shown to endpoints that ask for one; nil for none.
	Certificate *tls.Certificate
	// MinVersion and MaxVersion bound the version, and CipherSuites what TLS 1.2
	// may choose from; zero for the gateway's own.
	MinVersion, MaxVersion uint16
	CipherSuites           []uint16

	retired atomic.Bool
}

// TLSError means that no connection over TLS can be used, for a reason that
// says nothing of whether the endpoint is well: the two do not trust each other.
type TLSError struct {
	Endpoint string
	Fault    TLSFault
	Err      error

	sent bool // something was sent, which the endpoint may have taken
}

// TLSFault is what is wrong, for whoever has to cure it.
type TLSFault uint8

// The faults.
const (
	// FaultSettings is that the settings cannot be used.
	FaultSettings TLSFault = iota
	// FaultName is a certificate made out for other names.
	FaultName
	// FaultTime is one that has expired, or is not valid yet.
	FaultTime
	// FaultAuthority is one that nobody has signed who is trusted.
	FaultAuthority
	// FaultDepth is one with more certificates in between than there may be.
	FaultDepth
	// FaultCertificate is one that cannot be used for another reason.
	FaultCertificate
	// FaultRefused is that the endpoint refuses the gateway, whatever for.
	FaultRefused
	// FaultUnshown is that it asks for a certificate, and there is none to show.
	FaultUnshown
)

// Error implements error.
func (e *TLSError) Error() string {
	if e.Endpoint == "" {
		return fmt.Sprintf("TLS: %v", e.Err)
	}
	return fmt.Sprintf("TLS with endpoint %s: %v", e.Endpoint, e.Err)
}

// Unwrap returns the cause.
func (e *TLSError) Unwrap() error { return e.Err }

func asTLSError(err error) *TLSError {
	var t *TLSError
	errors.As(err, &t)
	return t
}

// secured is the part of an endpoint that is for connections by certain settings.
type secured struct {
	settings *TLSSettings
	// refused is what was wrong when TLS came to nothing, nil once it did not, and
	// until how long that is taken as known (in Unix nanoseconds).
	refused atomic.Pointer[TLSError]
	until   atomic.Int64
}

// refuses returns why the endpoint is not to be asked now; nil if it is. Once
// its time is over one request may, and others wait for how that fares.
func (s *secured) refuses(now time.Time, take bool) *TLSError {
	err, until := s.refused.Load(), s.until.Load()
	switch {
	case err == nil:
		return nil
	case now.UnixNano() < until:
		return err
	case take && !s.until.CompareAndSwap(until, now.Add(refusedFor).UnixNano()):
		return err
	}
	return nil
}

func (s *secured) refuse(err *TLSError) {
	s.refused.Store(err)
	s.until.Store(time.Now().Add(refusedFor).UnixNano())
}

// secure returns the endpoint for connections by t's settings: as one for a
// client of its own (see owned) it keeps its own connections, and has the
// rest of its state in common with e.
func (e *endpoint) secure(t *TLS) *endpoint {
	s := t.now.Load()
	if v := e.securedBy(s); v != nil {
		return v
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if v := e.securedBy(s); v != nil {
		return v
	}
	v := newEndpoint(e.addr, e.dial, e.mark)
	v.origin, v.secured, v.patience = e, &secured{settings: s}, e.patience
	if e.removed.Load() || s.retired.Load() {
		v.removed.Store(true) // it serves one request, and keeps nothing
		return v
	}
	list := []*endpoint{v}
	if old := e.variants.Load(); old != nil {
		list = append(slices.Clip(*old), v)
	}
	e.variants.Store(&list)
	return v
}

// securedBy returns the endpoint for connections by s; nil if there is none yet.
// There are few of them: most Services have one Ingress.
func (e *endpoint) securedBy(s *TLSSettings) *endpoint {
	if list := e.variants.Load(); list != nil {
		for _, v := range *list {
			if v.secured.settings == s {
				return v
			}
		}
	}
	return nil
}

// dropVariants ends what is kept by certain settings, once it is not in use.
func (e *endpoint) dropVariants(which func(*TLSSettings) bool) {
	e.mu.Lock()
	var drop, stay []*endpoint
	if list := e.variants.Load(); list != nil {
		for _, v := range *list {
			if which(v.secured.settings) {
				drop = append(drop, v)
			} else {
				stay = append(stay, v)
			}
		}
		e.variants.Store(&stay)
	}
	e.mu.Unlock()
	for _, v := range drop {
		v.remove()
	}
}

// Retire ends the connections that were made by settings of a [TLS] that are
// its settings no more, as soon as what is under way on them has ended.
func (p *Pool) Retire() {
	for e := range p.members.Load().all() {
		e.dropVariants(func(s *TLSSettings) bool { return s.retired.Load() })
	}
}

// CheckBy has health checks that ask by TLS show the certificate and ask for the
// name of t, which may be nil. They verify nothing: an endpoint whose certificate
// is refused is to be seen by that, and not as one that is not well.
func (p *Pool) CheckBy(t *TLS) { p.checkTLS.Store(t) }

// pickSecure is pick for requests whose routes say something of TLS. Endpoints
// that TLS came to nothing with a moment ago are passed over, if there are
// others, and once a request has been tried in vain those that it ever did with:
// that request need not find out whether they have been cured.
func (p *Pool) pickSecure(m *members, c *Choice, turn uint64, tried []*endpoint, now time.Time) *endpoint {
	out := selves(tried)
	var best *endpoint
	for range maxSkipped {
		e := m.choose(c, turn, out, now)
		if e == nil {
			break
		}
		v := e.secure(c.TLS)
		if v.secured.refuses(now, false) == nil && (len(tried) == 0 || v.secured.refused.Load() == nil) {
			best = v
			break
		}
		if best == nil {
			best = v
		}
		out = append(out, e)
	}
	if best != nil && m.proxy != 0 && c.Ends != (Ends{}) {
		return best.owned(m.proxy, c.Ends, now)
	}
	return best
}

// connectTLS opens a connection over TLS, that may speak one of protocols, which
// are told by ALPN. The handshake is part of what the connect timeout limits, as
// with nginx: an endpoint that hangs in it is passed over as soon as one that
// cannot be connected to.
func (e *endpoint) connectTLS(ctx context.Context, protocols ...string) (net.Conn, *tls.Conn, error) {
	s := e.secured
	if s != nil {
		if err := s.settings.Err; err != nil {
			return nil, nil, &TLSError{Fault: FaultSettings, Err: err}
		}
		if err := s.refuses(time.Now(), true); err != nil {
			return nil, nil, err
		}
	}
	limit, _ := ctx.Value(connectTimeoutKey{}).(time.Duration)
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(limit, e.patience, DefaultConnectTimeout))
	defer cancel()
	conn, err := e.connect(ctx, "tcp")
	if err != nil {
		return nil, nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		conn = http1.NewWire(tcp)
	}
	if s == nil {
		return handshake(ctx, conn, nil, e.addr, protocols)
	}
	conn, secure, err := handshake(ctx, conn, s.settings, e.addr, protocols)
	if err == nil && s.refused.Load() != nil {
		s.refused.Store(nil)
	}
	return conn, secure, err
}

// handshake speaks TLS on a connection to an endpoint, by settings that may be
// nil; where it fails it closes it.
func handshake(ctx context.Context, conn net.Conn, s *TLSSettings, addr string, protocols []string) (net.Conn, *tls.Conn, error) {
	config := backendTLS(addr)
	if s != nil {
		config = s.config()
	}
	asked := false // for a certificate, of which nobody need be sure before it answers
	shown := &tls.Certificate{}
	if s != nil && s.Certificate != nil {
		shown = s.Certificate
	}
	// What is configured is shown whoever the endpoint says that it trusts, as by
	// nginx: it knows best why it does not take it.
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		asked = true
		return shown, nil
	}
	config.NextProtos = protocols
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, nil, handshakeError(err, addr, s != nil, asked && shown.Certificate == nil)
	}
	if asked {
		return &doubted{Conn: secure, endpoint: addr, unshown: shown.Certificate == nil}, secure, nil
	}
	return secure, secure, nil
}

// handshakeError tells apart what the endpoint is to blame for: where routes say
// something of TLS, that it does not suit them is not.
func handshakeError(err error, addr string, set, unshown bool) error {
	if t := asTLSError(err); t != nil {
		t.Endpoint = addr
		return t
	}
	reason, isAlert := alert(err)
	switch {
	case isAlert && unshown:
		return &TLSError{Endpoint: addr, Fault: FaultUnshown, Err: fmt.Errorf("it asks for a certificate, and there is none to show (%s)", reason)}
	case isAlert && set:
		return &TLSError{Endpoint: addr, Fault: FaultRefused, Err: fmt.Errorf("it ended the handshake: %s", reason)}
	case set && strings.HasPrefix(err.Error(), "tls: server selected unsupported protocol version"):
		return &TLSError{Endpoint: addr, Fault: FaultRefused, Err: errors.New("it speaks no version of TLS that may be used")}
	}
	return &DialError{addr, err}
}

// alert returns the words of an alert that the other side has sent.
func alert(err error) (reason string, ok bool) {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		return strings.TrimPrefix(op.Err.Error(), "tls: "), true
	}
	return "", false
}

// doubted is a connection to an endpoint that has asked for a certificate. With
// TLS 1.3 only its first bytes tell that it has taken it, and an alert, or just
// the end of the connection, that it has not.
type doubted struct {
	*tls.Conn
	endpoint string
	unshown  bool
	heard    atomic.Bool
}

// Read implements net.Conn.
func (c *doubted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && !c.heard.Load() {
		c.heard.Store(true)
	}
	return n, c.judge(err)
}

// Write implements net.Conn.
func (c *doubted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.judge(err)
}

func (c *doubted) judge(err error) error {
	if err == nil || c.heard.Load() {
		return err
	}
	reason, isAlert := alert(err)
	broke := err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	switch {
	case c.unshown && (isAlert || broke):
		if reason == "" {
			reason = "it ended the connection"
		}
		return &TLSError{Endpoint: c.endpoint, Fault: FaultUnshown, Err: fmt.Errorf("it asks for a certificate, and there is none to show (%s)", reason), sent: true}
	case isAlert:
		return &TLSError{Endpoint: c.endpoint, Fault: FaultRefused, Err: fmt.Errorf("it does not take the certificate that it is shown: %s", reason), sent: true}
	}
	return err
}

// backendTLS is as ingress-nginx by default: Pods seldom have certificates that
// anybody could verify by address. Where addr has a name that is asked for (SNI).
func backendTLS(addr string) *tls.Config {
	name, _, _ := net.SplitHostPort(addr)
	return &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, ServerName: name}
}

// config returns what crypto/tls goes by. It verifies one name only, and no
// depth: verify does the whole of it. No sessions are resumed, so none can be by
// settings that it was not made with.
func (s *TLSSettings) config() *tls.Config {
	return &tls.Config{
		InsecureSkipVerify: true, VerifyConnection: s.verify, ServerName: s.ServerName,
		MinVersion: max(s.MinVersion, tls.VersionTLS12), MaxVersion: s.MaxVersion, CipherSuites: s.CipherSuites,
	}
}

// verify looks at the certificate of an endpoint.
func (s *TLSSettings) verify(cs tls.ConnectionState) error {
	if !s.Verify {
		return nil
	}
	leaf := cs.PeerCertificates[0] // crypto/tls asks for one
	options := x509.VerifyOptions{Roots: s.Roots, Intermediates: x509.NewCertPool()}
	for _, c := range cs.PeerCertificates[1:] {
		options.Intermediates.AddCert(c)
	}
	chains, err := leaf.Verify(options)
	if err != nil {
		return untrusted(leaf, err)
	}
	// As OpenSSL counts: neither the endpoint's own nor the trusted one.
	if s.Depth >= 0 && !slices.ContainsFunc(chains, func(c []*x509.Certificate) bool { return len(c) <= s.Depth+2 }) {
		return &TLSError{Fault: FaultDepth, Err: fmt.Errorf("between its certificate and a trusted one stand %d others, and %d may", len(chains[0])-2, s.Depth)}
	}
	for _, name := range s.Names {
		if leaf.VerifyHostname(name) == nil {
			return nil
		}
	}
	return misnamed(leaf, s.Names)
}

// untrusted says in words why a chain does not verify.
func untrusted(leaf *x509.Certificate, err error) error {
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return &TLSError{Fault: FaultTime, Err: lifetime(leaf, invalid.Cert)}
	case errors.As(err, &unknown):
		return &TLSError{Fault: FaultAuthority, Err: fmt.Errorf("its certificate is signed by %s, which is not trusted, and comes without a chain that leads to what is", readable(leaf.Issuer.String()))}
	}
	return &TLSError{Fault: FaultCertificate, Err: err}
}

// lifetime says which certificate of a chain is not valid now.
func lifetime(leaf, c *x509.Certificate) error {
	whose := "its certificate"
	if c != nil && !c.Equal(leaf) {
		whose = fmt.Sprintf("the certificate of %s", readable(c.Subject.String()))
	} else {
		c = leaf
	}
	if time.Now().Before(c.NotBefore) {
		return fmt.Errorf("%s is valid from %s only", whose, c.NotBefore.UTC().Format(time.RFC3339))
	}
	return fmt.Errorf("%s expired on %s", whose, c.NotAfter.UTC().Format(time.RFC3339))
}

// misnamed says which names a certificate has in place of those it was to have.
func misnamed(leaf *x509.Certificate, wanted []string) error {
	var have []string
	for _, name := range leaf.DNSNames {
		have = append(have, readable(name))
	}
	for _, ip := range leaf.IPAddresses {
		have = append(have, ip.String())
	}
	want := strings.Join(wanted, " or ")
	if len(have) == 0 {
		return &TLSError{Fault: FaultName, Err: fmt.Errorf("its certificate has no subject alternative names, and is to be for %s; a common name (%s) is not looked at", want, readable(leaf.Subject.CommonName))}
	}
	if len(have) > 8 {
		have = append(have[:8], "...")
	}
	return &TLSError{Fault: FaultName, Err: fmt.Errorf("its certificate is for %s, and not for %s", strings.Join(have, ", "), want)}
}

// checkSettings are those that health checks speak TLS by; nil for the gateway's own.
func (p *Pool) checkSettings() *TLSSettings {
	t := p.checkTLS.Load()
	if t == nil || t.Settings().Err != nil {
		return nil
	}
	s := t.Settings()
	return &TLSSettings{Certificate: s.Certificate, ServerName: s.ServerName, MinVersion: s.MinVersion, MaxVersion: s.MaxVersion, CipherSuites: s.CipherSuites}
}

// distrusted notes that TLS with an endpoint came to nothing. It is left out for
// none but the settings that this was by: others may do with it.
func (p *Pool) distrusted(e *endpoint, err *TLSError) {
	if err.Fault == FaultSettings {
		return
	}
	var by *TLSSettings
	if s := e.secured; s != nil {
		by = s.settings
		if s.refused.Load() != err { // else it was not asked again
			s.refuse(err)
		}
	}
	p.tell("tls", e)
	if p.onTLS != nil {
		p.onTLS(p.key, by, err)
	}
}

// readable is a name in a certificate, which whoever has made that has chosen.
func readable(name string) string {
	const most = 100
	if len(name) > most {
		name = name[:most] + "..."
	}
	quoted := strconv.Quote(name)
	if quoted == `"`+name+`"` && name != "" {
		return name
	}
	return quoted
}
