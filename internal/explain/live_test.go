package explain

import (
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/gateway/upstream"
)

// TestLive tells how a gateway has the endpoints, beside how they ought to be.
func TestLive(t *testing.T) {
	until := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	services := []upstream.PoolState{
		{Service: "shop/web", Port: "http/TCP", Endpoints: []upstream.EndpointState{
			{Address: "10.0.0.1:80", State: "in use", InFlight: 3},
			{Address: "10.0.0.2:80", State: "ejected", EjectedUntil: &until, Failures: 5},
			{Address: "10.0.0.3:80", State: "unhealthy", Check: "status 500"},
			{Address: "10.0.0.4:80", State: "in use", Share: 0.25},
		}},
		{Service: "shop/other", Port: "http/TCP", Endpoints: []upstream.EndpointState{{Address: "10.0.0.5:80", State: "in use"}}},
	}
	r := RequestReport{Backends: []RequestBackend{{Service: "shop/web", Port: "http", Percent: 100}}}
	for _, a := range []string{"10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80", "10.0.0.5:80"} {
		r.Backends[0].Endpoints = append(r.Backends[0].Endpoints, RequestEndpoint{Address: a, Standing: Standing{true, "ready"}})
	}
	if strings.Contains(r.Text(), "NOW") {
		t.Errorf("nobody was asked:\n%s", r.Text())
	}
	r.Live(services)
	for i, want := range []string{"in use, 3 under way", "EJECTED until 03:04:05 UTC, after 5 requests without an answer", "UNHEALTHY: status 500", "in use, warms up with 25 % of its share", ""} {
		if got := r.Backends[0].Endpoints[i].Now; got != want {
			t.Errorf("%s: %q, want %q", r.Backends[0].Endpoints[i].Address, got, want)
		}
	}
	if text := r.Text(); !strings.Contains(text, "NOW") || !strings.Contains(text, "UNHEALTHY: status 500") {
		t.Errorf("text:\n%s", text)
	}
	if got := Unwell(services); len(got) != 3 || got[1] != "endpoint 10.0.0.3:80 of Service shop/web, port http/TCP: UNHEALTHY: status 500" {
		t.Errorf("unwell: %q", got)
	}
}
