package agent

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"fairway.dev/fairway/internal/dns"
)

const (
	// pulseEvery is how often this node's DNS server is asked whether it answers.
	pulseEvery = 300 * time.Millisecond
	// pulseValid is how long the data path takes its word for it. Where this
	// process gets no time for so long, its clients go to other nodes: no loss.
	pulseValid = 1500 * time.Millisecond
)

// pulse tells the data path that this node's DNS server answers, as long as it
// does, so that clients go to other nodes when it is killed, hangs, or is to end.
type pulse struct {
	*node
	listen []netip.AddrPort
	server *dns.Server

	mu     sync.Mutex
	direct directDNS
	ill    bool
	ended  chan struct{} // closed by end
	over   sync.Once
}

func newPulse(n *node, listen []netip.AddrPort, server *dns.Server) *pulse {
	return &pulse{node: n, listen: listen, server: server, direct: directDNS{node: n, server: server}, ended: make(chan struct{})}
}

// run tells the data path until ctx ends, or end is called.
func (p *pulse) run(ctx context.Context) error {
	beats, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // a beat that waits for an answer must not keep the end waiting
		select {
		case <-p.ended:
			cancel()
		case <-beats.Done():
		}
	}()
	pingers := make([]*dns.Pinger, len(p.listen))
	for i, a := range p.listen {
		pingers[i] = dns.NewPinger(a)
		defer pingers[i].Close()
	}
	defer p.direct.close()
	tick := time.NewTicker(pulseEvery)
	defer tick.Stop()
	for {
		p.beat(beats, pingers)
		select {
		case <-beats.Done():
			<-ctx.Done()
			return nil
		case <-tick.C:
		}
	}
}

// beat asks the server, and tells the data path if it answers.
func (p *pulse) beat(ctx context.Context, pingers []*dns.Pinger) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, pinger := range pingers {
		errs = append(errs, pinger.Ping(ctx, pulseValid))
	}
	err := errors.Join(errs...)
	var at []netip.AddrPort
	if err == nil {
		at = p.direct.addrs(ctx)
	}
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		err = p.dataplane.Pulse(pulseValid, p.server.Sockets(), at)
	}
	switch {
	case err != nil && !p.ill:
		p.Logger.Warn("this node's DNS server does not answer; where there are others, clients on this node go to them", "error", err)
	case err == nil && p.ill:
		p.Logger.Info("this node's DNS server answers again")
	}
	p.ill = err != nil
}

// end has clients go to other nodes for good, for which nobody but the kernel is
// needed. The server has to go on for leaving: so long it may be asked, and answer.
func (p *pulse) end() error {
	p.over.Do(func() { close(p.ended) })
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dataplane.Pulse(time.Millisecond, p.server.Sockets(), nil)
}
