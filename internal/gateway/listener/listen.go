package listener

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/gateway/http1"
)

// config opens sockets that a later process can share. Probes of silent
// connections are asked for here, as often as Go does, and that nothing is held
// back to be sent with more (Nagle), because connections have it from their
// listener, while Go would say so to each by five system calls.
// Multipath TCP, which Go's listeners speak unless told otherwise, makes
// sockets that take other ways through the kernel, and nobody asked for it.
func config() *net.ListenConfig {
	lc := &net.ListenConfig{KeepAlive: -1, Control: func(network, _ string, c syscall.RawConn) error {
		var err error
		if ctlErr := c.Control(func(fd uintptr) { err = setOptions(int(fd), strings.HasPrefix(network, "tcp")) }); ctlErr != nil {
			return ctlErr
		}
		return err
	}}
	lc.SetMultipathTCP(false)
	return lc
}

func setOptions(fd int, tcp bool) (err error) {
	const silent, between, probes = 15, 15, 9 // seconds, seconds
	options := [][3]int{{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1}}
	if tcp {
		options = append(options, [3]int{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1}, [3]int{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, [3]int{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, silent},
			[3]int{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, between}, [3]int{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, probes})
	}
	for _, o := range options {
		err = cmp.Or(err, os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, o[0], o[1], o[2])))
	}
	return err
}

// Listen opens TCP sockets at all addresses ("host:port", or ":port" for all
// addresses of both families), or none.
func Listen(ctx context.Context, addrs []string) ([]net.Listener, error) {
	var list []net.Listener
	for _, addr := range addrs {
		l, err := config().Listen(ctx, "tcp", addr)
		if err != nil {
			closeAll(list)
			return nil, fmt.Errorf("listen at %s: %w", addr, describe(err))
		}
		list = append(list, l)
	}
	return list, nil
}

// deferred has connections accepted once their client has sent something, which
// all that speak HTTP do at once: the first look finds it then, and nobody has
// to wait for it. One that sends nothing is accepted after about a second.
func deferred(list []*os.File) error {
	const silent = 1 // seconds
	for _, f := range list {
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		if ctlErr := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, silent)
		}); ctlErr != nil {
			return ctlErr
		}
		if err != nil {
			return os.NewSyscallError("setsockopt TCP_DEFER_ACCEPT", err)
		}
	}
	return nil
}

// files returns what tells that a socket has something to accept and leaves
// the rest to the caller, as net.Listener does not. They are to be closed as well.
func files(list []net.Listener) ([]*os.File, error) {
	var files []*os.File
	for _, l := range list {
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// tellAgain is how often the log says that connections cannot be accepted.
const tellAgain = time.Minute

// errFiles means that the files that are left are for connections to backends:
// clients that are served already need them.
var errFiles = fmt.Errorf("%w, but for a quarter that is for backends", syscall.EMFILE)

// mostFiles is how many files the process may have open for it to accept more
// connections.
func mostFiles() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return math.MaxInt
	}
	return int(min(limit.Cur-limit.Cur/4, math.MaxInt))
}

// hasFiles reports whether a further connection leaves enough for backends.
func hasFiles(fd uintptr, most int) bool {
	next, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return false
	}
	_ = unix.Close(next)
	return next < most
}

// accept takes the connections of one socket, which listens at port, until that
// is closed. When the machine is short of something, those that wait can be
// taken later.
func accept(door *os.File, port uint16, take func(*http1.Socket), logger *slog.Logger) error {
	raw, err := door.SyscallConn()
	if err != nil {
		return err
	}
	var told time.Time
	most := mostFiles()
	full := false
	for pause := 5 * time.Millisecond; ; {
		var short error
		err := raw.Read(func(fd uintptr) bool {
			for {
				if full {
					most = mostFiles() // it may have been raised
					if full = !hasFiles(fd, most); full {
						short = errFiles
						return true
					}
				}
				sock, errno := http1.Accept(fd, port)
				switch errno {
				case 0:
					pause = 5 * time.Millisecond
					full = sock.File() >= most-1
					take(sock)
				case syscall.EAGAIN:
					return false
				default:
					short = os.NewSyscallError("accept4", errno)
					return true
				}
			}
		})
		if err != nil && isClosed(err) {
			return nil
		}
		if time.Since(told) > tellAgain {
			told = time.Now()
			logger.Warn("connections cannot be accepted now, they are as soon as they can", "port", port, "error", describe(cmp.Or(err, short)))
		}
		time.Sleep(pause)
		pause = min(2*pause, time.Second)
	}
}

func closeAll[T interface{ Close() error }](list []T) {
	for _, l := range list {
		_ = l.Close()
	}
}

// describe adds the cure to the errors that people meet.
func describe(err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return errors.New("another process uses the port: stop it or choose another port")
	case errors.Is(err, syscall.EACCES):
		return errors.New("ports below 1024 need root or CAP_NET_BIND_SERVICE")
	case errors.Is(err, syscall.EMFILE):
		return fmt.Errorf("%w: raise the process's limit of open files (LimitNOFILE=, ulimit -n), of which each connection of a client takes two to four", err)
	case errors.Is(err, syscall.ENFILE):
		return fmt.Errorf("%w: raise the machine's limit of open files (sysctl fs.file-max)", err)
	}
	return err
}

// isClosed reports whether an accept or read loop ended because its socket was closed.
func isClosed(err error) bool {
	return errors.Is(err, net.ErrClosed) || strings.Contains(err.Error(), "use of closed")
}
