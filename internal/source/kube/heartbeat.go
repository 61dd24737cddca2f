package kube

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
)

const (
	// heartbeatEvery is how often the API is asked whether it is there, as often
	// as each kubelet renews its lease.
	heartbeatEvery = 10 * time.Second
	// heartbeatTimeout is how long it may take to say so. With the longest pause it
	// is the 15 s within which an API that hangs is told of.
	heartbeatTimeout = 4 * time.Second
)

// heartbeat finds out that the API hangs. Watches that bring nothing look the same
// as ones to which nothing happens: it takes their connections most of a minute to
// be taken for dead. It is asked over the same connection, and for /livez, so that
// one whose etcd is away counts too.
type heartbeat struct {
	client         rest.Interface
	logger         *slog.Logger
	every, timeout time.Duration

	mu     sync.Mutex
	silent time.Time // since when; zero while it answers
}

func (h *heartbeat) run(ctx context.Context) {
	for {
		pause := h.every*9/10 + rand.N(h.every/5) // so that nodes do not ask all at once
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		began := time.Now()
		limited, cancel := context.WithTimeout(ctx, h.timeout)
		err := h.client.Get().AbsPath("/livez").MaxRetries(0).Do(limited).Error()
		cancel()
		if ctx.Err() != nil {
			return
		}
		h.beat(began, err)
	}
}

// beat notes what came of asking.
func (h *heartbeat) beat(began time.Time, err error) {
	var status apierrors.APIStatus
	if errors.As(err, &status) && status.Status().Code < http.StatusInternalServerError {
		err = nil // not allowed, or not known, but said by the API
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err != nil && h.silent.IsZero():
		h.silent = began
		h.logger.Warn("Kubernetes API is asked whether it is well and does not say so; what it has told so far stays in use", "since", began, "error", err)
	case err == nil && !h.silent.IsZero():
		h.logger.Info("Kubernetes API is well again", "after", time.Since(h.silent).Round(time.Millisecond))
		h.silent = time.Time{}
	}
}

func (h *heartbeat) silentSince() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.silent
}
