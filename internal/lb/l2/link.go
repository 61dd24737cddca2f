package l2

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// link answers on one interface.
type link struct {
	ifi    *net.Interface
	logger *slog.Logger
	arp    *packet.Conn
	ndp    *packet.Conn
	// groups are sockets that only join multicast groups, and members which of them
	// is in which group. A kernel without IPv6 has none of them.
	groups  []*ipv6.PacketConn
	members map[netip.Addr]*ipv6.PacketConn
	addrs   atomic.Pointer[map[netip.Addr]struct{}]
	done    chan struct{}
	fresh   chan []netip.Addr
	wg      sync.WaitGroup
}

// openLink begins to listen on an interface, with no address yet.
func openLink(ifi *net.Interface, logger *slog.Logger) (l *link, err error) {
	l = &link{ifi: ifi, logger: logger.With("interface", ifi.Name), members: map[netip.Addr]*ipv6.PacketConn{}, done: make(chan struct{}), fresh: make(chan []netip.Addr, 16)}
	l.addrs.Store(&map[netip.Addr]struct{}{})
	defer func() {
		if err != nil {
			l.closeSockets()
		}
	}()
	if l.arp, err = packet.Listen(ifi, packet.Raw, etherTypeARP, nil); err != nil {
		return nil, fmt.Errorf("open ARP socket: %w", err)
	}
	filter, err := solicitationFilter()
	if err != nil {
		return nil, fmt.Errorf("NDP filter: %w", err)
	}
	if l.ndp, err = packet.Listen(ifi, packet.Raw, etherTypeIPv6, &packet.Config{Filter: filter}); err != nil {
		return nil, fmt.Errorf("open NDP socket: %w", err)
	}
	// A kernel without IPv6 can still answer ARP.
	if err := l.moreGroups(); err != nil {
		l.logger.Info("no IPv6 here", "error", err)
	}
	l.wg.Go(func() { l.read(l.arp, l.handleARP) })
	l.wg.Go(func() { l.read(l.ndp, l.handleNDP) })
	l.wg.Go(l.repeat)
	return l, nil
}

// same reports whether the link still is that interface.
func (l *link) same(n network) bool {
	return l.ifi.Index == n.ifi.Index && bytes.Equal(l.ifi.HardwareAddr, n.ifi.HardwareAddr)
}

func (l *link) close() {
	close(l.done)
	l.closeSockets()
	l.wg.Wait()
}

func (l *link) closeSockets() {
	for _, c := range []*packet.Conn{l.arp, l.ndp} {
		if c != nil {
			_ = c.Close()
		}
	}
	for _, c := range l.groups {
		_ = c.Close()
	}
}

// announced are the addresses answered for, in order.
func (l *link) announced() []netip.Addr {
	var out []netip.Addr
	for a := range *l.addrs.Load() {
		out = append(out, a)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// has reports whether the link answers for addr.
func (l *link) has(addr netip.Addr) bool {
	_, ok := (*l.addrs.Load())[addr]
	return ok
}

// set makes addrs the addresses that are answered for. Those that are new are
// announced.
func (l *link) set(addrs []netip.Addr) error {
	next := make(map[netip.Addr]struct{}, len(addrs))
	var fresh []netip.Addr
	for _, a := range addrs {
		next[a] = struct{}{}
		if !l.has(a) {
			fresh = append(fresh, a)
		}
	}
	old := *l.addrs.Load()
	l.addrs.Store(&next)
	err := l.follow(next)
	for a := range old {
		if _, ok := next[a]; !ok {
			l.logger.Info("address is no longer announced", "address", a)
		}
	}
	if len(fresh) > 0 {
		l.logger.Info("addresses are announced", "addresses", fresh)
		select {
		case l.fresh <- fresh:
		case <-l.done:
		}
	}
	return err
}

// follow joins the groups in which addresses are solicited, and leaves those
// that no address needs any more. What cannot be joined keeps no other group out,
// and is tried again by the next call.
func (l *link) follow(next map[netip.Addr]struct{}) error {
	if len(l.groups) == 0 {
		return nil
	}
	wanted := groupsOf(next)
	for g, conn := range l.members {
		if !wanted[g] {
			_ = conn.LeaveGroup(l.ifi, &net.UDPAddr{IP: g.AsSlice()}) // fails if the interface has gone
			delete(l.members, g)
		}
	}
	var errs []error
	for g := range wanted {
		if l.members[g] == nil {
			errs = append(errs, l.join(g))
		}
	}
	return errors.Join(errs...)
}

// join joins a group, by a new socket where the others are full: the kernel bounds
// what one may have (net.core.optmem_max), to some hundred groups.
func (l *link) join(group netip.Addr) error {
	for more := false; ; more = true {
		conn := l.groups[len(l.groups)-1]
		err := conn.JoinGroup(l.ifi, &net.UDPAddr{IP: group.AsSlice()})
		switch {
		case err == nil:
			l.members[group] = conn
			return nil
		case more || !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.ENOMEM):
			return fmt.Errorf("join %s on %s: %w", group, l.ifi.Name, err)
		}
		if err := l.moreGroups(); err != nil {
			return fmt.Errorf("join %s on %s: %w", group, l.ifi.Name, err)
		}
	}
}

// moreGroups opens one more socket to join groups by.
func (l *link) moreGroups() error {
	conn, err := net.ListenPacket("udp6", "[::]:0")
	if err == nil {
		l.groups = append(l.groups, ipv6.NewPacketConn(conn))
	}
	return err
}

func groupsOf(addrs map[netip.Addr]struct{}) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for a := range addrs {
		if a.Is6() {
			out[solicitedNode(a)] = true
		}
	}
	return out
}

// repeat announces new addresses a few times, and all of them now and then.
func (l *link) repeat() {
	all := time.NewTicker(repeatEvery)
	defer all.Stop()
	gap := time.NewTicker(burstGap)
	defer gap.Stop()
	left := map[netip.Addr]int{}
	for {
		select {
		case <-l.done:
			return
		case addrs := <-l.fresh:
			for _, a := range addrs {
				left[a] = burst - 1
				l.tell(a)
			}
		case <-gap.C:
			for a, n := range left {
				if l.has(a) {
					l.tell(a)
				}
				if left[a]--; n <= 1 || !l.has(a) {
					delete(left, a)
				}
			}
		case <-all.C:
			for _, a := range l.announced() {
				l.tell(a)
			}
		}
	}
}

// tell announces an address to everybody on the link.
func (l *link) tell(addr netip.Addr) {
	if addr.Is6() {
		l.send(l.ndp, allNodesMAC, unsolicited(l.ifi.HardwareAddr, addr))
		return
	}
	for _, frame := range gratuitousARP(l.ifi.HardwareAddr, addr) {
		l.send(l.arp, broadcast, frame)
	}
}

func (l *link) send(c *packet.Conn, to net.HardwareAddr, frame []byte) {
	if _, err := c.WriteTo(frame, &packet.Addr{HardwareAddr: to}); err != nil {
		l.logger.Debug("cannot send", "error", err) // the link is down or gone; the next scan sees that
	}
}

// read hands frames to handle until the link is closed.
func (l *link) read(c *packet.Conn, handle func(frame []byte)) {
	buffer := make([]byte, 2048)
	for {
		n, _, err := c.ReadFrom(buffer)
		if err == nil {
			handle(buffer[:n])
			continue
		}
		select {
		case <-l.done:
			return
		case <-time.After(100 * time.Millisecond):
			// The interface went down, for instance. If it comes back the
			// socket works again; if it has gone the next scan closes the link.
		}
	}
}

func (l *link) handleARP(frame []byte) {
	p, ok := parseARP(frame)
	if !ok || p.operation != arpRequest || !l.has(p.targetIP) || bytes.Equal(p.senderMAC, l.ifi.HardwareAddr) {
		return
	}
	l.send(l.arp, p.senderMAC, arpFrame(arpReply, p.senderMAC, l.ifi.HardwareAddr, p.targetIP, p.senderMAC, p.senderIP))
}

func (l *link) handleNDP(frame []byte) {
	s, ok := parseSolicitation(frame)
	if !ok || !l.has(s.target) || bytes.Equal(s.senderMAC, l.ifi.HardwareAddr) {
		return
	}
	to := s.senderMAC
	if s.source.IsUnspecified() {
		to = allNodesMAC
	}
	l.send(l.ndp, to, s.answer(l.ifi.HardwareAddr))
}
