package testenv

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Lab is the network of one test.
type Lab struct {
	tb    testing.TB
	id    string
	names map[string]bool
	links int
}

// labCount makes namespace names unique in the process.
var labCount atomic.Int64

// NewLab returns an empty network. A test that runs without root is skipped.
func NewLab(tb testing.TB) *Lab {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("network namespaces need root")
	}
	return &Lab{tb: tb, id: fmt.Sprintf("fw-test-%d-%d", os.Getpid(), labCount.Add(1)), names: map[string]bool{}}
}

// Netns is a network namespace.
type Netns struct {
	lab *Lab
	// Name is the short name that the test gave.
	Name string
	// Path is a file that stands for the namespace, for nsenter --net=Path.
	Path string
	// Handle is an open file descriptor of it.
	Handle netns.NsHandle
	// Netlink speaks to the kernel inside it.
	Netlink *netlink.Handle
}

// Netns makes a network namespace whose loopback is up.
func (l *Lab) Netns(name string) *Netns {
	l.tb.Helper()
	if l.names[name] {
		l.tb.Fatalf("testenv: namespace %s made twice", name)
	}
	l.names[name] = true
	full := l.id + "-" + name
	n := &Netns{lab: l, Name: name, Path: filepath.Join("/run/netns", full)}
	onOwnThread(func() {
		if n.Handle, _ = netns.NewNamed(full); !n.Handle.IsOpen() {
			n.Handle = netns.None()
		}
	})
	if !n.Handle.IsOpen() {
		l.tb.Fatalf("testenv: cannot make network namespace %s", full)
	}
	l.tb.Cleanup(func() {
		if n.Netlink != nil {
			n.Netlink.Close()
		}
		_ = n.Handle.Close()
		if err := netns.DeleteNamed(full); err != nil {
			l.tb.Errorf("testenv: removing %s: %v", full, err)
		}
	})
	var err error
	if n.Netlink, err = netlink.NewHandleAt(n.Handle); err != nil {
		l.tb.Fatalf("testenv: netlink in %s: %v", full, err)
	}
	n.up("lo")
	// Addresses are usable at once, without duplicate address detection.
	n.Sysctl("net.ipv6.conf.all.accept_dad", "0")
	n.Sysctl("net.ipv6.conf.default.accept_dad", "0")
	return n
}

// onOwnThread runs fn on a thread that dies with it.
func onOwnThread(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked
		fn()
	}()
	<-done
}

// Do runs fn on a thread that is in the namespace; sockets that fn itself
// opens, but not those of goroutines that it starts, belong to it.
func (n *Netns) Do(fn func() error) error {
	var err error
	onOwnThread(func() {
		if err = netns.Set(n.Handle); err == nil {
			err = fn()
		}
	})
	return err
}

// ForgetConnections empties the namespace's connection tracking.
func (n *Netns) ForgetConnections() {
	n.lab.tb.Helper()
	n.must(n.Netlink.ConntrackTableFlush(netlink.ConntrackTable), "flushing conntrack")
}

// Command returns a command that runs in the namespace.
func (n *Netns) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=" + n.Path, name}, args...)...)
}

// Run runs a command in the namespace and returns what it prints; the test
// ends when it fails.
func (n *Netns) Run(name string, args ...string) string {
	n.lab.tb.Helper()
	out, err := n.Command(name, args...).CombinedOutput()
	if err != nil {
		n.lab.tb.Fatalf("testenv: in %s: %s %s: %v\n%s", n.Name, name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Sysctl sets a kernel parameter of the namespace, in dotted form.
func (n *Netns) Sysctl(name, value string) {
	n.lab.tb.Helper()
	err := n.Do(func() error {
		// /proc/sys/net shows the namespace of the thread that opens it.
		return os.WriteFile("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), []byte(value), 0)
	})
	if err != nil {
		n.lab.tb.Fatalf("testenv: in %s: %s: %v", n.Name, name, err)
	}
}

// Forward makes the namespace a router, which tells every error by ICMP: the
// kernel's default limits them to about one a second to each host.
func (n *Netns) Forward() {
	n.lab.tb.Helper()
	n.Sysctl("net.ipv4.conf.all.send_redirects", "0")
	n.Sysctl("net.ipv4.conf.default.send_redirects", "0")
	n.Sysctl("net.ipv4.icmp_ratelimit", "0")
	n.Sysctl("net.ipv6.icmp.ratelimit", "0")
	n.Sysctl("net.ipv4.ip_forward", "1")
	n.Sysctl("net.ipv6.conf.all.forwarding", "1")
}

func (n *Netns) must(err error, format string, args ...any) {
	n.lab.tb.Helper()
	if err != nil {
		n.lab.tb.Fatalf("testenv: in %s: %s: %v", n.Name, fmt.Sprintf(format, args...), err)
	}
}

func (n *Netns) link(name string) netlink.Link {
	n.lab.tb.Helper()
	link, err := n.Netlink.LinkByName(name)
	n.must(err, "interface %s", name)
	return link
}

func (n *Netns) up(name string) {
	n.lab.tb.Helper()
	n.must(n.Netlink.LinkSetUp(n.link(name)), "interface %s up", name)
}

// Connect joins two namespaces by a pair of interfaces with these names, both up.
func (l *Lab) Connect(a *Netns, nameA string, b *Netns, nameB string) {
	l.tb.Helper()
	l.links++
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Namespace = nameA, netlink.NsFd(int(a.Handle))
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: nameB, PeerNamespace: netlink.NsFd(int(b.Handle))}
	a.must(a.Netlink.LinkAdd(veth), "veth %s to %s %s", nameA, b.Name, nameB)
	a.up(nameA)
	b.up(nameB)
}

// Address gives an interface addresses in CIDR form.
func (n *Netns) Address(link string, cidrs ...string) {
	n.lab.tb.Helper()
	for _, cidr := range cidrs {
		addr, err := netlink.ParseAddr(cidr)
		n.must(err, "address %s", cidr)
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		n.must(n.Netlink.AddrAdd(n.link(link), addr), "address %s on %s", cidr, link)
	}
}

// Route adds a route by an interface; via may be empty.
func (n *Netns) Route(dst, via, link string) {
	n.lab.tb.Helper()
	_, ipnet, err := parseCIDR(dst)
	n.must(err, "route %s", dst)
	r := &netlink.Route{Dst: ipnet, LinkIndex: n.link(link).Attrs().Index}
	if via != "" {
		r.Gw = netip.MustParseAddr(via).AsSlice()
		r.Flags = int(netlink.FLAG_ONLINK)
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	n.must(n.Netlink.RouteAdd(r), "route %s via %s dev %s", dst, via, link)
}

// Neighbor makes an address on a link known by its hardware address, for good.
func (n *Netns) Neighbor(addr, link string, of *Netns, ofLink string) {
	n.lab.tb.Helper()
	n.must(n.Netlink.NeighAdd(&netlink.Neigh{
		LinkIndex: n.link(link).Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: netip.MustParseAddr(addr).AsSlice(), HardwareAddr: of.link(ofLink).Attrs().HardwareAddr,
	}), "neighbour %s", addr)
}

// ChecksumInSoftware has an interface send packets with their checksums, as they come
// from other machines, which interfaces of this kernel otherwise spare each other.
func (n *Netns) ChecksumInSoftware(link string) {
	n.lab.tb.Helper()
	const setTxChecksum = 0x17 // ETHTOOL_STXCSUM
	value := struct{ command, on uint32 }{command: setTxChecksum}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data *struct{ command, on uint32 }
		_    [16]byte
	}{data: &value}
	copy(request.name[:], link)
	n.must(n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
			return errno
		}
		return nil
	}), "checksums on %s", link)
}

// Pod makes a namespace that is reached from node by routes to its addresses,
// as Pods are: eth0 in it has the addresses and a default route to the node.
func (l *Lab) Pod(node *Netns, name string, addrs ...netip.Addr) *Netns {
	l.tb.Helper()
	pod, host := l.Netns(name), "p-"+name
	l.Connect(pod, "eth0", node, host)
	for _, a := range addrs {
		gateway, all := "169.254.1.1", "0.0.0.0/0"
		if a.Is6() {
			gateway, all = "fe80::1", "::/0"
		}
		self := netip.PrefixFrom(a, a.BitLen()).String()
		pod.Address("eth0", self)
		pod.Neighbor(gateway, "eth0", node, host)
		pod.Route(all, gateway, "eth0")
		node.Route(self, "", host)
		node.Neighbor(a.String(), host, pod, "eth0")
	}
	return pod
}
