package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"fairway.dev/fairway/internal/model"
)

// ReporterOptions configure a [Reporter].
type ReporterOptions struct {
	// Config reaches the API. Required, unless Client is given.
	Config *rest.Config
	// Client replaces Config.
	Client kubernetes.Interface
	// Logger is required.
	Logger *slog.Logger
	// Problems returns what is wrong now. Required.
	Problems func() model.Problems
	// Changed fires when that has changed. Required.
	Changed <-chan struct{}
	// Settle is how long a problem is there before its Event; by default none waits.
	Settle time.Duration
	// Now tells the time; default time.Now.
	Now func() time.Time
}

// Reporter writes Events for problems that only this process can know, such as
// what the kernel of its node refuses, or a port that it does not give. It needs no leader: nobody else has them.
type Reporter struct {
	ReporterOptions
}

// NewReporter returns a reporter; nothing is written before Run.
func NewReporter(o ReporterOptions) (*Reporter, error) {
	if o.Logger == nil || o.Problems == nil || o.Changed == nil {
		return nil, errors.New("status: Logger, Problems and Changed are required")
	}
	if o.Client == nil {
		if o.Config == nil {
			return nil, errors.New("status: Config or Client is required")
		}
		var err error
		if o.Client, err = kubernetes.NewForConfig(o.Config); err != nil {
			return nil, fmt.Errorf("status: %w", err)
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Reporter{o}, nil
}

// Run writes until ctx ends; it then returns nil. It writes nothing as long as
// nothing is wrong.
func (r *Reporter) Run(ctx context.Context) error {
	newest := make(chan map[model.Ref]model.Problems, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		newEvents(r.Client, r.Logger, r.Now, r.Settle).run(ctx, newest)
	}()
	defer func() { <-done }()
	renew := time.NewTicker(recheck)
	defer renew.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.Changed:
		case <-renew.C:
		}
		problems := map[model.Ref]model.Problems{}
		for _, p := range r.Problems() {
			problems[p.Object] = append(problems[p.Object], p)
		}
		handOver(newest, problems)
	}
}
