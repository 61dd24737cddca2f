package podnet

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forgetConnections makes the kernel translate packets to UDP host ports anew.
// UDP has no end of a connection: a peer that goes on sending would stay with
// what the port led to before, a dead Pod or nothing.
func forgetConnections(ports []Port, ipv6 bool) error {
	families := []netlink.InetFamily{unix.AF_INET}
	if ipv6 {
		families = append(families, unix.AF_INET6)
	}
	var filters []netlink.CustomConntrackFilter
	for _, p := range ports {
		if p.Protocol != unix.IPPROTO_UDP {
			continue
		}
		f := &netlink.ConntrackFilter{}
		if err := errors.Join(f.AddProtocol(p.Protocol), f.AddPort(netlink.ConntrackOrigDstPort, p.HostPort)); err != nil {
			return fmt.Errorf("host port %d: %w", p.HostPort, err)
		}
		filters = append(filters, f)
	}
	if len(filters) == 0 {
		return nil
	}
	for _, family := range families {
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, filters...)
		// A connection may end by itself meanwhile.
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("forget connections to host ports: %w", err)
		}
	}
	return nil
}
