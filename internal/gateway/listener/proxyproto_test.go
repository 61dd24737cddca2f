package listener

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/gateway/proxyproto"
)

func v2(command, family byte, body ...byte) string {
	return string(proxyV2) + string([]byte{0x20 | command, family<<4 | 1, byte(len(body) >> 8), byte(len(body))}) + string(body)
}

func TestParseProxyHeader(t *testing.T) {
	addr4 := []byte{192, 0, 2, 1, 10, 0, 0, 1, 0x12, 0x34, 0, 80}
	addr6 := append(append(netip.MustParseAddr("2001:db8::1").AsSlice(), netip.MustParseAddr("2001:db8::2").AsSlice()...), 0x12, 0x34, 0, 80)
	tests := []struct {
		name, in, src, dst, rest string
		more, bad                bool
	}{
		{name: "v1 IPv4", in: "PROXY TCP4 192.0.2.1 10.0.0.1 4660 80\r\nGET", src: "192.0.2.1:4660", dst: "10.0.0.1:80", rest: "GET"},
		{name: "v1 IPv6", in: "PROXY TCP6 2001:db8::1 2001:db8::2 4660 80\r\n", src: "[2001:db8::1]:4660", dst: "[2001:db8::2]:80"},
		{name: "v1 unknown", in: "PROXY UNKNOWN whatever\r\nx", rest: "x"},
		{name: "v2 IPv4 with TLV", in: v2(1, 1, append(bytes.Clone(addr4), 3, 0, 1, 9)...) + "GET", src: "192.0.2.1:4660", dst: "10.0.0.1:80", rest: "GET"},
		{name: "v2 IPv6", in: v2(1, 2, addr6...), src: "[2001:db8::1]:4660", dst: "[2001:db8::2]:80"},
		{name: "v2 local", in: v2(0, 0) + "x", rest: "x"},
		{name: "nothing yet", in: "", more: true},
		{name: "v1 part", in: "PROXY TCP4 192.0", more: true},
		{name: "v2 part of the signature", in: string(proxyV2[:5]), more: true},
		{name: "v2 part of the addresses", in: v2(1, 1, addr4...)[:20], more: true},
		{name: "no header", in: "GET / HTTP/1.1\r\n", bad: true},
		{name: "v1 too long", in: "PROXY TCP4 " + strings.Repeat("1", 200), bad: true},
		{name: "v1 wrong family", in: "PROXY TCP6 192.0.2.1 10.0.0.1 1 2\r\n", bad: true},
		{name: "v1 mixed families", in: "PROXY TCP4 192.0.2.1 2001:db8::2 1 2\r\n", bad: true},
		{name: "v1 bad port", in: "PROXY TCP4 192.0.2.1 10.0.0.1 1 70000\r\n", bad: true},
		{name: "v2 wrong version", in: string(proxyV2) + "\x11\x11\x00\x00", bad: true},
		{name: "v2 too short for its family", in: v2(1, 1, 1, 2, 3), bad: true},
		{name: "v2 too long", in: string(proxyV2) + "\x21\x11\xff\xff", bad: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src, dst, n, err := parseProxyHeader([]byte(tt.in))
			if (err != nil) != tt.bad {
				t.Fatalf("error %v", err)
			}
			if tt.bad {
				return
			}
			if (n == 0) != tt.more {
				t.Fatalf("length %d, want more %v", n, tt.more)
			}
			if tt.more {
				return
			}
			if got := text(src); got != tt.src {
				t.Errorf("source %s, want %s", got, tt.src)
			}
			if got := text(dst); got != tt.dst {
				t.Errorf("destination %s, want %s", got, tt.dst)
			}
			if rest := tt.in[n:]; rest != tt.rest {
				t.Errorf("rest %q, want %q", rest, tt.rest)
			}
		})
	}
}

func text(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// FuzzProxyHeader: a header is complete or not whatever follows, and what
// Fairway writes it can read.
func FuzzProxyHeader(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.1 10.0.0.1 4660 80\r\nGET"))
	f.Add([]byte("PROXY UNKNOWN\r\n"))
	f.Add([]byte(v2(1, 1, 192, 0, 2, 1, 10, 0, 0, 1, 0x12, 0x34, 0, 80)))
	f.Add([]byte(v2(0, 0)))
	f.Fuzz(func(t *testing.T, in []byte) {
		src, dst, n, err := parseProxyHeader(in)
		if n > len(in) || err != nil && n < 0 {
			t.Fatalf("length %d of %d", n, len(in))
		}
		if err != nil || n == 0 {
			return
		}
		src2, dst2, n2, err := parseProxyHeader(append(bytes.Clone(in[:n]), "tail"...))
		if err != nil || n2 != n || src2 != src || dst2 != dst {
			t.Fatalf("with another tail: %v %v %d %v", src2, dst2, n2, err)
		}
		if !src.IsValid() || src.Addr().Is4In6() || dst.Addr().Is4In6() {
			return
		}
		for _, v := range []proxyproto.Version{proxyproto.V1, proxyproto.V2} {
			again := v.Append(nil, src, dst)
			src2, dst2, _, err = parseProxyHeader(again)
			if err != nil || src2 != src || dst2 != dst {
				t.Fatalf("wrote %q, read %v %v %v", again, src2, dst2, err)
			}
		}
	})
}

func TestProxyHeaderThatNeverComes(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	c := &proxyConn{Conn: a}
	go func() { _, _ = io.WriteString(b, "GET / HTTP/1.1\r\n") }()
	if _, err := c.Read(make([]byte, 10)); err == nil {
		t.Error("a connection without header can be read")
	}
	if _, err := b.Write([]byte("x")); err == nil {
		t.Error("the connection is still open")
	}
}

func TestPeekServerName(t *testing.T) {
	peek := func(send func(net.Conn)) (string, bool, []byte) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		go send(client)
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		return peekServerName(server, firstByteWait)
	}
	hello := func(name string, protos ...string) func(net.Conn) {
		return func(c net.Conn) {
			_ = tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: protos}).Handshake()
		}
	}
	if name, isTLS, read := peek(hello("Db.Test")); name != "db.test" || !isTLS || len(read) < 100 || read[0] != recordHandshake {
		t.Errorf("ClientHello: %q %v, %d bytes", name, isTLS, len(read))
	}
	var many []string
	for range 300 {
		many = append(many, strings.Repeat("p", 100))
	}
	if name, isTLS, _ := peek(hello("big.test", many...)); name != "big.test" || !isTLS {
		t.Errorf("ClientHello of several records: %q %v", name, isTLS)
	}
	if _, isTLS, read := peek(func(c net.Conn) { _, _ = io.WriteString(c, "SSH-2.0\r\n") }); isTLS || string(read) != "S" {
		t.Errorf("other protocol: %v %q", isTLS, read)
	}
	if _, isTLS, read := peek(func(c net.Conn) {
		_, _ = c.Write([]byte{recordHandshake, 3, 1, 0, 2, 0, 0})
		_ = c.(*net.TCPConn).CloseWrite()
	}); isTLS || len(read) != 7 {
		t.Errorf("half a hello: %v %d bytes", isTLS, len(read))
	}
	start := time.Now()
	if _, isTLS, read := peek(func(net.Conn) { time.Sleep(2 * firstByteWait) }); isTLS || read != nil || time.Since(start) > helloTimeout {
		t.Errorf("silence: %v %q", isTLS, read)
	}
}
