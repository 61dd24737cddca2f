package gateway

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestSilence: a request to a backend that speaks HTTP/2 ends when nothing was
// sent either way for long, whatever protocol its client speaks. One side that
// goes on keeps it, and the backend is not to blame.
func TestSilence(t *testing.T) {
	backendServer(t, "10.99.76.20:80", func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		switch r.URL.Path {
		case "/listens":
			n, err := io.Copy(io.Discard, r.Body)
			if err == nil && n == 8 {
				_, _ = io.WriteString(w, "all")
			}
		case "/talks":
			for range 8 {
				_, _ = io.WriteString(w, ".")
				_ = http.NewResponseController(w).Flush()
				time.Sleep(500 * time.Millisecond)
			}
		default:
			_, _ = io.WriteString(w, "some")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
	})
	w, pair := http3World(t, "10.99.76.120:443", "kubernetes.io/h2c", "10.99.76.20:80", func(o *Options) { o.SilenceTimeout = 3 * time.Second })
	for name, client := range map[string]*http.Client{"HTTP/2": http2Plain(t), "HTTP/3": http3Client(t, w.g.HTTPSAddr().String(), pair)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			call := func(path string, pieces int) (string, string, error) {
				body, more := io.Pipe()
				defer more.Close()
				go func() {
					for range pieces {
						_, _ = more.Write([]byte("."))
						time.Sleep(500 * time.Millisecond)
					}
					if pieces > 0 {
						_ = more.Close()
					}
				}()
				target := w.url(path)
				if name == "HTTP/3" {
					target = "https://a.test" + path
				}
				req, err := http.NewRequest("POST", target, body)
				if err != nil {
					return "", "", err
				}
				req.Host = "a.test"
				req.Header.Set("Content-Type", "application/grpc")
				resp, err := client.Do(req)
				if err != nil {
					return "", "", err
				}
				defer resp.Body.Close()
				text, err := io.ReadAll(resp.Body)
				return string(text), resp.Trailer.Get("Grpc-Status"), err
			}
			var both sync.WaitGroup
			defer both.Wait()
			both.Go(func() {
				if text, _, err := call("/listens", 8); text != "all" || err != nil {
					t.Errorf("a client that goes on to send: %q, %v", text, err)
				}
			})
			both.Go(func() {
				if text, _, err := call("/talks", 0); text != strings.Repeat(".", 8) || err != nil {
					t.Errorf("a backend that goes on to answer: %q, %v", text, err)
				}
			})
			if text, status, err := call("/silent", 0); text != "some" || err != nil || status != "4" {
				t.Errorf("neither: %q, %v, status %q", text, err, status)
			}
		})
	}
	for _, e := range w.g.State("services").Services[0].Endpoints {
		if e.Failures+e.BrokenOff > 0 {
			t.Errorf("the endpoint is blamed: %+v", e)
		}
	}
}

// impatientBody fails a read if it has been told that calls may not be silent.
type impatientBody struct{ timed bool }

func (b *impatientBody) Timed() { b.timed = true }

func (b *impatientBody) Read([]byte) (int, error) {
	if b.timed {
		return 0, os.ErrDeadlineExceeded
	}
	return 0, io.EOF
}

func (b *impatientBody) Close() error { return nil }

// TestHTTP3CallsToHTTP1: what calls itself an RPC has no more time by HTTP/3
// than other requests, where the backend speaks HTTP/1.1.
func TestHTTP3CallsToHTTP1(t *testing.T) {
	backendServer(t, "10.99.76.21:80", func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	w := newWorld(t, nil)
	w.service("one", "", "10.99.76.21:80")
	w.service("two", "kubernetes.io/h2c", "10.99.76.21:80")
	w.route(ingress("main", rule("one", "/", "one"), rule("two", "/", "two")))
	for host, want := range map[string]string{"one": "2", "two": ""} {
		req := httptest.NewRequest("POST", "http://"+host+"/", &impatientBody{})
		req.RequestURI, req.ContentLength, req.Proto, req.ProtoMajor = "/", -1, "HTTP/3.0", 3
		req.Header.Set("Content-Type", "application/grpc")
		answer := httptest.NewRecorder()
		netHandler{w.g, false}.ServeHTTP(answer, req)
		if got := answer.Header().Get("Grpc-Status"); answer.Code != 200 || got != want {
			t.Errorf("%s: %d, status %q, want %q", host, answer.Code, got, want)
		}
	}
}
