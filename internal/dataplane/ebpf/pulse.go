package ebpf

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// pulse is what has been told of the node's own server.
type pulse struct {
	mu      sync.Mutex
	sockets []uint64 // that the programs know
}

// Pulse implements dataplane.Dataplane. Of a server that has been killed the
// programs learn at once, as the kernel closes its sockets. What is answered
// directly they leave as it is, for whom Remainder leaves the frontend to.
func (d *Dataplane) Pulse(valid time.Duration, sockets []uint64, direct []netip.AddrPort) error {
	d.pulse.mu.Lock()
	defer d.pulse.mu.Unlock()
	if !slices.Equal(sockets, d.pulse.sockets) {
		for _, s := range sockets {
			if err := d.maps[socketMapServerSockets].Put(s, uint8(1)); err != nil {
				return fmt.Errorf("eBPF: map %s: %w", socketMapServerSockets, err)
			}
		}
		d.pulse.sockets = slices.Clone(sockets)
	}
	var now unix.Timespec // the clock of bpf_ktime_get_ns
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("eBPF: clock: %w", err)
	}
	until := uint64(now.Nano()+valid.Nanoseconds()) &^ 1
	if len(direct) > 0 {
		until |= 1
	}
	if err := d.maps[socketMapPulse].Update(uint32(0), until, ebpf.UpdateExist); err != nil {
		return fmt.Errorf("eBPF: map %s: %w", socketMapPulse, err)
	}
	return nil
}
