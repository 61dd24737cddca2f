package listener

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"time"
)

// How long to wait for a client's first byte where its bytes decide about the
// route and need not come, and then for the rest of its ClientHello. A TLS client
// sends at once; one that waits for the server to speak first, as with MySQL, sends
// nothing.
const (
	firstByteWait = 300 * time.Millisecond
	helloTimeout  = 5 * time.Second
)

// recordHandshake is the TLS record type that a ClientHello comes in (RFC 8446, 5.1).
const recordHandshake = 22

var errHelloSeen = errors.New("client hello seen")

// peekServerName reads what the client sends first and returns the server name
// (SNI) if that is a TLS ClientHello. Wait is how long it may take to begin. What
// was read has to be passed on.
func peekServerName(c net.Conn, wait time.Duration) (name string, isTLS bool, read []byte) {
	defer func() { _ = c.SetReadDeadline(time.Time{}) }()
	_ = c.SetReadDeadline(time.Now().Add(wait))
	first := make([]byte, 1)
	if _, err := io.ReadFull(c, first); err != nil {
		return "", false, nil
	}
	if first[0] != recordHandshake {
		return "", false, first
	}
	_ = c.SetReadDeadline(time.Now().Add(helloTimeout))
	var seen bytes.Buffer
	r := io.TeeReader(io.MultiReader(bytes.NewReader(first), c), &seen)
	err := tls.Server(readOnly{c, r}, &tls.Config{
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			name, isTLS = strings.ToLower(strings.TrimSuffix(hello.ServerName, ".")), true
			return nil, errHelloSeen
		},
	}).Handshake()
	_ = err // always one: the handshake is not to go on
	return name, isTLS, seen.Bytes()
}

// readOnly lets a TLS server read a ClientHello, and say nothing.
type readOnly struct {
	net.Conn
	r io.Reader
}

func (c readOnly) Read(p []byte) (int, error)  { return c.r.Read(p) }
func (c readOnly) Write(p []byte) (int, error) { return len(p), nil }
