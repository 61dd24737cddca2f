package upstream

import (
	"context"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2/hpack"

	"fairway.dev/fairway/internal/gateway/h2client"
)

// expectTimeout is how long a body waits for 100 (Continue) that was asked for.
const expectTimeout = time.Second

// maxAgain is how often an endpoint is asked again that has not processed a
// request: it ends its connection, or refused the stream.
const maxAgain = 2

// attemptHTTP2 is attempt for an endpoint that speaks HTTP/2.
func (p *Pool) attemptHTTP2(e *endpoint, proto protocol, req *http.Request, src *source, call Call, begun time.Time) (*http.Response, error) {
	wait := 10 * time.Millisecond
	for again := 0; ; again++ {
		resp, err := p.askHTTP2(e, proto, req, src, call, begun)
		if err == nil || again == maxAgain || !errors.Is(err, h2client.ErrUnprocessed) || src != nil && !src.repeatable() {
			return resp, err
		}
		endTry(call.Span, err, time.Time{})
		if again > 0 {
			select {
			case <-time.After(wait):
			case <-req.Context().Done():
				return nil, req.Context().Err()
			}
		}
	}
}

// askHTTP2 sends a request once and waits for the answer to begin.
func (p *Pool) askHTTP2(e *endpoint, proto protocol, req *http.Request, src *source, call Call, begun time.Time) (*http.Response, error) {
	ctx, span := req.Context(), call.Span
	span.Try(e.addr, proto.scheme(), "2", nil)
	head := h2client.Request{
		Method: req.Method, Secure: proto == h2, Path: target(req.URL), Authority: req.Host,
		Header: headerOf(req, span.Header(req.Header), src != nil), End: src == nil,
	}
	if head.Method == "" {
		head.Method = http.MethodGet
	}
	e.acquire()
	s, err := e.shared[proto-h2c].open(ctx, p, e, proto, &head, &call)
	if err != nil {
		e.release()
		return nil, err
	}
	dog := newWatchdog(s.Cancel, call.ReadTimeout, call.SendTimeout)
	dog.silence = call.Silence
	dog.heard()
	var body *sentBody
	var mayGo chan struct{} // closed when the body may be sent
	finish := func() {
		dog.stop()
		s.Close()
		if body != nil {
			_ = body.Close()
		}
		e.release()
	}
	goesOn := false
	defer func() {
		if !goesOn { // which is so after a fault as well
			finish()
		}
	}()
	if src == nil {
		dog.sent()
	} else {
		if body, err = src.next(dog); err != nil {
			return nil, err
		}
		if req.Header.Get("Expect") != "" {
			mayGo = make(chan struct{})
		}
		go sendBody(s, req, body, mayGo)
	}
	answer, err := awaitAnswer(ctx, s, mayGo)
	if err != nil {
		return nil, err
	}
	goesOn = true
	e.succeeded()
	span.Answered(answer.Status)
	dog.answered()
	dog.heard()
	resp := responseOf(req, e.addr, proto, &answer)
	if answer.End {
		// Whatever is left of the request is of no use any more.
		finish()
		p.answered(e, span, nil, begun)
		resp.Body = http.NoBody
		return resp, nil
	}
	resp.Body = &answerBody{ReadCloser: &streamBody{s: s, ctx: ctx, resp: resp}, dog: dog, idle: call.ReadTimeout, ctx: ctx, finish: finish, ended: func(err error) { p.answered(e, span, err, begun) }}
	return resp, nil
}

// awaitAnswer waits for the final head of the answer, and hands interim ones on.
func awaitAnswer(ctx context.Context, s *h2client.Stream, mayGo chan struct{}) (h2client.Head, error) {
	if mayGo != nil {
		defer func() {
			if mayGo != nil {
				close(mayGo)
			}
		}()
	}
	for {
		h, err := s.Head(ctx.Done())
		if err == h2client.ErrCanceled && ctx.Err() != nil {
			err = ctx.Err()
		}
		if err != nil || h.Status >= 200 {
			return h, err
		}
		if h.Status == http.StatusContinue && mayGo != nil {
			close(mayGo)
			mayGo = nil
		}
		if trace := httptrace.ContextClientTrace(ctx); trace != nil && trace.Got1xxResponse != nil {
			if err := trace.Got1xxResponse(h.Status, textproto.MIMEHeader(headerFrom(h.Fields, nil))); err != nil {
				return h, err
			}
		}
	}
}

// target is what is asked for: URLs are the very path that was matched.
func target(u *url.URL) string {
	path := u.Opaque
	if path == "" {
		path = u.EscapedPath()
	}
	if path == "" {
		path = "/"
	}
	if u.RawQuery != "" {
		path += "?" + u.RawQuery
	}
	return path
}

// headerOf yields the fields that a request goes out with.
func headerOf(req *http.Request, header http.Header, hasBody bool) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for name, values := range header {
			switch name {
			case "Host", "Content-Length", "Connection", "Keep-Alive", "Proxy-Connection", "Transfer-Encoding", "Upgrade", "Trailer":
				continue
			}
			for _, value := range values {
				if name == "Te" && value != "trailers" || name == "User-Agent" && value == "" {
					continue
				}
				if !yield(name, value) {
					return
				}
			}
		}
		if hasBody && req.ContentLength > 0 || !hasBody && lengthGoes(req.Method) {
			if !yield("content-length", strconv.FormatInt(max(req.ContentLength, 0), 10)) {
				return
			}
		}
		if hasBody && len(req.Trailer) > 0 {
			names := make([]string, 0, len(req.Trailer))
			for name := range req.Trailer {
				names = append(names, name)
			}
			yield("trailer", strings.Join(names, ", "))
		}
	}
}

// lengthGoes tells methods whose requests say that they have no body (RFC 9110, 8.6).
func lengthGoes(method string) bool {
	return method == http.MethodPost || method == http.MethodPut || method == http.MethodPatch
}

var bodyBuffers = sync.Pool{New: func() any { b := make([]byte, 16<<10); return &b }}

var errBodyLength = errors.New("the request body is not as long as its Content-Length")

// sendBody sends a request's body and trailers.
func sendBody(s *h2client.Stream, req *http.Request, body *sentBody, mayGo chan struct{}) {
	defer func() { _ = body.Close() }()
	if mayGo != nil {
		timer := time.NewTimer(expectTimeout)
		defer timer.Stop()
		select {
		case <-mayGo:
		case <-timer.C:
		}
	}
	buf := bodyBuffers.Get().(*[]byte)
	defer bodyBuffers.Put(buf)
	left := req.ContentLength
	if left <= 0 {
		left = -1
	}
	for {
		n, err := body.Read(*buf)
		if left >= 0 {
			if left -= int64(n); left < 0 || err == io.EOF && left > 0 {
				s.Cancel(errBodyLength)
				return
			}
		}
		if err != nil && err != io.EOF {
			s.Cancel(err)
			return
		}
		end := (err == io.EOF || left == 0) && len(req.Trailer) == 0
		if n > 0 || end {
			if s.Send((*buf)[:n], end) != nil {
				return // whoever waits for the answer is told
			}
		}
		if end && err == nil {
			body.finished()
		}
		switch {
		case end:
			return
		case err == io.EOF:
			_ = s.SendTrailer(func(yield func(string, string) bool) {
				for name, values := range req.Trailer {
					for _, value := range values {
						if !yield(name, value) {
							return
						}
					}
				}
			})
			return
		}
	}
}

// headerFrom makes a header for net/http. Names of announced trailers go to
// trailer, if it is not nil.
func headerFrom(fields []hpack.HeaderField, trailer *http.Header) http.Header {
	header := make(http.Header, len(fields))
	values := make([]string, len(fields))
	for i, f := range fields {
		name := h2client.Canonical(f.Name)
		if name == "Trailer" && trailer != nil {
			for key := range strings.SplitSeq(f.Value, ",") {
				if key = http.CanonicalHeaderKey(strings.TrimSpace(key)); key != "" {
					if *trailer == nil {
						*trailer = http.Header{}
					}
					(*trailer)[key] = nil
				}
			}
			continue
		}
		if list := header[name]; list != nil {
			header[name] = append(list, f.Value)
			continue
		}
		values[i] = f.Value
		header[name] = values[i : i+1 : i+1]
	}
	return header
}

func responseOf(req *http.Request, addr string, proto protocol, h *h2client.Head) *http.Response {
	out := req.WithContext(req.Context())
	out.URL = &url.URL{Scheme: proto.scheme(), Host: addr, Opaque: req.URL.Opaque, Path: req.URL.Path, RawQuery: req.URL.RawQuery}
	resp := &http.Response{
		Proto: "HTTP/2.0", ProtoMajor: 2, StatusCode: h.Status, Status: strconv.Itoa(h.Status) + " " + http.StatusText(h.Status),
		ContentLength: h.Length, Request: out,
	}
	resp.Header = headerFrom(h.Fields, &resp.Trailer)
	return resp
}

// streamBody is the body of an answer.
type streamBody struct {
	s    *h2client.Stream
	ctx  context.Context
	resp *http.Response
	rest []byte
}

// Read implements io.Reader.
func (b *streamBody) Read(p []byte) (int, error) {
	if len(b.rest) == 0 {
		data, err := b.s.Next(b.ctx.Done())
		if err == io.EOF {
			b.trailer()
		} else if err == h2client.ErrCanceled && b.ctx.Err() != nil {
			err = b.ctx.Err()
		}
		if err != nil {
			return 0, err
		}
		b.rest = data
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// trailer gives the trailers to the answer.
func (b *streamBody) trailer() {
	fields := b.s.Trailer()
	if len(fields) == 0 {
		return
	}
	if b.resp.Trailer == nil {
		b.resp.Trailer = make(http.Header, len(fields))
	}
	for name, values := range headerFrom(fields, nil) {
		b.resp.Trailer[name] = values
	}
}

// Close implements io.Closer; the stream is ended by who opened it.
func (b *streamBody) Close() error { return nil }
