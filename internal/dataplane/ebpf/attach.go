package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/dataplane"
)

// attachment is the socket programs on one cgroup.
type attachment struct {
	name     string // of the links
	cgroup   string
	programs map[string]*ebpf.Program
	types    map[string]ebpf.AttachType
	links    map[string]link.Link
}

// programOrder is the order in which programs are attached: who is told the
// peer's address must be told the right one from the first translation on.
var programOrder = []string{
	socketProgGetpeername4, socketProgGetpeername6, socketProgRecvmsg4, socketProgRecvmsg6,
	socketProgSockRelease, socketProgSendmsg4, socketProgSendmsg6, socketProgConnect4, socketProgConnect6,
}

// loadSockets loads the socket programs with these maps. serverPort and kernel types are those of [Options].
func loadSockets(shared map[string]*ebpf.Map, node uint64, onlyNamespaces bool, serverPort uint16, kernel *btf.Cache) (programs map[string]*ebpf.Program, types map[string]ebpf.AttachType, err error) {
	spec, err := loadSocket()
	if err != nil {
		return nil, nil, err
	}
	only := uint8(0)
	if onlyNamespaces {
		only = 1
	}
	v := spec.Variables
	if err := errors.Join(v[socketVarNodeNetns].Set(node), v[socketVarOnlyNamespaces].Set(only), v[socketVarServerPort].Set(serverPort)); err != nil {
		return nil, nil, err
	}
	for name, m := range shared {
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	types = map[string]ebpf.AttachType{}
	for name, p := range spec.Programs {
		types[name] = p.AttachType
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared, Cache: kernel})
	if err != nil {
		return nil, nil, fmt.Errorf("socket programs: %w", err)
	}
	defer c.Close()
	programs = c.Programs
	c.Programs = nil // they stay
	return programs, types, nil
}

func cgroupID(path string) (uint64, error) {
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		return 0, fmt.Errorf("cgroup %s: %w", path, err)
	}
	return s.Ino, nil
}

func (a *attachment) pin(p pins, program string) string {
	return filepath.Join(string(p), linksDir, program+"@"+a.name)
}

// adopt takes over the links that are pinned, and updates those that have a
// program with maps of ours: their answers stay the same. live is true if there
// are any.
func (a *attachment) adopt(p pins, frontends *ebpf.Map) (live bool, err error) {
	a.links = map[string]link.Link{}
	id, err := cgroupID(a.cgroup)
	if err != nil {
		return false, err
	}
	ours, err := mapID(frontends)
	if err != nil {
		return false, err
	}
	for name, program := range a.programs {
		l, err := link.LoadPinnedLink(a.pin(p, name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("pinned link of %s: %w", name, err)
		}
		info, err := l.Info()
		if err != nil {
			return false, fmt.Errorf("pinned link of %s: %w", name, err)
		}
		if c := info.Cgroup(); c == nil || c.CgroupId != id {
			_ = l.Close() // it was on another cgroup, or on one that has gone
			continue
		}
		a.links[name] = l
		if !usesMap(info.Program, ours) {
			continue
		}
		live = true
		if err := l.Update(program); err != nil {
			return false, fmt.Errorf("replace program %s: %w", name, err)
		}
	}
	return live, nil
}

func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, err
	}
	id, _ := info.ID()
	return id, nil
}

// usesMap reports whether a program has a map.
func usesMap(id ebpf.ProgramID, m ebpf.MapID) bool {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return false
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return false
	}
	ids, _ := info.MapIDs()
	for _, other := range ids {
		if other == m {
			return true
		}
	}
	return false
}

// attach sees to it that every program is attached, and pinned, and notes what
// was not.
func (a *attachment) attach(p pins, fixed dataplane.Repairs) error {
	id, err := cgroupID(a.cgroup)
	if err != nil {
		return err
	}
	for _, name := range programOrder {
		if err := a.attachOne(p, name, a.programs[name], id, fixed); err != nil {
			return fmt.Errorf("attach %s to cgroup %s: %w", name, a.cgroup, err)
		}
	}
	return nil
}

func (a *attachment) attachOne(p pins, name string, program *ebpf.Program, cgroup uint64, fixed dataplane.Repairs) error {
	pin := a.pin(p, name)
	if l := a.links[name]; l != nil {
		ok := attached(l, cgroup, program)
		if !ok && l.Update(program) == nil && attached(l, cgroup, program) {
			fixed.Add(repairedPrograms, 1)
			ok = true
		}
		if ok { // it serves all the while, also when nothing leads to it
			return pinAgain(l, pin, fixed)
		}
		_ = l.Close()
		delete(a.links, name)
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: a.cgroup, Attach: a.types[name], Program: program})
	if err != nil {
		return err
	}
	// In the place of a link that has lost its cgroup. Until here that one was there.
	if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, l.Close())
	}
	if err := l.Pin(pin); err != nil {
		return errors.Join(fmt.Errorf("pin %s: %w", pin, err), l.Close())
	}
	a.links[name] = l
	fixed.Add(repairedPrograms, 1)
	return nil
}

// attached reports whether a link is on the cgroup with our program.
func attached(l link.Link, cgroup uint64, program *ebpf.Program) bool {
	info, err := l.Info()
	if err != nil {
		return false
	}
	want, err := program.Info()
	if err != nil {
		return false
	}
	id, _ := want.ID()
	c := info.Cgroup()
	return c != nil && c.CgroupId == cgroup && info.Program == id
}

// removeOtherLinks removes links of attachments that are not wanted any more.
func (p pins) removeOtherLinks(keep []*attachment) error {
	dir := filepath.Join(string(p), linksDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	wanted := map[string]bool{}
	for _, a := range keep {
		for name := range a.programs {
			wanted[filepath.Base(a.pin(p, name))] = true
		}
	}
	var errs []error
	for _, e := range entries {
		if !wanted[e.Name()] && strings.Contains(e.Name(), "@") {
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// close closes what the process has open; what is pinned stays.
func (a *attachment) close() {
	for _, l := range a.links {
		_ = l.Close()
	}
	for _, p := range a.programs {
		_ = p.Close()
	}
}
