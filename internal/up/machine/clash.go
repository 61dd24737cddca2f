package machine

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Occupant is something of the machine that already has a meaning for a range of addresses.
type Occupant struct {
	Prefix netip.Prefix
	// Text names it for people: "route 10.0.0.0/8 via 192.0.2.1 dev eth0".
	Text string
	// OnLink is set for the route of a local network, where an address pool that is announced by ARP belongs.
	OnLink bool
}

// Range is a range of addresses that the cluster wants.
type Range struct {
	Prefix netip.Prefix
	// What names it: "service range".
	What string
	// Flag is where another one can be given: "--service-cidr".
	Flag string
	// Instead is a range that would be free, or zero.
	Instead netip.Prefix
	// MayBeOnLink allows the range to lie within a local network of the machine (but not to hold an address in use).
	MayBeOnLink bool
}

// ClashError says that a wanted range is not free.
type ClashError struct {
	Range    Range
	Occupant Occupant
}

func (e *ClashError) Error() string {
	cure := "choose another with " + e.Range.Flag
	if e.Range.Instead.IsValid() {
		cure += " " + e.Range.Instead.String() + " (free on this machine)"
	}
	return fmt.Sprintf("the %s %s overlaps %s: %s", e.Range.What, e.Range.Prefix, e.Occupant.Text, cure)
}

// CheckFree returns a ClashError for the first range that is not free, or nil.
func CheckFree(ranges []Range, occupied []Occupant) error {
	for _, r := range ranges {
		for _, o := range occupied {
			if !r.Prefix.Overlaps(o.Prefix) {
				continue
			}
			if r.MayBeOnLink && o.OnLink && o.Prefix.Bits() < r.Prefix.Bits() {
				continue
			}
			return &ClashError{Range: r, Occupant: o}
		}
	}
	return nil
}

// FirstFree returns the first candidate that overlaps nothing, or the zero Prefix.
func FirstFree(candidates []netip.Prefix, occupied []Occupant) netip.Prefix {
	for _, c := range candidates {
		if CheckFree([]Range{{Prefix: c}}, occupied) == nil {
			return c
		}
	}
	return netip.Prefix{}
}

// Occupied lists what addresses of the namespace mean already: routes of all tables (but not the default route, which is
// for what has no other meaning), its own addresses, and the nameservers in the file at resolvConf, which are often known
// only by the default route.
func (n *Namespace) Occupied(resolvConf string) ([]Occupant, error) {
	var all []Occupant
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := n.links.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("listing routes: %w", err)
		}
		for _, r := range routes {
			if o, ok := n.routeOccupant(r); ok {
				all = append(all, o)
			}
		}
		addrs, err := n.links.AddrList(nil, family)
		if err != nil {
			return nil, fmt.Errorf("listing addresses: %w", err)
		}
		for _, a := range addrs {
			addr, ok := netip.AddrFromSlice(a.IP)
			if !ok || addr.IsLinkLocalUnicast() {
				continue
			}
			addr = addr.Unmap()
			all = append(all, Occupant{
				Prefix: netip.PrefixFrom(addr, addr.BitLen()),
				Text:   fmt.Sprintf("the machine's own address %s on %s", addr, n.linkName(a.LinkIndex)),
			})
		}
	}
	return append(all, nameservers(resolvConf)...), nil
}

func (n *Namespace) routeOccupant(r netlink.Route) (Occupant, bool) {
	if r.Dst == nil || r.Table == unix.RT_TABLE_LOCAL {
		return Occupant{}, false
	}
	addr, ok := netip.AddrFromSlice(r.Dst.IP)
	if !ok {
		return Occupant{}, false
	}
	bits, _ := r.Dst.Mask.Size()
	prefix := netip.PrefixFrom(addr.Unmap(), bits)
	if bits == 0 || addr.IsLinkLocalUnicast() || addr.IsMulticast() {
		return Occupant{}, false
	}
	text := "route " + prefix.String()
	if r.Gw != nil {
		text += " via " + r.Gw.String()
	}
	if r.LinkIndex > 0 {
		text += " dev " + n.linkName(r.LinkIndex)
	}
	onLink := r.Gw == nil && len(r.MultiPath) == 0 && r.Via == nil && r.LinkIndex > 0
	return Occupant{Prefix: prefix, Text: text, OnLink: onLink}, true
}

func (n *Namespace) linkName(index int) string {
	link, err := n.links.LinkByIndex(index)
	if err != nil {
		return fmt.Sprintf("interface %d", index)
	}
	return link.Attrs().Name
}

// nameservers reads the addresses of resolv.conf(5). Without the file there are none.
func nameservers(path string) []Occupant {
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer file.Close()
	var all []Occupant
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		addr, err := netip.ParseAddr(fields[1])
		if err != nil || addr.IsLoopback() {
			continue
		}
		addr = addr.WithZone("")
		all = append(all, Occupant{Prefix: netip.PrefixFrom(addr, addr.BitLen()), Text: fmt.Sprintf("the nameserver %s in %s", addr, path)})
	}
	return all
}

// Primary returns the addresses that the machine shows to the outside: the sources of its default routes, at most one of
// each family, IPv4 first.
func (n *Namespace) Primary() []netip.Addr {
	var primary []netip.Addr
	// Addresses for documentation (RFC 5737, RFC 3849): only the default route can cover them. Nothing is sent.
	for _, to := range []string{"203.0.113.1", "2001:db8:ffff::1"} {
		routes, err := n.links.RouteGet(netip.MustParseAddr(to).AsSlice())
		if err != nil || len(routes) == 0 {
			continue
		}
		addr, ok := netip.AddrFromSlice(routes[0].Src)
		addr = addr.Unmap()
		if !ok || addr.IsLoopback() || addr.IsLinkLocalUnicast() || addr.IsUnspecified() {
			continue
		}
		primary = append(primary, addr)
	}
	return primary
}

// Owner returns the alias of the namespace's fairway0 (see Options.Alias), and whether there is one.
func (n *Namespace) Owner() (alias string, exists bool) {
	link, err := n.links.LinkByName(OwnInterface)
	if err != nil {
		return "", false
	}
	return link.Attrs().Alias, true
}
