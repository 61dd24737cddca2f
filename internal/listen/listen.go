// Package listen opens the sockets of a node's own servers: at addresses that no
// interface has yet, and at ports that somebody else may still have. What is served
// there it does not know.
package listen

import (
	"context"
	"errors"
	"log/slog"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	pauseMin, pauseMax = 100 * time.Millisecond, 10 * time.Second
	// patience is how long nothing is said: a process before this one may just be
	// ending.
	patience = time.Second
)

// Free calls open, and again for as long as an address is in use: all else that a
// process serves is not to end with one port. It logs once what does not work
// meanwhile, and the cure. It returns what open does, or nothing once ctx has ended.
func Free[T any](ctx context.Context, logger *slog.Logger, missing, cure string, open func() ([]T, error)) ([]T, error) {
	told := false
	for pause := pauseMin; ; pause = min(2*pause, pauseMax) {
		sockets, err := open()
		switch {
		case err == nil:
			return sockets, nil
		case ctx.Err() != nil:
			return nil, nil
		case !errors.Is(err, syscall.EADDRINUSE):
			return nil, err
		}
		if !told && pause >= patience {
			told = true
			logger.Warn(missing+": cannot listen; it is tried again", "error", err, "cure", cure)
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(pause):
		}
	}
}

// Freebind lets a socket take an address before an interface has it. It is for
// net.ListenConfig.Control and net.Dialer.Control.
func Freebind(network, _ string, c syscall.RawConn) error {
	var err error
	control := func(fd uintptr) {
		if network == "tcp4" || network == "udp4" {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
		}
	}
	if e := c.Control(control); e != nil {
		return e
	}
	return err
}
