package upstream

import (
	"context"
	"io"
	"sync"
	"time"

	"fairway.dev/fairway/internal/gateway/http1"
)

// watchdog ends one attempt when the backend takes longer than it may for the
// next read or write, or nothing is read or written for too long.
type watchdog struct {
	cancel              context.CancelCauseFunc
	read, send, silence time.Duration

	mu                       sync.Mutex
	reading, sending, silent *time.Timer
	begun                    bool // the answer has
	done                     bool
}

func newWatchdog(cancel context.CancelCauseFunc, read, send time.Duration) *watchdog {
	return &watchdog{cancel: cancel, read: read, send: send}
}

// arm starts or restarts a timer.
func (w *watchdog) arm(t **time.Timer, d time.Duration) {
	if d <= 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armLocked(t, d)
}

func (w *watchdog) armLocked(t **time.Timer, d time.Duration) {
	switch {
	case w.done:
	case *t == nil:
		why := ErrTimeout
		if t == &w.silent {
			why = errSilent
		}
		*t = time.AfterFunc(d, func() { w.cancel(why) })
	default:
		(*t).Reset(d)
	}
}

// sent notes that all of the request was sent, from when on the answer is waited
// for, unless it has begun.
func (w *watchdog) sent() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.begun && w.read > 0 {
		w.armLocked(&w.reading, w.read)
	}
}

// answered notes that the answer has begun: each further read has a limit of its own.
func (w *watchdog) answered() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begun = true
	if w.reading != nil {
		w.reading.Stop()
	}
}

// heard notes that something was read or written.
func (w *watchdog) heard() { w.arm(&w.silent, w.silence) }

func (w *watchdog) disarm(t **time.Timer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if *t != nil {
		(*t).Stop()
	}
}

// stop ends all waiting, for good.
func (w *watchdog) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = true
	for _, t := range []*time.Timer{w.reading, w.sending, w.silent} {
		if t != nil {
			t.Stop()
		}
	}
}

// answerBody is a response body under the watchdog. Its end releases the
// endpoint.
type answerBody struct {
	io.ReadCloser
	dog      *watchdog
	idle     time.Duration // between two reads; 0 for no limit
	ctx      context.Context
	onceDone sync.Once
	finish   func()
	ended    func(error) // is told how it ended, if it was read to there
}

func (b *answerBody) Read(p []byte) (int, error) {
	b.dog.arm(&b.dog.reading, b.idle)
	n, err := b.ReadCloser.Read(p)
	b.dog.heard()
	b.dog.disarm(&b.dog.reading)
	if err != nil {
		err = causeOf(b.ctx, err)
		switch {
		case err == io.EOF:
			b.onceDone.Do(func() { b.ended(nil); b.finish() })
		case b.ctx.Err() == nil: // else the client or its time is over
			b.onceDone.Do(func() { b.ended(err); b.finish() })
		}
	}
	return n, err
}

func (b *answerBody) Close() error {
	err := b.ReadCloser.Close()
	b.onceDone.Do(b.finish)
	return err
}

// tunnelBody is the body of an answer that switched protocols (101): the
// caller writes to it as well.
type tunnelBody struct {
	*answerBody
	io.Writer
}

// causeOf prefers the reason why the attempt was ended over "canceled".
func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause == ErrTimeout || cause == http1.ErrInterims {
		return cause
	}
	return err
}
