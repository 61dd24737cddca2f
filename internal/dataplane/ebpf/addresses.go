package ebpf

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// followAddresses returns how to list the addresses on the interfaces of a
// network namespace, and calls changed with all of them whenever they change,
// until stop is called. After that, and once the kernel has told more than there
// was room for, list still tells what is.
func followAddresses(fd int, log *slog.Logger, changed func([]netip.Addr)) (list func() ([]netip.Addr, error), stop func(), err error) {
	handle := netns.None()
	if fd != 0 {
		handle = netns.NsHandle(fd)
	}
	var h *netlink.Handle
	if fd != 0 {
		h, err = netlink.NewHandleAt(handle, unix.NETLINK_ROUTE)
	} else {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
	}
	if err != nil {
		return nil, func() {}, err
	}
	updates, done := make(chan netlink.AddrUpdate, 64), make(chan struct{})
	o := netlink.AddrSubscribeOptions{ErrorCallback: func(err error) {
		select {
		case <-done: // the socket was closed by us
		default:
			log.Warn("eBPF: following the node's addresses", "error", err)
		}
	}}
	if fd != 0 {
		o.Namespace = &handle
	}
	if err := netlink.AddrSubscribeWithOptions(updates, done, o); err != nil {
		h.Close()
		return nil, func() {}, err
	}
	now, err := listAddresses(h)
	if err != nil {
		close(done)
		h.Close()
		return nil, func() {}, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		last := now
		for range updates {
			list, err := listAddresses(h)
			if err != nil {
				log.Warn("eBPF: reading the node's addresses", "error", err)
				continue
			}
			if !slices.Equal(list, last) {
				last = list
				changed(list)
			}
		}
	}()
	return func() ([]netip.Addr, error) { return listAddresses(h) }, func() { close(done); <-ended; h.Close() }, nil
}

// listTries is how often addresses or interfaces are listed that change meanwhile.
const listTries = 10

// listAddresses returns all addresses, ordered. Where they change all the while,
// so that the kernel says of every list that it may not be whole, it is what stood
// in any of them: of each change followAddresses hears, and then they are listed again.
func listAddresses(h *netlink.Handle) ([]netip.Addr, error) {
	var out []netip.Addr
	for range listTries {
		list, err := h.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, err
		}
		if err == nil {
			out = out[:0]
		}
		for _, a := range list {
			if addr, ok := netip.AddrFromSlice(a.IP); ok {
				out = append(out, addr.Unmap())
			}
		}
		if err == nil {
			break
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}
