package mysql

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// client is the client's side of the protocol, written from its description
// and not from the server.
type client struct {
	t *testing.T
	net.Conn
}

func dial(t *testing.T, s *Server) *client {
	t.Helper()
	a, b := net.Pipe()
	done := make(chan error, 1)
	go func() {
		err := s.Serve(b)
		_ = b.Close()
		done <- err
	}()
	_ = a.SetDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() { _ = a.Close(); <-done })
	return &client{t, a}
}

func (c *client) packet() (seq byte, p []byte) {
	c.t.Helper()
	var h [4]byte
	if _, err := io.ReadFull(c, h[:]); err != nil {
		c.t.Fatal(err)
	}
	p = make([]byte, int(h[0])|int(h[1])<<8|int(h[2])<<16)
	if _, err := io.ReadFull(c, p); err != nil {
		c.t.Fatal(err)
	}
	return h[3], p
}

func (c *client) send(seq byte, p []byte) {
	c.t.Helper()
	if _, err := c.Write(append([]byte{byte(len(p)), byte(len(p) >> 8), byte(len(p) >> 16), seq}, p...)); err != nil {
		c.t.Fatal(err)
	}
}

// response is the fixed part of a HandshakeResponse41.
func response(flags uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, flags|clientProtocol41)
	return append(append(b, 0, 0, 0, 1, 45), make([]byte, 23)...)
}

func login(plugin, db string) []byte {
	flags := uint32(clientSecureConnection | clientPluginAuth)
	if db != "" {
		flags |= clientConnectWithDB
	}
	b := append(response(flags), "root\x00\x03abc"...)
	if db != "" {
		b = append(b, db+"\x00"...)
	}
	return append(b, plugin+"\x00"...)
}

func (c *client) login(plugin, db string) {
	c.t.Helper()
	c.packet()
	c.send(1, login(plugin, db))
	if seq, p := c.packet(); p[0] != 0 || seq != 2 {
		c.t.Fatalf("login: got packet %d %q", seq, p)
	}
}

// rows sends a query and returns column names and the fields of its rows.
func (c *client) rows(query string) (columns, fields []string, err string) {
	c.t.Helper()
	c.send(0, append([]byte{comQuery}, query...))
	_, p := c.packet()
	switch {
	case p[0] == 0xff:
		return nil, nil, string(p[3:])
	case p[0] == 0:
		return nil, nil, ""
	}
	for range int(p[0]) {
		_, def := c.packet()
		for range 4 {
			def = def[1+int(def[0]):]
		}
		columns = append(columns, string(def[1:1+int(def[0])]))
	}
	c.packet()
	for {
		_, p := c.packet()
		if p[0] == 0xfe && len(p) < 9 {
			return columns, fields, ""
		}
		for len(p) > 0 {
			if p[0] == 0xfb {
				fields, p = append(fields, "NULL"), p[1:]
				continue
			}
			fields, p = append(fields, string(p[1:1+int(p[0])])), p[1+int(p[0]):]
		}
	}
}

func TestGreeting(t *testing.T) {
	_, p := dial(t, &Server{}).packet()
	v, rest, _ := bytes.Cut(p[1:], []byte{0})
	if p[0] != 10 || string(v) != version {
		t.Fatalf("got protocol %d, version %q", p[0], v)
	}
	caps := uint32(binary.LittleEndian.Uint16(rest[13:])) | uint32(binary.LittleEndian.Uint16(rest[18:]))<<16
	if caps&clientSSL != 0 || caps&clientPluginAuth == 0 {
		t.Errorf("capabilities %x", caps)
	}
	if !bytes.HasSuffix(p, []byte(nativePassword+"\x00")) {
		t.Errorf("no plugin at the end of %q", p)
	}
}

func TestQueries(t *testing.T) {
	c := dial(t, &Server{Hostname: "db-0"})
	c.login(nativePassword, "shop")
	tests := []struct {
		query           string
		columns, fields []string
		err             string
	}{
		{"SELECT 1", []string{"1"}, []string{"1"}, ""},
		{"select @@hostname", []string{"@@hostname"}, []string{"db-0"}, ""},
		{"/* driver */ SELECT @@session.auto_increment_increment AS a, -7 , 'it''s, x' AS `b`;", []string{"a", "-7", "b"}, []string{"1", "-7", "it's, x"}, ""},
		{"select @@version_comment limit 1", []string{"@@version_comment"}, []string{"Fairway's echo"}, ""},
		{"SELECT DATABASE(), version(), @x from dual", []string{"DATABASE()", "version()", "@x"}, []string{"shop", version, "NULL"}, ""},
		{"SET NAMES utf8mb4", nil, nil, ""},
		{"use other", nil, nil, ""},
		{"select database()", []string{"database()"}, []string{"other"}, ""},
		{"show variables like 'hostname'", []string{"Variable_name", "Value"}, []string{"hostname", "db-0"}, ""},
		{"show tables", []string{"Variable_name"}, nil, ""},
		{"select @@nothing", nil, nil, "#HY000Unknown system variable 'nothing'"},
		{"drop table x", nil, nil, `#42000this server only answers SELECT of literals, variables and functions such as version(); it does not understand "drop table x"`},
		{"", nil, nil, "#42000Query was empty"},
		{"select", nil, nil, `#42000this server only answers SELECT of literals, variables and functions such as version(); it does not understand ""`},
		{"\xff", nil, nil, "#HY000the statement is not UTF-8"},
		{"SELECT 1", []string{"1"}, []string{"1"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.query, func(t *testing.T) {
			columns, fields, err := c.rows(tt.query)
			if d := cmp.Diff([][]string{tt.columns, tt.fields, {tt.err}}, [][]string{columns, fields, {err}}); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestCommands(t *testing.T) {
	c := dial(t, &Server{})
	c.login(nativePassword, "")
	for _, tt := range []struct {
		name  string
		sent  []byte
		first byte
	}{
		{"ping", []byte{comPing}, 0},
		{"init db", []byte("\x02shop"), 0},
		{"reset", []byte{comResetConnection}, 0},
		{"set option", []byte{comSetOption, 0, 0}, 0xfe},
		{"prepare", []byte("\x16select 1"), 0xff},
		{"statistics", []byte{comStatistics}, 'U'},
	} {
		c.send(0, tt.sent)
		if seq, p := c.packet(); p[0] != tt.first || seq != 1 {
			t.Errorf("%s: got packet %d %q", tt.name, seq, p)
		}
	}
	if _, fields, _ := c.rows("select database()"); cmp.Diff([]string{"shop"}, fields) != "" {
		t.Errorf("database after init db: %q", fields)
	}
	c.send(0, []byte{comQuit})
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after quit: %v", err)
	}
}

func TestAuthSwitch(t *testing.T) {
	c := dial(t, &Server{})
	c.packet()
	c.send(1, login("caching_sha2_password", ""))
	seq, p := c.packet()
	if p[0] != 0xfe || seq != 2 || !strings.HasPrefix(string(p[1:]), nativePassword+"\x00") || len(p) != 1+len(nativePassword)+1+21 {
		t.Fatalf("got packet %d %q", seq, p)
	}
	c.send(3, make([]byte, 20))
	if seq, p := c.packet(); p[0] != 0 || seq != 4 {
		t.Errorf("got packet %d %q", seq, p)
	}
}

func TestTLS(t *testing.T) {
	c := dial(t, &Server{Hostname: "db-0", TLS: testTLS(t)})
	c.packet()
	c.send(1, response(clientSSL))
	tc := tls.Client(c.Conn, &tls.Config{InsecureSkipVerify: true})
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	c.Conn = tc
	c.send(2, login(nativePassword, ""))
	if seq, p := c.packet(); p[0] != 0 || seq != 3 {
		t.Fatalf("got packet %d %q", seq, p)
	}
	if _, fields, _ := c.rows("select @@hostname, @@ssl_version"); cmp.Diff([]string{"db-0", "TLS 1.3"}, fields) != "" {
		t.Errorf("got %q", fields)
	}
}

func TestBadClients(t *testing.T) {
	for name, sent := range map[string][]byte{
		"short":          []byte("GET / HTTP/1.1\r\n"),
		"old":            make([]byte, 40),
		"no user end":    append(response(0), "root"...),
		"long auth":      append(response(clientSecureConnection), "root\x00\xfcxx"...),
		"TLS not agreed": response(clientSSL),
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, &Server{})
			c.packet()
			c.send(1, sent)
			b, _ := io.ReadAll(c)
			if len(b) > 0 && b[4] != 0xff {
				t.Errorf("got %q", b)
			}
		})
	}
	t.Run("too long", func(t *testing.T) {
		c := dial(t, &Server{})
		c.packet()
		_, _ = c.Write([]byte{0xff, 0xff, 0xff, 1})
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("got %v", err)
		}
	})
}

func FuzzServer(f *testing.F) {
	f.Add([]byte("\x26\x00\x00\x01"), "select 1")
	f.Add(login(nativePassword, "x"), "select 'a' as b, @@hostname")
	f.Fuzz(func(_ *testing.T, resp []byte, query string) {
		ss := &session{server: &Server{}, conn: discard{}}
		_, _ = ss.parseResponse(resp)
		_ = ss.query(query)
	})
}

type discard struct{ net.Conn }

func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) RemoteAddr() net.Addr        { return &net.TCPAddr{} }

func testTLS(t *testing.T) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}
