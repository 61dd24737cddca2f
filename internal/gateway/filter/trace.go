package filter

import "fairway.dev/fairway/internal/model"

// traced says whether a request has a span (enable-opentelemetry and
// opentelemetry-trust-incoming-span of ingress-nginx). The engine makes it, also
// if a filter answers.
type traced struct{ off, distrust bool }

func newTraced(f *model.Filters, _ Environment) Filter {
	t := traced{f.TraceOff, f.TraceDistrust}
	if t == (traced{}) {
		return nil
	}
	return t
}

// String implements fmt.Stringer.
func (t traced) String() string {
	if t.off {
		return "makes no trace"
	}
	return "begins a trace, whatever the client's is"
}

// Apply implements Filter.
func (t traced) Apply(x *Exchange) *Answer {
	x.TraceOff, x.TraceDistrust = t.off, t.distrust
	return nil
}
