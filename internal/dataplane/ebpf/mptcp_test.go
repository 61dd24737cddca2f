package ebpf

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/dataplane/cases"
	"fairway.dev/fairway/internal/model"
)

// TestMultipath checks that sockets of Multipath TCP are served as those of TCP are.
func TestMultipath(t *testing.T) {
	m := newMachine(t)
	n := cases.NewNetwork(t)
	d := start(t, m.options(t, n))
	apply(t, d, planOf("web", model.TCP, vip, "10.244.0.3:8080"))
	apply(t, d, planOf("none", model.TCP, netip.AddrPortFrom(vip.Addr(), 81)))
	prune(t, d, n)
	connect := func(port int) (name string, err error) {
		err = n.Hosts["pod-a"].Do(func() error {
			s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
			if err != nil {
				return err
			}
			defer unix.Close(s)
			for _, o := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
				if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, o, &unix.Timeval{Sec: 5}); err != nil {
					return err
				}
			}
			if err := unix.Connect(s, &unix.SockaddrInet4{Addr: vip.Addr().As4(), Port: port}); err != nil {
				return err
			}
			buf := make([]byte, 128)
			got, err := unix.Read(s, buf)
			name, _, _ = strings.Cut(string(buf[:got]), " ")
			return err
		})
		return name, err
	}
	name, err := connect(80)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOPROTOOPT) {
		t.Skip("the kernel has no Multipath TCP, or it is switched off")
	}
	if err != nil || name != "pod-b" {
		t.Errorf("connected to %q, %v", name, err)
	}
	if name, err := connect(81); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("without endpoints, connected to %q, %v", name, err)
	}
}
