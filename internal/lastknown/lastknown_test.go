package lastknown

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
	"fairway.dev/fairway/internal/testenv"
)

const (
	node    = "node-1"
	cluster = "https://192.0.2.1:6443"
)

func key(ns, name string) model.Key { return model.Key{Namespace: ns, Name: name} }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// fill puts one of everything into a store.
func fill(s *state.Store) {
	ports := []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}, {Name: "dns", Protocol: model.UDP, Port: 53}}
	s.Update(func(tx *state.Tx) {
		tx.PutNode(&model.Node{Name: node, UID: "u", Addrs: []netip.Addr{addr("198.51.100.2"), addr("fd00::2")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")}, Zone: "z", Ready: true})
		tx.PutNamespace(&model.Namespace{Name: "default"})
		tx.PutNamespace(&model.Namespace{Name: "empty"})
		tx.SetDNS(&model.DNSConfig{TTL: time.Second, Blocks: []model.DNSBlock{{
			Zones: []string{"."}, Hosts: &model.DNSHosts{Entries: []model.DNSHost{{Name: "a.", Addr: addr("192.0.2.1")}}},
			Forwards: []model.DNSForward{{From: ".", Servers: []model.DNSServer{{Addr: netip.MustParseAddrPort("192.0.2.1:53"), TLS: true}}}},
		}}})
		tx.PutService(&model.Service{
			Key: key("default", "web"), Type: model.LoadBalancer, ClusterIPs: []netip.Addr{addr("10.96.0.20"), addr("fd00:96::20")}, IPv4: true, IPv6: true,
			Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80, NodePort: 30080}}, AffinityTimeout: time.Hour,
			LoadBalancer: model.ServiceLoadBalancer{Ingress: []model.LoadBalancerIngress{{Addr: addr("203.0.113.1")}}, SourceRanges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}},
			TLS:          &model.ServiceTLS{Certificates: []model.Key{key("default", "cert")}},
		})
		tx.PutService(&model.Service{Key: key("default", "db"), Headless: true, PublishNotReady: true})
		tx.PutService(&model.Service{Key: key("default", "out"), Type: model.ExternalName, ExternalName: "www.example.com"})
		tx.PutSlice(&model.EndpointSlice{Key: key("default", "db-a"), Service: key("default", "db"), Endpoints: []model.Endpoint{
			{Addr: addr("10.244.0.5"), Ports: ports, Ready: true, Serving: true, Hostname: "db-0", About: &model.EndpointAbout{Pod: key("default", "db-0")}, Node: node},
			{Addr: addr("10.244.0.6"), Ports: ports, Serving: true, Terminating: true, Hints: &model.Hints{Zones: []string{"z"}}},
		}})
		tx.PutSlice(&model.EndpointSlice{Key: key("default", "db-b"), Service: key("default", "db"), Endpoints: []model.Endpoint{
			{Addr: addr("fd00:244::5"), Ports: ports[:1], Ready: true, Serving: true},
		}})
		tx.PutSlice(&model.EndpointSlice{Key: key("default", "web-a"), Service: key("default", "web")}) // none yet
		tx.PutCertificate(&model.Certificate{Key: key("default", "cert"), Chain: []byte("PUBLIC"), PrivateKey: []byte("PRIVATE-KEY-BYTES")})
		tx.PutRoute(&model.Route{Ref: model.Ref{Kind: "Ingress", Key: key("default", "in")}})
	})
}

func synced(s *state.Store) { s.Update(func(tx *state.Tx) { tx.SetSynced() }) }

// rows are the tables of a snapshot that have to survive.
type rows struct {
	Services   map[model.Key]*model.Service
	Endpoints  map[model.Key]*model.EndpointSet
	Nodes      map[string]*model.Node
	Namespaces map[string]*model.Namespace
	DNS        *model.DNSConfig
}

func rowsOf(s *state.Snapshot) rows {
	r := rows{map[model.Key]*model.Service{}, map[model.Key]*model.EndpointSet{}, map[string]*model.Node{}, map[string]*model.Namespace{}, s.DNS}
	for k, v := range s.Services.All() {
		r.Services[k] = v
	}
	for k, v := range s.Endpoints.All() {
		r.Endpoints[k] = v
	}
	for k, v := range s.Nodes.All() {
		r.Nodes[k] = v
	}
	for k, v := range s.Namespaces.All() {
		r.Namespaces[k] = v
	}
	return r
}

func diff(a, b *state.Snapshot) string {
	return cmp.Diff(rowsOf(a), rowsOf(b), cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }))
}

func written(t *testing.T) (*state.Snapshot, string, []byte) {
	t.Helper()
	store := state.New()
	fill(store)
	synced(store)
	data, err := encode(store.Snapshot(), node, cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "made", "when missing")
	if err := write(dir, data); err != nil {
		t.Fatal(err)
	}
	return store.Snapshot(), dir, data
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	snap, dir, data := written(t)
	got, err := Load(dir, node, cluster)
	if err != nil {
		t.Fatal(err)
	}
	if d := diff(snap, got.Snapshot); d != "" {
		t.Errorf("(-written +read)\n%s", d)
	}
	if !got.Snapshot.Synced || time.Since(got.At) > time.Minute || time.Since(got.At) < 0 {
		t.Errorf("synced %t, at %v", got.Snapshot.Synced, got.At)
	}
	for _, secret := range []string{"PRIVATE-KEY-BYTES", "PUBLIC"} {
		if bytes.Contains(data, []byte(secret)) {
			t.Errorf("%s of a Secret is in the file", secret)
		}
	}
	if got.Snapshot.Certificates.Len() != 0 {
		t.Error("certificates were read")
	}
	info, err := os.Stat(filepath.Join(dir, FileName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: others may read it", info.Mode(), err)
	}
}

func TestUnusableFiles(t *testing.T) {
	_, dir, data := written(t)
	path := filepath.Join(dir, FileName)
	old, err := encode(state.New().Snapshot(), node, cluster, time.Now().Add(-MaxAge-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	head := len(magic) + sha256.Size
	garbage := []byte("no gob at all")
	sum := sha256.Sum256(garbage)
	for name, tt := range map[string]struct {
		data []byte
		want string
	}{
		"empty":          {nil, "damaged"},
		"another layout": {bytes.Replace(data, []byte("layout 1"), []byte("layout 9"), 1), "another version"},
		"only the start": {data[:head-1], "cut short"},
		"cut":            {data[:len(data)-1], "checksum"},
		"longer":         {append(bytes.Clone(data), 0), "checksum"},
		"too old":        {old, "more than 72h0m0s ago"},
		"no content":     {append(append([]byte(magic), sum[:]...), garbage...), "decode"},
	} {
		if err := os.WriteFile(path, tt.data, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := Load(dir, node, cluster); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) || s != nil {
			t.Errorf("%s: %v, want %q and the file's name", name, err, tt.want)
		}
	}
	for i := range data { // no bit may change what is read
		bad := bytes.Clone(data)
		bad[i] ^= 1 << (i % 8)
		if _, err := decode(bad); err == nil {
			t.Fatalf("byte %d of %d: not noticed", i, len(data))
		}
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir, "node-2", cluster); err == nil || !strings.Contains(err.Error(), "node-1") {
		t.Errorf("another node's: %v", err)
	}
	if _, err := Load(dir, node, "https://elsewhere:6443"); err == nil || !strings.Contains(err.Error(), cluster) {
		t.Errorf("another cluster's: %v", err)
	}
	if _, err := Load(t.TempDir(), node, cluster); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("none: %v", err)
	}
}

// keep runs a keeper in a bubble of time, and returns how to end it.
func keep(t *testing.T, o Options) (k *Keeper, end func()) {
	t.Helper()
	k, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	return k, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func putService(s *state.Store, name string) {
	s.Update(func(tx *state.Tx) { tx.PutService(&model.Service{Key: key("default", name)}) })
}

func services(t *testing.T, dir string) int {
	t.Helper()
	s, err := Load(dir, node, cluster)
	if errors.Is(err, os.ErrNotExist) {
		return -1
	}
	if err != nil {
		t.Fatal(err)
	}
	return s.Snapshot.Services.Len()
}

func TestKeeper(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		store := state.New()
		var outage atomic.Pointer[time.Time]
		outage.Store(&time.Time{})
		_, end := keep(t, Options{Dir: dir, Node: node, Cluster: cluster, Store: store, Outage: func() time.Time { return *outage.Load() }, Logger: slog.New(slog.DiscardHandler)})
		want := func(n int, what string) {
			t.Helper()
			synctest.Wait()
			if got := services(t, dir); got != n {
				t.Errorf("%s: %d Services in the file, want %d", what, got, n)
			}
		}
		putService(store, "a")
		want(-1, "before the sync")
		synced(store)
		want(1, "the first state at once")
		for i := range 100 {
			putService(store, fmt.Sprint(i))
			synctest.Wait()
		}
		want(1, "soon after a write")
		time.Sleep(minPause)
		want(101, "after the pause, all changes at once")
		at := func() time.Time {
			s, err := Load(dir, node, cluster)
			if err != nil {
				t.Fatal(err)
			}
			return s.At
		}
		before := at()
		store.Update(func(tx *state.Tx) { tx.PutCertificate(&model.Certificate{Key: key("default", "c")}) })
		time.Sleep(time.Minute)
		if synctest.Wait(); !at().Equal(before) {
			t.Error("written again for a certificate")
		}
		time.Sleep(confirmEvery)
		if synctest.Wait(); !at().After(before) {
			t.Error("a state that is still true keeps its old time")
		}
		time.Sleep(time.Minute)
		since := time.Now()
		outage.Store(&since)
		for range 2 {
			time.Sleep(confirmEvery)
			if synctest.Wait(); !at().Equal(since) {
				t.Errorf("true at %v, want %v, when the API confirmed it last", at(), since)
			}
		}
		store.Update(func(tx *state.Tx) { tx.SetDNS(&model.DNSConfig{}) }) // of a file, which changes without the API
		time.Sleep(minPause)
		if synctest.Wait(); !at().Equal(since) {
			t.Errorf("after a change that is not the API's: true at %v, want %v", at(), since)
		}
		putService(store, "b")
		synctest.Wait()
		putService(store, "c")
		end()
		want(103, "the last state at the end")
		if !at().Equal(since) {
			t.Errorf("at the end: true at %v, want %v", at(), since)
		}
	})
}

func TestKeeperWritesTheTimeOfTheEnd(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		store := state.New()
		_, end := keep(t, Options{Dir: dir, Node: node, Cluster: cluster, Store: store, Outage: func() time.Time { return time.Time{} }, Logger: slog.New(slog.DiscardHandler)})
		synced(store)
		time.Sleep(5 * time.Minute)
		end()
		s, err := Load(dir, node, cluster)
		if err != nil {
			t.Fatal(err)
		}
		if !s.At.Equal(time.Now()) {
			t.Errorf("true at %v, but the API confirmed it until %v", s.At, time.Now())
		}
	})
}

func TestKeeperWritesLargeStatesRarely(t *testing.T) {
	k := &Keeper{size: 10 << 20}
	if p := k.pause(); p != 160*time.Second {
		t.Errorf("pause after 10 MiB: %v", p)
	}
}

func TestKeeperGoesOnWithoutADisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // no directory
		t.Fatal(err)
	}
	var log testenv.Log
	synctest.Test(t, func(t *testing.T) {
		store := state.New()
		k, end := keep(t, Options{Dir: dir, Node: node, Cluster: cluster, Store: store, Outage: func() time.Time { return time.Time{} }, Logger: slog.New(slog.NewTextHandler(&log, nil)), Registerer: prometheus.NewRegistry()})
		synced(store)
		for i := range 3 {
			putService(store, fmt.Sprint(i))
			time.Sleep(time.Minute)
		}
		synctest.Wait()
		if n := strings.Count(log.String(), "cannot write the last known state"); n != 1 {
			t.Errorf("told %d times:\n%s", n, log.String())
		}
		if f := k.Failing(); f == nil || f.Err == nil || time.Since(f.Since) < 2*time.Minute {
			t.Errorf("failing: %v", f)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // without any change
		synctest.Wait()
		if !strings.Contains(log.String(), "written again") || services(t, dir) != 3 || k.Failing() != nil {
			t.Errorf("not written when it can be:\n%s", log.String())
		}
		end()
	})
}

func TestRequiredOptions(t *testing.T) {
	if _, err := New(Options{Dir: "x"}); err == nil {
		t.Error("no error")
	}
}

// BenchmarkEncode is a state of 10,000 Services with 100,000 endpoints.
func BenchmarkEncode(b *testing.B) {
	store := state.New()
	ports := []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}}
	store.Update(func(tx *state.Tx) {
		for i := range 10000 {
			k := key(fmt.Sprintf("team-%d", i/50), fmt.Sprintf("service-%d", i))
			tx.PutService(&model.Service{Key: k, ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})}, Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}})
			slice := &model.EndpointSlice{Key: k, Service: k}
			for j := range 10 {
				slice.Endpoints = append(slice.Endpoints, model.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 128 + byte(j), byte(i >> 8), byte(i)}), Ports: ports, Ready: true, Serving: true, Node: node, About: &model.EndpointAbout{Pod: key(k.Namespace, fmt.Sprintf("%s-%d", k.Name, j))}})
			}
			tx.PutSlice(slice)
		}
		tx.SetSynced()
	})
	for b.Loop() {
		data, err := encode(store.Snapshot(), node, cluster, time.Now())
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(data)))
		b.ReportMetric(float64(len(data)), "bytes")
	}
}
