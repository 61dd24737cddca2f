package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/bootstrap"
	"fairway.dev/fairway/internal/dns"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/reconcile"
	"fairway.dev/fairway/internal/state"
)

const (
	// directPing is how long the server has to answer at a cluster address; the
	// next pulse must not be late for it.
	directPing = 500 * time.Millisecond
	// directRetry and directRetryMost bound how long that is left alone which did not
	// come about.
	directRetry, directRetryMost = 5 * time.Second, 10 * time.Minute
	// directLate is how long clients may have to wait for an answer (dns.Options.UpstreamTimeout),
	// and some more.
	directLate = 2500 * time.Millisecond
)

// directDNS has the node's DNS server answer at the addresses of the DNS Service
// themselves, so that nothing is to be translated, nor tracked. The port is that of the
// node's server all the same, for 53 may belong to another server that
// listens at all addresses of the machine.
type directDNS struct {
	*node
	server *dns.Server

	begun  bool
	wanted direct
	// open is true while the server listens there, told while the data path may lead
	// clients there, and those that it led there may wait for answers until late.
	open    bool
	pingers []*dns.Pinger
	told    bool
	late    time.Time
	// led is true while the data path is to lead clients to the server, as it does
	// from the state with revision since on.
	led     bool
	since   uint64
	failing bool // which is in the log
	pause   reconcile.Backoff
	retry   time.Time // before which there is no other attempt
}

// direct is where the server is to answer directly.
type direct struct {
	at   []netip.AddrPort
	port uint16 // that clients ask at
}

func (d direct) equal(o direct) bool { return d.port == o.port && slices.Equal(d.at, o.at) }

// addrs returns where the server answers for the time until the next pulse: all
// addresses that it should, or none. Whether it does shows only once the data path has
// been told, since the way there is then another one, and only while that leads
// clients to the server: to one that is about to end it leads none.
func (d *directDNS) addrs(ctx context.Context) []netip.AddrPort {
	wanted, led, revision := d.wantedDirect()
	if !d.begun || !wanted.equal(d.wanted) {
		d.close()
		d.begun, d.wanted, d.retry = true, wanted, time.Time{}
		d.pause = reconcile.Backoff{Min: directRetry, Max: directRetryMost}
	}
	if led && !d.led {
		d.since = revision
	}
	d.led = led
	if !d.open {
		if now := time.Now(); now.Before(d.late) || now.Before(d.retry) {
			return nil
		}
		if err := d.listenThere(); err != nil {
			d.note(err)
			return nil
		}
	} else if d.led && d.applied() >= d.since {
		var errs []error
		for _, p := range d.pingers {
			errs = append(errs, p.Ping(ctx, directPing))
		}
		err := errors.Join(errs...)
		if _, still, _ := d.wantedDirect(); err == nil || still && ctx.Err() == nil {
			d.note(err)
		}
	}
	if !d.open {
		return nil
	}
	d.told = len(d.wanted.at) > 0
	return d.wanted.at
}

// note has what failed tried again later, and logs it if it is new.
func (d *directDNS) note(err error) {
	if err == nil {
		if d.failing {
			d.Logger.Info("this node's DNS server answers at the cluster address itself again")
		}
		d.failing = false
		d.pause.Reset()
		return
	}
	if !d.failing {
		d.Logger.Warn("this node's DNS server cannot be reached at the cluster address itself; queries to it are translated, and take room in the connection tracking table", "error", err)
	}
	d.close()
	d.failing, d.retry = true, time.Now().Add(d.pause.Next())
}

// listenThere makes the addresses local ones, and has the server listen at them, and at
// none of before.
func (d *directDNS) listenThere() error {
	sources := map[netip.Addr]netip.Addr{}
	for _, a := range d.wanted.at {
		for _, s := range d.listen(0) {
			if s.Addr().Is4() == a.Addr().Is4() {
				sources[a.Addr()] = s.Addr()
			}
		}
	}
	if err := localRoutes(sources); err != nil {
		return err
	}
	if err := d.server.Also(d.wanted.at); err != nil {
		return err
	}
	for _, a := range d.wanted.at {
		d.pingers = append(d.pingers, dns.NewPinger(netip.AddrPortFrom(a.Addr(), d.wanted.port)))
	}
	d.open = true
	return nil
}

// close has the data path lead nobody there. The server goes on to listen for those
// that are there already.
func (d *directDNS) close() {
	for _, p := range d.pingers {
		p.Close()
	}
	if d.told {
		d.late = time.Now().Add(directLate)
	}
	d.pingers, d.open, d.told = nil, false, false
}

// wantedDirect is where the server is to answer directly now, whether the data path is to
// lead clients there, and from which revision of the state on.
func (n *node) wantedDirect() (wanted direct, led bool, since uint64) {
	if !n.DNSNotrack {
		return direct{}, false, 0
	}
	snap := n.store.Snapshot()
	since = snap.Revision
	if !snap.Synced && n.last != nil {
		snap, since = n.last.Snapshot, 0 // the kernel has rules of the process before
	}
	wanted = dnsDirect(snap, n.NodeName, n.listen(n.DNSPort))
	led = len(wanted.at) > 0
	for _, a := range wanted.at {
		led = led && dnsServers(snap, func(e *model.Endpoint) bool { return e.Ready && e.Node == n.NodeName && e.Addr.Is4() == a.Addr().Is4() })
	}
	return wanted, led, since
}

// dnsDirect are the addresses of the DNS Service, of the families that a node
// listens at, where clients may be led to that node's server; also while it is about to end, for
// those that were until then still wait for answers.
func dnsDirect(snap *state.Snapshot, node string, listen []netip.AddrPort) (out direct) {
	service, ok := snap.Services.Get(bootstrap.DNSService)
	own := func(a netip.AddrPort) bool { return slices.Contains(listen, a) }
	if !ok || !slices.ContainsFunc(dnsServersOf(snap, node), own) {
		return direct{}
	}
	i := slices.IndexFunc(service.Ports, func(p model.ServicePort) bool { return p.Protocol == model.UDP })
	if i < 0 {
		return direct{}
	}
	out.port = service.Ports[i].Port
	for _, a := range service.ClusterIPs {
		for _, l := range listen {
			if l.Addr().Is4() == a.Is4() {
				out.at = append(out.at, netip.AddrPortFrom(a, l.Port()))
			}
		}
	}
	return out
}

// localRoutesProtocol tells our routes from those of others, as a number of
// /etc/iproute2/rt_protos that nobody has.
const localRoutesProtocol = 70

// localRoutes makes addresses local ones of the machine, each with the address that
// the machine itself asks from, and takes back what earlier calls, also of other
// processes, made of others. It leaves alone what others have made local. An address
// on an interface would not do: it might be taken for one of the node's.
func localRoutes(sources map[netip.Addr]netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("interface lo: %w", err)
	}
	there := map[netip.Addr]bool{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		filter := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Protocol: localRoutesProtocol}
		routes, err := netlink.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			return fmt.Errorf("listing local routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst == nil {
				continue
			}
			addr, _ := netip.AddrFromSlice(r.Dst.IP)
			source, _ := netip.AddrFromSlice(r.Src)
			if addr = addr.Unmap(); sources[addr] == source.Unmap() {
				there[addr] = true
			} else if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("removing the local route to %s: %w", addr, err)
			}
		}
	}
	for addr, source := range sources {
		if there[addr] {
			continue
		}
		err := netlink.RouteAdd(&netlink.Route{
			Dst:       &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())},
			LinkIndex: lo.Attrs().Index, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
			Src: source.AsSlice(), Protocol: localRoutesProtocol,
		})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("making %s a local address: %w", addr, err)
		}
	}
	return nil
}
