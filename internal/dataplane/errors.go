package dataplane

import (
	"errors"
	"fmt"
	"net/netip"

	"fairway.dev/fairway/internal/model"
)

// TakenError is the error of a Service with a frontend that another Service
// has claimed before it. All else of the Service is programmed.
type TakenError struct {
	Service model.Key
	At      netip.AddrPort
	By      model.Key
}

// Error implements error.
func (e *TakenError) Error() string {
	return fmt.Sprintf("service %s: %s port %d is served for Service %s, which claimed it first; give one of them another address or port",
		e.Service, e.At.Addr(), e.At.Port(), e.By)
}

// Refusal returns what of an error of Apply the kernel is to blame for; nil if
// nothing. A [TakenError] follows from the Services alone and is told by
// whoever reviews them.
func Refusal(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var left []error
		for _, e := range joined.Unwrap() {
			left = append(left, Refusal(e))
		}
		return errors.Join(left...)
	}
	if taken := (*TakenError)(nil); errors.As(err, &taken) {
		return nil
	}
	return err
}
