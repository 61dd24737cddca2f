package filter

import (
	"fmt"
	"time"

	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/request"
	"fairway.dev/fairway/internal/gateway/router"
	"fairway.dev/fairway/internal/model"
)

// Exchange is one request on its way through the filters, with what they
// decided. The engine sets the first group, filters the second.
type Exchange struct {
	View  *request.View
	Match router.Match
	// BodyLength is the length of the request body; -1 if it is not known yet.
	BodyLength int64
	// RequestID names the request in logs, answers and at the backend.
	RequestID string
	// TraceParent and TraceState are the trace context for the backend; with an
	// empty TraceParent what the client sent is passed on. TraceParent is a view
	// that changes with each try at a backend.
	TraceParent, TraceState string

	// Path and Query are what the backend is asked for; at first the view's.
	Path, Query string
	// MaxBody limits the request body in bytes; 0 for no limit.
	MaxBody int64
	// Total limits the whole exchange; Connect, Read and Send limit single
	// steps at the backend; 0 leaves the gateway's default.
	Total, Connect, Read, Send time.Duration
	// Session is the cookie that keeps clients at their endpoints, and
	// SessionCookie what this one has sent by that name; nil for none.
	Session       *model.Session
	SessionCookie string
	// Hash is what endpoints are chosen by if Hashed, and Balance how otherwise.
	Hash    uint64
	Hashed  bool
	Balance model.Balance
	// TraceOff leaves the exchange out of traces, and TraceDistrust begins a trace
	// whatever the client says of one.
	TraceOff, TraceDistrust bool
	// Header are changes to the request's headers, in order: each sets a header,
	// whose name is in canonical form, in place of what the client sent. An empty
	// value removes it.
	Header []http1.Field
}

func (x *Exchange) setHeader(name, value string) {
	x.Header = append(x.Header, http1.Field{Name: name, Value: value})
}

// Answer is given to the client instead of a backend's.
type Answer struct {
	Status int
	// Location is where a redirect leads.
	Location string
	// Reason is one line for people; the status text if it is empty.
	Reason string
	// Leave ends the client's connection with this answer: another one is needed.
	Leave bool
}

// Filter looks at an exchange before a backend is chosen. An answer that is
// not nil ends it.
type Filter interface {
	Apply(x *Exchange) *Answer
	// String says what the filter does, in words for people.
	fmt.Stringer
}

// Environment is what filters need to know about the gateway.
type Environment struct {
	// HasTLS tells whether the gateway has a certificate for a host, other
	// than the default one.
	HasTLS func(host string) bool
	// HTTPSPort is where redirects to https lead; 443 is left out of them.
	HTTPSPort uint16
	// MaxBody is the limit of routes that set none; 0 for no limit.
	MaxBody int64
	// Clients is who asks clients of the rule for certificates; nil for nobody.
	Clients *ClientGuard
}

// Chain is the filters of one rule, in order.
type Chain []Filter

// Apply runs the filters until one answers.
func (c Chain) Apply(x *Exchange) *Answer {
	for _, f := range c {
		if a := f.Apply(x); a != nil {
			return a
		}
	}
	return nil
}
