package servicetls

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const insideEnv = "FAIRWAY_TEST_INSIDE"

var (
	node4, node6 = netip.MustParseAddr("10.245.0.1"), netip.MustParseAddr("fd00:10:245::1")
	vip4, vip6   = netip.MustParseAddr("10.96.0.20"), netip.MustParseAddr("fd00:96::20")
	pods         = []netip.Addr{
		netip.MustParseAddr("10.244.0.5"), netip.MustParseAddr("10.244.0.6"), netip.MustParseAddr("fd00:244::5"),
	}
)

const (
	proxyPort = 10443
	nodePort  = 30443
)

// TestMain runs all tests in a network namespace of their own: the addresses
// are those of a cluster, and must not exist anywhere else.
func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" {
		if err := prepare(); err != nil {
			fmt.Fprintln(os.Stderr, "prepare the network namespace:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	cmd.SysProcAttr = attr
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// prepare gives the namespace a node's addresses and a data path: everything
// for the Service range and for a NodePort is redirected to the proxy.
func prepare() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for _, a := range append([]netip.Addr{node4, node6}, pods...) {
		addr := &netlink.Addr{IPNet: ipNet(a, a.BitLen()), Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(lo, addr); err != nil {
			return fmt.Errorf("add %s: %w", a, err)
		}
	}
	for _, r := range []netlink.Route{
		{LinkIndex: lo.Attrs().Index, Dst: ipNet(netip.MustParseAddr("10.96.0.0"), 16), Src: node4.AsSlice()},
		{LinkIndex: lo.Attrs().Index, Dst: ipNet(netip.MustParseAddr("fd00:96::"), 64)},
	} {
		if err := netlink.RouteAdd(&r); err != nil {
			return fmt.Errorf("add route to %s: %w", r.Dst, err)
		}
	}
	return redirect()
}

func ipNet(a netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}
}

func redirect() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	for _, f := range []struct {
		family   nftables.TableFamily
		protocol byte
		offset   uint32 // of the destination address
		services []byte
		node     netip.Addr
	}{
		{nftables.TableFamilyIPv4, unix.NFPROTO_IPV4, 16, []byte{10, 96}, node4},
		{nftables.TableFamilyIPv6, unix.NFPROTO_IPV6, 24, []byte{0xfd, 0, 0, 0x96}, node6},
	} {
		table := conn.AddTable(&nftables.Table{Family: f.family, Name: "services"})
		for name, hook := range map[string]*nftables.ChainHook{"pre": nftables.ChainHookPrerouting, "out": nftables.ChainHookOutput} {
			chain := conn.AddChain(&nftables.Chain{
				Name: name, Table: table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: nftables.ChainPriorityNATDest,
			})
			dnat := []expr.Any{
				&expr.Immediate{Register: 1, Data: f.node.AsSlice()},
				&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(proxyPort)},
				&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.protocol), RegAddrMin: 1, RegProtoMin: 2},
			}
			is := func(base expr.PayloadBase, offset uint32, data []byte) []expr.Any {
				return []expr.Any{
					&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(data))},
					&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data},
				}
			}
			tcp := []expr.Any{
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			}
			rule := func(parts ...[]expr.Any) {
				r := &nftables.Rule{Table: table, Chain: chain}
				for _, p := range parts {
					r.Exprs = append(r.Exprs, p...)
				}
				conn.AddRule(r)
			}
			rule(is(expr.PayloadBaseNetworkHeader, f.offset, f.services), tcp, dnat)
			rule(is(expr.PayloadBaseNetworkHeader, f.offset, f.node.AsSlice()), tcp,
				is(expr.PayloadBaseTransportHeader, 2, binaryutil.BigEndian.PutUint16(nodePort)), dnat)
		}
	}
	return conn.Flush()
}
