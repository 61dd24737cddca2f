package healthport

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
	"fairway.dev/fairway/internal/testenv"
)

const port = 31999

// node is a node in a network namespace of its own, with a health server.
type node struct {
	t       *testing.T
	ns      *testenv.Netns
	store   *state.Store
	healthy atomic.Bool
	metrics *prometheus.Registry
}

func newNode(t *testing.T, nodePorts ...netip.Prefix) *node {
	n := &node{t: t, ns: testenv.NewLab(t).Netns("node"), store: state.New(), metrics: prometheus.NewRegistry()}
	n.healthy.Store(true)
	lo, err := n.ns.Netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"192.0.2.1/32", "198.51.100.1/32", "2001:db8::1/128"} {
		parsed, err := netlink.ParseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.ns.Netlink.AddrAdd(lo, parsed); err != nil {
			t.Fatal(err)
		}
	}
	s, err := NewServices(ServicesOptions{
		Store: n.store, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), NodeName: "here",
		Healthy: n.healthy.Load, NodePorts: nodePorts, Registerer: n.metrics,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.inNamespace(n.ns)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		if status, _ := n.ask("192.0.2.1", port); status != 0 {
			t.Error("the port is still open after the end")
		}
	})
	n.store.Update(func(tx *state.Tx) {
		tx.PutNode(&model.Node{Name: "here"})
		tx.SetSynced()
	})
	return n
}

// inNamespace makes the server listen in a namespace.
func (s *Services) inNamespace(ns *testenv.Netns) {
	s.openPort = func(network, addr string) (l net.Listener, err error) {
		err = ns.Do(func() (err error) { l, err = net.Listen(network, addr); return err })
		return l, err
	}
}

// ask returns the status of the answer, 0 for none.
func (n *node) ask(addr string, port int) (int, *http.Response) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
			err = n.ns.Do(func() (err error) {
				conn, err = (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, network, addr)
				return err
			})
			return conn, err
		},
	}}
	r, err := client.Get("http://" + net.JoinHostPort(addr, fmt.Sprint(port)) + "/")
	if err != nil {
		return 0, nil
	}
	n.t.Cleanup(func() { r.Body.Close() })
	return r.StatusCode, r
}

func (n *node) expect(addr string, port, want int) *http.Response {
	n.t.Helper()
	var status int
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var r *http.Response
		if status, r = n.ask(addr, port); status == want {
			return r
		}
	}
	n.t.Fatalf("%s port %d answers %d, want %d", addr, port, status, want)
	return nil
}

func service(name string, port uint16, families ...string) *model.Service {
	s := &model.Service{Key: model.Key{Namespace: "ns", Name: name}, Type: model.LoadBalancer, ExternalLocal: true, HealthCheckNodePort: port}
	for _, a := range families {
		s.ClusterIPs = append(s.ClusterIPs, netip.MustParseAddr(a))
	}
	return s
}

func endpoints(name string, list ...model.Endpoint) *model.EndpointSlice {
	key := model.Key{Namespace: "ns", Name: name}
	for i := range list {
		list[i].Node = "here"
	}
	return &model.EndpointSlice{Key: key, Service: key, Endpoints: list}
}

func endpoint(addr string, ready bool) model.Endpoint {
	return model.Endpoint{Addr: netip.MustParseAddr(addr), Ready: ready, Serving: true, Terminating: !ready}
}

func TestAnswersAsKubeProxyDoes(t *testing.T) {
	n := newNode(t)
	n.store.Update(func(tx *state.Tx) {
		tx.PutService(service("web", port, "10.96.0.7", "fd00:96::7"))
		tx.PutSlice(endpoints("web", endpoint("10.0.0.1", true), endpoint("10.0.0.2", true), endpoint("fd00::1", true)))
	})
	r := n.expect("192.0.2.1", port, 200)
	for name, want := range map[string]string{
		"Content-Type": "application/json", "X-Content-Type-Options": "nosniff", "X-Load-Balancing-Endpoint-Weight": "2",
	} {
		if got := r.Header.Get(name); got != want {
			t.Errorf("header %s: %q, want %q", name, got, want)
		}
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	var got, want any
	if err := json.Unmarshal(body, &got); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	if err := json.Unmarshal([]byte(`{"service": {"namespace": "ns", "name": "web"}, "localEndpoints": 2, "serviceProxyHealthy": true}`), &want); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("body %s", body)
	}
	if w := n.expect("2001:db8::1", port, 200).Header.Get("X-Load-Balancing-Endpoint-Weight"); w != "1" {
		t.Errorf("weight by IPv6 %s, want 1", w)
	}

	n.healthy.Store(false)
	n.expect("192.0.2.1", port, 503)
	n.healthy.Store(true)
	n.expect("192.0.2.1", port, 200)
	n.store.Update(func(tx *state.Tx) {
		tx.PutSlice(endpoints("web", endpoint("10.0.0.1", false), endpoint("fd00::1", true)))
	})
	if w := n.expect("192.0.2.1", port, 503).Header.Get("X-Load-Balancing-Endpoint-Weight"); w != "0" {
		t.Errorf("weight %s with an endpoint that terminates, want 0", w)
	}
	n.expect("2001:db8::1", port, 200)
}

func TestPortsFollowTheServices(t *testing.T) {
	n := newNode(t)
	put := func(list ...*model.Service) {
		n.store.Update(func(tx *state.Tx) {
			for _, s := range list {
				tx.PutService(s)
			}
		})
	}
	put(service("a", port, "10.96.0.7"), service("b", port-1, "10.96.0.8"))
	n.store.Update(func(tx *state.Tx) { tx.PutSlice(endpoints("b", endpoint("10.0.0.1", true))) })
	n.expect("192.0.2.1", port, 503)
	n.expect("192.0.2.1", port-1, 200)
	if status, _ := n.ask("2001:db8::1", port); status != 0 {
		t.Error("a Service without IPv6 answers there")
	}
	// They change ports with each other, in one round.
	put(service("a", port-1, "10.96.0.7"), service("b", port, "10.96.0.8"))
	n.expect("192.0.2.1", port, 200)
	n.expect("192.0.2.1", port-1, 503)
	// A family comes.
	put(service("a", port-1, "10.96.0.7", "fd00:96::7"))
	n.expect("2001:db8::1", port-1, 503)
	n.store.Update(func(tx *state.Tx) { tx.DeleteService(model.Key{Namespace: "ns", Name: "b"}) })
	n.expect("192.0.2.1", port, 0)
	n.expect("192.0.2.1", port-1, 503)
}

func TestPortInUseIsToldAndTriedAgain(t *testing.T) {
	n := newNode(t)
	var squatter net.Listener
	if err := n.ns.Do(func() (err error) { squatter, err = net.Listen("tcp4", fmt.Sprint("192.0.2.1:", port)); return err }); err != nil {
		t.Fatal(err)
	}
	n.store.Update(func(tx *state.Tx) {
		tx.PutService(service("a", port, "10.96.0.7"))
		tx.PutService(service("b", port-1, "10.96.0.8"))
	})
	n.expect("192.0.2.1", port-1, 503) // others are served
	failed := func(want float64) {
		t.Helper()
		var got float64
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			families, err := n.metrics.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				if f.GetName() == "fairway_healthcheck_node_ports_failed" {
					got = f.GetMetric()[0].GetGauge().GetValue()
				}
			}
			if got == want {
				return
			}
		}
		t.Fatalf("%v ports have failed, want %v", got, want)
	}
	failed(1)
	if err := squatter.Close(); err != nil {
		t.Fatal(err)
	}
	n.expect("192.0.2.1", port, 503)
	failed(0)
}

func TestOnlyAtAddressesWithNodePorts(t *testing.T) {
	n := newNode(t, netip.MustParsePrefix("192.0.2.0/24"))
	n.store.Update(func(tx *state.Tx) { tx.PutService(service("a", port, "10.96.0.7")) })
	n.expect("192.0.2.1", port, 503)
	for _, addr := range []string{"198.51.100.1", "127.0.0.1"} {
		if status, _ := n.ask(addr, port); status != 0 {
			t.Errorf("%s answers %d", addr, status)
		}
	}
}
