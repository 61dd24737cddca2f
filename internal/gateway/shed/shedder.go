package shed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime/debug"
	"sync/atomic"
	"time"
)

const (
	// interval is between two looks. A gateway takes some MB on in that time.
	interval = 100 * time.Millisecond
	// between two collections of garbage that only the shedder wants.
	collectInterval = time.Second
	// margin is how far below the threshold memory must be for an episode to end,
	// so that they do not follow each other.
	margin = 0.05
)

// Options configure a [Shedder].
type Options struct {
	// Above is the share of the memory from which on to shed, between 0 and 1. Required.
	Above float64
	// Share reads what share is in use, such as [Memory.Share]. Required.
	Share func() (float64, error)
	// Logger is told when an episode begins and ends. Required.
	Logger *slog.Logger
}

// Shedder says whether memory is short. Its zero pointer says that it never is.
type Shedder struct {
	options   Options
	active    atomic.Bool
	tight     atomic.Bool
	share     atomic.Uint64 // float64 as bits
	collected time.Time
	began     time.Time
	shed      atomic.Int64 // in this episode
	failing   bool
	collect   func() // frees what is not in use
}

// New returns a shedder; Run makes it look.
func New(o Options) (*Shedder, error) {
	if o.Share == nil || o.Logger == nil {
		return nil, errors.New("shed: Share and Logger are required")
	}
	if !(o.Above > 0 && o.Above <= 1) {
		return nil, fmt.Errorf("share of memory %v: want more than 0 and at most 1, such as 0.9", o.Above)
	}
	return &Shedder{options: o, collect: debug.FreeOSMemory}, nil
}

// Active reports whether memory is short.
func (s *Shedder) Active() bool { return s != nil && s.active.Load() }

// Tight reports whether the last look found as much in use as is short, be it
// garbage: to collect that takes seconds where processors are busy.
func (s *Shedder) Tight() bool { return s != nil && (s.tight.Load() || s.active.Load()) }

// Shed counts something that was turned away, for the log.
func (s *Shedder) Shed() { s.shed.Add(1) }

// Share returns the share that the last look found.
func (s *Shedder) Share() float64 {
	if s == nil {
		return 0
	}
	return math.Float64frombits(s.share.Load())
}

// Run looks until ctx ends.
func (s *Shedder) Run(ctx context.Context) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		s.look(time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look begins and ends episodes. What is garbage may not count: so it is
// collected before an episode begins, unless hardly anything is left that could
// be used meanwhile, and while one lasts, when little else would make the runtime
// do so.
func (s *Shedder) look(now time.Time) {
	share, ok := s.read()
	if !ok {
		return
	}
	active := s.active.Load()
	if !active && share < s.options.Above {
		return
	}
	urgent := share >= (1+s.options.Above)/2
	if urgent && !active {
		s.begin(share, now)
		active = true
	}
	if now.Sub(s.collected) >= collectInterval {
		s.collect()
		s.collected = now
		if share, ok = s.read(); !ok {
			return
		}
	} else if !active {
		return // it was less after the last collection, and may be after the next
	}
	switch {
	case !active && share >= s.options.Above:
		s.begin(share, now)
	case active && share < s.options.Above-margin:
		s.active.Store(false)
		s.options.Logger.Info("memory is free again, new requests are taken", "used", percent(share), "after", now.Sub(s.began).Round(time.Millisecond).String(), "turnedAway", s.shed.Load())
	}
}

func (s *Shedder) begin(share float64, now time.Time) {
	s.began = now
	s.shed.Store(0)
	s.active.Store(true)
	s.options.Logger.Warn("memory is short: new requests get 503 until some is free; if this happens often raise the memory limit, or run more gateways", "used", percent(share), "above", percent(s.options.Above))
}

func percent(share float64) string { return fmt.Sprintf("%.0f%%", 100*share) }

func (s *Shedder) read() (float64, bool) {
	share, err := s.options.Share()
	if err != nil {
		if !s.failing {
			s.failing = true
			s.options.Logger.Warn("memory in use cannot be read, nothing is shed meanwhile", "error", err)
		}
		s.active.Store(false)
		s.tight.Store(false)
		return 0, false
	}
	s.failing = false
	s.tight.Store(share >= s.options.Above)
	s.share.Store(math.Float64bits(share))
	return share, true
}
