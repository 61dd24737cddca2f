package gateway

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"fairway.dev/fairway/internal/gateway/filter"
	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/upstream"
)

// questions keeps the buffers of requests.
type questions struct{ pool *sync.Pool }

func newQuestions() questions {
	return questions{&sync.Pool{New: func() any { return &http1.Question{} }}}
}

// mayAsk reports whether a request needs nothing of what net/http's client
// does for the sake of bodies and upgrades.
func (n *netClient) mayAsk() bool {
	r := n.request
	return r.ContentLength == 0 && r.Header["Upgrade"] == nil && r.Header["Expect"] == nil && len(r.Trailer) == 0
}

// ask is proxy for such requests to a backend that speaks HTTP/1.1, by the engine for HTTP/1.1: most requests are
// of that sort, and net/http's client takes as long for them as all the rest.
func (n *netClient) ask(t *transaction, b *backend, call upstream.Call) {
	x, w := &t.exchange, n.answers
	q := t.g.questions.pool.Get().(*http1.Question)
	q.Interim = func(r *http1.Response) {
		header := w.Header()
		for name, value := range r.Each() {
			addHeader(header, name, value)
		}
		w.WriteHeader(r.Status)
		clear(header)
	}
	q.Fill(t.view.Method, n.request.Header, &http1.Forward{Path: x.Path, Query: x.Query, Host: t.view.Authority, Set: x.Header, Drop: filter.Spoofs})
	stop := context.AfterFunc(n.request.Context(), q.Abandon)
	over := false
	defer func() {
		if stop() && over { // else it may be abandoned late, or is in an unknown state
			t.g.questions.pool.Put(q)
		}
	}()
	lease, err := b.pool.Ask(q, call)
	if err != nil {
		over = true
		t.proxyFailed(err)
		return
	}
	defer func() {
		if !over {
			b.pool.Drop(lease)
		}
	}()
	t.endpoint = lease.Endpoint
	err = n.relay(t, lease.Backend)
	over = true
	q.Release()
	b.pool.Done(lease, err, t.g.clock.now())
	if err != nil {
		t.failure = err.Error()
		panic(http.ErrAbortHandler) // the answer cannot be finished
	}
}

// relay gives a backend's answer to the client. What has come goes out
// together; nothing is held back to wait for more.
func (n *netClient) relay(t *transaction, b *http1.Backend) error {
	w := n.answers
	header := w.Header()
	for name, value := range b.Response.Each() {
		addHeader(header, name, value)
	}
	t.addExtra(header)
	w.WriteHeader(b.Response.Status)
	for {
		data, err := b.NextReady()
		if len(data) == 0 && err == nil {
			if err := http.NewResponseController(w).Flush(); err != nil {
				return fmt.Errorf("%w: %w", http1.ErrClient, err)
			}
			data, err = b.Next()
		}
		if len(data) > 0 {
			if _, err := w.Write(data); err != nil {
				return fmt.Errorf("%w: %w", http1.ErrClient, err)
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			_ = http.NewResponseController(w).Flush() // what came before is true all the same
			return err
		}
	}
	for name, value := range b.EachTrailer() {
		header.Add(http.TrailerPrefix+name, value)
	}
	return nil
}

// addHeader adds a field that is a view.
func addHeader(header http.Header, name, value string) {
	name = http.CanonicalHeaderKey(strings.Clone(name))
	header[name] = append(header[name], strings.Clone(value))
}
