package http1

import (
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// silence ends what is carried between connections once nothing has been for so
// long. It asks the kernel how many bytes have come and gone, so that whoever
// carries them need not say so, and may be the kernel itself.
type silence struct {
	limit time.Duration
	conns []control
	cut   func()

	mu    sync.Mutex
	timer *time.Timer // nil once it has ended
	seen  uint64
	since time.Time
}

// control does something with a socket, unless that is closed.
type control func(do func(fd uintptr)) bool

// looks is how often silence looks within its limit: what ends for it has been
// silent for up to a quarter of the limit more.
const looks = 4

// watchSilence calls cut once none of the connections has had any byte come, or
// acknowledged, for a time. No limit, 0, watches nothing, and of connections those
// are left out that are nil. Once stop has returned cut is not called any more.
func watchSilence(limit time.Duration, cut func(), conns ...control) (stop func()) {
	conns = slices.DeleteFunc(conns, func(c control) bool { return c == nil })
	if limit <= 0 || len(conns) == 0 {
		return func() {}
	}
	w := &silence{limit: limit, conns: conns, cut: cut, since: time.Now()}
	w.seen = w.carried()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(max(limit/looks, time.Millisecond), w.look)
	return w.stop
}

func (w *silence) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
}

func (w *silence) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer == nil {
		return
	}
	now := time.Now()
	if n := w.carried(); n != w.seen {
		w.seen, w.since = n, now
	} else if now.Sub(w.since) >= w.limit {
		w.timer = nil
		w.cut()
		return
	}
	w.timer.Reset(max(w.limit/looks, time.Millisecond))
}

// carried is how many bytes the connections have received, and sent with success.
func (w *silence) carried() uint64 {
	var n uint64
	for _, with := range w.conns {
		with(func(fd uintptr) {
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
				n += info.Bytes_received + info.Bytes_acked
			}
		})
	}
	return n
}

// controlOf returns the control of a connection that is read and written by others
// meanwhile; nil if it is none of TCP.
func controlOf(c net.Conn) control {
	switch c := c.(type) {
	case *Socket:
		return c.with
	case *front:
		return c.with
	case syscall.Conn:
		raw, err := c.SyscallConn()
		if err != nil {
			return nil
		}
		return func(do func(fd uintptr)) bool { return raw.Control(do) == nil }
	case interface{ NetConn() net.Conn }:
		return controlOf(c.NetConn())
	}
	return nil
}
