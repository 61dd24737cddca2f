package explain

import (
	"fmt"
	"time"

	"fairway.dev/fairway/internal/gateway/upstream"
)

// Live adds what a gateway that runs says of the endpoints now.
func (r *RequestReport) Live(services []upstream.PoolState) {
	for i := range r.Backends {
		b := &r.Backends[i]
		for _, s := range services {
			if s.Service != b.Service || s.Port != b.Port+"/TCP" {
				continue
			}
			for j := range b.Endpoints {
				for _, e := range s.Endpoints {
					if e.Address == b.Endpoints[j].Address {
						b.Endpoints[j].Now = liveText(&e)
					}
				}
			}
		}
	}
}

// Unwell tells of each endpoint that a gateway leaves out, or gives less than
// its share, in a sentence.
func Unwell(services []upstream.PoolState) []string {
	var list []string
	for _, s := range services {
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			if e.State == "ejected" || e.State == "unhealthy" || e.Share > 0 {
				list = append(list, fmt.Sprintf("endpoint %s of Service %s, port %s: %s", e.Address, s.Service, s.Port, liveText(e)))
			}
		}
	}
	return list
}

// liveText says how an endpoint stands.
func liveText(e *upstream.EndpointState) string {
	text := e.State
	switch {
	case e.State == "ejected" && e.EjectedUntil != nil:
		text = "EJECTED until " + e.EjectedUntil.Format(time.TimeOnly) + " UTC"
		if e.Failures > 0 {
			text += fmt.Sprintf(", after %d requests without an answer", e.Failures)
		}
		if e.BrokenOff > 0 {
			text += fmt.Sprintf(", after %d answers that broke off", e.BrokenOff)
		}
	case e.State == "unhealthy":
		text = "UNHEALTHY"
		if e.Check != "" && e.Check != "ok" {
			text += ": " + e.Check
		}
	case e.Share > 0:
		text += fmt.Sprintf(", warms up with %.0f %% of its share", 100*e.Share)
	}
	if e.InFlight > 0 {
		text += fmt.Sprintf(", %d under way", e.InFlight)
	}
	return text
}
