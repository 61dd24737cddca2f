package ebpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"fairway.dev/fairway/internal/dataplane"
)

// role is what an interface is to the ingress programs.
type role uint8

const (
	roleNone   role = iota
	roleUplink      // clients behind it are told apart by their addresses
	rolePod         // clients behind it are Pods of this node
)

// String returns the role in one word.
func (r role) String() string { return [...]string{"none", "uplink", "pod"}[r] }

// roleOf says which program an interface needs. What arrives at a port of a
// bridge, bond or team is seen again at the interface above it, and counts
// there; a VRF has no hook of its own.
func roleOf(l netlink.Link, master func(index int) netlink.Link, pods, covered []string) role {
	name, attrs := l.Attrs().Name, l.Attrs()
	begins := func(prefix string) bool { return strings.HasPrefix(name, prefix) }
	switch {
	case attrs.Flags&net.FlagLoopback != 0, slices.ContainsFunc(covered, begins):
		return roleNone
	case l.Type() == "vrf":
		return roleNone
	case attrs.MasterIndex != 0:
		if m := master(attrs.MasterIndex); m == nil || m.Type() != "vrf" {
			return roleNone
		}
	}
	if slices.ContainsFunc(pods, begins) {
		return rolePod
	}
	return roleUplink
}

// interfaces keeps an ingress program on every interface that needs one. Each
// hangs on a link that is pinned by the number of the interface, so that it
// outlives the process, and that the next process finds and updates.
type interfaces struct {
	netns   int
	handle  *netlink.Handle
	dir     string   // of pins
	covered []string // prefixes of interfaces whose clients others see

	programs map[role]*ebpf.Program
	attached map[int]attachedProgram
}

// attachedProgram is a program on an interface.
type attachedProgram struct {
	link link.Link
	role role
}

const pinPrefix = "ingress-"

func (i *interfaces) pin(index int) string {
	return filepath.Join(i.dir, pinPrefix+strconv.Itoa(index))
}

// live reports whether any pinned link has a program that uses the map: then an
// earlier process served by the same maps.
func (i *interfaces) live(m ebpf.MapID) (bool, error) {
	pinned, err := pinnedIngress(i.dir)
	if err != nil {
		return false, err
	}
	for _, index := range pinned {
		l := i.adopt(index)
		if l == nil {
			continue
		}
		info, err := l.Info()
		_ = l.Close()
		if err == nil && usesMap(info.Program, m) {
			return true, nil
		}
	}
	return false, nil
}

// sync attaches programs where they are missing, updates those that an earlier
// process attached, and forgets interfaces that went. What fails is tried again
// with the next change or Verify.
func (i *interfaces) sync(pods []string, fixed dataplane.Repairs) error {
	var links []netlink.Link
	var err error = netlink.ErrDumpInterrupted
	for tries := 0; tries < listTries && errors.Is(err, netlink.ErrDumpInterrupted); tries++ {
		links, err = i.handle.LinkList()
	}
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("interfaces: %w", err)
	}
	return i.follow(links, err == nil, pods, fixed)
}

// follow does so for a list of interfaces. Of one that may not be whole it takes what
// stands there: an interface that does not may have been left out, and serves on.
func (i *interfaces) follow(links []netlink.Link, whole bool, pods []string, fixed dataplane.Repairs) error {
	byIndex := map[int]netlink.Link{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l
	}
	master := func(index int) netlink.Link { return byIndex[index] }
	var errs []error
	for index, l := range byIndex {
		if m := l.Attrs().MasterIndex; !whole && m != 0 && byIndex[m] == nil {
			continue
		}
		want := roleOf(l, master, pods, i.covered)
		if err := i.set(index, want, fixed); err != nil {
			errs = append(errs, fmt.Errorf("interface %s: %w", l.Attrs().Name, err))
		}
	}
	if !whole {
		return errors.Join(errs...)
	}
	pinned, err := pinnedIngress(i.dir)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, index := range pinned {
		if byIndex[index] == nil {
			errs = append(errs, i.set(index, roleNone, fixed))
		}
	}
	return errors.Join(errs...)
}

// set gives an interface the program of a role, and notes what of it had gone.
func (i *interfaces) set(index int, want role, fixed dataplane.Repairs) error {
	have, ok := i.attached[index]
	if !ok {
		if l := i.adopt(index); l != nil {
			have, ok = attachedProgram{link: l}, true
		}
	}
	if ok && !alive(have.link, index) { // its interface went, and the number came again
		i.drop(index, have.link)
		ok = false
		if want != roleNone {
			fixed.Add(repairedPrograms, 1)
		}
	}
	switch {
	case want == roleNone:
		if ok {
			i.drop(index, have.link)
		}
		return nil
	case !ok:
		l, err := i.attach(index, i.programs[want])
		if err != nil {
			return err
		}
		have.link = l
	case have.role != want:
		if err := have.link.Update(i.programs[want]); err != nil {
			return err
		}
	}
	i.attached[index] = attachedProgram{have.link, want}
	return pinAgain(have.link, i.pin(index), fixed)
}

// adopt returns the link that an earlier process pinned for an interface.
func (i *interfaces) adopt(index int) link.Link {
	l, err := link.LoadPinnedLink(i.pin(index), nil)
	if err != nil {
		return nil
	}
	return l
}

// alive reports whether a link is still attached to the interface.
func alive(l link.Link, index int) bool {
	info, err := l.Info()
	return err == nil && info.TCX() != nil && int(info.TCX().Ifindex) == index
}

func (i *interfaces) drop(index int, l link.Link) {
	delete(i.attached, index)
	_ = l.Unpin()
	_ = l.Close()
}

// attach puts a program before those of others: it passes every packet on to
// them, whereas one that accepts a packet hides it from all behind it.
func (i *interfaces) attach(index int, p *ebpf.Program) (link.Link, error) {
	var l link.Link
	err := inNetns(i.netns, func() (err error) {
		l, err = link.AttachTCX(link.TCXOptions{Interface: index, Program: p, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
		return err
	})
	if err != nil {
		return nil, err
	}
	_ = os.Remove(i.pin(index)) // left by an interface that had the number before
	if err := l.Pin(i.pin(index)); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

// close lets go of the links; their programs stay.
func (i *interfaces) close() {
	for _, a := range i.attached {
		_ = a.link.Close()
	}
	i.attached = map[int]attachedProgram{}
	i.handle.Close()
}

// pinnedIngress lists the interfaces that links are pinned for.
func pinnedIngress(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []int
	for _, e := range entries {
		if n, ok := strings.CutPrefix(e.Name(), pinPrefix); ok {
			if index, err := strconv.Atoi(n); err == nil {
				out = append(out, index)
			}
		}
	}
	return out, nil
}

// removePinnedIngress detaches all that is pinned in a directory.
func removePinnedIngress(dir string) error {
	pinned, err := pinnedIngress(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, index := range pinned {
		errs = append(errs, os.Remove(filepath.Join(dir, pinPrefix+strconv.Itoa(index))))
	}
	return errors.Join(errs...)
}

// settling is how long changes of interfaces are gathered: a machine that
// starts, or a node that starts many Pods, tells of many at once.
const settling = 10 * time.Millisecond

// followInterfaces calls changed whenever interfaces of a network namespace
// have come, gone or changed, until stop is called.
func followInterfaces(fd int, log *slog.Logger, changed func()) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			if err := followOnce(ctx, fd, changed); err != nil && ctx.Err() == nil {
				log.Warn("eBPF: following interfaces, trying again", "error", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}()
	return func() { cancel(); <-ended }
}

// followOnce follows interfaces until ctx ends or the kernel has told of more
// than could be read.
func followOnce(ctx context.Context, fd int, changed func()) error {
	at := netns.None()
	if fd != 0 {
		at = netns.NsHandle(fd)
	}
	done, failed := make(chan struct{}), make(chan error, 1)
	defer close(done)
	updates := make(chan netlink.LinkUpdate, 64)
	err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{Namespace: &at, ErrorCallback: func(err error) {
		select {
		case failed <- err:
		default:
		}
	}})
	if err != nil {
		return err
	}
	changed() // what happened before the subscription
	pending := time.NewTimer(time.Hour)
	defer pending.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case _, ok := <-updates:
			if !ok {
				return errors.New("the subscription ended")
			}
			pending.Reset(settling)
		case <-pending.C:
			changed()
		}
	}
}
