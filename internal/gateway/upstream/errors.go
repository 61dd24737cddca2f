package upstream

import (
	"errors"
	"fmt"
	"syscall"

	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/shed"
)

// Why a request or connection could not be handed to a backend.
var (
	// ErrNoService and ErrNoPort mean that a route names a Service, or a port
	// of it, that does not exist.
	ErrNoService = errors.New("service does not exist")
	ErrNoPort    = errors.New("service has no such port")
	// ErrNoEndpoints means that no endpoint is ready.
	ErrNoEndpoints = errors.New("no endpoint is ready")
	// ErrTimeout means that a backend took longer than it may.
	ErrTimeout = http1.ErrTimeout
	// errSilent means that neither side of a stream had anything to say for too
	// long, of which nobody knows whose turn it was.
	errSilent = fmt.Errorf("nothing was sent either way: %w", ErrTimeout)
)

// DialError means that no connection to an endpoint could be opened, so that
// nothing was sent.
type DialError struct {
	Endpoint string
	Err      error
}

// Error implements error.
func (e *DialError) Error() string {
	return fmt.Sprintf("connect to endpoint %s: %v", e.Endpoint, e.Err)
}

// Unwrap returns the cause.
func (e *DialError) Unwrap() error { return e.Err }

// Short reports whether the gateway itself has no more of what a connection
// takes, which says nothing of the endpoint.
func (e *DialError) Short() bool {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(e.Err, errno) {
			return true
		}
	}
	return false
}

// final reports whether another endpoint would do no better: the Service has all
// that it may, the gateway keeps as much of bodies as it may or can open no more
// connections, or is to open none, or nobody has said anything for very long.
func final(err error) bool {
	if t := asTLSError(err); t != nil && t.Fault == FaultSettings {
		return true
	}
	return isShort(err) || errors.As(err, new(*LimitError)) || errors.Is(err, shed.ErrFull) || errors.Is(err, errSilent)
}

func isShort(err error) bool {
	var dial *DialError
	return errors.As(err, &dial) && dial.Short()
}

func isDialError(err error) bool {
	var dial *DialError
	return errors.As(err, &dial)
}
