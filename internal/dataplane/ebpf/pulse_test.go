package ebpf

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/dataplane/cases"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
)

// TestServerSocketCloses checks that clients go to the server that stands by as
// soon as the kernel closes a socket of the node's own, as it does when that is killed, and
// not when anybody else's is closed; and that another process finds all this as it was.
func TestServerSocketCloses(t *testing.T) {
	m := newMachine(t)
	n := cases.NewNetwork(t)
	o := m.options(t, n)
	d := start(t, o)
	to := netip.MustParseAddrPort("10.96.0.10:53")
	service := planOf("dns", model.UDP, to, "192.168.50.1:8080")
	f := &service.Frontends[0]
	f.Standby = plan.Pool{Policy: plan.Standby, Backends: []plan.Backend{{AddrPort: netip.MustParseAddrPort("10.244.1.2:8080")}}}
	f.Serving = append(f.Serving, f.Standby.Backends[0].AddrPort) // else a sweep ends the sockets that have it
	apply(t, d, service)
	prune(t, d, n)
	want := func(when, name string) {
		t.Helper()
		for _, from := range []string{"pod-a", "node-1"} {
			a, err := n.Hosts[from].Ask("udp", netip.AddrPort{}, to, 5*time.Second)
			if err != nil || a.Name != name {
				t.Errorf("%s: %s is answered by %q, want %s; %v", when, from, a.Name, name, err)
			}
		}
	}
	server, other := n.Hosts["node-1"].ListenPacket(netip.MustParseAddrPort("192.168.50.1:10053")), n.Hosts["node-1"].ListenPacket(netip.MustParseAddrPort("192.168.50.1:10054"))
	raw, err := server.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var cookie uint64
	_ = raw.Control(func(fd uintptr) { cookie, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE) })
	if err != nil {
		t.Fatal(err)
	}
	pulse := func(d *Dataplane) {
		t.Helper()
		if err := d.Pulse(time.Hour, []uint64{cookie}, nil); err != nil {
			t.Fatal(err)
		}
	}
	want("before anything is known of the server", "pod-c")
	pulse(d)
	want("while it answers", "node-1")
	other.Close()
	want("another socket was closed", "node-1")
	server.Close()
	want("its socket was closed", "pod-c")
	pulse(d)
	want("it says that it is there all the same", "node-1")

	d.abandon(t)
	again := start(t, o)
	want("another process starts", "node-1")
	apply(t, again, service)
	prune(t, again, n)
	want("another process goes on", "node-1")
	h, err := Read(o)
	if err != nil {
		t.Fatal(err)
	}
	if held, ok := h.Held(f); !ok || !cmp.Equal(held.Internal.Backends, []netip.AddrPort{f.Internal.Backends[0].AddrPort}, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })) {
		t.Errorf("held is %+v, %v", held, ok)
	}
	if got := h.Differences(f); len(got) > 0 {
		t.Errorf("differences: %q", got)
	}
	f.Standby = plan.Pool{}
	if got := strings.Join(h.Differences(f), "; "); !strings.Contains(got, "clients go to [10.244.1.2:8080], planned is []") {
		t.Errorf("one that stands by and should not: %q", got)
	}
}
