package http1

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// turns is how many full buffers a tunnel may have carried in a row until it
// goes its own way, as one that carries bulk.
const turns = 4

// Ferries carry tunnels of messages: each is a goroutine that waits, by a
// poller of its own, for the sockets of many. A goroutine for each direction
// costs more time, for it is woken for every message, and more memory; and that
// poller tells with what has come whether its end has come as well, for which a
// goroutine has to ask. Made with the first tunnel. The zero value is ready.
type Ferries struct {
	once sync.Once
	list []*ferry
	next atomic.Uint32
}

// pick returns the ferry for another tunnel; nil if there is none.
func (f *Ferries) pick() *ferry {
	f.once.Do(func() {
		for range runtime.GOMAXPROCS(0) {
			one, err := newFerry()
			if err != nil {
				return // tunnels can do without
			}
			f.list = append(f.list, one)
		}
	})
	if len(f.list) == 0 {
		return nil
	}
	return f.list[int(f.next.Add(1))%len(f.list)]
}

// Carry carries bytes both ways between two connections, of which both are its
// own, until both sides have ended, ctx does, or nothing has been carried for as
// long as idle and up to a quarter more; 0 for no such limit. Begun has
// come from a already. A side that ends is no end of the other (half-close); a side
// that fails is. It does not wait for that: done is called once both are closed, by
// whoever carries others as well, and is to be short.
func (f *Ferries) Carry(ctx context.Context, a, b net.Conn, begun []byte, idle time.Duration, done func()) {
	near, far := detached(&a), detached(&b)
	if near == nil || far == nil {
		go func() {
			defer done()
			defer a.Close()
			defer b.Close()
			cut := func() {
				_ = a.SetDeadline(past)
				_ = b.SetDeadline(past)
			}
			defer context.AfterFunc(ctx, cut)()
			defer watchSilence(idle, cut, controlOf(a), controlOf(b))()
			between(a, b, begun)
		}()
		return
	}
	t := newTunnel(near, far)
	stop := context.AfterFunc(ctx, t.cut)
	unwatch := watchSilence(idle, t.cut, near.with, far.with)
	end := func() {
		unwatch()
		stop()
		_ = far.Close()
		_ = near.Close()
		done()
	}
	if len(begun) == 0 {
		var failed bool
		if begun, failed = t.first(); failed {
			end()
			return
		}
	}
	t.begin(f, begun, func(r remainder) {
		if r.from == nil {
			end()
			return
		}
		go func() {
			t.finish(r)
			end()
		}()
	})
}

// first sends on what the first side has sent by now, for which a ferry would be
// woken at once, and returns what of that could not be sent.
func (t *tunnel) first() (rest []byte, failed bool) {
	buf := tunnelBuffers.Get().(*[]byte)
	defer tunnelBuffers.Put(buf)
	b := &t.banks[0]
	n, errno := receive(uintptr(b.sock.fd), *buf)
	if n <= 0 || errno != 0 {
		return nil, errno != 0 && errno != syscall.EAGAIN // of the end, a ferry is told as well
	}
	sent, errno := send(uintptr(b.to.sock.fd), (*buf)[:n], syscall.MSG_NOSIGNAL)
	if errno != 0 {
		sent = 0
	}
	b.n += int64(sent)
	return append([]byte(nil), (*buf)[sent:n]...), false
}

// detached puts a Socket, of which the runtime's poller knows nothing, in a
// connection's place. If it cannot, that is as it was, and nil is returned.
func detached(c *net.Conn) *Socket {
	var s *Socket
	switch conn := (*c).(type) {
	case *Socket:
		if conn.unpoll() {
			s = conn
		}
	case *net.TCPConn:
		s = duplicate(conn)
	}
	if s != nil && s != *c {
		_ = (*c).Close()
		*c = s
	}
	return s
}

// duplicate returns a Socket for a connection that is to be closed; nil if the
// process may have no further file.
func duplicate(c *net.TCPConn) *Socket {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	fd := -1
	if raw.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) }) != nil || err != nil {
		return nil
	}
	return &Socket{fd: fd}
}

// Close ends the ferries, which carry nothing any more.
func (f *Ferries) Close() {
	f.once.Do(func() {})
	for _, one := range f.list {
		_ = one.epoll.Close()
	}
}

type ferry struct {
	epoll *os.File
	fd    int

	mu    sync.Mutex
	banks map[int32]*bank // by file descriptor
}

// tunnel is two connections whose bytes go from one to the other.
type tunnel struct {
	banks [2]bank
	// left is called once, when no ferry knows of the tunnel any more.
	left func(remainder)
}

// bank is one side of a tunnel. The ferry's alone while that carries it.
type bank struct {
	sock   *Socket
	tunnel *tunnel
	to     *bank
	n      int64 // bytes that came from here and were sent on
	ended  bool  // nothing more comes from here, and the other side has been told
}

// remainder is what is left to be done for a tunnel by others: nothing if from
// is nil. Bytes came from there, and are to be sent on before what follows.
type remainder struct {
	from  *bank
	bytes []byte
}

func newTunnel(a, b *Socket) *tunnel {
	t := &tunnel{}
	t.banks[0] = bank{sock: a, tunnel: t, to: &t.banks[1]}
	t.banks[1] = bank{sock: b, tunnel: t, to: &t.banks[0]}
	return t
}

// carry carries a tunnel until both sides have ended, and returns how many bytes
// went from the second to the first. Begun has come from that already. The
// caller closes both.
func (t *tunnel) carry(fleet *Ferries, begun []byte) int64 {
	left := make(chan remainder, 1)
	t.begin(fleet, begun, func(r remainder) { left <- r })
	if r := <-left; r.from != nil {
		t.finish(r)
	}
	return t.banks[1].n
}

// begin has a ferry carry a tunnel, and left be called with what it leaves. Begun
// has come from the first side already.
func (t *tunnel) begin(fleet *Ferries, begun []byte, left func(remainder)) {
	t.left = left
	r := remainder{&t.banks[0], begun}
	if len(begun) > 0 {
		if n, errno := send(uintptr(t.banks[1].sock.fd), begun, syscall.MSG_NOSIGNAL); errno == 0 {
			t.banks[0].n += int64(n)
			r.bytes = begun[n:]
		}
	}
	if f := fleet.pick(); len(r.bytes) > 0 || f == nil || !f.take(t) {
		left(r)
	}
}

// finish carries what a ferry does not.
func (t *tunnel) finish(r remainder) {
	from := func(b *bank, begun []byte) {
		if b.ended {
			return
		}
		to := b.to.sock
		written, err := to.Write(begun)
		b.n += int64(written)
		if err == nil {
			var n int64
			n, err = transfer(to, b.sock)
			b.n += n
		}
		_ = to.CloseWrite()
		if err != nil {
			t.cut()
		}
	}
	var other sync.WaitGroup
	other.Go(func() { from(r.from.to, nil) })
	from(r.from, r.bytes)
	other.Wait()
}

// cut ends a tunnel from outside: both sides end.
func (t *tunnel) cut() {
	for i := range t.banks {
		t.banks[i].sock.with(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	}
}

func newFerry() (*ferry, error) {
	epoll, fd, err := newPoller()
	if err != nil {
		return nil, err
	}
	raw, err := epoll.SyscallConn()
	if err != nil {
		_ = epoll.Close()
		return nil, err
	}
	f := &ferry{epoll: epoll, fd: fd, banks: map[int32]*bank{}}
	go f.run(raw)
	return f, nil
}

// newPoller returns an epoll that the runtime's own poller knows.
func newPoller() (*os.File, int, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err == nil {
		err = unix.SetNonblock(fd, true) // else the runtime's poller would not take it
	}
	if err != nil {
		return nil, 0, fmt.Errorf("create an epoll: %w", err)
	}
	return os.NewFile(uintptr(fd), "epoll"), fd, nil
}

// take has the ferry carry a tunnel; false if it cannot.
func (f *ferry) take(t *tunnel) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range t.banks {
		b := &t.banks[i]
		// One that has been told of is told of again only when there is more.
		event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(b.sock.fd)}
		if unix.EpollCtl(f.fd, unix.EPOLL_CTL_ADD, b.sock.fd, &event) != nil {
			f.forget(t, false)
			return false
		}
		f.banks[int32(b.sock.fd)] = b
	}
	return true
}

// forget strikes a tunnel off; mu is held. The poller forgets what is closed
// next by itself.
func (f *ferry) forget(t *tunnel, closed bool) {
	for i := range t.banks {
		fd := t.banks[i].sock.fd
		if b := f.banks[int32(fd)]; b != nil && b.tunnel == t {
			delete(f.banks, int32(fd))
			if !closed {
				_ = unix.EpollCtl(f.fd, unix.EPOLL_CTL_DEL, fd, nil)
			}
		}
	}
}

// leave strikes a tunnel off and says what is left to be done.
func (f *ferry) leave(t *tunnel, r remainder) {
	f.mu.Lock()
	f.forget(t, r.from == nil)
	f.mu.Unlock()
	t.left(r)
}

// run carries until the epoll is closed.
func (f *ferry) run(raw syscall.RawConn) {
	var (
		events [128]unix.EpollEvent
		banks  [len(events)]*bank
		buf    = make([]byte, tunnelBuffer)
	)
	_ = raw.Read(func(fd uintptr) bool {
		for {
			n, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, fd, uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
			if errno == syscall.EINTR {
				continue
			}
			if errno != 0 || n == 0 {
				return false
			}
			f.mu.Lock()
			for i := range events[:n] {
				banks[i] = f.banks[events[i].Fd]
			}
			f.mu.Unlock()
			for i := range events[:n] {
				// One that left by an event before this has been struck off, and by
				// now may have been closed.
				if b := banks[i]; b != nil && !f.carry(b, events[i].Events, buf) {
					for j := range banks[i:n] {
						if o := banks[i+j]; o != nil && o.tunnel == b.tunnel {
							banks[i+j] = nil
						}
					}
				}
			}
			clear(banks[:n])
			if int(n) < len(events) {
				return false // what comes from here on, the runtime is told
			}
		}
	})
}

// carry sends on what has come from one side; false if the tunnel leaves the
// ferry by that.
func (f *ferry) carry(b *bank, events uint32, buf []byte) bool {
	if b.ended {
		// The other side has gone as well, but what it sent comes before that.
		return true
	}
	ending := events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0
	for turn := 0; ; turn++ {
		n, errno := receive(uintptr(b.sock.fd), buf)
		switch {
		case errno == syscall.EAGAIN:
			return true
		case errno != 0:
			b.tunnel.cut()
			f.leave(b.tunnel, remainder{})
			return false
		case n == 0:
			b.ended = true
			if b.to.ended {
				f.leave(b.tunnel, remainder{}) // closing them tells the other side
				return false
			}
			_, _, _ = syscall.RawSyscall(syscall.SYS_SHUTDOWN, uintptr(b.to.sock.fd), syscall.SHUT_WR, 0)
			return true
		}
		// The end follows at once where it has come already: one packet has room for both.
		flags := uintptr(syscall.MSG_NOSIGNAL)
		if ending && n < len(buf) {
			flags |= unix.MSG_MORE
		}
		sent, errno := send(uintptr(b.to.sock.fd), buf[:n], flags)
		switch {
		case errno == syscall.EAGAIN:
			sent = 0
		case errno != 0:
			b.tunnel.cut()
			f.leave(b.tunnel, remainder{})
			return false
		}
		b.n += int64(sent)
		if rest := buf[sent:n]; len(rest) > 0 || n == len(buf) && turn >= turns {
			f.leave(b.tunnel, remainder{b, append([]byte(nil), rest...)})
			return false
		}
		if n < len(buf) && !ending {
			return true // that was all, and the poller tells of more, be it the end
		}
	}
}
