package ebpf

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/moby/sys/mountinfo"
)

// probeDialled is dialled by ProbeSockets; it is for documentation only (RFC 5737).
var probeDialled = netip.MustParseAddrPort("192.0.2.1:9")

// ProbeSockets finds out whether this kernel and this process can balance sockets, by
// doing so: it attaches programs to the cgroup of the process itself, dials an
// address that nobody has, and looks who answers. Nothing of it stays.
func ProbeSockets(o Options) error {
	if err := probeSockets(o); err != nil {
		return fmt.Errorf("eBPF cannot be used here: %w", err)
	}
	return nil
}

func probeSockets(o Options) error {
	cookie, err := netnsCookie(o.NetNS)
	if err != nil {
		return err
	}
	if err := pinsOf(o.Pins, cookie).prepare(); err != nil {
		return err
	}
	cgroup, err := ownCgroup()
	if err != nil {
		return err
	}
	spec, err := loadSocket()
	if err != nil {
		return err
	}
	shared := map[string]*ebpf.Map{}
	defer func() { closeAll(shared) }()
	for name, m := range spec.Maps {
		if name[0] == '.' {
			continue
		}
		if m.MaxEntries > 16 {
			m.MaxEntries = 16
		}
		if shared[name], err = ebpf.NewMap(m); err != nil {
			return fmt.Errorf("map %s: %w", name, err)
		}
	}
	programs, types, err := loadSockets(shared, cookie, true, 0, o.Types)
	if err != nil {
		return err
	}
	defer (&attachment{programs: programs}).close()
	for _, name := range programOrder {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: types[name], Program: programs[name]})
		if err != nil {
			return fmt.Errorf("attach %s to cgroup %s: %w", name, cgroup, err)
		}
		defer l.Close()
	}
	return inNetns(o.NetNS, func() error { return probeDial(shared, cookie) })
}

// probeDial dials probeDialled, which leads to a listener of ours.
func probeDial(shared map[string]*ebpf.Map, cookie uint64) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	to := l.Addr().(*net.TCPAddr).AddrPort()
	key := frontendKey{Addr: addressOf(probeDialled.Addr()), Port: portOf(probeDialled.Port()), Protocol: 6}
	err = errors.Join(
		shared[socketMapBackends].Put(uint32(0), backend{Addr: addressOf(to.Addr()), Port: portOf(to.Port())}),
		shared[socketMapFrontends].Put(key, frontend{ID: 1, Pools: [2]pool{{Count: 1}, {Count: 1}}}),
		shared[socketMapNamespaces].Put(cookie, uint8(1)),
	)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", probeDialled.String())
	if err != nil {
		return fmt.Errorf("a connection that programs shall lead to a listener fails: %w", err)
	}
	defer c.Close()
	if peer := c.RemoteAddr().String(); peer != probeDialled.String() {
		return fmt.Errorf("the peer of a socket is told as %s in the place of %s", peer, probeDialled)
	}
	return nil
}

// CgroupRoot returns where cgroup v2 is mounted, whole if there is such a
// mount: a container may see its own part of it besides.
func CgroupRoot() (string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil {
		return "", fmt.Errorf("find cgroup v2: %w", err)
	}
	best := ""
	for i, m := range mounts {
		// A root that is outside of the process's cgroup namespace begins with "/..".
		if i == 0 || strings.HasPrefix(m.Root, "/..") {
			best = m.Mountpoint
		}
	}
	if best == "" {
		return "", errors.New("no cgroup v2 is mounted; mount it with: mkdir -p /run/cgroup2 && mount -t cgroup2 none /run/cgroup2")
	}
	return best, nil
}

// ownCgroup returns the directory of the process's cgroup.
func ownCgroup() (string, error) {
	root, err := CgroupRoot()
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Join(root, path), nil
		}
	}
	return "", errors.New("this process is in no cgroup of version 2")
}
