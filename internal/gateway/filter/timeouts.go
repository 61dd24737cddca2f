package filter

import (
	"fmt"
	"strings"
	"time"

	"fairway.dev/fairway/internal/model"
)

// timeouts limits the exchange and its steps.
type timeouts struct {
	total, connect, read, send time.Duration
}

func newTimeouts(f *model.Filters, _ Environment) Filter {
	t := timeouts{f.RequestTimeout, f.ConnectTimeout, f.ReadTimeout, f.SendTimeout}
	if t == (timeouts{}) {
		return nil
	}
	return t
}

// String implements fmt.Stringer.
func (t timeouts) String() string {
	var parts []string
	for _, limit := range []struct {
		d    time.Duration
		what string
	}{{t.total, "the whole exchange"}, {t.connect, "connecting"}, {t.read, "each read"}, {t.send, "each write"}} {
		if limit.d > 0 {
			parts = append(parts, fmt.Sprintf("%s to %s", limit.what, limit.d))
		}
	}
	return "limits " + strings.Join(parts, ", ")
}

func (t timeouts) Apply(x *Exchange) *Answer {
	x.Total, x.Connect, x.Read, x.Send = t.total, t.connect, t.read, t.send
	return nil
}
