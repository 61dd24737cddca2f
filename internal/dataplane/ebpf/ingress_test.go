package ebpf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
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
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/conntrack"
	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/dataplane/cases"
	"fairway.dev/fairway/internal/dataplane/nft"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
	"fairway.dev/fairway/internal/testenv"
)

func TestProbeIngress(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	if err := ProbeIngress(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}

// whole starts sockets and packets for node-1, and nftables for what remains.
func whole(t *testing.T, o Options) dataplane.Dataplane {
	t.Helper()
	o.Ingress = true
	rest, err := nft.New(nft.Options{Logger: logger(t), NetNS: o.NetNS, OwnPackets: len(o.Covered) == 0})
	if err != nil {
		t.Fatal(err)
	}
	return dataplane.Stack{start(t, o), dataplane.Part{Dataplane: rest, Takes: Remainder}}
}

// TestIngressCases checks packets where they arrive, also those of Pods whose
// sockets are not seen, and the node's own clients.
func TestIngressCases(t *testing.T) {
	m := newMachine(t)
	cases.Run(t, func(t *testing.T, n *cases.Network) dataplane.Dataplane {
		o := m.options(t, n)
		o.Namespaces = nil
		return whole(t, o)
	}, cases.NodeSockets)
}

// TestWholeCases checks sockets with packets where they arrive.
func TestWholeCases(t *testing.T) {
	m := newMachine(t)
	cases.Run(t, func(t *testing.T, n *cases.Network) dataplane.Dataplane {
		o := m.options(t, n)
		o.Covered = []string{"p-"}
		return whole(t, o)
	}, cases.Sockets)
}

// edge is node-1 of the network of the cases, which serves packets that arrive
// and nothing else: no nftables data path is beside.
type edge struct {
	*cases.Network
	o Options
	d *Dataplane
}

func newEdge(t *testing.T) *edge { return newEdgeOn(t, newMachine(t)) }

func newEdgeOn(t *testing.T, m machine) *edge {
	t.Helper()
	n := cases.NewNetwork(t)
	e := &edge{Network: n, o: m.options(t, n)}
	e.o.Namespaces, e.o.Ingress = nil, true
	e.restart(t)
	t.Cleanup(func() { e.remove(t) })
	return e
}

// remove ends the data path and removes all that it has in the kernel.
func (e *edge) remove(t *testing.T) {
	t.Helper()
	if e.d != nil {
		if err := e.d.Close(); err != nil {
			t.Error(err)
		}
	}
	e.d = nil
	if err := Cleanup(e.o); err != nil {
		t.Error(err)
	}
}

// restart is what another process does that takes over.
func (e *edge) restart(t *testing.T, services ...plan.Service) {
	t.Helper()
	if e.d != nil {
		if err := e.d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if e.d, err = New(e.o); err != nil {
		t.Fatal(err)
	}
	if err := e.d.SetNode(t.Context(), e.Settings); err != nil {
		t.Fatal(err)
	}
	e.apply(t, services...)
	if err := e.d.Prune(t.Context(), func(yield func(model.Key, plan.Service) bool) {
		for _, s := range services {
			if !yield(s.Key, s) {
				return
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
}

func (e *edge) apply(t *testing.T, services ...plan.Service) {
	t.Helper()
	var changes []reconcile.Change[model.Key, plan.Service]
	for _, s := range services {
		changes = append(changes, reconcile.Change[model.Key, plan.Service]{Key: s.Key, New: s, HasNew: true})
	}
	for key, err := range e.d.Apply(t.Context(), changes) {
		t.Fatal(key, err)
	}
}

var (
	vip4 = netip.MustParseAddr("198.51.100.1")
	vip6 = netip.MustParseAddr("2001:db8:ffff::1")
)

// podB is on node-1, podC on node-2.
func podB(vip netip.Addr, port uint16) plan.Backend {
	return plan.Backend{AddrPort: netip.AddrPortFrom(pick(vip, "10.244.0.3", "fd00:10:244::3"), port), Local: true}
}

func podC(vip netip.Addr, port uint16) plan.Backend {
	return plan.Backend{AddrPort: netip.AddrPortFrom(pick(vip, "10.244.1.2", "fd00:10:244:1::2"), port)}
}

func pick(vip netip.Addr, a4, a6 string) netip.Addr {
	if vip.Is4() {
		return netip.MustParseAddr(a4)
	}
	return netip.MustParseAddr(a6)
}

// balanced is a Service with one load balancer address and port 80.
func balanced(name string, vip netip.Addr, p model.Protocol, backends ...plan.Backend) plan.Service {
	pool := plan.Pool{Action: plan.Forward, Backends: backends}
	if len(backends) == 0 {
		pool.Action = plan.Reject
	}
	return plan.Service{Key: model.Key{Namespace: "edge", Name: name}, Frontends: []plan.Frontend{{
		Kind: plan.LoadBalancer, Addr: vip, Protocol: p, Port: 80,
		ServicePort: model.ServicePort{Name: "web", Protocol: p, Port: 80}, Internal: pool, External: pool,
	}}}
}

func (e *edge) ask(network string, vip netip.Addr, local netip.AddrPort) (testenv.Answer, error) {
	return e.Hosts["outside"].Ask(network, local, netip.AddrPortFrom(vip, 80), 5*time.Second)
}

// TestPortReuse has one client port connect again and again: conntrack still
// has the connection before, which has ended.
func TestPortReuse(t *testing.T) {
	e := newEdge(t)
	for name, backend := range map[string]func(netip.Addr, uint16) plan.Backend{"local": podB, "remote": podC} {
		for _, vip := range []netip.Addr{vip4, vip6} {
			t.Run(fmt.Sprintf("%s %s", name, vip), func(t *testing.T) {
				e.apply(t, balanced("reuse", vip, model.TCP, backend(vip, 8080)))
				local := netip.AddrPortFrom(pick(vip, "203.0.113.9", "2001:db8:1::9"), 40123)
				for i := range 50 {
					if err := once(e, vip, local); err != nil {
						t.Fatalf("connection %d: %v", i, err)
					}
				}
			})
		}
	}
}

// TestOneEndpointTwoAddresses has one client port connect to two Services with
// the same endpoint: to the endpoint both are the same flow.
func TestOneEndpointTwoAddresses(t *testing.T) {
	e := newEdge(t)
	other := netip.MustParseAddr("198.51.100.2")
	local := netip.MustParseAddrPort("203.0.113.9:40124")
	for name, backend := range map[string]plan.Backend{"local": podB(vip4, 9000), "remote": podC(vip4, 9000)} {
		t.Run(name, func(t *testing.T) {
			e.apply(t, balanced("one", vip4, model.TCP, backend), balanced("two", other, model.TCP, backend))
			host := map[bool]string{true: "pod-b", false: "pod-c"}[backend.Local]
			server := e.Hosts[host].Listen(backend.AddrPort)
			defer server.Close()
			go func() {
				for {
					c, err := server.Accept()
					if err != nil {
						return
					}
					go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
				}
			}()
			local = netip.AddrPortFrom(local.Addr(), local.Port()+1)
			var open []net.Conn
			for _, vip := range []netip.Addr{vip4, other} {
				c, err := e.dialFrom(local, vip)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				open = append(open, c)
			}
			for i, c := range open {
				said, heard := fmt.Sprint("connection ", i), make([]byte, 12)
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				if _, err := c.Write([]byte(said)); err != nil {
					t.Fatal(err)
				}
				if n, err := io.ReadFull(c, heard); err != nil || string(heard[:n]) != said {
					t.Errorf("heard %q, %v", heard[:n], err)
				}
			}
		})
	}
}

// once connects from a port that may have been used a moment ago.
func once(e *edge, vip netip.Addr, local netip.AddrPort) error {
	c, err := e.dialFrom(local, vip)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if data, err := io.ReadAll(c); err != nil || len(data) == 0 {
		return fmt.Errorf("read %q: %w", data, err)
	}
	return nil
}

// dialFrom connects from outside, from a port that other connections may have.
func (e *edge) dialFrom(local netip.AddrPort, vip netip.Addr) (c net.Conn, err error) {
	d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(local), Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	}}
	return c, e.Hosts["outside"].Do(func() error {
		c, err = d.Dial("tcp", netip.AddrPortFrom(vip, 80).String())
		return err
	})
}

// load connects all the time until stop is called, which returns the number of
// connections and what failed.
func load(e *edge, network string, vip netip.Addr) (stop func() (int64, []error)) {
	var done atomic.Bool
	var count atomic.Int64
	var errs []error
	var wait sync.WaitGroup
	wait.Go(func() {
		for !done.Load() {
			if _, err := e.ask(network, vip, netip.AddrPort{}); err != nil {
				errs = append(errs, err)
			}
			count.Add(1)
		}
	})
	return func() (int64, []error) { done.Store(true); wait.Wait(); return count.Load(), errs }
}

func (e *edge) links(t *testing.T) map[string]link.ID {
	t.Helper()
	out := map[string]link.ID{}
	pins, err := filepath.Glob(filepath.Join(e.o.Pins, "*", linksDir, pinPrefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, pin := range pins {
		l, err := link.LoadPinnedLink(pin, nil)
		if err != nil {
			t.Fatal(err)
		}
		info, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		out[filepath.Base(pin)] = info.ID
		_ = l.Close()
	}
	return out
}

// TestRestartUnderLoad has one process after another take over while clients
// connect.
func TestRestartUnderLoad(t *testing.T) {
	e := newEdge(t)
	tcp, udp := balanced("tcp", vip4, model.TCP, podB(vip4, 8080), podC(vip4, 8080)), balanced("udp", vip4, model.UDP, podB(vip4, 8080), podC(vip4, 8080))
	e.apply(t, tcp, udp)
	before := e.links(t)
	if len(before) == 0 {
		t.Fatal("no program is attached")
	}
	long, err := e.Hosts["outside"].Ask("tcp", netip.AddrPort{}, netip.AddrPortFrom(vip4, 80), time.Second)
	if err != nil {
		t.Fatal(long, err)
	}
	stops := []func() (int64, []error){load(e, "tcp", vip4), load(e, "udp", vip4)}
	for range 5 {
		e.restart(t, tcp, udp)
		time.Sleep(50 * time.Millisecond)
	}
	for _, stop := range stops {
		n, errs := stop()
		if len(errs) > 0 || n < 10 {
			t.Errorf("%d of %d connections failed: %v", len(errs), n, errors.Join(errs...))
		}
	}
	after := e.links(t)
	for name, id := range before {
		if after[name] != id {
			t.Errorf("%s was attached anew, which leaves a gap", name)
		}
	}
}

// TestUpgradeFlagsAddresses takes over from a version that did not flag the
// addresses of frontends: clients are served from the moment on when the
// programs are replaced, which is long before Services are known.
func TestUpgradeFlagsAddresses(t *testing.T) {
	e := newEdge(t)
	web := balanced("web", vip4, model.TCP, podB(vip4, 8080))
	e.apply(t, web)
	addresses := e.d.maps[socketMapAddresses]
	var flags uint32
	if err := addresses.Lookup(addressOf(vip4), &flags); err != nil || flags != addressFrontend {
		t.Fatalf("flags %b, %v", flags, err)
	}
	if err := addresses.Delete(addressOf(vip4)); err != nil {
		t.Fatal(err)
	}
	held, err := Read(e.o)
	if err != nil {
		t.Fatal(err)
	}
	if got := held.Differences(&web.Frontends[0]); len(got) != 1 || !strings.Contains(got[0], "198.51.100.1 is not taken for") {
		t.Errorf("without the flag: %q", got)
	}
	if err := e.d.Close(); err != nil {
		t.Fatal(err)
	}
	if e.d, err = New(e.o); err != nil {
		t.Fatal(err)
	}
	if a, err := e.ask("tcp", vip4, netip.AddrPort{}); err != nil || a.Name != "pod-b" {
		t.Errorf("after the programs were replaced: %v, %v", a, err)
	}
	e.restart(t)
	if err := e.d.maps[socketMapAddresses].Lookup(addressOf(vip4), &flags); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("without the Service the address has flags %b, %v", flags, err)
	}
}

// TestSwitchUnderLoad has processes take over that serve packets by nftables,
// by eBPF, and again, while clients outside connect.
func TestSwitchUnderLoad(t *testing.T) {
	m := newMachine(t)
	n := cases.NewNetwork(t)
	o := m.options(t, n)
	services := []plan.Service{
		balanced("tcp", vip4, model.TCP, podB(vip4, 8080), podC(vip4, 8080)), balanced("udp", vip4, model.UDP, podB(vip4, 8080), podC(vip4, 8080)),
	}
	process := func(packets bool) (end func()) {
		o.Ingress = packets
		sockets, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		rules, err := nft.New(nft.Options{Logger: logger(t), NetNS: o.NetNS, OwnPackets: packets})
		if err != nil {
			t.Fatal(err)
		}
		d := dataplane.Stack{sockets, rules}
		if packets {
			d[1] = dataplane.Part{Dataplane: rules, Takes: Remainder}
		}
		var changes []reconcile.Change[model.Key, plan.Service]
		for _, s := range services {
			changes = append(changes, reconcile.Change[model.Key, plan.Service]{Key: s.Key, New: s, HasNew: true})
		}
		if err := d.SetNode(t.Context(), n.Settings); err != nil {
			t.Fatal(err)
		}
		for key, err := range d.Apply(t.Context(), changes) {
			t.Fatal(key, err)
		}
		if err := d.Prune(t.Context(), func(yield func(model.Key, plan.Service) bool) {
			for _, s := range services {
				if !yield(s.Key, s) {
					return
				}
			}
		}); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := errors.Join(sockets.Close(), rules.Close()); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(func() {
		if err := Cleanup(o); err != nil {
			t.Error(err)
		}
	})
	end := process(false)
	e := &edge{Network: n, o: o}
	stops := []func() (int64, []error){load(e, "tcp", vip4), load(e, "udp", vip4)}
	for i := range 6 {
		end()
		packets := i%2 == 0
		end = process(packets)
		if got := len(e.links(t)) > 0; got != packets {
			t.Errorf("programs on interfaces: %t, want %t", got, packets)
		}
		if got := strings.Contains(n.Hosts["node-1"].Run("nft", "list", "map", "ip", "fairway", "frontends"), vip4.String()); got == packets {
			t.Errorf("the Service is in nftables: %t", got)
		}
		time.Sleep(50 * time.Millisecond)
	}
	end()
	for _, stop := range stops {
		if n, errs := stop(); len(errs) > 0 || n < 10 {
			t.Errorf("%d of %d connections failed: %v", len(errs), n, errors.Join(errs...))
		}
	}
}

// eventually waits for what is done in the background.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 10s still not: %s", what)
		}
	}
}

// TestInterfacesComeAndGo plugs another uplink in and out.
func TestInterfacesComeAndGo(t *testing.T) {
	e := newEdge(t)
	e.apply(t, balanced("web", vip4, model.UDP, podB(vip4, 8080)))
	had := len(e.links(t))
	node, branch := e.Hosts["node-1"], e.Lab.Netns("branch")
	for round := range 2 {
		e.Lab.Connect(branch, "up", node, "branch")
		branch.Address("up", "203.0.113.130/25")
		node.Address("branch", "203.0.113.129/25")
		branch.Route("198.51.100.0/24", "203.0.113.129", "up")
		eventually(t, "a program is on the new interface", func() bool { return len(e.links(t)) == had+1 })
		a, err := branch.Ask("udp", netip.AddrPort{}, netip.AddrPortFrom(vip4, 80), 5*time.Second)
		if err != nil || a.Name != "pod-b" || a.Client.Addr().String() != "203.0.113.130" {
			t.Fatalf("round %d: %v, %v", round, a, err)
		}
		l, err := branch.Netlink.LinkByName("up")
		if err != nil {
			t.Fatal(err)
		}
		if err := branch.Netlink.LinkDel(l); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the interface is forgotten", func() bool { return len(e.links(t)) == had })
	}
}

// TestInterfacesLeftOut checks that an interface keeps its program when a list of
// interfaces lacks it of which the kernel says that it may not be whole.
func TestInterfacesLeftOut(t *testing.T) {
	e := newEdge(t)
	had := len(e.links(t))
	g := e.d.ingress
	g.mu.Lock()
	err := g.interfaces.follow(nil, false, g.pods, nil)
	g.mu.Unlock()
	if now := len(e.links(t)); err != nil || now != had || had == 0 {
		t.Errorf("programs are on %d interfaces, and were on %d; %v", now, had, err)
	}
}

// endpointList is as many endpoints, in order of address.
func endpointList(n int) (out []plan.Backend) {
	for i := range n {
		out = append(out, plan.Backend{AddrPort: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 99, byte(i / 200), byte(i%200 + 1)}), 8080)})
	}
	return out
}

// chosenBy returns what a node chooses that has seen endpoints come and go.
func chosenBy(t *testing.T, m machine, clients int, history ...[]plan.Backend) map[uint16]netip.AddrPort {
	e := newEdgeOn(t, m)
	e.Hosts["node-1"].Route("10.99.0.0/16", "192.168.50.2", "lan")
	for _, list := range history {
		e.apply(t, balanced("web", vip4, model.UDP, list...))
	}
	e.Hosts["node-1"].ForgetConnections()
	return e.choices(t, clients)
}

// TestNodesAgree has two nodes, which have learnt the endpoints in another
// order, choose for the same clients.
func TestNodesAgree(t *testing.T) {
	const clients = 200
	m, endpoints := newMachine(t), endpointList(20)
	one := chosenBy(t, m, clients, endpoints)
	two := chosenBy(t, m, clients, endpoints[:7], endpoints[3:18], endpoints)
	fewer := chosenBy(t, m, clients, endpoints[1:])
	share, moved := map[netip.AddrPort]int{}, 0
	for client, choice := range one {
		share[choice]++
		if two[client] != choice {
			t.Errorf("client port %d: %s at one node, %s at the other", client, choice, two[client])
		}
		if fewer[client] != choice {
			moved++
			if choice != endpoints[0].AddrPort {
				t.Errorf("client port %d left %s, which is still there", client, choice)
			}
		}
	}
	for _, b := range endpoints { // the hash is the same in each run, 10 are even
		if n := share[b.AddrPort]; n == 0 || n > 30 {
			t.Errorf("%s has %d of %d clients", b.AddrPort, n, clients)
		}
	}
	if moved != share[endpoints[0].AddrPort] {
		t.Errorf("%d clients moved, of the endpoint that left there were %d", moved, share[endpoints[0].AddrPort])
	}
}

// TestNodesAgreeOnVeryMany does the same where a contest would take too long.
func TestNodesAgreeOnVeryMany(t *testing.T) {
	const clients = 50
	m, endpoints := newMachine(t), endpointList(contestMax+100)
	one := chosenBy(t, m, clients, endpoints)
	two := chosenBy(t, m, clients, endpoints[50:], endpoints)
	if !maps.Equal(one, two) {
		t.Errorf("%v at one node, %v at the other", one, two)
	}
}

// choices sends a datagram from each of many ports and reads from conntrack
// where it went.
func (e *edge) choices(t *testing.T, clients int) map[uint16]netip.AddrPort {
	t.Helper()
	for i := range clients {
		local := netip.AddrPortFrom(netip.MustParseAddr("203.0.113.9"), uint16(20000+i))
		c, err := e.Hosts["outside"].Dial(t.Context(), "udp", local, netip.AddrPortFrom(vip4, 80))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte("x"))
		_ = c.Close()
	}
	out := map[uint16]netip.AddrPort{}
	eventually(t, "every datagram has arrived", func() bool {
		flows, err := e.Hosts["node-1"].Netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range flows {
			if f.Forward.Protocol != unix.IPPROTO_UDP || f.Forward.DstPort != 80 {
				continue
			}
			to, _ := netip.AddrFromSlice(f.Reverse.SrcIP)
			out[f.Forward.SrcPort] = netip.AddrPortFrom(to.Unmap(), f.Reverse.SrcPort)
		}
		return len(out) == clients
	})
	return out
}

// TestOthersUntouched has somebody else's tcx program, tc filter and nftables
// table on the same interface and namespace.
func TestOthersUntouched(t *testing.T) {
	e := newEdge(t)
	e.remove(t)
	node := e.Hosts["node-1"]
	counter, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer counter.Close()
	// It counts each packet, and then accepts it.
	foreign := func(slot int32) *ebpf.Program {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "MIT", Instructions: asm.Instructions{
			asm.StoreImm(asm.RFP, -4, int64(slot), asm.Word),
			asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, counter.FD()),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
			asm.Return(),
		}})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	wan, err := node.Netlink.LinkByName("wan")
	if err != nil {
		t.Fatal(err)
	}
	p := foreign(0)
	defer p.Close()
	var theirs link.Link
	if err := node.Do(func() (err error) {
		theirs, err = link.AttachTCX(link.TCXOptions{Interface: wan.Attrs().Index, Program: p, Attach: ebpf.AttachTCXIngress})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	e.restart(t) // after theirs, which hides packets from those behind it
	table := "table inet theirs {\n chain c {\n type filter hook prerouting priority -300\n udp dport 80 counter accept\n }\n}\n"
	file := filepath.Join(t.TempDir(), "theirs.nft")
	if err := os.WriteFile(file, []byte(table), 0o600); err != nil {
		t.Fatal(err)
	}
	node.Run("nft", "-f", file)
	e.apply(t, balanced("web", vip4, model.UDP, podB(vip4, 8080)))
	if _, err := e.ask("udp", vip4, netip.AddrPort{}); err != nil {
		t.Fatal(err)
	}
	var seen uint64
	if err := counter.Lookup(uint32(0), &seen); err != nil || seen == 0 {
		t.Errorf("their program saw %d packets, %v", seen, err)
	}
	e.restart(t, balanced("web", vip4, model.UDP, podB(vip4, 8080)))
	if err := e.d.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.remove(t)
	if info, err := theirs.Info(); err != nil || int(info.TCX().Ifindex) != wan.Attrs().Index {
		t.Errorf("their program is gone: %v, %v", info, err)
	}
	rules := node.Run("nft", "list", "ruleset")
	if !strings.Contains(rules, "table inet theirs") || strings.Contains(rules, "fairway") {
		t.Errorf("after Cleanup there should be their table and none of ours:\n%s", rules)
	}
	if left := e.links(t); len(left) > 0 {
		t.Errorf("after Cleanup there are %v", left)
	}
}

// TestTableRepaired has somebody flush all rules.
func TestTableRepaired(t *testing.T) {
	e := newEdge(t)
	e.apply(t, balanced("web", vip4, model.TCP, podB(vip4, 8080)), balanced("nobody", vip6, model.TCP))
	differences := func() []string {
		t.Helper()
		held, err := Read(e.o)
		if err != nil {
			t.Fatal(err)
		}
		return held.Differences(&balanced("web", vip4, model.TCP, podB(vip4, 8080)).Frontends[0])
	}
	if got := differences(); len(got) > 0 {
		t.Errorf("before, there are differences: %q", got)
	}
	disturbed := func(want bool) {
		t.Helper()
		if got, err := e.d.Disturbed(); got != want || err != nil {
			t.Errorf("disturbed %v, want %v; %v", got, want, err)
		}
	}
	disturbed(false)
	e.Hosts["node-1"].Run("nft", "flush", "ruleset")
	disturbed(true)
	if got := differences(); len(got) != 1 || !strings.Contains(got[0], "table inet fairway-ebpf is missing") {
		t.Errorf("the missing table is told as %q", got)
	}
	if _, err := e.ask("tcp", vip6, netip.AddrPort{}); errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatal("the table is not needed?")
	}
	if err := e.d.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	disturbed(false)
	if _, err := e.ask("tcp", vip6, netip.AddrPort{}); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("want connection refused, got %v", err)
	}
	if _, err := e.ask("tcp", vip4, netip.AddrPort{}); err != nil {
		t.Error(err)
	}
}

// TestBigDatagrams sends some that do not fit a packet.
func TestBigDatagrams(t *testing.T) {
	e := newEdge(t)
	for _, vip := range []netip.Addr{vip4, vip6} {
		for name, backend := range map[string]plan.Backend{"here": podB(vip, 9000), "remote": podC(vip, 9000)} {
			t.Run(name+" "+vip.String(), func(t *testing.T) {
				host := map[bool]string{true: "pod-b", false: "pod-c"}[backend.Local]
				server := e.Hosts[host].ListenPacket(backend.AddrPort)
				defer server.Close()
				go func() {
					buf := make([]byte, 9000)
					for {
						n, from, err := server.ReadFromUDPAddrPort(buf)
						if err != nil {
							return
						}
						_, _ = server.WriteToUDPAddrPort(buf[:n], from)
					}
				}()
				e.apply(t, balanced("big", vip, model.UDP, backend))
				c, err := e.Hosts["outside"].Dial(t.Context(), "udp", netip.AddrPort{}, netip.AddrPortFrom(vip, 80))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				sent := bytes.Repeat([]byte("fairway "), 1000)
				if _, err := c.Write(sent); err != nil {
					t.Fatal(err)
				}
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				got := make([]byte, 9000)
				n, err := c.Read(got)
				if err != nil || !bytes.Equal(got[:n], sent) {
					t.Errorf("%d bytes came back, %v", n, err)
				}
			})
		}
	}
}

// TestNarrowPath has a link with a smaller MTU behind the Service: behind this
// node, and behind the next one, whose ICMP errors come from outside the flow
// and speak of addresses that the client has never seen.
func TestNarrowPath(t *testing.T) {
	e := newEdge(t)
	narrow := func(host, name string) {
		l, err := e.Hosts[host].Netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Hosts[host].Netlink.LinkSetMTU(l, 1300); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct{ host, link string }{{"node-2", "p-pod-c"}, {"node-1", "lan"}} {
		narrow(step.host, step.link)
		for _, vip := range []netip.Addr{vip4, vip6} {
			t.Run(step.link+" "+vip.String(), func(t *testing.T) {
				backend := podC(vip, 9000)
				server := e.Hosts["pod-c"].Listen(backend.AddrPort)
				defer server.Close()
				got := make(chan int64, 1)
				go func() {
					c, err := server.Accept()
					if err != nil {
						return
					}
					defer c.Close()
					n, _ := io.Copy(io.Discard, c)
					got <- n
				}()
				e.apply(t, balanced("narrow", vip, model.TCP, backend))
				c, err := e.Hosts["outside"].Dial(t.Context(), "tcp", netip.AddrPort{}, netip.AddrPortFrom(vip, 80))
				if err != nil {
					t.Fatal(err)
				}
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				const size = 1 << 20
				if _, err := c.Write(make([]byte, size)); err != nil {
					t.Fatal(err)
				}
				_ = c.Close()
				select {
				case n := <-got:
					if n != size {
						t.Errorf("%d bytes of %d arrived", n, size)
					}
				case <-time.After(10 * time.Second):
					t.Error("the transfer hangs: the client was not told of the small MTU")
				}
			})
		}
	}
}

// TestMovedAddress has a connection arrive that this node knows nothing of, as
// when an address moves here: the client is told at once.
func TestMovedAddress(t *testing.T) {
	e := newEdge(t)
	e.apply(t, balanced("web", vip4, model.TCP, podB(vip4, 9000)))
	server := e.Hosts["pod-b"].Listen(podB(vip4, 9000).AddrPort)
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(io.Discard, c) }()
		}
	}()
	c, err := e.Hosts["outside"].Dial(t.Context(), "tcp", netip.AddrPort{}, netip.AddrPortFrom(vip4, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	e.Hosts["node-1"].ForgetConnections()
	eventually(t, "the client is reset", func() bool {
		_, err := c.Write([]byte("anybody there?"))
		return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	})
}

// TestDatagramsFollow has the endpoint of a client that keeps sending go: once
// conntrack is told, its next datagram reaches another one.
func TestDatagramsFollow(t *testing.T) {
	e := newEdge(t)
	before, after := balanced("web", vip4, model.UDP, podB(vip4, 8080)), balanced("web", vip4, model.UDP, podC(vip4, 8080))
	for _, s := range []*plan.Service{&before, &after} {
		f := &s.Frontends[0]
		f.Serving = []netip.AddrPort{f.Internal.Backends[0].AddrPort}
	}
	flows, err := conntrack.New(conntrack.Options{NetNS: e.o.NetNS})
	if err != nil {
		t.Fatal(err)
	}
	local := netip.MustParseAddrPort("203.0.113.9:40125")
	for _, step := range []struct {
		service plan.Service
		want    string
	}{{before, "pod-b"}, {after, "pod-c"}} {
		e.apply(t, step.service)
		change := reconcile.Change[model.Key, plan.Service]{Key: after.Key, Old: before, HadOld: true, New: step.service, HasNew: true}
		if err := flows.Changed(t.Context(), []reconcile.Change[model.Key, plan.Service]{change}); err != nil {
			t.Fatal(err)
		}
		if a, err := e.ask("udp", vip4, local); err != nil || a.Name != step.want {
			t.Errorf("%v, %v, want %s", a, err, step.want)
		}
	}
}

func TestRoles(t *testing.T) {
	link := func(name, kind string, flags net.Flags, master int) netlink.Link {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Flags, attrs.MasterIndex = name, flags, master
		return &netlink.GenericLink{LinkAttrs: attrs, LinkType: kind}
	}
	masters := func(index int) netlink.Link {
		return map[int]netlink.Link{1: link("br0", "bridge", 0, 0), 2: link("blue", "vrf", 0, 0)}[index]
	}
	for _, c := range []struct {
		link netlink.Link
		want role
	}{
		{link("lo", "device", net.FlagLoopback|net.FlagUp, 0), roleNone},
		{link("eth0", "device", net.FlagUp, 0), roleUplink},
		{link("eth0", "device", 0, 0), roleUplink},
		{link("eth0.5", "vlan", net.FlagUp, 0), roleUplink},
		{link("wg0", "wireguard", net.FlagUp, 0), roleUplink},
		{link("br0", "bridge", net.FlagUp, 0), roleUplink},
		{link("veth1", "veth", net.FlagUp, 1), roleNone},
		{link("eth1", "device", net.FlagUp, 2), roleUplink},
		{link("blue", "vrf", net.FlagUp, 0), roleNone},
		{link("cali12", "veth", net.FlagUp, 0), rolePod},
		{link("fwp1", "veth", net.FlagUp, 0), roleNone},
	} {
		if got := roleOf(c.link, masters, []string{"cali"}, []string{"fwp"}); got != c.want {
			t.Errorf("%s (%s): %s, want %s", c.link.Attrs().Name, c.link.Type(), got, c.want)
		}
	}
}
