package listener

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairway.dev/fairway/internal/model"
)

func TestCompileTables(t *testing.T) {
	route := func(name string, age int, p model.Protocol, port uint16, hosts ...string) Stream {
		return Stream{StreamRoute: model.StreamRoute{Ref: model.Ref{Kind: "ConfigMap", Key: model.Key{Namespace: "ns", Name: name}},
			Created: time.Unix(int64(1000-age), 0), Protocol: p, Port: port, Hosts: hosts}}
	}
	tables, problems := compileTables([]Stream{
		route("young", 1, model.TCP, 80), route("old", 9, model.TCP, 80), route("named", 20, model.TCP, 80, "a.test", "*.w.test"),
		route("other", 5, model.TCP, 80, "b.test", "a.test"), route("lost", 2, model.TCP, 80, "a.test"),
		route("udp", 1, model.UDP, 80), route("udp-2", 0, model.UDP, 80, "a.test"),
		route("only-named", 3, model.TCP, 81, "x.test"), route("only-named-2", 2, model.TCP, 81, "y.test"),
	})
	got := map[string]string{}
	for key, names := range map[portKey][]string{
		{model.TCP, 80}: {"a.test", "b.test", "q.w.test", "w.test", "q.q.w.test", ""},
		{model.TCP, 81}: {"x.test", "y.test", "z.test"},
		{model.UDP, 80}: {""},
	} {
		for _, name := range names {
			got[key.String()+" "+name] = tables[key].forName(name).Name
		}
	}
	want := map[string]string{
		"80/TCP a.test": "named", "80/TCP b.test": "other", "80/TCP q.w.test": "named", "80/TCP w.test": "old", "80/TCP q.q.w.test": "old", "80/TCP ": "old",
		"81/TCP x.test": "only-named", "81/TCP y.test": "only-named-2", "81/TCP z.test": "only-named",
		"80/UDP ": "udp",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("routes (-want +got):\n%s", d)
	}
	var lost []string
	for _, p := range problems {
		lost = append(lost, fmt.Sprint(p.Object.Name, " ", strings.Contains(p.Message, "is older and serves it")))
	}
	if d := cmp.Diff([]string{"lost true", "young true", "udp-2 true"}, lost); d != "" {
		t.Errorf("problems (-want +got):\n%s", d)
	}
}

// TestNoPortAfterTheEnd: routes that were being taken in when Run ended open the
// ports again for nobody, which another process may have taken over.
func TestNoPortAfterTheEnd(t *testing.T) {
	s := NewStreams(StreamOptions{Host: "127.0.0.1", Logger: slog.New(slog.DiscardHandler)})
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = free.Close()
	routes := []Stream{
		{StreamRoute: model.StreamRoute{Protocol: model.TCP, Port: addrPort(free.Addr()).Port()}},
		{StreamRoute: model.StreamRoute{Protocol: model.UDP}}, // the kernel chooses the port
	}
	if p := s.Sync(t.Context(), routes); len(p) > 0 || len(s.State()) != 2 {
		t.Fatalf("problems %v, ports %v", p, s.State())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if p := s.Sync(t.Context(), routes); len(p) > 0 || len(s.State()) > 0 {
		t.Errorf("problems %v, ports %v", p, s.State())
		for _, p := range s.ports {
			_ = p.Close()
		}
	}
}
