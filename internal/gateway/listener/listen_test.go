package listener

import (
	"log/slog"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/testenv"
)

// TestAcceptedOptions: connections have from their listener what Go would set
// on each.
func TestAcceptedOptions(t *testing.T) {
	list, err := Listen(t.Context(), []string{"127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(list)
	client, err := net.Dial("tcp", list[0].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	// net.Listener's Accept would set some of them itself.
	doors, err := files(list)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(doors)
	listening, err := doors[0].SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var conn *http1.Socket
	if err := listening.Read(func(fd uintptr) bool {
		var errno syscall.Errno
		conn, errno = http1.Accept(fd, 1)
		return errno != syscall.EAGAIN
	}); err != nil || conn == nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, want := conn.Peer().String(), client.LocalAddr().String(); got != want {
		t.Errorf("the client is %s, want %s", got, want)
	}
	if got, want := conn.LocalAddr().String(), client.RemoteAddr().String(); got != want {
		t.Errorf("it came to %s, want %s", got, want)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []struct {
		name                string
		level, option, want int
	}{
		{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
		{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
		{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
		{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{"SO_PROTOCOL", unix.SOL_SOCKET, unix.SO_PROTOCOL, unix.IPPROTO_TCP},
	} {
		_ = raw.Control(func(fd uintptr) {
			if got, err := unix.GetsockoptInt(int(fd), o.level, o.option); err != nil || got != o.want {
				t.Errorf("%s is %d (%v), want %d", o.name, got, err, o.want)
			}
		})
	}
}

// TestNoMoreFiles: clients wait while the process has as many files open as it
// may, the log says so once, with the cure, and then they are served.
func TestNoMoreFiles(t *testing.T) {
	list, err := Listen(t.Context(), []string{"127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(list)
	doors, err := files(list)
	if err != nil {
		t.Fatal(err)
	}
	client, err := net.Dial("tcp", list[0].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	restore := sync.OnceFunc(func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	})
	defer restore()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 3, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	log := &testenv.Log{}
	taken, ended := make(chan *http1.Socket, 1), make(chan error, 1)
	go func() {
		ended <- accept(doors[0], 1, func(s *http1.Socket) { taken <- s }, slog.New(slog.NewTextHandler(log, nil)))
	}()
	for end := time.Now().Add(20 * time.Second); log.Count("cannot be accepted") == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing is said")
		}
	}
	time.Sleep(100 * time.Millisecond) // it is tried again meanwhile
	restore()
	select {
	case s := <-taken:
		_ = s.Close()
	case <-time.After(20 * time.Second):
		t.Error("the client is not served")
	}
	if log.Count("cannot be accepted") != 1 || log.Count("LimitNOFILE") != 1 {
		t.Errorf("the log says %s", log)
	}
	closeAll(doors)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestFilesForBackends: clients are not accepted with the last files, which those
// that are served need for their backends.
func TestFilesForBackends(t *testing.T) {
	list, err := Listen(t.Context(), []string{"127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(list)
	doors, err := files(list)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		client, err := net.Dial("tcp", list[0].Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
	}
	next, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(next)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := limit
	for low.Cur = 4; low.Cur-low.Cur/4 < uint64(next)+1; low.Cur++ { // for one more
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	}()
	log := &testenv.Log{}
	taken, ended := make(chan *http1.Socket, 3), make(chan error, 1)
	go func() {
		ended <- accept(doors[0], 1, func(s *http1.Socket) { taken <- s }, slog.New(slog.NewTextHandler(log, nil)))
	}()
	for n := range 3 {
		select {
		case s := <-taken:
			for end := time.Now().Add(20 * time.Second); log.Count("for backends") == 0; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("nothing is said")
				}
			}
			if len(taken) > 0 {
				t.Error("the next one is accepted as well")
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("client %d is not served", n)
		}
	}
	closeAll(doors)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
