package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestRequestsWhileServing: what comes while a request is under way is seen
// when its turn comes, also the end of the client's side.
func TestRequestsWhileServing(t *testing.T) {
	came := make(chan string, 16)
	wait := make(chan struct{})
	backendServer(t, "10.99.63.1:80", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.URL.Path == "/slow" {
			came <- r.URL.Path
			<-wait
		}
		fmt.Fprintf(w, "%s %s", r.URL.Path, body)
	})
	w := newWorld(t, nil)
	w.service("a", "", "10.99.63.1:80")
	w.route(ingress("main", rule("", "/", "a")))
	c, r := w.raw("")
	ask := func(method, path, body string) string {
		return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body)
	}
	expect := func(want string) {
		t.Helper()
		if _, body := answerOf(t, r, "GET"); body != want {
			t.Fatalf("got %q, want %q", body, want)
		}
	}
	// The first few take other ways through the engine than the later ones.
	for i := range 4 {
		_, _ = io.WriteString(c, ask("GET", "/slow", ""))
		<-came
		_, _ = io.WriteString(c, ask("GET", fmt.Sprintf("/%d", i), ""))
		time.Sleep(20 * time.Millisecond)
		wait <- struct{}{}
		expect("/slow ")
		expect(fmt.Sprintf("/%d ", i))
		_, _ = io.WriteString(c, ask("POST", "/whole", "abc"))
		expect("/whole abc")
		_, _ = io.WriteString(c, "POST /later HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc")
		time.Sleep(20 * time.Millisecond)
		_, _ = io.WriteString(c, "def")
		expect("/later abcdef")
		_, _ = io.WriteString(c, "GET /pie")
		time.Sleep(20 * time.Millisecond)
		_, _ = io.WriteString(c, "ces HTTP/1.1\r\nHost: a\r\n\r\n")
		expect("/pieces ")
	}
	_, _ = io.WriteString(c, ask("GET", "/slow", ""))
	<-came
	_ = c.(*net.TCPConn).CloseWrite()
	time.Sleep(20 * time.Millisecond)
	begin := time.Now()
	wait <- struct{}{}
	expect("/slow ")
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("the connection goes on: %v", err)
	}
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("a client that had ended its side was let go after %v", d)
	}
}

// TestEndWithRequest: a client that ends its side together with its request
// gets the answer and then the end, whichever request of the connection it is.
func TestEndWithRequest(t *testing.T) {
	backendServer(t, "10.99.63.2:80", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	w := newWorld(t, nil)
	w.service("a", "", "10.99.63.2:80")
	w.route(ingress("main", rule("", "/", "a")))
	const get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	for before := range 4 {
		c, r := w.raw("")
		for range before {
			_, _ = io.WriteString(c, get)
			answerOf(t, r, "GET")
		}
		begin := time.Now()
		_, _ = io.WriteString(c, get)
		_ = c.(*net.TCPConn).CloseWrite()
		if _, body := answerOf(t, r, "GET"); body != "ok" {
			t.Errorf("got %q", body)
		}
		if _, err := r.ReadByte(); err != io.EOF {
			t.Errorf("after %d requests: the connection goes on: %v", before, err)
		}
		if d := time.Since(begin); d > 10*time.Second {
			t.Errorf("after %d requests: let go after %v", before, d)
		}
	}
}

// TestBackendEndsItsSide: a kept connection whose backend ended its side
// without a word, and takes in whatever comes, is given up within seconds, and
// a request that may be repeated goes over a new one.
func TestBackendEndsItsSide(t *testing.T) {
	first := true
	serve(t, "10.99.63.3:80", func(l net.Listener) error {
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			half := first
			first = false
			go func() {
				defer c.Close()
				r := bufio.NewReader(c)
				for {
					if _, err := http.ReadRequest(r); err != nil {
						return
					}
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
					if half {
						_ = c.(*net.TCPConn).CloseWrite()
						_, _ = io.Copy(io.Discard, r)
						return
					}
				}
			}()
		}
	})
	w := newWorld(t, nil)
	w.service("a", "", "10.99.63.3:80")
	w.route(ingress("main", rule("", "/", "a")))
	c, r := w.raw("")
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	for range 3 {
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, body := answerOf(t, r, "GET"); resp.StatusCode != 200 || body != "ok" {
			t.Fatalf("got %d %q", resp.StatusCode, body)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestLargeRequestOnKeptConnection: more than a socket takes at once goes out
// over a connection that has served before.
func TestLargeRequestOnKeptConnection(t *testing.T) {
	backendServer(t, "10.99.63.4:80", func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, len(r.Header.Get("X-Long")), n)
	})
	w := newWorld(t, nil)
	w.service("a", "", "10.99.63.4:80")
	w.route(ingress("main", rule("", "/", "a")))
	c, r := w.raw("")
	long := strings.Repeat("x", 60<<10)
	for range 3 {
		fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: a\r\nX-Long: %s\r\nContent-Length: 3\r\n\r\nabc", long)
		if _, body := answerOf(t, r, "POST"); body != fmt.Sprint(len(long), 3) {
			t.Fatalf("got %q", body)
		}
	}
}

// TestRecycledConnections: nothing of a connection is left for the next one
// that gets its memory.
func TestRecycledConnections(t *testing.T) {
	backendServer(t, "10.99.63.5:80", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %q %s", r.Header.Get("X-Real-Ip"), r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Secret"), body)
	})
	w := newWorld(t, nil)
	w.service("a", "", "10.99.63.5:80")
	w.route(ingress("main", rule("", "/", "a")))
	for i := range 50 {
		ip := fmt.Sprintf("127.0.0.%d", i%3+1)
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		c, err := d.Dial("tcp", w.g.HTTPAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		r := bufio.NewReader(c)
		secret, body := "", ""
		if i%2 == 0 {
			secret, body = "s", "left"
		}
		if i%7 == 0 {
			_, _ = io.WriteString(c, "nonsense\r\n\r\n")
			if resp, _ := answerOf(t, r, "GET"); resp.StatusCode != 400 {
				t.Errorf("got %d", resp.StatusCode)
			}
			_ = c.Close()
			continue
		}
		for range i % 4 {
			fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n", len(body))
			if secret != "" {
				fmt.Fprintf(c, "X-Secret: %s\r\n", secret)
			}
			_, _ = io.WriteString(c, "\r\n"+body)
			if _, got := answerOf(t, r, "POST"); got != fmt.Sprintf("%s %s %q %s", ip, ip, secret, body) {
				t.Errorf("connection %d from %s got %q", i, ip, got)
			}
		}
		if i%5 == 0 {
			_, _ = io.WriteString(c, "GET /broken HTTP/1.1\r\nX-Secret: s") // and goes
		}
		_ = c.Close()
	}
}
