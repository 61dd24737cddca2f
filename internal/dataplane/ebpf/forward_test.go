package ebpf

import (
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/dataplane/cases"
	"fairway.dev/fairway/internal/dataplane/nft"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
)

// BenchmarkForward prints what a connection from one Pod of a node to another
// costs in processor time, all packets included: where nobody looks at them,
// where the kernel tracks connections, and where the data path serves packets.
// They take turns in short batches. What counts is the tenth that took least, for
// others on the machine only make it longer.
func BenchmarkForward(b *testing.B) {
	runtime.LockOSThread() // never unlocked: it goes from namespace to namespace
	m := newMachine(b)
	track := func(n *cases.Network) {
		c, err := nftables.New(nftables.WithNetNSFd(int(n.Hosts["node-1"].Handle)))
		if err != nil {
			b.Fatal(err)
		}
		t := c.AddTable(&nftables.Table{Name: "track", Family: nftables.TableFamilyINet})
		ch := c.AddChain(&nftables.Chain{Name: "masq", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: word(0x777)}, &expr.Masq{},
		}})
		if err := c.Flush(); err != nil {
			b.Fatal(err)
		}
	}
	serve := func(n *cases.Network) {
		o := m.options(b, n)
		o.Namespaces, o.Ingress = nil, true
		rest, err := nft.New(nft.Options{Logger: logger(b), NetNS: o.NetNS, OwnPackets: true})
		if err != nil {
			b.Fatal(err)
		}
		d := dataplane.Stack{start(b, o), dataplane.Part{Dataplane: rest, Takes: Remainder}}
		if err := d.SetNode(b.Context(), n.Settings); err != nil {
			b.Fatal(err)
		}
		for i := range 100 {
			if failed := d.Apply(b.Context(), changes(oneOfMany(i, 10))); len(failed) > 0 {
				b.Fatal(failed)
			}
		}
		if err := d.Prune(b.Context(), func(func(model.Key, plan.Service) bool) {}); err != nil {
			b.Fatal(err)
		}
	}
	type side struct {
		name     string
		prepare  func(*cases.Network)
		client   netns.NsHandle
		listener int
		took     []time.Duration
	}
	sides := []*side{
		{name: "direct", prepare: func(*cases.Network) {}},
		{name: "tracked", prepare: track},
		{name: "ebpf", prepare: serve},
	}
	for _, s := range sides {
		n := cases.NewNetwork(b)
		s.prepare(n)
		s.client = n.Hosts["pod-a"].Handle
		err := n.Hosts["pod-b"].Do(func() (err error) {
			s.listener, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err == nil {
				err = unix.Bind(s.listener, &unix.SockaddrInet4{Port: 9000})
			}
			if err == nil {
				err = unix.Listen(s.listener, 128)
			}
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
		defer unix.Close(s.listener)
	}
	to := &unix.SockaddrInet4{Addr: [4]byte{10, 244, 0, 3}, Port: 9000}
	const each = 10
	for b.Loop() {
		for _, s := range sides {
			if err := netns.Set(s.client); err != nil {
				b.Fatal(err)
			}
			from := threadCPU()
			for range each {
				if err := talkOnce(s.listener, to); err != nil {
					b.Fatal(s.name, err)
				}
			}
			s.took = append(s.took, (threadCPU()-from)/each)
		}
	}
	b.ReportMetric(0, "ns/op")
	for _, s := range sides {
		slices.Sort(s.took)
		b.ReportMetric(float64(s.took[len(s.took)/10].Nanoseconds()), "ns/"+s.name)
	}
}

// talkOnce connects, sends a request, has it answered, and closes in good order.
func talkOnce(listener int, to unix.Sockaddr) error {
	c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(c, to); err != nil {
		return err
	}
	s, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		return err
	}
	buf := make([]byte, 64)
	for _, way := range [][2]int{{c, s}, {s, c}} {
		if _, err := unix.Write(way[0], buf); err != nil {
			return err
		}
		if _, err := unix.Read(way[1], buf); err != nil {
			return err
		}
	}
	if err := unix.SetsockoptInt(c, unix.IPPROTO_TCP, unix.TCP_LINGER2, 1); err != nil {
		return err
	}
	if err := unix.Close(s); err != nil {
		return err
	}
	return unix.Close(c)
}
