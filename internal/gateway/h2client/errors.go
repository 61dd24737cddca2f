package h2client

import (
	"errors"
	"fmt"
)

// What a caller has to tell apart.
var (
	// ErrUnprocessed means that the backend has certainly not processed the
	// request: it may be sent again, whatever it is.
	ErrUnprocessed = errors.New("the backend has not processed the request")
	// ErrFull means that the connection carries as many streams as it may.
	ErrFull = errors.New("the connection carries as many streams as it may")
	// ErrClosing means that the connection takes no more streams.
	ErrClosing = errors.New("the connection takes no more streams")
	// ErrCanceled is how a stream ends that [Stream.Cancel] has ended.
	ErrCanceled = errors.New("the request was given up")
	// ErrHeader means that the request has a header that HTTP/2 cannot carry.
	ErrHeader = errors.New("the request's header is malformed")
)

// StreamError means that the backend reset the stream.
type StreamError struct{ Code Code }

// Error implements error.
func (e *StreamError) Error() string { return "the backend reset the stream: " + e.Code.String() }

// Is makes a refused stream an [ErrUnprocessed] (RFC 9113, 8.7).
func (e *StreamError) Is(target error) bool { return target == ErrUnprocessed && e.Code == CodeRefused }

// ConnError means that the connection ended, for something that the backend did
// if Code is not CodeNo.
type ConnError struct {
	Code   Code
	Reason string
	Err    error // what the network said; may be nil
}

// Error implements error.
func (e *ConnError) Error() string {
	text := "connection to the backend: " + e.Reason
	if e.Code != CodeNo {
		text += fmt.Sprintf(" (%s)", e.Code)
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap returns what the network said.
func (e *ConnError) Unwrap() error { return e.Err }

// violation is an error of the connection that the backend made.
func violation(c Code, format string, args ...any) *ConnError {
	return &ConnError{Code: c, Reason: fmt.Sprintf(format, args...)}
}

// malformed is an answer that cannot be understood; its stream is reset.
type malformed string

// Error implements error.
func (m malformed) Error() string { return "the backend's answer is malformed: " + string(m) }
