package http1

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"fairway.dev/fairway/internal/certs"
)

// lobby is a server whose connections a test can look at.
type lobby struct {
	*Server
	addr  string
	ended atomic.Int64
	drain func()
}

// echoPeer answers with who asks, and how often.
type echoPeer struct{}

func (echoPeer) ServeHTTP1(c *Conn) { c.Answer(200, nil, c.Peer.String()) }

func openLobby(t *testing.T, o Options, config *tls.Config) *lobby {
	t.Helper()
	l := &lobby{}
	o.Logger = slog.New(slog.DiscardHandler)
	o.Ended = func(*Socket, bool) { l.ended.Add(1) }
	if o.Handler == nil {
		o.Handler = echoPeer{}
	}
	var err error
	if l.Server, err = NewServer(o); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.addr = listener.Addr().String()
	door, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := door.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	accepting := make(chan struct{})
	go func() {
		defer close(accepting)
		_ = raw.Read(func(fd uintptr) bool {
			for {
				sock, errno := Accept(fd, 0)
				if errno != 0 {
					return errno != syscall.EAGAIN
				}
				go func() {
					if config == nil {
						l.ServeConn(sock, sock, false)
						return
					}
					secure := tls.Server(sock, config)
					if secure.Handshake() == nil {
						l.ServeConn(secure, sock, true)
					}
				}()
			}
		})
	}()
	l.drain = sync.OnceFunc(func() {
		_ = listener.Close()
		_ = door.Close()
		<-accepting
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		l.Drain(ctx)
	})
	t.Cleanup(l.drain)
	return l
}

// parkedNow is how many connections are parked.
func (l *lobby) parkedNow() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.lot.conns)
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not so within a minute", what)
		}
	}
}

// ask sends a request and returns the answer's body.
func ask(c net.Conn) (string, error) {
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(c, 512), nil)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// TestParked: ten thousand connections that pause have no goroutines, and are
// served again, for as long as there is a server.
func TestParked(t *testing.T) {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	before := files
	files.Cur = files.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before) }()
	count := 10000
	if raceEnabled {
		count = 1000 // what all is checked of it takes its time
	}
	count = min(count, int(files.Cur-200)/2)
	l := openLobby(t, Options{IdleTimeout: time.Hour, HeaderTimeout: time.Hour}, nil)
	goroutines, descriptors := runtime.NumGoroutine(), openFiles(t)
	conns := make([]net.Conn, count)
	for i := range conns {
		c, err := net.Dial("tcp", l.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns[i] = c
	}
	every := func(step int) {
		t.Helper()
		for i, c := range conns {
			if i%100 == 99 || i%step != 0 {
				continue // some never ask
			}
			if got, err := ask(c); err != nil || got != c.LocalAddr().String() {
				t.Fatalf("connection %d: %q, %v", i, got, err)
			}
		}
	}
	for _, step := range []int{1, 20} {
		every(step)
		await(t, "all are parked", func() bool { return l.parkedNow() == count })
		await(t, "their goroutines are gone", func() bool { return runtime.NumGoroutine() <= goroutines+10 })
		if n := openFiles(t); n > descriptors+2*count+10 {
			t.Errorf("%d files are open for %d connections, both ends", n-descriptors, count)
		}
	}
	for _, c := range conns[:count/2] {
		_ = c.Close()
	}
	await(t, "closed connections are no longer parked", func() bool { return l.parkedNow() <= count-count/2 && int(l.ended.Load()) == count/2 })
	l.drain()
	for _, c := range conns[count/2:] {
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("after the end of the server: %v", err)
		}
	}
	if n := int(l.ended.Load()); n != count {
		t.Errorf("%d connections were counted out, want %d", n, count)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestParkedSecure: what is encrypted can be parked as well, also with half a
// record read.
func TestParkedSecure(t *testing.T) {
	fallback, err := certs.SelfSigned("a", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	l := openLobby(t, Options{IdleTimeout: time.Hour}, certs.NewResolver(certs.NewIndex(fallback)).ServerConfig("http/1.1"))
	tcp, err := net.Dial("tcp", l.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	slow := &halting{Conn: tcp}
	c := tls.Client(slow, &tls.Config{InsecureSkipVerify: true})
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	for _, held := range []int{0, 3, 10} { // bytes of the record that come first
		await(t, "it is parked", func() bool { return l.parkedNow() == 1 })
		slow.first = held
		slow.parked = func() { await(t, "it is parked again", func() bool { return l.parkedNow() == 1 }) }
		if got, err := ask(c); err != nil || got != tcp.LocalAddr().String() {
			t.Fatalf("%d bytes first: %q, %v", held, got, err)
		}
	}
	l.drain()
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the end of the server: %v", err)
	}
	if n := l.ended.Load(); n != 1 {
		t.Errorf("%d connections were counted out", n)
	}
}

// halting sends the first bytes of what is written, and the rest once parked
// returns.
type halting struct {
	net.Conn
	first  int
	parked func()
}

func (h *halting) Write(p []byte) (int, error) {
	if h.first > 0 && h.first < len(p) {
		if n, err := h.Conn.Write(p[:h.first]); err != nil {
			return n, err
		}
		first := h.first
		h.first = 0
		h.parked()
		n, err := h.Conn.Write(p[first:])
		return first + n, err
	}
	return h.Conn.Write(p)
}

// TestParkedEnds: the limits of connections that wait are those of others.
func TestParkedEnds(t *testing.T) {
	t.Parallel() // it waits for some seconds
	for name, o := range map[string]Options{
		"idle":  {IdleTimeout: exact, HeaderTimeout: time.Hour},
		"short": {IdleTimeout: time.Hour, HeaderTimeout: time.Hour, Short: func() bool { return true }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := openLobby(t, o, nil)
			c, err := net.Dial("tcp", l.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := ask(c); err != nil {
				t.Fatal(err)
			}
			await(t, "it is parked", func() bool { return l.parkedNow() == 1 })
			if _, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("%v", err)
			}
			await(t, "it is counted out", func() bool { return l.ended.Load() == 1 })
		})
	}
}

// TestParkedEmptyLines: a client that sends nothing but empty lines, which may
// stand before a request, has no more time for that than one that sends nothing;
// and a request begins another wait.
func TestParkedEmptyLines(t *testing.T) {
	t.Parallel() // it waits for some seconds
	for name, served := range map[string]bool{"new": false, "kept": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := openLobby(t, Options{IdleTimeout: exact, HeaderTimeout: exact}, nil)
			c, err := net.Dial("tcp", l.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			ended := func() bool { return l.ended.Load() == 1 }
			for deadline := time.Now().Add(exact * 3 / 2); served && time.Now().Before(deadline); {
				if _, err := ask(c); err != nil {
					t.Fatalf("a connection in use: %v", err)
				}
				await(t, "it is parked", func() bool { return l.parkedNow() == 1 })
			}
			lines := 0
			for deadline := time.Now().Add(10 * exact); !ended() && time.Now().Before(deadline); lines++ {
				await(t, "it is parked", func() bool { return l.parkedNow() == 1 || ended() })
				_, _ = io.WriteString(c, "\r\n") // the connection may have ended
				time.Sleep(tick)
			}
			if !ended() || lines == 0 {
				t.Errorf("after %d empty lines it is open still: %t", lines, !ended())
			}
		})
	}
}

// TestParkedHeader: half a header is waited for, and an upgrade to HTTP/2 by
// prior knowledge can come late.
func TestParkedHeader(t *testing.T) {
	handed := make(chan net.Conn, 1)
	l := openLobby(t, Options{IdleTimeout: time.Hour, HeaderTimeout: time.Hour, HTTP2: func(c net.Conn) { handed <- c }}, nil)
	dial := func() net.Conn {
		c, err := net.Dial("tcp", l.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	half, late := dial(), dial()
	if _, err := io.WriteString(half, "GET / HTTP/1.1\r\nHo"); err != nil {
		t.Fatal(err)
	}
	await(t, "the other one is parked", func() bool { return l.parkedNow() == 1 })
	_, _ = fmt.Fprint(late, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	c := <-handed
	preface := make([]byte, 24)
	if _, err := io.ReadFull(c, preface); err != nil || string(preface[:3]) != "PRI" {
		t.Errorf("%q, %v", preface, err)
	}
	_ = c.Close()
	// The janitor asks the one with half a header in vain, more than once.
	time.Sleep(2 * pause)
	_ = half.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(half, "st: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if resp, err := http.ReadResponse(bufio.NewReader(half), nil); err != nil || resp.StatusCode != 200 {
		t.Errorf("%v, %v", resp, err)
	}
}

// TestDrainBetween: a connection that has just answered, and is not yet idle,
// when the others are closed as idle is closed as well, at once.
func TestDrainBetween(t *testing.T) {
	release := make(chan struct{})
	l := openLobby(t, Options{Handler: handlerFunc(func(c *Conn) {
		c.Answer(200, nil, "well")
		<-release
	})}, nil)
	c, err := net.Dial("tcp", l.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.Close {
		t.Fatal(err, resp)
	}
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		l.drain()
	}()
	await(t, "the drain waits", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.empty != nil
	})
	close(release)
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("it ended by %v", err)
	}
	<-drained
}

// TestNothingBeginsAfterTheCut: a connection that comes when the time for what
// is under way is over is not served: its requests would have no limit.
func TestNothingBeginsAfterTheCut(t *testing.T) {
	held, release := make(chan struct{}), make(chan struct{})
	l := openLobby(t, Options{Handler: handlerFunc(func(c *Conn) {
		if c.Request.Target == "/held" {
			close(held)
			<-release
		}
		c.Answer(200, nil, "late")
	})}, nil)
	ask := func(target string) net.Conn {
		c, err := net.Dial("tcp", l.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_, _ = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", target)
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		return c
	}
	ask("/held")
	<-held
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		l.Drain(ctx)
	}()
	await(t, "the cut", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.Server.ended
	})
	if got, err := io.ReadAll(ask("/")); len(got) > 0 || os.IsTimeout(err) {
		t.Errorf("after the end came %q, %v", got, err)
	}
	close(release)
	<-drained
}

// TestPanic costs one connection, also where its body is on its way. The client
// is told, unless it has had the beginning of another answer.
func TestPanic(t *testing.T) {
	l := openLobby(t, Options{Handler: handlerFunc(func(c *Conn) {
		switch c.Request.Target {
		case "/panic-begun":
			c.Status = 200 // Relay is about to write it
			fallthrough
		case "/panic":
			panic("a fault")
		}
		c.Answer(200, nil, "well")
	})}, nil)
	for _, request := range []string{"GET /panic HTTP/1.1\r\nHost: a\r\n\r\n", "POST /panic HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf", "GET /panic-begun HTTP/1.1\r\nHost: a\r\n\r\n"} {
		c, err := net.Dial("tcp", l.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, request)
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		got, err := io.ReadAll(c)
		if begun := strings.Contains(request, "-begun"); begun && len(got) > 0 || !begun && !strings.HasPrefix(string(got), "HTTP/1.1 500 ") || os.IsTimeout(err) {
			t.Errorf("%q got %q, %v", request, got, err)
		}
	}
	resp, err := http.Get("http://" + l.addr + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); string(body) != "well\n" && string(body) != "well" {
		t.Errorf("the next got %q", body)
	}
	await(t, "the connections are counted out", func() bool { return l.ended.Load() >= 2 })
}

type handlerFunc func(c *Conn)

func (f handlerFunc) ServeHTTP1(c *Conn) { f(c) }
