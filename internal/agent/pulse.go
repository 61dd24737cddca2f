package agent

import (
	"context"
	"errors"
	"net/netip"
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
// does, so that clients go to other nodes when it is killed or hangs.
func (n *node) pulse(listen []netip.AddrPort, server *dns.Server) func(context.Context) error {
	return func(ctx context.Context) error {
		pingers := make([]*dns.Pinger, len(listen))
		for i, a := range listen {
			pingers[i] = dns.NewPinger(a)
			defer pingers[i].Close()
		}
		direct := &directDNS{node: n, server: server}
		defer direct.close()
		tick := time.NewTicker(pulseEvery)
		defer tick.Stop()
		ill := false
		for {
			var errs []error
			for _, p := range pingers {
				errs = append(errs, p.Ping(ctx, pulseValid))
			}
			err := errors.Join(errs...)
			if err == nil {
				at := direct.addrs(ctx)
				err = n.dataplane.Pulse(pulseValid, server.Sockets(), at)
			}
			if ctx.Err() != nil {
				return nil
			}
			switch {
			case err != nil && !ill:
				n.Logger.Warn("this node's DNS server does not answer; where there are others, clients on this node go to them", "error", err)
			case err == nil && ill:
				n.Logger.Info("this node's DNS server answers again")
			}
			ill = err != nil
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	}
}
