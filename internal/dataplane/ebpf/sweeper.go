package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/reconcile"
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
	s.wg.Go(func() { s.run(s.sweep) })
	return s
}

// run sweeps when it is told to, and again with pauses while that fails: the
// next endpoint may be hours from going, and until then clients would send to
// those that have gone.
func (s *sweeper) run(sweep func() error) {
	var again <-chan time.Time
	backoff, told := reconcile.NewBackoff(), ""
	for {
		select {
		case <-s.done:
			return
		case <-s.work:
		case <-again:
		}
		err := sweep()
		if err == nil {
			backoff.Reset()
			again, told = nil, ""
			continue
		}
		again = time.After(backoff.Next())
		if err.Error() != told {
			told = err.Error()
			s.d.log.Warn("eBPF: UDP sockets of endpoints that have gone could not be closed; it is tried again", "error", err)
		}
	}
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

// serves tells which backends UDP sockets may be connected to. It needs mu.
func (d *Dataplane) serves() map[flow]struct{} {
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

// dropServing takes out of sockets those whose backend serves. It needs mu.
func (d *Dataplane) dropServing(sockets map[uint64]flow) {
	serving := d.serves()
	maps.DeleteFunc(sockets, func(_ uint64, f flow) bool {
		_, ok := serving[f]
		return ok
	})
}

// sweep looks which connected sockets there are, and for those to be destroyed
// in every network namespace that may have any.
//
// Endpoints come back, and sockets are connected to them, while it looks: what
// serves is therefore asked after what is connected, and once more, with mu
// held so that it stays so, before sockets are destroyed.
func (s *sweeper) sweep() error {
	d := s.d
	stale, err := readAll[uint64, flow](d.maps[socketMapConnectedUdp])
	if err != nil {
		return fmt.Errorf("read map %s: %w", socketMapConnectedUdp, err)
	}
	d.mu.Lock()
	d.dropServing(stale)
	d.mu.Unlock()
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
			found, err := findSockets(stale)
			if len(found) == 0 {
				return err
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			d.dropServing(stale)
			n, err2 := destroySockets(found, stale)
			destroyed += n
			return errors.Join(err, err2)
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

// socket is a connected UDP socket of the thread's network namespace.
type socket struct {
	family uint8
	id     []byte // struct inet_diag_sockid, which names its peer too
	cookie uint64
	peer   netip.AddrPort
}

// findSockets lists the sockets among flows, by their cookies, that are still
// connected to the backend they had.
func findSockets(flows map[uint64]flow) (found []socket, err error) {
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
			s := parseSocket(msg)
			s.family = family
			if f, ok := flows[s.cookie]; ok && s.peer == netip.AddrPortFrom(f.Backend.addr(), f.Port.number()) {
				found = append(found, s)
			}
		}
	}
	return found, errors.Join(errs...)
}

// destroySockets destroys those of found that are among stale. One that has been
// connected elsewhere meanwhile stays: the kernel knows it by its peer too.
func destroySockets(found []socket, stale map[uint64]flow) (destroyed int, err error) {
	var errs []error
	for _, s := range found {
		if _, ok := stale[s.cookie]; !ok {
			continue
		}
		req := nl.NewNetlinkRequest(sockDestroy, unix.NLM_F_ACK)
		req.AddData(diagRequest{family: s.family, states: ^uint32(0), id: s.id})
		switch _, err := req.Execute(unix.NETLINK_INET_DIAG, 0); {
		case err == nil:
			destroyed++
		case !errors.Is(err, unix.ENOENT):
			errs = append(errs, fmt.Errorf("close UDP socket to %s: %w", s.peer, err))
		}
	}
	return destroyed, errors.Join(errs...)
}

// parseSocket reads a struct inet_diag_msg.
func parseSocket(msg []byte) socket {
	if len(msg) < diagMsgSize {
		return socket{}
	}
	id := msg[4 : 4+diagIDSize]
	addr := address(id[20:36]).addr()
	if msg[0] == unix.AF_INET {
		addr = netip.AddrFrom4([4]byte(id[20:24]))
	}
	low, high := binary.NativeEndian.Uint32(id[40:]), binary.NativeEndian.Uint32(id[44:])
	return socket{id: id, cookie: uint64(high)<<32 | uint64(low), peer: netip.AddrPortFrom(addr, port(id[2:4]).number())}
}
