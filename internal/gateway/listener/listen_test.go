package listener

import (
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/gateway/http1"
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
