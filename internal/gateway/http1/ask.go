package http1

import (
	"context"
	"errors"
	"io"
	"iter"
	"net/http"
	"strings"
)

// Question is a request without a body, whose client does not speak HTTP/1.
type Question struct {
	// Head is the request as it is sent, see [Question.Fill].
	Head   []byte
	Method string
	// Interim is called with each interim answer. Optional.
	Interim func(*Response)

	began bool // the client has had an interim answer
}

// Fill makes the head of a request whose fields came by another protocol; f
// says what it is made of besides them.
func (q *Question) Fill(method string, header http.Header, f *Forward) {
	r := Request{Method: method}
	for name, values := range header {
		for _, v := range values {
			r.Fields = append(r.Fields, Field{Name: name, Value: v, kind: kindOf(name)})
		}
	}
	switch method {
	case "POST", "PUT", "PATCH": // a length is expected with these (RFC 9110, 8.6)
		r.Fields = append(r.Fields, Field{Name: "Content-Length", Value: "0", kind: lengthField})
	}
	q.Method, q.Head, q.began = method, r.appendHead(q.Head[:0], f), false
}

// Repeatable reports whether the request can be sent again when a connection
// breaks before the answer.
func (q *Question) Repeatable() bool { return Safe(q.Method) }

// MayRepeat reports whether the request may be sent again once [Backend.Ask]
// has failed. Unsent tells that nothing of it was sent.
func (q *Question) MayRepeat(unsent bool) bool { return !q.began && (unsent || q.Repeatable()) }

// Ask sends a request and reads the head of the answer into b.Response. When
// ctx ends, so does the exchange, with [ErrGone]. The body is read by Next and
// NextReady, and what Ask returned is called at the end.
func (b *Backend) Ask(ctx context.Context, q *Question, t Timeouts) (release func(), err error) {
	b.clock, b.limit, b.total = nil, t.Answer, t.Total
	b.bodyErr, b.left, b.decode, b.asking = nil, 0, false, nil
	stop := context.AfterFunc(ctx, func() { b.abort(ErrGone) })
	release = func() {
		if !stop() {
			b.spoiled = true // abort may still be at it
		}
	}
	if err := b.ask1(q, t); err != nil {
		release()
		return nil, err
	}
	b.limit = t.Read
	return release, nil
}

func (b *Backend) ask1(q *Question, t Timeouts) error {
	if err := b.write(q.Head, t.Send); err != nil {
		return b.failed(err)
	}
	for {
		if err := b.readHead(); err != nil {
			return err
		}
		switch status := b.Response.Status; {
		case status == 101:
			return b.failed(errors.New("the backend switched to a protocol that nobody asked for"))
		case status >= 200:
			b.expectBody(q.Method)
			return nil
		}
		if q.Interim != nil {
			q.began = true
			q.Interim(&b.Response)
		}
	}
}

// Next returns the next bytes of the answer's body, a view that is good until
// the next call; io.EOF at the end.
func (b *Backend) Next() ([]byte, error) { return b.next() }

// NextReady is like Next, but if it would have to wait it returns nothing.
func (b *Backend) NextReady() ([]byte, error) {
	data, err := b.nextReady()
	if err == errNothing {
		return nil, nil
	}
	return data, err
}

// Each yields the header fields of an answer that are for the client: those
// that end at this hop are left out. They are views that are good until the
// body is read.
func (r *Response) Each() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for i := range r.Fields {
			f := &r.Fields[i]
			switch {
			case f.kind == lengthField:
				if r.Status == 204 || r.Status < 200 || r.chunked {
					continue
				}
			case f.kind == trailerField && !r.chunked, endsHere(f, r.listed):
				continue
			}
			if !yield(f.Name, f.Value) {
				return
			}
		}
	}
}

// EachTrailer yields the trailers of an answer whose body is at its end.
func (b *Backend) EachTrailer() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		if b.bodyErr != io.EOF {
			return
		}
		rest := b.trailers()
		for {
			var line []byte
			if line, rest = cutLine(rest); len(line) == 0 {
				return
			}
			f, err := parseField(line, true)
			if err != nil || f.kind != plainField || !trailerAllowed(f.Name) {
				continue
			}
			if !yield(strings.Clone(f.Name), strings.Clone(f.Value)) {
				return
			}
		}
	}
}
