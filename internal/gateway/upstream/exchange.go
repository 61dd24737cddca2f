package upstream

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2/hpack"

	"fairway.dev/fairway/internal/gateway/h2client"
	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/tracing"
)

// lag is how far the clock of an exchange may be behind.
const lag = 250 * time.Millisecond

// bodyPiece is how much of a body is sent at once.
const bodyPiece = 16 << 10

// Exchange is a request of a client that speaks HTTP/2, to endpoints that speak
// it as well: frames go from one connection to the other. It can be used again.
type Exchange struct {
	// Request is what is asked for. Its End is set by [Pool.Exchange].
	Request h2client.Request
	// Body is all of the request's body, where that is known; else Content gives
	// it, if there is any.
	Body    []byte
	Content http1.Content
	// Interim is called with each interim answer. Optional.
	Interim func(*h2client.Head)
	// Head is the head of the answer, Endpoint who gave it.
	Head     h2client.Head
	Endpoint string

	at    *endpoint
	begun time.Time
	span  *tracing.Span
	read  time.Duration // between two reads
	send  time.Duration // between two writes

	silence time.Duration // without anything either way
	active  atomic.Int64  // since when there was nothing, by the clock

	began   bool        // the client has had an interim answer
	taken   atomic.Bool // some of Content has been read
	pumping chan error  // gets the end of its sending; nil while there is none
	clock   *http1.Clock
	over    int64        // when all has to be over, by the clock; 0 for never
	readBy  atomic.Int64 // when the read under way has to be, by the clock; 0 for none
	sendBy  atomic.Int64 // the same of the write

	mu       sync.Mutex
	stream   *h2client.Stream
	quit     context.CancelFunc // ends a wait for a connection; nil while there is none
	gone     bool
	answered bool // the answer has begun
}

// Abandon ends the exchange with [http1.ErrGone]: nobody waits for the answer.
// It may be called at any time between Begin and the end.
func (x *Exchange) Abandon() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.gone = true
	if x.quit != nil {
		x.quit()
	}
	if x.stream != nil {
		x.stream.Cancel(http1.ErrGone)
	}
}

// Sweep ends an exchange that takes too long. It may be called at any time.
func (x *Exchange) Sweep(now int64) {
	late := func(by int64) bool { return by > 0 && now > by }
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case x.stream == nil:
	case late(x.over), late(x.readBy.Load()), late(x.sendBy.Load()):
		x.stream.Cancel(ErrTimeout)
	case x.silence > 0 && now-x.active.Load() > int64(x.silence):
		x.stream.Cancel(errSilent)
	}
}

// Gone reports whether the exchange was abandoned.
func (x *Exchange) Gone() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.gone
}

// Begin readies the exchange, whose time is told by a clock that somebody sets
// who calls Sweep.
func (x *Exchange) Begin(clock *http1.Clock) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.stream, x.gone, x.answered, x.over = nil, false, false, 0
	x.clock, x.began, x.pumping, x.at = clock, false, nil, nil
	x.taken.Store(false)
	x.readBy.Store(0)
	x.sendBy.Store(0)
}

// by starts a limit on a read or write.
func (x *Exchange) by(limit *atomic.Int64, d time.Duration) {
	if d > 0 {
		limit.Store(x.clock.Load() + int64(d+lag))
	}
}

// Exchange sends a request to an endpoint and waits for the answer to begin.
// If none can be connected to, or one certainly has not processed it, or a safe
// request without body breaks before the answer, the next is tried. End it with
// [Pool.EndExchange].
func (p *Pool) Exchange(x *Exchange, call Call) error {
	x.read, x.send = call.ReadTimeout, call.SendTimeout
	x.mu.Lock()
	if x.silence = call.Silence; !call.Deadline.IsZero() {
		x.over = x.clock.Load() + int64(time.Until(call.Deadline)+lag)
	}
	x.mu.Unlock()
	var space [maxTries]*endpoint
	tried := space[:0]
	var lastErr error
	for len(tried) < maxTries {
		now := time.Now()
		e, err := p.pick(&call.Choice, tried, now)
		if err != nil || e == nil {
			if lastErr == nil {
				lastErr = err
			}
			break
		}
		tried = append(tried, e)
		err = p.exchangeAt(e, x, &call, now)
		call.tried(e, now, err)
		switch {
		case err == nil:
			e.succeeded()
			x.at, x.begun, x.span, x.Endpoint = e, now, call.Span, e.addr
			x.span.Answered(x.Head.Status)
			return nil
		case errors.Is(err, ErrNotHTTP2):
			return err
		case x.Gone():
			return http1.ErrGone
		}
		lastErr = err
		dialFailed := p.blame(e, err, now)
		if call.over() || x.began || x.taken.Load() || final(err) {
			break
		}
		if !dialFailed && !errors.Is(err, h2client.ErrUnprocessed) && !(x.safe() && p.mayRepeat()) {
			break
		}
	}
	return lastErr
}

func (x *Exchange) safe() bool {
	return x.Content == nil && len(x.Body) == 0 && http1.Safe(x.Request.Method)
}

// exchangeAt tries an endpoint, again if that has not processed the request: it
// ends its connection, or refused the stream.
func (p *Pool) exchangeAt(e *endpoint, x *Exchange, call *Call, now time.Time) (err error) {
	proto := protocolOf(call.Protocol, p.members.Load().appProtocol)
	if !proto.http2() || proto == h2 && e.shared[proto-h2c].oldWays.Load() > now.UnixNano() {
		return ErrNotHTTP2
	}
	e.acquire()
	answered := false
	defer func() {
		if !answered { // which is so after a fault as well
			x.drop()
			e.release()
		}
	}()
	for again := 0; ; again++ {
		err = x.ask(p, e, proto, call)
		if err == nil {
			answered = true
			return nil
		}
		x.stop()
		endTry(call.Span, err, time.Time{})
		if again == maxAgain || x.taken.Load() || x.Gone() || !errors.Is(err, h2client.ErrUnprocessed) {
			return err
		}
		if again > 0 {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// ask sends the request once and waits for the answer's head.
func (x *Exchange) ask(p *Pool, e *endpoint, proto protocol, call *Call) error {
	x.Request.Secure = proto == h2
	x.Request.End = x.Content == nil && len(x.Body) == 0
	x.active.Store(x.clock.Load())
	call.Span.Try(e.addr, proto.scheme(), "2", nil)
	s, _, err := e.shared[proto-h2c].have(&x.Request)
	if s == nil && err == nil {
		s, err = x.connect(p, e, proto, call)
	}
	if err != nil {
		return err
	}
	x.mu.Lock()
	x.stream = s
	gone := x.gone
	x.mu.Unlock()
	switch {
	case gone:
		s.Cancel(http1.ErrGone)
		return http1.ErrGone
	case x.Content != nil:
		x.pumping = make(chan error, 1)
		go func() { x.pumping <- x.pump(s) }()
	case len(x.Body) > 0:
		x.by(&x.sendBy, x.send)
		_ = s.Send(x.Body, true) // where it fails, the answer tells why, or its lack
		x.sendBy.Store(0)
		x.by(&x.readBy, x.read)
	default:
		x.by(&x.readBy, x.read)
	}
	for {
		h, err := s.Head(nil)
		if err != nil {
			return err
		}
		x.active.Store(x.clock.Load())
		if h.Status >= http.StatusOK {
			x.Head = h
			x.mu.Lock()
			x.answered = true
			x.readBy.Store(0)
			x.mu.Unlock()
			return nil
		}
		if x.Interim != nil {
			x.began = true
			x.Interim(&h)
		}
	}
}

// connect waits for a connection, as long as somebody waits for the answer.
func (x *Exchange) connect(p *Pool, e *endpoint, proto protocol, call *Call) (*h2client.Stream, error) {
	ctx, cancel := context.WithCancel(context.Background())
	if !call.Deadline.IsZero() {
		cancel()
		ctx, cancel = context.WithDeadline(context.Background(), call.Deadline)
	}
	defer cancel()
	quit := func(f context.CancelFunc) (gone bool) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.quit = f
		return x.gone
	}
	if quit(cancel) {
		cancel()
	}
	defer quit(nil)
	s, err := e.shared[proto-h2c].open(ctx, p, e, proto, &x.Request, call)
	switch {
	case err == nil || ctx.Err() == nil:
		return s, err
	case errors.Is(err, context.DeadlineExceeded):
		return nil, ErrTimeout
	case errors.Is(err, context.Canceled):
		return nil, http1.ErrGone
	}
	return nil, err
}

// pump sends the client's body.
func (x *Exchange) pump(s *h2client.Stream) error {
	for {
		x.taken.Store(true)
		data, err := x.Content.Next(bodyPiece)
		x.active.Store(x.clock.Load())
		switch {
		case err == io.EOF:
			x.mu.Lock()
			if !x.answered { // else the limit is that of the read under way
				x.by(&x.readBy, x.read)
			}
			x.mu.Unlock()
			if list := x.Content.Trailers(); len(list) > 0 {
				return s.SendTrailer(func(yield func(string, string) bool) {
					for _, f := range list {
						if http1.TrailerGoes(f.Name) && !yield(f.Name, f.Value) {
							return
						}
					}
				})
			}
			return s.Send(nil, true)
		case err != nil:
			s.Cancel(err)
			return err
		}
		x.by(&x.sendBy, x.send)
		err = s.Send(data, false)
		x.sendBy.Store(0)
		if err != nil {
			return err // whoever waits for the answer is told
		}
	}
}

// stop ends what is under way at a backend.
func (x *Exchange) stop() {
	x.mu.Lock()
	s := x.stream
	x.stream = nil
	x.mu.Unlock()
	x.readBy.Store(0)
	if s == nil {
		return
	}
	s.Close()
	if x.pumping != nil {
		select {
		case <-x.pumping:
		default:
			x.Content.Stop()
			<-x.pumping
		}
		x.pumping = nil
	}
}

// drop ends what is under way at a backend, and leaves the client's body to
// whoever has it.
func (x *Exchange) drop() {
	if s := x.stream; s != nil { // set by this goroutine
		s.Close()
	}
}

// Next returns the next bytes of the answer's body, a view that is good until
// the next call; io.EOF at the end.
func (x *Exchange) Next() ([]byte, error) {
	x.active.Store(x.clock.Load()) // also what was ready before
	x.by(&x.readBy, x.read)
	data, err := x.stream.Next(nil)
	x.active.Store(x.clock.Load())
	x.readBy.Store(0)
	return data, err
}

// NextReady is like Next, but if it would have to wait it returns nothing.
func (x *Exchange) NextReady() ([]byte, error) {
	data, err := x.stream.NextReady()
	if len(data) > 0 {
		x.active.Store(x.clock.Load()) // a slow client may never have to wait in Next
	}
	return data, err
}

// Trailer returns the answer's trailers, once Next has returned io.EOF.
func (x *Exchange) Trailer() []hpack.HeaderField { return x.stream.Trailer() }

// EndExchange ends an exchange that [Pool.Exchange] has begun; err is how the
// answer ended.
func (p *Pool) EndExchange(x *Exchange, err error) {
	p.answered(x.at, x.span, err, x.begun)
	x.stop()
	x.at.release()
}

// DropExchange is EndExchange after a fault of the gateway's own, which says
// nothing of the endpoint.
func (p *Pool) DropExchange(x *Exchange) {
	x.drop()
	x.at.release()
}
