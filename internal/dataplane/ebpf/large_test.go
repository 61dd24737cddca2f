package ebpf

import (
	"fmt"
	"testing"
	"time"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/dataplane/cases"
)

// TestLargeService runs a Service with 5,000 endpoints.
func TestLargeService(t *testing.T) {
	m := newMachine(t)
	var o Options
	var d *Dataplane
	cases.Large(t, func(t *testing.T, n *cases.Network) dataplane.Dataplane {
		o = m.options(t, n)
		o.MaxBackends = 1 << 15
		stack := whole(t, o).(dataplane.Stack)
		d = stack[0].(*Dataplane)
		return stack
	}, func(*testing.T, *cases.Network, dataplane.Dataplane) cases.Kernel {
		return cases.Kernel{
			Read: func() (dataplane.Holdings, error) { return Read(o) },
			Size: func() (string, error) { return d.size() },
		}
	})
}

// size tells how much the maps hold, after the grace of what was given up.
func (d *Dataplane) size() (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.rows.reap(); len(d.rows.leaving) > 0; d.rows.reap() {
		time.Sleep(time.Until(d.rows.leaving[0].until))
	}
	if err := d.read(); err != nil {
		return "", err
	}
	places := 0
	for order, blocks := range d.rows.free {
		places += len(blocks) << order
	}
	return fmt.Sprintf("%d frontends, %d addresses, %d free places", len(d.have.frontends), len(d.have.addresses), places), nil
}
