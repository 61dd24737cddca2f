package http1

import (
	"context"
	"errors"
	"io"
	"iter"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// Content is the body of a request whose client does not speak HTTP/1.
type Content interface {
	// Next returns the next bytes, at most limit, a view that is good until the
	// next call; io.EOF at the end.
	Next(limit int) ([]byte, error)
	// Trailers returns what comes behind it, after io.EOF.
	Trailers() []Field
	// Stop makes Next fail, also a call under way.
	Stop()
}

// Question is a request whose client does not speak HTTP/1.
type Question struct {
	// Head is the request as it is sent, see [Question.Fill].
	Head   []byte
	Method string
	// Interim is called with each interim answer. Optional.
	Interim func(*Response)
	// Content is sent behind Head; nil if there is nothing, or Head has all of it.
	Content Content
	// Clock is what limits are measured by, if somebody calls Sweep; nil for
	// deadlines that are set one by one.
	Clock *Clock

	began   bool        // the client has had an interim answer
	bodied  bool        // there is a body, wherever
	chunked bool        // the content goes in chunks
	pumping chan error  // gets the end of the content's sending; nil while there is none
	taken   atomic.Bool // some of the content has been read
	pumped  atomic.Bool // all of it has

	mu      sync.Mutex
	backend *Backend           // that is being asked
	quit    context.CancelFunc // ends a wait for a connection; nil while there is none
	gone    bool               // nobody waits for the answer
	begun   int64              // when, by the clock
}

// Fill makes the head of a request whose fields came by another protocol; f
// says what it is made of besides them.
func (q *Question) Fill(method string, header http.Header, f *Forward) {
	r := Request{Method: method}
	for name, values := range header {
		for _, v := range values {
			r.Add(name, v)
		}
	}
	q.FillFrom(&r, f)
}

// FillFrom is Fill for a request whose fields were added by [Request.Add].
func (q *Question) FillFrom(r *Request, f *Forward) {
	switch {
	case r.Length != 0:
	case r.Method == "POST", r.Method == "PUT", r.Method == "PATCH": // a length is expected with these (RFC 9110, 8.6)
		if _, ok := r.First("Content-Length"); !ok {
			r.Add("Content-Length", "0")
		}
	}
	q.Method, q.Head, q.began = r.Method, r.appendHead(q.Head[:0], f), false
	q.bodied, q.chunked = r.Length != 0, r.Length < 0
	q.taken.Store(false)
	q.mu.Lock()
	q.gone = false
	q.mu.Unlock()
}

// SetLength tells how long a body is, of which that was not known.
func (r *Request) SetLength(n int) {
	r.Length = int64(n)
	r.Add("Content-Length", strconv.Itoa(n))
}

// Add adds a field that came by another protocol, which has checked it.
func (r *Request) Add(name, value string) {
	r.Fields = append(r.Fields, Field{Name: name, Value: value, kind: kindOf(name)})
}

// Repeatable reports whether the request can be sent again when a connection
// breaks before the answer.
func (q *Question) Repeatable() bool { return !q.bodied && Safe(q.Method) }

// MayRepeat reports whether the request may be sent again once [Backend.Ask]
// has failed. Unsent tells that nothing of it was sent.
func (q *Question) MayRepeat(unsent bool) bool {
	return !q.began && !q.taken.Load() && !q.Gone() && (unsent || q.Repeatable())
}

// Abandon ends the exchange with [ErrGone], and keeps others from beginning.
// It may be called at any time before the Question is filled again.
func (q *Question) Abandon() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gone = true
	if q.quit != nil {
		q.quit()
	}
	if q.backend != nil {
		q.backend.abort(ErrGone)
	}
}

// Gone reports whether the exchange was abandoned.
func (q *Question) Gone() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.gone
}

// WhileWaited calls connect with a context that ends if the exchange is
// abandoned meanwhile, and reports whether it was.
func (q *Question) WhileWaited(connect func(context.Context)) (gone bool) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	quit := func(f context.CancelFunc) bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.quit = f
		return q.gone
	}
	if !quit(cancel) {
		connect(ctx)
	}
	return quit(nil)
}

// Sweep ends an exchange that takes too long by its Clock. It may be called at
// any time.
func (q *Question) Sweep(now int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := q.backend
	if b == nil {
		return
	}
	if b.reading.ring(now) || b.writing.ring(now) {
		b.abort(ErrTimeout)
	}
	if now-q.begun > int64(patience) {
		b.lookAgain()
	}
}

// Release ends the hold on the backend that was asked. Content that it did not
// wait for is given up, and with it the backend's connection.
func (q *Question) Release() {
	q.stopPump()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.backend = nil
}

// Ask sends a request and reads the head of the answer into b.Response. The
// body is read by Next and NextReady; [Question.Release] is called at the end,
// after an error as well.
func (b *Backend) Ask(q *Question, t Timeouts) error {
	b.clock, b.limit, b.total = q.Clock, t.Answer, t.Total
	b.bodyErr, b.left, b.decode, b.asking, b.interims = nil, 0, false, nil, 0
	q.mu.Lock()
	q.backend = b
	if q.Clock != nil {
		q.begun = q.Clock.Load()
	}
	gone := q.gone
	q.mu.Unlock()
	if gone {
		return ErrGone
	}
	if err := b.ask1(q, t); err != nil {
		return err
	}
	b.limit = t.Read
	return nil
}

func (b *Backend) ask1(q *Question, t Timeouts) error {
	switch {
	case q.Content == nil && b.Reused && b.wire != nil && q.Clock != nil:
		b.asking, b.send = q.Head, t.Send
	default:
		if err := b.write(q.Head, t.Send); err != nil {
			return b.failed(err)
		}
	}
	if q.Content != nil {
		b.pumps()
		q.pumping = make(chan error, 1)
		q.pumped.Store(false)
		go func() { q.pumping <- q.pump(b, t) }()
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
			if q.Content != nil {
				b.begins()
			}
			return nil
		}
		if q.Interim != nil {
			q.began = true
			q.Interim(&b.Response)
		}
	}
}

// pump sends the content.
func (q *Question) pump(b *Backend, t Timeouts) error {
	err := b.pump(t, q.chunked, func() ([]byte, error) {
		q.taken.Store(true)
		return q.Content.Next(bufferSize)
	}, func(out []byte) []byte {
		for _, f := range q.Content.Trailers() {
			if TrailerGoes(f.Name) {
				out = appendField(out, f.Name, f.Value)
			}
		}
		return out
	})
	if err == nil {
		q.pumped.Store(true)
	}
	return err
}

// stopPump waits until the content is sent, or stops that.
func (q *Question) stopPump() {
	if q.pumping == nil {
		return
	}
	q.mu.Lock()
	b := q.backend
	q.mu.Unlock()
	select {
	case err := <-q.pumping:
		b.spoiled = b.spoiled || err != nil
	default:
		if !q.pumped.Load() {
			b.spoiled = true
			q.Content.Stop()
			b.abort(ErrBackend)
		}
		if err := <-q.pumping; err != nil {
			b.spoiled = true
		}
	}
	q.pumping = nil
}

// Ended reports whether the body of the answer is at its end.
func (b *Backend) Ended() bool { return b.bodyErr == io.EOF }

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
				// With 304 it may be left out, and clients by HTTP/2 wait for
				// that body: net/http's, for one.
				if r.Status == 204 || r.Status == 304 || r.Status < 200 || r.chunked {
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
