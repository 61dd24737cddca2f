package dns

import (
	"context"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// healthEvery is how often the server asks itself, as CoreDNS does.
const healthEvery = time.Second

// checkHealth asks the server about its zone, within the process, until ctx
// ends: what that takes tells of a process without time, or locked up.
func (s *Server) checkHealth(ctx context.Context) {
	packed, err := new(dns.Msg).SetQuestion(s.zone.Domain(), dns.TypeSOA).Pack()
	if err != nil {
		return
	}
	self := s.opts.Listen[0]
	w := s.handler.newWorker(self, false, &counts{}) // not among what clients ask
	w.client, w.unlogged = self, true
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case w.start = <-tick.C:
		}
		s.askSelf(ctx, w, packed)
	}
}

// askSelf asks once, and counts from when it was time to.
func (s *Server) askSelf(ctx context.Context, w *worker, packed []byte) {
	answer, rest := s.handler.begin(w, packed, nil)
	if rest != nil {
		answer = rest(ctx)
	}
	s.handler.metrics.health.Observe(time.Since(w.start).Seconds())
	if len(answer) < 4 || answer[3]&0xf == dns.RcodeServerFailure {
		s.handler.metrics.unhealthy.Inc()
	}
}

// programmed notes how long changes of endpoints took to be in answers. Services
// with a cluster IP do not change theirs with their endpoints.
func (m *metrics) programmed(before, now *state.Snapshot) {
	if before == nil || !before.Synced {
		return // what was there at the start tells nothing
	}
	for c := range state.Diff(before.Endpoints, now.Endpoints) {
		if !c.HasNew || c.New.Triggered.IsZero() || c.HadOld && c.Old.Triggered.Equal(c.New.Triggered) {
			continue
		}
		if svc, ok := now.Services.Get(c.Key); ok && svc.Headless && svc.Type != model.ExternalName {
			m.programming.WithLabelValues("headless_with_selector").Observe(max(0, time.Since(c.New.Triggered).Seconds()))
		}
	}
}
