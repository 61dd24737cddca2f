package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"time"

	"fairway.dev/fairway/internal/gateway/upstream"
)

// GatewayServices asks the gateway that runs on this machine, or where enter
// leads, what it knows of its Services' endpoints now. Addr is its
// --metrics-address; enter runs f in a network namespace, and may be nil.
func GatewayServices(ctx context.Context, addr string, enter func(f func() error) error) ([]upstream.PoolState, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("metrics address %q: %w", addr, err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1" // what is asked for is for the machine itself
	}
	var conn net.Conn
	dial := func() (err error) {
		// A namespace is that of the thread: the one that dials.
		d := net.Dialer{Timeout: 2 * time.Second}
		conn, err = d.DialContext(ctx, "tcp", net.JoinHostPort(host, port))
		return err
	}
	if enter != nil {
		err = enter(dial)
	} else {
		err = dial()
	}
	if err != nil {
		return nil, fmt.Errorf("no gateway answers: %w", err)
	}
	defer conn.Close()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/debug/state/services", nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("the gateway does not answer: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("what answers at %s is no gateway: status %s", addr, resp.Status)
	}
	var state struct {
		Services []upstream.PoolState `json:"services"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&state); err != nil {
		return nil, fmt.Errorf("the gateway's state: %w", err)
	}
	return state.Services, nil
}
