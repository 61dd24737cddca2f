package http2

import (
	"context"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"

	"fairway.dev/fairway/internal/gateway/http1"
)

// Adapter lets code written for net/http answer a request.
type Adapter struct {
	// Request is the client's, with a body that is closed by Close. Its URL is empty.
	Request *http.Request

	s       *Stream
	cancel  context.CancelFunc
	header  http.Header
	trailer []string
	nobody  bool // the answer has none
	body    *adaptedBody
}

// Adapt returns an Adapter for the request. End it with Close.
func (s *Stream) Adapt() *Adapter {
	ctx, cancel := context.WithCancel(context.Background())
	s.shared = true // what net/http started may outlive the request
	r := &s.Request
	header := make(http.Header, len(r.Fields))
	for i := range r.Fields {
		name := http.CanonicalHeaderKey(r.Fields[i].Name)
		header[name] = append(header[name], r.Fields[i].Value)
	}
	a := &Adapter{s: s, cancel: cancel, header: http.Header{}}
	a.Request = (&http.Request{
		Method: r.Method, URL: &url.URL{}, RequestURI: r.Target, Host: r.Host, RemoteAddr: s.conn.Peer.String(),
		Proto: "HTTP/2.0", ProtoMajor: 2, Header: header, ContentLength: r.Length, Body: http.NoBody,
	}).WithContext(ctx)
	if r.Length != 0 {
		a.body = &adaptedBody{s: s, request: a.Request}
		a.Request.Body = a.body
		for _, line := range header["Trailer"] {
			for name := range strings.SplitSeq(line, ",") {
				if name = http.CanonicalHeaderKey(textproto.TrimString(name)); httpguts.ValidTrailerHeader(name) {
					if a.Request.Trailer == nil {
						a.Request.Trailer = http.Header{}
					}
					a.Request.Trailer[name] = nil
				}
			}
		}
	}
	delete(header, "Trailer")
	s.Hold(adapted{cancel})
	return a
}

// adapted is an exchange by net/http, which has limits of its own.
type adapted struct{ cancel context.CancelFunc }

// Abandon implements Exchange.
func (a adapted) Abandon() { a.cancel() }

// Sweep implements Exchange.
func (a adapted) Sweep(int64) {}

// Close ends the exchange: what is left of the answer is sent. Without ok the
// answer is cut off.
func (a *Adapter) Close(ok bool) {
	s := a.s
	if a.body != nil {
		_ = a.body.Close()
	}
	s.Hold(nil)
	a.cancel()
	if !ok || s.Status == 0 {
		return
	}
	sent := false
	if !a.nobody {
		s.Begin(0)
		for name, values := range a.header {
			plain, isTrailer := strings.CutPrefix(name, http.TrailerPrefix)
			if !isTrailer && !contains(a.trailer, name) || !httpguts.ValidTrailerHeader(plain) || !httpguts.ValidHeaderFieldName(plain) {
				continue
			}
			for _, v := range values {
				s.Field(plain, clean(v))
				sent = true
			}
		}
	}
	if sent {
		_ = s.SendTrailers() // the client may be gone
	} else {
		_ = s.End()
	}
}

// Gone reports whether the client has left.
func (a *Adapter) Gone() bool { return a.s.Gone() }

// Header implements http.ResponseWriter.
func (a *Adapter) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *Adapter) WriteHeader(status int) {
	s := a.s
	if s.Status != 0 || status == http.StatusSwitchingProtocols {
		return
	}
	s.Begin(status)
	if status >= 200 {
		for _, line := range a.header["Trailer"] {
			for name := range strings.SplitSeq(line, ",") {
				a.trailer = append(a.trailer, http.CanonicalHeaderKey(textproto.TrimString(name)))
			}
		}
	}
	a.nobody = s.Request.Method == http.MethodHead || status == 204 || status == 304
	for name, values := range a.header {
		switch {
		case strings.HasPrefix(name, http.TrailerPrefix), !httpguts.ValidHeaderFieldName(name), !allowedInAnswer(name):
			continue
		case name == "Content-Length" && (status < 200 || status == 204):
			continue
		}
		for _, v := range values {
			s.Field(name, clean(v))
		}
	}
	if status < 200 {
		_ = s.SendInterim() // the next write tells as well
		return
	}
	if len(a.header["Date"]) == 0 {
		s.Field("Date", time.Now().UTC().Format(http.TimeFormat))
	}
	_ = s.SendHead()
}

// allowedInAnswer is false for fields of HTTP/1.1's connections.
func allowedInAnswer(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade":
		return false
	}
	return true
}

// clean keeps a value from being malformed.
func clean(v string) string {
	v = textproto.TrimString(v)
	if valid(v, &valueBytes) {
		return v
	}
	b := []byte(v)
	for i, c := range b {
		if !valueBytes[c] {
			b[i] = ' '
		}
	}
	return string(b)
}

// Write implements http.ResponseWriter.
func (a *Adapter) Write(p []byte) (int, error) {
	if a.s.Status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	if a.nobody {
		return 0, http.ErrBodyNotAllowed
	}
	return a.s.Write(p)
}

// FlushError is for http.ResponseController.
func (a *Adapter) FlushError() error {
	if a.s.Status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	return a.s.Flush()
}

func contains(list []string, name string) bool {
	for _, s := range list {
		if s == name {
			return true
		}
	}
	return false
}

// adaptedBody is a request body that may be closed while it is read.
type adaptedBody struct {
	s       *Stream
	request *http.Request

	mu     sync.Mutex // of the one who reads
	closed bool
}

// Read implements io.Reader.
func (b *adaptedBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, errClosed
	}
	if len(p) == 0 {
		return 0, nil
	}
	data, err := b.s.Next(len(p))
	n := copy(p, data)
	if err == io.EOF {
		for _, f := range b.s.Trailers() {
			name := http.CanonicalHeaderKey(f.Name)
			if _, announced := b.request.Trailer[name]; announced {
				b.request.Trailer[name] = append(b.request.Trailer[name], f.Value)
			}
		}
	}
	return n, err
}

// Close makes further reads fail, and the one under way.
func (b *adaptedBody) Close() error {
	b.s.Stop()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return nil
}

var _ http.ResponseWriter = (*Adapter)(nil)

var _ Exchange = (*http1.Question)(nil)
