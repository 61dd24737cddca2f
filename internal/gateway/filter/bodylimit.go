package filter

import (
	"fmt"
	"net/http"

	"fairway.dev/fairway/internal/model"
)

// bodyLimit refuses large request bodies with 413 (proxy-body-size of
// ingress-nginx). A body of unknown length is cut off by the engine, which
// reads Exchange.MaxBody.
type bodyLimit int64

func newBodyLimit(f *model.Filters, env Environment) Filter {
	limit := f.MaxBodyBytes
	if limit == 0 {
		limit = env.MaxBody
	}
	if limit <= 0 {
		return nil
	}
	return bodyLimit(limit)
}

// String implements fmt.Stringer.
func (l bodyLimit) String() string {
	return fmt.Sprintf("refuses request bodies of more than %d bytes", int64(l))
}

func (l bodyLimit) Apply(x *Exchange) *Answer {
	if x.BodyLength > int64(l) {
		return &Answer{Status: http.StatusRequestEntityTooLarge, Reason: fmt.Sprintf("the request body is larger than %d bytes", int64(l))}
	}
	x.MaxBody = int64(l)
	return nil
}
