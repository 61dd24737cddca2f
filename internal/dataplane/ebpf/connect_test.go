package ebpf

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/testenv"
)

// BenchmarkConnect prints what a connection costs that dials an endpoint, what
// one costs that dials a Service, in processor time, and, in a pass of its
// own, how long each program runs. Both connect in turn over loopback, so
// that the difference is what programs cost, and nothing of the network.
func BenchmarkConnect(b *testing.B) {
	const backends, services = 10, 1000
	m := newMachine(b)
	ns := testenv.NewLab(b).Netns("node")
	for i := range backends {
		ns.Address("lo", fmt.Sprintf("192.0.2.%d/32", i))
	}
	for _, p := range []struct {
		name     string
		protocol model.Protocol
		kind     int
	}{{"tcp", model.TCP, unix.SOCK_STREAM}, {"udp", model.UDP, unix.SOCK_DGRAM}} {
		b.Run(p.name, func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			d := start(b, Options{Logger: logger(b), NetNS: int(ns.Handle), Cgroup: m.cgroup, Pins: m.pins})
			err := ns.Do(func() error {
				listener, err := listenAll(p.kind)
				if err != nil {
					return err
				}
				defer unix.Close(listener)
				var direct []unix.Sockaddr
				var endpoints []string
				for i := range backends {
					direct = append(direct, &unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, byte(i)}, Port: benchPort})
					endpoints = append(endpoints, fmt.Sprintf("192.0.2.%d:%d", i, benchPort))
				}
				var through []unix.Sockaddr
				for i := range services {
					a := [4]byte{10, 96, byte(i >> 8), byte(i)}
					apply(b, d, planOf(fmt.Sprint("svc-", i), p.protocol, netip.AddrPortFrom(netip.AddrFrom4(a), 80), endpoints...))
					through = append(through, &unix.SockaddrInet4{Addr: a, Port: 80})
				}
				prune(b, d, nil)
				connect := func(to []unix.Sockaddr, n int) time.Duration {
					from := threadCPU()
					for i := range n {
						if err := connectOnce(p.kind, listener, to[i%len(to)]); err != nil {
							b.Fatal(err)
						}
					}
					return threadCPU() - from
				}
				const batch = 200
				var byDirect, byService, again time.Duration
				n := 0
				for b.Loop() {
					byDirect += connect(direct, batch)
					byService += connect(through, batch)
					again += connect(direct, batch)
					n += batch
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(float64(byDirect.Nanoseconds())/float64(n), "ns/direct")
				b.ReportMetric(float64(again.Nanoseconds())/float64(n), "ns/direct-again")
				b.ReportMetric(float64(byService.Nanoseconds())/float64(n), "ns/service")
				return reportPrograms(b, d, func() { connect(through, 2000) })
			})
			if err != nil {
				b.Fatal(err)
			}
		})
	}
}

// reportPrograms reports how long each program runs while something is done: of
// several passes the shortest mean, for others on the machine only make it longer.
func reportPrograms(b *testing.B, d *Dataplane, do func()) error {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return err
	}
	defer stats.Close()
	before, least := map[string]ebpf.ProgramStats{}, map[string]float64{}
	for range 20 {
		do()
		for name, program := range d.attachments[0].programs {
			now, err := program.Stats()
			if err != nil {
				return err
			}
			if runs := now.RunCount - before[name].RunCount; runs > 0 {
				mean := float64((now.Runtime - before[name].Runtime).Nanoseconds()) / float64(runs)
				if had, ok := least[name]; !ok || mean < had {
					least[name] = mean
				}
			}
			before[name] = *now
		}
	}
	for name, mean := range least {
		b.ReportMetric(mean, "ns/"+name)
	}
	return nil
}

const benchPort = 8080

func threadCPU() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) // cannot fail with this clock
	return time.Duration(ts.Nano())
}

func listenAll(kind int) (int, error) {
	l, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err = unix.Bind(l, &unix.SockaddrInet4{Port: benchPort}); err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(l, 128)
	}
	return l, err
}

// connectOnce connects and takes the connection away again, without leaving
// one in TIME_WAIT.
func connectOnce(kind, listener int, to unix.Sockaddr) error {
	c, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(c)
	if err := unix.Connect(c, to); err != nil || kind != unix.SOCK_STREAM {
		return err
	}
	if err := unix.SetsockoptLinger(c, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	s, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		return err
	}
	return unix.Close(s)
}

// BenchmarkPacket prints how long the ingress program takes for packets that
// are none of ours, as nearly all are. Each is to another port, as answers to
// clients are.
func BenchmarkPacket(b *testing.B) {
	const packets = 1 << 14
	m := newMachine(b)
	ns := testenv.NewLab(b).Netns("node")
	d := start(b, Options{Logger: logger(b), NetNS: int(ns.Handle), HostCgroup: m.cgroup, Pins: m.pins, Ingress: true})
	for i := range 1000 {
		apply(b, d, oneOfMany(i, 10))
	}
	prune(b, d, nil)
	program := d.ingress.programs[roleUplink]
	for name, flags := range map[string]byte{"ack": 0x10, "syn": 0x02} {
		b.Run(name, func(b *testing.B) {
			var frames [][]byte
			for i := range packets {
				frames = append(frames, frame(uint16(i), flags))
			}
			var spent time.Duration
			n := 0
			for b.Loop() {
				for _, f := range frames {
					_, took, err := program.Benchmark(f, 1, nil)
					if err != nil {
						b.Fatal(err)
					}
					spent += took
				}
				n += packets
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(spent.Nanoseconds())/float64(n), "ns/packet")
		})
	}
}

// frame is a TCP packet from a Pod to a port of another one.
func frame(port uint16, flags byte) []byte {
	f := make([]byte, 14+20+20)
	f[12], f[14] = 0x08, 0x45 // IPv4
	copy(f[16:], []byte{0, 40})
	f[22], f[23] = 64, unix.IPPROTO_TCP
	copy(f[26:], []byte{10, 244, 1, 1, 10, 244, 1, 100})
	copy(f[34:], []byte{0x1f, 0x90, byte(port >> 8), byte(port)})
	f[34+12], f[34+13] = 5<<4, flags
	return f
}
