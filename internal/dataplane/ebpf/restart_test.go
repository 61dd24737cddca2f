package ebpf

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/dataplane/cases"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
)

var vip = netip.MustParseAddrPort("10.96.0.10:80")

// planOf is a Service at vip, or at another address, with endpoints ADDR:PORT.
func planOf(name string, protocol model.Protocol, at netip.AddrPort, endpoints ...string) plan.Service {
	svc := &model.Service{
		Key: model.Key{Namespace: "ns", Name: name}, IPv4: true, ClusterIPs: []netip.Addr{at.Addr()},
		Ports: []model.ServicePort{{Protocol: protocol, Port: at.Port()}},
	}
	set := &model.EndpointSet{Key: svc.Key}
	for _, e := range endpoints {
		ap := netip.MustParseAddrPort(e)
		set.Endpoints = append(set.Endpoints, model.Endpoint{
			Addr: ap.Addr(), Ready: true, Serving: true, Node: "node-1", Ports: []model.EndpointPort{{Protocol: protocol, Port: ap.Port()}},
		})
	}
	return plan.Compile(plan.Input{Service: svc, Endpoints: set, Node: &model.Node{Name: "node-1"}})
}

func change(s plan.Service) reconcile.Change[model.Key, plan.Service] {
	return reconcile.Change[model.Key, plan.Service]{Key: s.Key, New: s, HasNew: true}
}

func changes(list ...plan.Service) (out []reconcile.Change[model.Key, plan.Service]) {
	for _, s := range list {
		out = append(out, change(s))
	}
	return out
}

func apply(t testing.TB, d *Dataplane, list ...plan.Service) {
	t.Helper()
	for key, err := range d.Apply(t.Context(), changes(list...)) {
		t.Errorf("%s: %v", key, err)
	}
}

func prune(t testing.TB, d *Dataplane, n *cases.Network) {
	t.Helper()
	if n != nil {
		if err := d.SetNode(t.Context(), n.Settings); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Prune(t.Context(), func(func(model.Key, plan.Service) bool) {}); err != nil {
		t.Fatal(err)
	}
}

// abandon is what a process leaves that is killed.
func (d *Dataplane) abandon(t *testing.T) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestRestart replaces the process again and again, while clients connect and
// others talk on: not one fails. What changed meanwhile is made good.
func TestRestart(t *testing.T) {
	m := newMachine(t)
	n := cases.NewNetwork(t)
	pod := n.Hosts["pod-a"]
	echo(t, n.Hosts["pod-b"].Listen(netip.MustParseAddrPort("10.244.0.3:7")))
	first := start(t, m.options(t, n))
	web, talk := planOf("web", model.TCP, vip, "10.244.0.3:8080"), planOf("talk", model.TCP, netip.MustParseAddrPort("10.96.0.11:7"), "10.244.0.3:7")
	gone := planOf("gone", model.TCP, netip.MustParseAddrPort("10.96.0.12:80"), "10.244.0.3:8080")
	apply(t, first, web, talk, gone)
	prune(t, first, n)
	value := first.have.frontends[frontendKeyOf(&web.Frontends[0])]

	long, err := pod.Dial(t.Context(), "tcp", netip.AddrPort{}, netip.MustParseAddrPort("10.96.0.11:7"))
	if err != nil {
		t.Fatal(err)
	}
	defer long.Close()
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var done atomic.Int64
	clients.Go(func() {
		for ctx.Err() == nil {
			if _, err := pod.Ask("tcp", netip.AddrPort{}, vip, 5*time.Second); err != nil {
				t.Errorf("a new connection failed: %v", err)
				return
			}
			done.Add(1)
		}
	})
	d := first
	for range 3 {
		d.abandon(t)
		o := m.options(t, n)
		if d, err = New(o); err != nil {
			t.Fatal(err)
		}
		if !d.live {
			t.Fatal("the programs of the process before were not found")
		}
		apply(t, d, web)
		apply(t, d, talk)
		prune(t, d, n)
		if got := d.have.frontends[frontendKeyOf(&web.Frontends[0])]; got != value {
			t.Errorf("a restart changed a frontend from %v to %v", value, got)
		}
		if peer := say(t, long); peer != "10.96.0.11:7" {
			t.Errorf("the peer is told as %s", peer)
		}
	}
	for before := done.Load(); done.Load() < before+20 && ctx.Err() == nil && !t.Failed(); {
		time.Sleep(time.Millisecond)
	}
	stop()
	clients.Wait()
	if _, err := pod.Ask("tcp", netip.AddrPort{}, netip.MustParseAddrPort("10.96.0.12:80"), time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a Service that went while no process ran: %v", err)
	}
	if len(d.inheritedRows)+len(d.inheritedIDs) != 0 {
		t.Errorf("left over: rows %v, numbers %v", d.inheritedRows, d.inheritedIDs)
	}
	if c := d.Traffic()[PortOf(web.Key, &web.Frontends[0])]; c.Connections < uint64(done.Load()) {
		t.Errorf("%d connections were counted, %d were made", c.Connections, done.Load())
	}
	d.abandon(t)
}

func echo(t *testing.T, l net.Listener) {
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				lines := bufio.NewScanner(c)
				for lines.Scan() {
					_, _ = fmt.Fprintln(c, lines.Text())
				}
			}()
		}
	}()
}

// say has a word echoed on a connection and returns the address of its peer.
func say(t *testing.T, c net.Conn) string {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := fmt.Fprintln(c, "word"); err != nil {
		t.Errorf("a connection under way: %v", err)
	}
	if word, err := bufio.NewReader(c).ReadString('\n'); err != nil || word != "word\n" {
		t.Errorf("a connection under way: %q, %v", word, err)
	}
	peer := ""
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		if a, err := unix.Getpeername(int(fd)); err == nil {
			if a4, ok := a.(*unix.SockaddrInet4); ok {
				peer = netip.AddrPortFrom(netip.AddrFrom4(a4.Addr), uint16(a4.Port)).String()
			}
		}
	})
	return peer
}

// TestVerify damages whatever can be and has it repaired.
func TestVerify(t *testing.T) {
	m := newMachine(t)
	n := cases.NewNetwork(t)
	d := start(t, m.options(t, n))
	web := planOf("web", model.TCP, vip, "10.244.0.3:8080")
	apply(t, d, web)
	prune(t, d, n)
	key := frontendKeyOf(&web.Frontends[0])
	value := d.have.frontends[key]
	asks := func(when string) {
		t.Helper()
		if a, err := n.Hosts["pod-a"].Ask("tcp", netip.AddrPort{}, vip, 5*time.Second); err != nil || a.Name != "pod-b" {
			t.Errorf("%s: %v, %v", when, a, err)
		}
	}
	asks("at first")
	stray := key
	stray.Port = portOf(99)
	for what, damage := range map[string]func() error{
		"a frontend was removed":  func() error { return d.maps[socketMapFrontends].Delete(key) },
		"a frontend was added":    func() error { return d.maps[socketMapFrontends].Put(stray, value) },
		"a frontend was changed":  func() error { return d.maps[socketMapFrontends].Put(key, frontend{Actions: [2]uint8{actionReject}}) },
		"a backend was changed":   func() error { return d.maps[socketMapBackends].Put(value.Pools[0].Base, backend{}) },
		"an address was removed":  func() error { return d.maps[socketMapAddresses].Delete(key.Addr) },
		"a namespace was removed": func() error { return d.maps[socketMapNamespaces].Delete(d.cookie) },
		"a program was detached":  func() error { return d.attachments[0].links[socketProgConnect4].Detach() },
		"a link was unpinned":     func() error { return os.Remove(d.attachments[0].pin(d.pins, socketProgConnect4)) },
	} {
		if err := damage(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if err := d.Verify(t.Context()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		asks(what)
		var now frontend
		if err := d.maps[socketMapFrontends].Lookup(key, &now); err != nil || now != value {
			t.Errorf("%s: the frontend is %v, %v", what, now, err)
		}
		if err := d.maps[socketMapFrontends].Lookup(stray, &now); !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Errorf("%s: a stray frontend stays", what)
		}
		var flags uint32
		if err := d.maps[socketMapAddresses].Lookup(key.Addr, &flags); err != nil || flags != addressCluster|addressFrontend {
			t.Errorf("%s: the address has flags %b, %v", what, flags, err)
		}
		if _, err := os.Stat(d.attachments[0].pin(d.pins, socketProgConnect4)); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestRowsThatCannotBeWritten has the kernel refuse backends: no frontend may
// lead to them then, and they are written with the next attempt.
func TestRowsThatCannotBeWritten(t *testing.T) {
	m := newMachine(t)
	d := start(t, m.options(t, cases.NewNetwork(t)))
	before, after := planOf("web", model.TCP, vip, "10.244.0.3:8080"), planOf("web", model.TCP, vip, "10.244.0.4:8080", "10.244.0.5:8080")
	key := frontendKeyOf(&before.Frontends[0])
	apply(t, d, before)
	was := d.have.frontends[key]
	backends := d.maps[socketMapBackends]
	readOnly, err := ebpf.LoadPinnedMap(filepath.Join(string(d.pins), d.layout, socketMapBackends), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer readOnly.Close()
	d.maps[socketMapBackends] = readOnly
	if failed := d.Apply(t.Context(), changes(after)); failed[after.Key] == nil {
		t.Error("no error")
	}
	var now frontend
	if err := d.maps[socketMapFrontends].Lookup(key, &now); err != nil || now != was {
		t.Errorf("the frontend is %v, %v, want %v", now, err, was)
	}
	d.maps[socketMapBackends] = backends
	apply(t, d, after)
	if err := d.maps[socketMapFrontends].Lookup(key, &now); err != nil || now.Pools[inside].Count != 2 {
		t.Fatalf("the frontend is %v, %v", now, err)
	}
	for i, want := range after.Frontends[0].Internal.Backends {
		var b backend
		if err := backends.Lookup(now.Pools[inside].Base+uint32(i), &b); err != nil || b != backendOf(want) {
			t.Errorf("backend %d is %v, %v, want %v", i, b, err, want)
		}
	}
}

// TestOthers checks that programs and pinned maps of others stay, through
// restarts and cleanup, and that cleanup leaves nothing of ours.
func TestOthers(t *testing.T) {
	m := newMachine(t)
	n := cases.NewNetwork(t)
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	theirs, err := link.AttachCgroup(link.CgroupOptions{Path: m.cgroup, Attach: ebpf.AttachCGroupInet4Connect, Program: program})
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	foreign := filepath.Join(filepath.Dir(m.pins), "foreign")
	if err := program.Pin(foreign); err != nil {
		t.Fatal(err)
	}
	attached := func() int {
		t.Helper()
		all, err := link.QueryPrograms(link.QueryOptions{Target: cgroupFD(t, m.cgroup), Attach: ebpf.AttachCGroupInet4Connect})
		if err != nil {
			t.Fatal(err)
		}
		return len(all.Programs)
	}
	o := m.options(t, n)
	for range 2 {
		d, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		prune(t, d, n)
		if got := attached(); got != 2 {
			t.Errorf("%d programs are attached, want theirs and ours", got)
		}
		d.abandon(t)
	}
	if err := Cleanup(o); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); attached() != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d programs are attached after cleanup, want theirs alone", attached())
		}
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Errorf("what others have pinned: %v", err)
	}
	if _, err := os.Stat(m.pins); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("our directory stays: %v", err)
	}
	if err := Cleanup(o); err != nil {
		t.Errorf("cleaning up twice: %v", err)
	}
}

func cgroupFD(t *testing.T, path string) int {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return int(f.Fd())
}

// TestConnectedUDP checks that a connected UDP socket is closed when its
// endpoint has gone, and no other one.
func TestConnectedUDP(t *testing.T) {
	m := newMachine(t)
	n := cases.NewNetwork(t)
	d := start(t, m.options(t, n))
	dns := netip.MustParseAddrPort("10.96.0.10:53")
	apply(t, d, planOf("dns", model.UDP, dns, "10.244.0.3:8080"))
	prune(t, d, n)
	pod := n.Hosts["pod-a"]
	dial := func(to string) net.Conn {
		t.Helper()
		c, err := pod.Dial(t.Context(), "udp", netip.AddrPort{}, netip.MustParseAddrPort(to))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	ask := func(c net.Conn) error {
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Write([]byte("?")); err != nil {
			return err
		}
		_, err := c.Read(make([]byte, 100))
		return err
	}
	service, direct := dial(dns.String()), dial("10.244.0.3:8080")
	for _, c := range []net.Conn{service, direct} {
		if err := ask(c); err != nil {
			t.Fatal(err)
		}
	}
	apply(t, d, planOf("dns", model.UDP, dns, "10.244.0.3:8080", "10.244.1.2:8080"))
	if err := ask(service); err != nil {
		t.Errorf("with one endpoint more: %v", err)
	}
	apply(t, d, planOf("dns", model.UDP, dns, "10.244.1.2:8080"))
	var err error
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = ask(service); err != nil {
			break
		}
	}
	if !errors.Is(err, syscall.ECONNABORTED) && !errors.Is(err, syscall.EDESTADDRREQ) {
		t.Errorf("a socket whose endpoint has gone: %v, want that it is connected no more", err)
	}
	if err := ask(direct); err != nil {
		t.Errorf("a socket that was connected to the endpoint itself: %v", err)
	}
}

// TestReturningEndpoint checks that looking for sockets whose endpoint has gone
// spares those connected after it came back, however closely one follows the other.
func TestReturningEndpoint(t *testing.T) {
	m := newMachine(t)
	n := cases.NewNetwork(t)
	d := start(t, m.options(t, n))
	dns := netip.MustParseAddrPort("10.96.0.10:53")
	first, second := "10.244.0.3:8080", "10.244.1.2:8080"
	apply(t, d, planOf("dns", model.UDP, dns, first))
	prune(t, d, n)
	// Many sockets elsewhere, so that reading what there is takes its time.
	for cookie := range uint64(20000) {
		f := flow{Backend: addressOf(netip.MustParseAddr("10.244.9.9")), Port: portOf(8080)}
		if err := d.maps[socketMapConnectedUdp].Put(cookie|1<<60, f); err != nil {
			t.Fatal(err)
		}
	}
	pod := n.Hosts["pod-a"]
	for i := range 30 {
		apply(t, d, planOf("dns", model.UDP, dns, second)) // wakes the sweeper
		time.Sleep(time.Duration(i%10) * 200 * time.Microsecond)
		apply(t, d, planOf("dns", model.UDP, dns, first))
		c, err := pod.Dial(t.Context(), "udp", netip.AddrPort{}, dns)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			time.Sleep(time.Millisecond)
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err = c.Write([]byte("?")); err == nil {
				_, err = c.Read(make([]byte, 100))
			}
			if err != nil {
				t.Fatalf("round %d: a socket connected after its endpoint had returned: %v", i, err)
			}
		}
		_ = c.Close()
	}
}

// TestUnconnectedUDP checks a socket that talks to several Services: it stays
// with one endpoint for each, and gets answers from whom it asked.
func TestUnconnectedUDP(t *testing.T) {
	m := newMachine(t)
	n := cases.NewNetwork(t)
	d := start(t, m.options(t, n))
	a, b := netip.MustParseAddrPort("10.96.0.10:53"), netip.MustParseAddrPort("10.96.0.11:53")
	apply(t, d, planOf("a", model.UDP, a, "10.244.0.3:8080", "192.168.50.1:8080"), planOf("b", model.UDP, b, "10.244.0.2:8080"))
	prune(t, d, n)
	c := n.Hosts["pod-a"].ListenPacket(netip.MustParseAddrPort("0.0.0.0:0"))
	name := map[netip.AddrPort]string{}
	buf := make([]byte, 100)
	for range 20 {
		for _, to := range []netip.AddrPort{a, b} {
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := c.WriteToUDPAddrPort([]byte("?"), to); err != nil {
				t.Fatal(err)
			}
			got, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				t.Fatal(err)
			}
			from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			if from != to {
				t.Fatalf("%s answered, want %s", from, to)
			}
			var who string
			if _, err := fmt.Sscan(string(buf[:got]), &who); err != nil {
				t.Fatal(err)
			}
			if name[to] == "" {
				name[to] = who
			}
			if name[to] != who {
				t.Fatalf("%s answers for %s after %s", who, to, name[to])
			}
		}
	}
	// Its endpoint leaves: the socket goes on with another one.
	apply(t, d, planOf("a", model.UDP, a, map[string]string{"pod-b": "192.168.50.1:8080", "node-1": "10.244.0.3:8080"}[name[a]]))
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.WriteToUDPAddrPort([]byte("?"), a); err != nil {
		t.Fatal(err)
	}
	got, from, err := c.ReadFromUDPAddrPort(buf)
	if from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port()); err != nil || from != a || string(buf[:len(name[a])]) == name[a] {
		t.Errorf("after its endpoint has gone %s answers from %s, %v", buf[:got], from, err)
	}
}

// TestContested checks who has an address that two Services claim.
func TestContested(t *testing.T) {
	m := newMachine(t)
	n := cases.NewNetwork(t)
	d := start(t, m.options(t, n))
	prune(t, d, n)
	older, younger := planOf("older", model.TCP, vip, "10.244.0.3:8080"), planOf("younger", model.TCP, vip, "192.168.50.1:8080")
	younger.Created = time.Now()
	served := func(want string) {
		t.Helper()
		if a, err := n.Hosts["pod-a"].Ask("tcp", netip.AddrPort{}, vip, 5*time.Second); err != nil || a.Name != want {
			t.Errorf("%v, %v; want %s", a, err, want)
		}
	}
	apply(t, d, younger)
	served("node-1")
	apply(t, d, older)
	served("pod-b")
	err := d.Apply(t.Context(), []reconcile.Change[model.Key, plan.Service]{change(younger)})[younger.Key]
	if taken := (*dataplane.TakenError)(nil); !errors.As(err, &taken) || taken.Service != younger.Key || taken.By != older.Key || taken.At != vip {
		t.Errorf("the younger Service is told %v", err)
	}
	if why := dataplane.Refusal(err); why != nil {
		t.Errorf("the kernel is blamed for it: %v", why)
	}
	served("pod-b")
	for key, err := range d.Apply(t.Context(), []reconcile.Change[model.Key, plan.Service]{{Key: older.Key}}) {
		t.Errorf("%s: %v", key, err)
	}
	served("node-1")
}

// TestFullMaps checks that a Service for which there is no room is told so by
// name, with the limit and the flag that raises it, is not there by half, harms
// no other one, and gets its place when others have gone.
func TestFullMaps(t *testing.T) {
	m := newMachine(t)
	n := cases.NewNetwork(t)
	o := m.options(t, n)
	o.MaxFrontends, o.MaxBackends = 40, 8
	d := start(t, o)
	web := planOf("web", model.TCP, vip, "10.244.0.3:8080")
	apply(t, d, web)
	prune(t, d, n)
	ask := func(at netip.AddrPort) string {
		t.Helper()
		a, err := n.Hosts["pod-a"].Ask("tcp", netip.AddrPort{}, at, 5*time.Second)
		if err != nil {
			return err.Error()
		}
		return a.Name
	}
	others := func(when string) {
		t.Helper()
		if got := ask(vip); got != "pod-b" {
			t.Errorf("%s, another Service answers %s", when, got)
		}
	}
	told := func(key model.Key, err error, words ...string) {
		t.Helper()
		if err == nil {
			t.Fatalf("%s is not told", key)
		}
		for _, w := range append(words, key.String()) {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s is told %q, which lacks %q", key, err, w)
			}
		}
	}
	// holds reports whether the kernel has the frontend of a Service.
	holds := func(s plan.Service) bool {
		t.Helper()
		var f frontend
		return d.maps[socketMapFrontends].Lookup(frontendKeyOf(&s.Frontends[0]), &f) == nil
	}

	// Backends: rows of four, of which there are two, one with that of web.
	three := []string{"10.244.0.3:8080", "192.168.50.1:8080", "10.244.1.2:8080"}
	at := func(i byte) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, 0, i}), 80)
	}
	first, second := planOf("first", model.TCP, at(11), three...), planOf("second", model.TCP, at(12), three...)
	failed := d.Apply(t.Context(), changes(first, second))
	if len(failed) != 1 {
		t.Fatalf("failed: %v, want one of two", failed)
	}
	told(second.Key, failed[second.Key], "no room for 3 endpoints", "holds 8", "--bpf-max-backends")
	if holds(second) || !holds(first) {
		t.Errorf("the kernel has the Service that was refused: %t; the other: %t", holds(second), holds(first))
	}
	others("with the map of backends full")
	if got := ask(at(11)); got != "pod-b" && got != "node-1" && got != "pod-c" {
		t.Errorf("the Service that came before answers %s", got)
	}
	// One that is served and grows beyond the room stays as it was.
	big := planOf("web", model.TCP, vip, "10.244.0.3:8080", "10.244.9.1:80", "10.244.9.2:80", "10.244.9.3:80", "10.244.9.4:80")
	told(big.Key, d.Apply(t.Context(), changes(big))[big.Key], "no room for 5 endpoints", "--bpf-max-backends")
	others("after it was refused more endpoints")
	for key, err := range d.Apply(t.Context(), []reconcile.Change[model.Key, plan.Service]{{Key: first.Key}}) {
		t.Errorf("removing %s: %v", key, err)
	}
	apply(t, d, second) // the retry
	if got := ask(at(12)); got != "pod-b" && got != "node-1" && got != "pod-c" {
		t.Errorf("after there is room, the Service that was refused answers %s", got)
	}
	apply(t, d, web)
	others("at last")

	// Frontends: the kernel has room for about as many as were asked for, as
	// each processor keeps some to itself.
	var many []plan.Service
	for i := range 60 {
		many = append(many, planOf(fmt.Sprint("none-", i), model.TCP, netip.AddrPortFrom(vip.Addr(), uint16(1000+i))))
	}
	failed = d.Apply(t.Context(), changes(many...))
	if len(failed) < 20 || len(failed) > 30 {
		t.Errorf("%d of 60 Services failed where there is room for 40", len(failed))
	}
	var served, refused []plan.Service
	for _, s := range many {
		if err := failed[s.Key]; err != nil {
			told(s.Key, err, "is full with 40", "--bpf-max-frontends")
			refused = append(refused, s)
		} else {
			served = append(served, s)
		}
		if holds(s) == (failed[s.Key] != nil) {
			t.Errorf("%s: told %v, the kernel has it: %t", s.Key, failed[s.Key], holds(s))
		}
	}
	others("with the map of frontends full")
	if got := ask(at(12)); got != "pod-b" && got != "node-1" && got != "pod-c" {
		t.Errorf("with the map of frontends full, a Service answers %s", got)
	}
	if err := d.Verify(t.Context()); err == nil {
		t.Error("the comparison with the kernel does not tell that something is missing")
	}
	others("after the comparison with the kernel")
	var remove []reconcile.Change[model.Key, plan.Service]
	for _, s := range served {
		remove = append(remove, reconcile.Change[model.Key, plan.Service]{Key: s.Key})
	}
	for key, err := range d.Apply(t.Context(), remove) {
		t.Errorf("removing %s: %v", key, err)
	}
	apply(t, d, refused...) // the retry
	for _, s := range refused {
		if !holds(s) {
			t.Errorf("%s is not there though there is room", s.Key)
		}
	}
	others("at the end")

	// Source ranges, of which there is room for as many.
	svc := &model.Service{
		Key: model.Key{Namespace: "ns", Name: "ranges"}, IPv4: true, ClusterIPs: []netip.Addr{at(13).Addr()}, Type: model.LoadBalancer,
		Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}},
	}
	svc.LoadBalancer.Ingress = []model.LoadBalancerIngress{{Addr: netip.MustParseAddr("198.51.100.1")}}
	restricted := func(n int) plan.Service {
		svc.LoadBalancer.SourceRanges = nil
		for i := range n {
			svc.LoadBalancer.SourceRanges = append(svc.LoadBalancer.SourceRanges, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i), 0}), 24))
		}
		return plan.Compile(plan.Input{Service: svc, Node: &model.Node{Name: "node-1"}})
	}
	many = []plan.Service{restricted(50)}
	told(svc.Key, d.Apply(t.Context(), changes(many...))[svc.Key], "source ranges", "is full with 40", "--bpf-max-frontends")
	left, err := readTrie[sourceKey, uint8](d.maps[socketMapSources])
	if err != nil || len(left) > 0 || holds(many[0]) {
		t.Errorf("of a Service whose ranges have no room the kernel has %d ranges, %v, and its frontend: %t", len(left), err, holds(many[0]))
	}
	others("with the map of source ranges full")
	for _, s := range refused[:5] {
		for key, err := range d.Apply(t.Context(), []reconcile.Change[model.Key, plan.Service]{{Key: s.Key}}) {
			t.Errorf("removing %s: %v", key, err)
		}
	}
	apply(t, d, restricted(30))
}

func TestProbeSockets(t *testing.T) {
	m := newMachine(t)
	n := cases.NewNetwork(t)
	o := m.options(t, n)
	if err := ProbeSockets(o); err != nil {
		t.Fatal(err)
	}
	all, err := link.QueryPrograms(link.QueryOptions{Target: cgroupFD(t, m.cgroup), Attach: ebpf.AttachCGroupInet4Connect})
	if err != nil || len(all.Programs) != 0 {
		t.Errorf("programs that a probe left: %v, %v", all, err)
	}
	o.Pins = filepath.Join(t.TempDir(), "fairway")
	if err := ProbeSockets(o); err == nil {
		t.Error("a directory that is on no BPF file system will do")
	} else {
		t.Log(err)
	}
}
