package echo

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/net/websocket"
)

// Report is the JSON answer to an ordinary HTTP request.
type Report struct {
	Identity
	Method string `json:"method"`
	Host   string `json:"host"`
	// URI is the request target as it came; Path is its decoded path.
	URI           string              `json:"uri"`
	Path          string              `json:"path"`
	Query         map[string][]string `json:"query"`
	Protocol      string              `json:"protocol"`
	Headers       map[string][]string `json:"headers"`
	RemoteAddress string              `json:"remoteAddress"`
	LocalAddress  string              `json:"localAddress"`
	TLS           *TLSReport          `json:"tls,omitempty"`
	// Body is the start of the request's body where that is text; BodyBytes is
	// the length of the whole.
	Body      string `json:"body,omitempty"`
	BodyBytes int64  `json:"bodyBytes"`
}

// TLSReport is what the server knows of the request's TLS connection.
type TLSReport struct {
	Version            string   `json:"version"`
	CipherSuite        string   `json:"cipherSuite"`
	ServerName         string   `json:"serverName"`
	NegotiatedProtocol string   `json:"negotiatedProtocol"`
	Resumed            bool     `json:"resumed"`
	ClientCertificates []string `json:"clientCertificates,omitempty"`
}

// maxBody is how much of a body comes back in a report.
const maxBody = 64 << 10

// maxBytes limits /bytes/N.
const maxBytes = 10 << 30

func (s *Server) newHTTPServer() *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("/", s.serveReport)
	mux.HandleFunc("/env", serveEnv)
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/ready", s.serveReady)
	mux.HandleFunc("/status/{code}", s.serveStatus)
	mux.HandleFunc("/delay/{duration}", s.serveDelay)
	mux.HandleFunc("/bytes/{n}", serveBytes)
	mux.HandleFunc("/stream", s.serveStream)

	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           s.route(mux, s.newGRPCServer()),
		Protocols:         protocols,
		TLSConfig:         s.tls.Clone(),
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          slog.NewLogLogger(s.opts.Logger.Handler(), slog.LevelDebug),
	}
}

// route tells gRPC and WebSocket, which may use any path, from the rest.
func (s *Server) route(rest, grpc http.Handler) http.Handler {
	ws := websocket.Server{
		// A test client need not have an origin.
		Handshake: func(c *websocket.Config, _ *http.Request) error {
			c.Header = http.Header{"X-Served-By": {s.opts.Identity.Name}}
			if len(c.Protocol) > 1 {
				c.Protocol = c.Protocol[:1]
			}
			return nil
		},
		Handler: s.serveWebSocket,
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Served-By", s.opts.Identity.Name)
		if s.opts.Delay > 0 && !isProbe(r) && !s.sleep(r, s.opts.Delay) {
			return
		}
		switch {
		case r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"):
			grpc.ServeHTTP(w, r)
		case strings.EqualFold(r.Header.Get("Upgrade"), "websocket"):
			ws.ServeHTTP(w, r)
		default:
			rest.ServeHTTP(w, r)
		}
	})
}

// isProbe tells the requests of kubelet, which a slow workload answers in time.
func isProbe(r *http.Request) bool { return r.URL.Path == "/healthz" || r.URL.Path == "/ready" }

func (s *Server) serveReport(w http.ResponseWriter, r *http.Request) { s.report(w, r, s.opts.Status) }

func (s *Server) report(w http.ResponseWriter, r *http.Request, status int) {
	rep := Report{
		Identity:      s.opts.Identity,
		Method:        r.Method,
		Host:          r.Host,
		URI:           r.RequestURI,
		Path:          r.URL.Path,
		Query:         r.URL.Query(),
		Protocol:      r.Proto,
		Headers:       r.Header,
		RemoteAddress: r.RemoteAddr,
		TLS:           reportTLS(r),
	}
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		rep.LocalAddress = a.String()
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err == nil {
		rep.BodyBytes, err = io.Copy(io.Discard, r.Body)
	}
	if err != nil {
		http.Error(w, "reading the request's body: "+err.Error(), http.StatusBadRequest)
		return
	}
	rep.BodyBytes += int64(len(body))
	if utf8.Valid(body) {
		rep.Body = string(body)
	}
	writeJSON(w, status, rep)
}

func reportTLS(r *http.Request) *TLSReport {
	if r.TLS == nil {
		return nil
	}
	t := &TLSReport{
		Version:            tls.VersionName(r.TLS.Version),
		CipherSuite:        tls.CipherSuiteName(r.TLS.CipherSuite),
		ServerName:         r.TLS.ServerName,
		NegotiatedProtocol: r.TLS.NegotiatedProtocol,
		Resumed:            r.TLS.DidResume,
	}
	for _, c := range r.TLS.PeerCertificates {
		t.ClientCertificates = append(t.ClientCertificates, c.Subject.String())
	}
	return t
}

func serveEnv(w http.ResponseWriter, _ *http.Request) {
	env := map[string]string{}
	for _, kv := range os.Environ() {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	writeJSON(w, http.StatusOK, env)
}

// serveReady answers a readiness probe; POST /ready?ok=false makes it fail.
func (s *Server) serveReady(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost || r.Method == http.MethodPut {
		ok, err := strconv.ParseBool(r.URL.Query().Get("ok"))
		if err != nil {
			http.Error(w, "ok: want true or false, as in POST /ready?ok=false", http.StatusBadRequest)
			return
		}
		s.setReady(ok)
		fmt.Fprintf(w, "ready=%t\n", ok)
		return
	}
	if !s.ready.Load() {
		http.Error(w, "not ready", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

func (s *Server) setReady(ok bool) {
	s.ready.Store(ok)
	s.health.set(ok)
}

func (s *Server) serveStatus(w http.ResponseWriter, r *http.Request) {
	code, err := strconv.Atoi(r.PathValue("code"))
	if err != nil || code < 200 || code > 599 {
		http.Error(w, "want a status from 200 to 599, as in /status/503", http.StatusBadRequest)
		return
	}
	if code == http.StatusNoContent || code == http.StatusNotModified {
		w.WriteHeader(code)
		return
	}
	s.report(w, r, code)
}

func (s *Server) serveDelay(w http.ResponseWriter, r *http.Request) {
	d, err := time.ParseDuration(r.PathValue("duration"))
	if err != nil || d < 0 {
		http.Error(w, "want a duration, as in /delay/200ms", http.StatusBadRequest)
		return
	}
	if s.sleep(r, d) {
		s.report(w, r, s.opts.Status)
	}
}

// sleep waits and reports whether there is still somebody to answer to.
func (s *Server) sleep(r *http.Request, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.Context().Done():
		return false
	case <-s.ctx.Done():
		return false
	}
}

// serveBytes answers with N bytes that do not compress.
func serveBytes(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.ParseInt(r.PathValue("n"), 10, 64)
	if err != nil || n < 0 || n > maxBytes {
		http.Error(w, fmt.Sprintf("want 0 to %d bytes, as in /bytes/1024", int64(maxBytes)), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	var block [32 << 10]byte
	_, _ = rand.Read(block[:])
	for n > 0 && r.Method != http.MethodHead {
		part := block[:min(n, int64(len(block)))]
		if _, err := w.Write(part); err != nil {
			return
		}
		n -= int64(len(part))
	}
}

// serveStream sends n events at an interval, each on the wire at once, as
// server-sent events in an answer of unknown length.
func (s *Server) serveStream(w http.ResponseWriter, r *http.Request) {
	n, interval := 5, 200*time.Millisecond
	var err error
	if v := r.URL.Query().Get("n"); v != "" {
		if n, err = strconv.Atoi(v); err != nil || n < 0 {
			http.Error(w, "n: want a count, as in /stream?n=5", http.StatusBadRequest)
			return
		}
	}
	if v := r.URL.Query().Get("interval"); v != "" {
		if interval, err = time.ParseDuration(v); err != nil || interval < 0 {
			http.Error(w, "interval: want a duration, as in /stream?interval=200ms", http.StatusBadRequest)
			return
		}
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-cache")
	rc := http.NewResponseController(w)
	for i := range n {
		if i > 0 && !s.sleep(r, interval) {
			return
		}
		if _, err := fmt.Fprintf(w, "id: %d\ndata: %s\n\n", i+1, s.opts.Identity.Name); err != nil || rc.Flush() != nil {
			return
		}
	}
}

// writeJSON writes v as people read it: indented, with & as it is.
func writeJSON(w http.ResponseWriter, status int, v any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}
