package protocols

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// wsLimit bounds what must happen at once.
const wsLimit = 20 * time.Second

// echoWebSocket answers each message with its like, and a close with its code.
// To the text "close 4000 reason" it answers with that close.
func echoWebSocket(w http.ResponseWriter, r *http.Request) {
	up := websocket.Upgrader{EnableCompression: true, Subprotocols: []string{"echo"}, CheckOrigin: func(*http.Request) bool { return true }}
	c, err := up.Upgrade(w, r, http.Header{"X-Backend": {"echo"}})
	if err != nil {
		return
	}
	defer c.Close()
	for {
		kind, message, err := c.ReadMessage()
		if err != nil {
			return // the library has answered a close
		}
		var code int
		var reason string
		if n, _ := fmt.Sscanf(string(message), "close %d %s", &code, &reason); n == 2 && kind == websocket.TextMessage {
			_ = c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, reason), time.Now().Add(wsLimit))
			continue // until the client answers
		}
		if string(message) == "drop" {
			return
		}
		if c.WriteMessage(kind, message) != nil {
			return
		}
	}
}

// webSocket connects by way of the gateway.
func (w *world) webSocket(t *testing.T, secure bool, d websocket.Dialer) (*websocket.Conn, *http.Response) {
	t.Helper()
	scheme := "ws"
	if secure {
		scheme, d.TLSClientConfig = "wss", w.tls("ws.test")
	}
	d.HandshakeTimeout = wsLimit
	d.NetDial = func(network, _ string) (net.Conn, error) { return net.Dial(network, w.addr(secure)) }
	c, resp, err := d.Dial(scheme+"://ws.test/echo", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetReadDeadline(time.Now().Add(wsLimit))
	return c, resp
}

// TestWebSocket sends frames of all shapes and sizes to a backend that sends
// them back, by gorilla/websocket at both ends.
func TestWebSocket(t *testing.T) {
	l := listen(t)
	server := &http.Server{Handler: http.HandlerFunc(echoWebSocket)}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	w := newWorld(t, backend{"ws.test", "", l.Addr().String()})
	for _, secure := range []bool{false, true} {
		for _, compressed := range []bool{false, true} {
			t.Run(fmt.Sprintf("tls=%v,compressed=%v", secure, compressed), func(t *testing.T) {
				dialer := websocket.Dialer{EnableCompression: compressed, Subprotocols: []string{"other", "echo"}}
				c, resp := w.webSocket(t, secure, dialer)
				if got := resp.Header.Get("Sec-WebSocket-Extensions"); strings.Contains(got, "permessage-deflate") != compressed {
					t.Errorf("extensions: %q", got)
				}
				if c.Subprotocol() != "echo" || resp.Header.Get("X-Backend") != "echo" {
					t.Errorf("the answer was changed: %v", resp.Header)
				}
				webSocketFrames(t, c)
				webSocketPings(t, c)
				// Messages in many frames, for the client's buffer is small.
				dialer.WriteBufferSize = 256
				small, _ := w.webSocket(t, secure, dialer)
				webSocketFragments(t, small)
			})
		}
		t.Run(fmt.Sprintf("tls=%v,closes", secure), func(t *testing.T) { webSocketCloses(t, w, secure) })
	}
}

// webSocketFrames sends messages of one frame, of the sizes where the length
// is written in another way.
func webSocketFrames(t *testing.T, c *websocket.Conn) {
	t.Helper()
	for _, kind := range []int{websocket.TextMessage, websocket.BinaryMessage} {
		for _, size := range []int{0, 1, 125, 126, 127, 65535, 65536, 1 << 20} {
			message := random(size)
			if kind == websocket.TextMessage {
				message = bytes.Repeat([]byte("ä"), size)[:size&^1]
			}
			if err := c.WriteMessage(kind, message); err != nil {
				t.Fatal(err)
			}
			expectMessage(t, c, kind, message)
		}
	}
}

// webSocketFragments sends messages in fragments, with pings between them.
func webSocketFragments(t *testing.T, c *websocket.Conn) {
	t.Helper()
	pongs := 0
	c.SetPongHandler(func(string) error { pongs++; return nil })
	pings := 0
	for _, size := range []int{0, 1, 1000, 70000} {
		message := random(size)
		m, err := c.NextWriter(websocket.BinaryMessage)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < size; at += 7000 {
			if _, err := m.Write(message[at:min(at+7000, size)]); err != nil {
				t.Fatal(err)
			}
			pings++
			if err := c.WriteControl(websocket.PingMessage, []byte("between fragments"), time.Now().Add(wsLimit)); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		expectMessage(t, c, websocket.BinaryMessage, message)
	}
	if pongs != pings {
		t.Errorf("%d pongs for %d pings", pongs, pings)
	}
}

// webSocketPings sends pings of all sizes; the pongs are awaited by a message.
func webSocketPings(t *testing.T, c *websocket.Conn) {
	t.Helper()
	var got []string
	c.SetPongHandler(func(data string) error { got = append(got, data); return nil })
	var want []string
	for _, size := range []int{0, 1, 125} {
		want = append(want, strings.Repeat("p", size))
		if err := c.WriteControl(websocket.PingMessage, []byte(want[len(want)-1]), time.Now().Add(wsLimit)); err != nil {
			t.Fatal(err)
		}
	}
	// A pong that nobody asked for is no error.
	if err := c.WriteControl(websocket.PongMessage, []byte("unasked"), time.Now().Add(wsLimit)); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteMessage(websocket.TextMessage, []byte("after")); err != nil {
		t.Fatal(err)
	}
	expectMessage(t, c, websocket.TextMessage, []byte("after"))
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("pongs %q, want %q", got, want)
	}
}

// webSocketCloses ends connections from both sides; the other end gets the code.
func webSocketCloses(t *testing.T, w *world, secure bool) {
	for _, code := range []int{websocket.CloseNormalClosure, websocket.CloseGoingAway, websocket.ClosePolicyViolation, websocket.CloseInternalServerErr, 3000, 4999} {
		c, _ := w.webSocket(t, secure, websocket.Dialer{})
		if err := c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, "reason"), time.Now().Add(wsLimit)); err != nil {
			t.Fatal(err)
		}
		expectClose(t, c, code) // the server's library sends the code back
		c, _ = w.webSocket(t, secure, websocket.Dialer{})
		if err := c.WriteMessage(websocket.TextMessage, fmt.Appendf(nil, "close %d reason", code)); err != nil {
			t.Fatal(err)
		}
		expectClose(t, c, code)
		expectEnd(t, c)
	}
	c, _ := w.webSocket(t, secure, websocket.Dialer{})
	if err := c.WriteControl(websocket.CloseMessage, nil, time.Now().Add(wsLimit)); err != nil {
		t.Fatal(err)
	}
	expectClose(t, c, websocket.CloseNoStatusReceived)
	expectEnd(t, c)
	// A backend that goes without a word.
	c, _ = w.webSocket(t, secure, websocket.Dialer{})
	if err := c.WriteMessage(websocket.TextMessage, []byte("drop")); err != nil {
		t.Fatal(err)
	}
	expectClose(t, c, websocket.CloseAbnormalClosure)
}

func expectMessage(t *testing.T, c *websocket.Conn, kind int, message []byte) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(wsLimit))
	gotKind, got, err := c.ReadMessage()
	if err != nil || gotKind != kind || !bytes.Equal(got, message) {
		t.Fatalf("sent type %d with %d bytes, got type %d with %d bytes, %v", kind, len(message), gotKind, len(got), err)
	}
}

func expectClose(t *testing.T, c *websocket.Conn, code int) {
	t.Helper()
	_, _, err := c.ReadMessage()
	var closed *websocket.CloseError
	if !errors.As(err, &closed) || closed.Code != code {
		t.Errorf("got %v, want a close with %d", err, code)
	}
}

// expectEnd expects the end of the connection, after a close on both sides.
func expectEnd(t *testing.T, c *websocket.Conn) {
	t.Helper()
	conn := c.NetConn()
	_ = conn.SetReadDeadline(time.Now().Add(wsLimit))
	if n, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read %d bytes, %v, want the end", n, err)
	}
}

func random(size int) []byte {
	b := make([]byte, size)
	_, _ = rand.Read(b) // never fails
	return b
}
