package cases

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
)

// ownServer checks where clients of the node's own server go: there while it is
// known to answer, else to that of another node, if there is one.
func (r *run) ownServer(t *testing.T) {
	key := model.Key{Namespace: "cases", Name: "own"}
	own := netip.AddrPortFrom(r.addr("node-1"), serverPort)
	service := func(list string) plan.Service {
		set := r.endpoints(key, list)
		for i := range set.Endpoints {
			e := &set.Endpoints[i]
			e.Hints = &model.Hints{Nodes: []string{e.Node}}
		}
		return plan.Compile(plan.Input{
			Service: &model.Service{
				Key: key, ClusterIPs: []netip.Addr{r.addr("vip")}, IPv4: r.family == 0, IPv6: r.family == 1,
				Ports: []model.ServicePort{{Name: "web", Protocol: r.protocol, Port: 80}},
			},
			Endpoints: set, Node: r.n.Node1, Options: plan.Options{OwnServer: []netip.AddrPort{own}},
		})
	}
	both, retired, alone := service("node-1 pod-c"), service("node-1/terminating pod-c"), service("node-1")
	defer func() {
		_ = r.dp.Apply(t.Context(), []reconcile.Change[model.Key, plan.Service]{{Key: key}})
	}()
	pulse := func(valid time.Duration) func() {
		return func() {
			if err := r.dp.Pulse(valid, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	to := netip.AddrPortFrom(r.addr("vip"), 80)
	for _, step := range []struct {
		when string
		do   func()
		want string
	}{
		{"nothing is known of it", func() { r.apply(t, both) }, "pod-c"},
		{"it answers", pulse(time.Hour), "node-1"},
		{"it has been silent for long", pulse(time.Millisecond), "pod-c"},
		{"it answers again", pulse(time.Hour), "node-1"},
		{"it is about to end", func() { r.apply(t, retired) }, "pod-c"},
		{"it is there again", func() { r.apply(t, both) }, "node-1"},
		{"it has been silent for long, and is the only one", func() { r.apply(t, alone); pulse(time.Millisecond)() }, "node-1"},
	} {
		step.do()
		for _, from := range []string{"pod-a", "node-1"} {
			r.eventually(t, func() error {
				a, err := r.ask(probe{from: from}, to, patience)
				if err != nil {
					return err
				}
				if a.Name != step.want {
					return fmt.Errorf("%s answers, want %s", a.Name, step.want)
				}
				return nil
			}, "when "+step.when+", "+from)
		}
	}
}

// eventually waits for what takes the kernel a moment.
func (r *run) eventually(t *testing.T, check func() error, what string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// runOwnServer runs the case in both families with both protocols.
func runOwnServer(t *testing.T, with run) {
	for family, suffix := range []string{"4", "6"} {
		for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
			t.Run(strings.ToLower(protocol.String())+suffix, func(t *testing.T) {
				r := with
				r.family, r.protocol = family, protocol
				r.ownServer(t)
			})
		}
	}
}
