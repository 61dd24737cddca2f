package filter

import (
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

func (t timeouts) Apply(x *Exchange) *Answer {
	x.Total, x.Connect, x.Read, x.Send = t.total, t.connect, t.read, t.send
	return nil
}
