package certs

import (
	"crypto"
	"crypto/tls"
	"net"
	"testing"
	"time"

	"fairway.dev/fairway/internal/model"
)

// lastSession offers the newest session to every server, whatever its name.
type lastSession struct{ *tls.ClientSessionState }

func (l *lastSession) Get(string) (*tls.ClientSessionState, bool) {
	return l.ClientSessionState, l.ClientSessionState != nil
}

func (l *lastSession) Put(_ string, s *tls.ClientSessionState) { l.ClientSessionState = s }

// resumed connects, waits for a ticket, and reports whether a session was resumed.
func resumed(t *testing.T, server *tls.Config, name string, version uint16, sessions tls.ClientSessionCache) bool {
	t.Helper()
	// A pipe would not do: both sides write before they read.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		a, err := l.Accept()
		if err != nil {
			return
		}
		defer a.Close()
		_, _ = tls.Server(a, server).Write([]byte("x"))
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{ServerName: name, InsecureSkipVerify: true, MinVersion: version, MaxVersion: version, ClientSessionCache: sessions, NextProtos: []string{"h2"},
		Time: func() time.Time { return testNow }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return c.ConnectionState().DidResume
}

// TestSessionsAreResumed by whoever has the certificate, and nobody else.
func TestSessionsAreResumed(t *testing.T) {
	kinds := []string{"ecdsa", "rsa", "ed25519"}
	keys := map[string]crypto.Signer{}
	for _, kind := range append(kinds, "other") {
		keys[kind] = newKey(t, kind)
		if kind == "other" {
			keys[kind] = newKey(t, "ecdsa")
		}
	}
	// Each server has its own copy of what is in the Secrets.
	resolver := func(names map[string]string) *Resolver {
		fallback, err := SelfSigned("Fairway default certificate", testNow)
		if err != nil {
			t.Fatal(err)
		}
		x := NewIndex(fallback)
		for name, kind := range names {
			cert, err := Parse(&model.Certificate{Chain: certificate(t, keys[kind], name), PrivateKey: pkcs8(t, keys[kind])})
			if err != nil {
				t.Fatal(err)
			}
			x.Add(name, cert)
		}
		return NewResolver(x)
	}
	server := func(names map[string]string) *tls.Config { return resolver(names).ServerConfig("h2") }
	for _, kind := range kinds {
		names := map[string]string{"a.example": kind, "b.example": "other"}
		first, second, renewed := server(names), server(names), server(map[string]string{"a.example": "other"})
		for _, tt := range []struct {
			what    string
			begin   *tls.Config
			goOn    *tls.Config
			name    string
			version uint16
			want    bool
		}{
			{"at the same server", first, first, "a.example", tls.VersionTLS13, true},
			{"at another with the certificate", first, second, "a.example", tls.VersionTLS13, true},
			{"at one with another key", first, renewed, "a.example", tls.VersionTLS13, false},
			{"for another name", first, first, "b.example", tls.VersionTLS13, false},
			{"for a name without certificate", first, first, "c.example", tls.VersionTLS13, false},
			{"of TLS 1.2 at the same server", first, first, "a.example", tls.VersionTLS12, true},
			{"of TLS 1.2 at another server", first, second, "a.example", tls.VersionTLS12, false},
		} {
			sessions := &lastSession{}
			if resumed(t, tt.begin, "a.example", tt.version, sessions) {
				t.Fatalf("%s: there was no session to resume", kind)
			}
			if sessions.ClientSessionState == nil {
				t.Fatalf("%s: there is no ticket", kind)
			}
			if got := resumed(t, tt.goOn, tt.name, tt.version, sessions); got != tt.want {
				t.Errorf("%s, %s: resumed %v", kind, tt.what, got)
			}
		}
		// Without a certificate for the name it is this process's.
		sessions := &lastSession{}
		resumed(t, first, "c.example", tls.VersionTLS13, sessions)
		if !resumed(t, first, "c.example", tls.VersionTLS13, sessions) || resumed(t, second, "c.example", tls.VersionTLS13, sessions) {
			t.Errorf("%s: sessions with the default certificate are not the process's own", kind)
		}
	}

	// A new index keeps them, too.
	r := resolver(map[string]string{"a.example": "rsa"})
	config, sessions := r.ServerConfig("h2"), &lastSession{}
	resumed(t, config, "a.example", tls.VersionTLS13, sessions)
	r.Set(resolver(map[string]string{"a.example": "rsa", "d.example": "ecdsa"}).Index())
	if !resumed(t, config, "a.example", tls.VersionTLS13, sessions) {
		t.Error("a new index forgets sessions")
	}
}
