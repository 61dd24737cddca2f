package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/model"
)

// sweeper destroys connected UDP sockets whose backend does not serve any more:
// nothing else would tell their owners, since no later packet asks where to go.
// Who reads gets ECONNABORTED,
// who writes EDESTADDRREQ, and connects anew.
type sweeper struct {
	d    *Dataplane
	work chan struct{}
	done chan struct{}
	wg   sync.WaitGroup
}

func newSweeper(d *Dataplane) *sweeper {
	s := &sweeper{d: d, work: make(chan struct{}, 1), done: make(chan struct{})}
	s.wg.Go(func() {
		for {
			select {
			case <-s.done:
				return
			case <-s.work:
			}
			if err := s.sweep(); err != nil {
				d.log.Warn("eBPF: UDP sockets of endpoints that have gone could not be closed", "error", err)
			}
		}
	})
	return s
}

// wake makes the sweeper look once more.
func (s *sweeper) wake() {
	select {
	case s.work <- struct{}{}:
	default:
	}
}

func (s *sweeper) close() {
	close(s.done)
	s.wg.Wait()
}

// losesServing reports whether UDP endpoints of before serve no longer.
func losesServing(before, now service) bool {
	serving := map[portKey][]netip.AddrPort{}
	for i := range now.frontends {
		serving[now.frontends[i].port] = now.frontends[i].serving
	}
	for i := range before.frontends {
		f := &before.frontends[i]
		for _, b := range f.serving {
			if !slices.Contains(serving[f.port], b) {
				return true
			}
		}
	}
	return false
}

// flow is struct flow of bpf/socket.c: what a connected UDP socket has.
type flow struct {
	Backend address
	Port    port
	Zero    uint16
	ID      uint32
}

// serving returns all that UDP sockets may be connected to.
func (d *Dataplane) serving() map[flow]struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[flow]struct{}{}
	for _, o := range d.owners {
		for i := range o.want.frontends {
			f := &o.want.frontends[i]
			if f.port.protocol != model.UDP {
				continue
			}
			for _, b := range f.serving {
				out[flow{Backend: addressOf(b.Addr()), Port: portOf(b.Port()), ID: f.value.ID}] = struct{}{}
			}
		}
	}
	return out
}

// sweep looks which connected sockets there are, and for those to be destroyed
// in every network namespace that may have any.
func (s *sweeper) sweep() error {
	d := s.d
	serving := d.serving()
	all, err := readAll[uint64, flow](d.maps[socketMapConnectedUdp])
	if err != nil {
		return fmt.Errorf("read map %s: %w", socketMapConnectedUdp, err)
	}
	stale := map[uint64]netip.AddrPort{}
	for cookie, f := range all {
		if _, ok := serving[f]; !ok {
			stale[cookie] = netip.AddrPortFrom(f.Backend.addr(), f.Port.number())
		}
	}
	if len(stale) == 0 {
		return nil
	}
	var errs []error
	destroyed := 0
	for _, open := range d.namespaces() {
		fd, closeIt, err := open()
		if err != nil {
			continue // the process has ended
		}
		err = inNetns(fd, func() error {
			n, err := destroySockets(stale)
			destroyed += n
			return err
		})
		closeIt()
		errs = append(errs, err)
	}
	if destroyed > 0 {
		d.log.Info("eBPF: closed connected UDP sockets of endpoints that serve no longer", "sockets", destroyed)
	}
	return errors.Join(errs...)
}

// namespaces returns how to open each network namespace in use: the node's,
// and those of processes below Cgroup.
func (d *Dataplane) namespaces() []func() (fd int, closeIt func(), err error) {
	var out []func() (int, func(), error)
	for _, fd := range append([]int{d.o.NetNS}, d.o.Namespaces...) {
		out = append(out, func() (int, func(), error) { return fd, func() {}, nil })
	}
	if d.o.Cgroup == "" {
		return out
	}
	seen := map[string]bool{}
	_ = filepath.WalkDir(d.o.Cgroup, func(dir string, e os.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return nil // a cgroup that has just gone
		}
		data, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for _, pid := range strings.Fields(string(data)) {
			path := "/proc/" + pid + "/ns/net"
			name, err := os.Readlink(path)
			if err != nil || seen[name] {
				continue
			}
			seen[name] = true
			out = append(out, func() (int, func(), error) {
				f, err := os.Open(path)
				if err != nil {
					return 0, nil, err
				}
				return int(f.Fd()), func() { _ = f.Close() }, nil
			})
		}
		return nil
	})
	return out
}

// From linux/inet_diag.h and linux/sock_diag.h.
const (
	sockDestroy      = 21 // SOCK_DESTROY
	stateEstablished = 1  // TCP_ESTABLISHED: for UDP, connected
	diagMsgSize      = 72 // sizeof(struct inet_diag_msg)
	diagIDSize       = 48 // sizeof(struct inet_diag_sockid)
)

// diagRequest is struct inet_diag_req_v2 for UDP.
type diagRequest struct {
	family uint8
	states uint32
	id     []byte // of one socket, or nil
}

func (r diagRequest) Len() int { return 8 + diagIDSize }

func (r diagRequest) Serialize() []byte {
	out := make([]byte, 8, r.Len())
	out[0], out[1] = r.family, unix.IPPROTO_UDP
	binary.NativeEndian.PutUint32(out[4:], r.states)
	out = append(out, r.id...)
	return append(out, make([]byte, r.Len()-len(out))...)
}

// destroySockets destroys UDP sockets of the thread's network namespace, by
// their cookies, that are still connected to the backend they had.
func destroySockets(stale map[uint64]netip.AddrPort) (destroyed int, err error) {
	var errs []error
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		req.AddData(diagRequest{family: family, states: 1 << stateEstablished})
		list, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
		if err != nil {
			errs = append(errs, fmt.Errorf("list UDP sockets: %w", err))
			continue
		}
		for _, msg := range list {
			id, cookie, peer := parseSocket(msg)
			if backend, ok := stale[cookie]; !ok || backend != peer {
				continue
			}
			req := nl.NewNetlinkRequest(sockDestroy, unix.NLM_F_ACK)
			req.AddData(diagRequest{family: family, states: ^uint32(0), id: id})
			if _, err := req.Execute(unix.NETLINK_INET_DIAG, 0); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("close UDP socket to %s: %w", peer, err))
				continue
			}
			destroyed++
		}
	}
	return destroyed, errors.Join(errs...)
}

// parseSocket reads a struct inet_diag_msg.
func parseSocket(msg []byte) (id []byte, cookie uint64, peer netip.AddrPort) {
	if len(msg) < diagMsgSize {
		return nil, 0, netip.AddrPort{}
	}
	id = msg[4 : 4+diagIDSize]
	addr := address(id[20:36]).addr()
	if msg[0] == unix.AF_INET {
		addr = netip.AddrFrom4([4]byte(id[20:24]))
	}
	low, high := binary.NativeEndian.Uint32(id[40:]), binary.NativeEndian.Uint32(id[44:])
	return id, uint64(high)<<32 | uint64(low), netip.AddrPortFrom(addr, port(id[2:4]).number())
}
