package listener

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// timedBody is a request body by HTTP/3, whose client has so long
// for each piece that is waited for. How long a backend takes to ask for the
// next one does not count.
type timedBody struct {
	io.ReadCloser
	timeout time.Duration
	timer   *time.Timer // of the one who reads
	patient bool        // there is no limit

	mu         sync.Mutex
	controller *http.ResponseController // nil once the handler has returned
}

// Timed holds an RPC to the limit of other requests, where the backend speaks
// no HTTP/2: by HTTP/1.1 no call is silent for long, whatever Content-Type says.
// It is called before Read.
func (b *timedBody) Timed() { b.patient = false }

// serveTimed serves a request within limits on the waits for its body. RPCs
// have others, by who sends them to the backend, unless that calls Timed.
func serveTimed(h http.Handler, w http.ResponseWriter, r *http.Request, timeout time.Duration) {
	if r.ContentLength == 0 {
		h.ServeHTTP(w, r)
		return
	}
	b := &timedBody{ReadCloser: r.Body, timeout: timeout, controller: http.NewResponseController(w),
		patient: r.Method == http.MethodPost && maySayNothing(r.Header.Get("Content-Type"))}
	defer b.end()
	in := *r
	in.Body = b
	h.ServeHTTP(w, &in)
}

func maySayNothing(contentType string) bool {
	return strings.HasPrefix(contentType, "application/grpc") || strings.HasPrefix(contentType, "application/connect+")
}

// Read implements io.Reader.
func (b *timedBody) Read(p []byte) (int, error) {
	if b.patient {
		return b.ReadCloser.Read(p)
	}
	if b.timer == nil {
		b.timer = time.AfterFunc(b.timeout, b.expire)
	} else {
		b.timer.Reset(b.timeout)
	}
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	return n, err
}

func (b *timedBody) expire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.controller != nil {
		_ = b.controller.SetReadDeadline(time.Unix(1, 0)) // long past
	}
}

// end keeps a read that outlives the handler, as those of net/http's client
// may, from using what the server takes back then.
func (b *timedBody) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.controller = nil
}
