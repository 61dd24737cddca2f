package podnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// reuseAfter is how long a released address rests, if others are free: peers
// may still send to it, and the kernel remembers connections of its last owner.
const reuseAfter = time.Minute

// allocator hands out the addresses of Pods in turn, and goes on where it was
// after a restart, so that an address comes back as late as possible.
type allocator struct {
	path   string
	ranges []netip.Prefix
	now    func() time.Time

	mu       sync.Mutex
	last     map[netip.Prefix]netip.Addr
	owner    map[netip.Addr]string
	released map[netip.Addr]time.Time
}

// newAllocator reads the memory in dir. Addresses of an earlier run are free:
// its Pods ended with it.
func newAllocator(dir string, ranges []netip.Prefix) (*allocator, error) {
	a := &allocator{
		path: filepath.Join(dir, "addresses.json"), now: time.Now,
		last: map[netip.Prefix]netip.Addr{}, owner: map[netip.Addr]string{}, released: map[netip.Addr]time.Time{},
	}
	for _, r := range ranges {
		r = r.Masked()
		if r.Addr().BitLen()-r.Bits() < 2 {
			return nil, fmt.Errorf("pod CIDR %s has no room for Pods", r)
		}
		a.ranges = append(a.ranges, r)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(a.path)
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &a.last); err != nil {
		return nil, fmt.Errorf("%s: %w; remove the file to start over", a.path, err)
	}
	return a, nil
}

// take allocates one address of each range.
func (a *allocator) take(id string) ([]netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []netip.Addr
	for _, r := range a.ranges {
		addr, ok := a.next(r)
		if !ok {
			a.free(id)
			return nil, fmt.Errorf("pod CIDR %s: all addresses are in use", r)
		}
		a.owner[addr] = id
		a.last[r] = addr
		out = append(out, addr)
	}
	if err := a.save(); err != nil {
		a.free(id)
		return nil, err
	}
	return out, nil
}

// next finds the free address after the last one given out, or the one that
// has rested longest if none has rested enough.
func (a *allocator) next(r netip.Prefix) (netip.Addr, bool) {
	last, ok := a.last[r]
	if !ok || !r.Contains(last) {
		last = r.Addr() // names the network and is no host's
	}
	var oldest netip.Addr
	now, begin := a.now(), after(r, last)
	for addr := begin; ; {
		if _, used := a.owner[addr]; !used {
			since, rests := a.released[addr]
			if !rests || now.Sub(since) >= reuseAfter {
				oldest = addr
				break
			}
			if !oldest.IsValid() || since.Before(a.released[oldest]) {
				oldest = addr
			}
		}
		if addr = after(r, addr); addr == begin {
			break
		}
	}
	delete(a.released, oldest)
	return oldest, oldest.IsValid()
}

// after is the next address for a host, the first one after the last. Left out
// are the range's own address and IPv4's broadcast address.
func after(r netip.Prefix, addr netip.Addr) netip.Addr {
	addr = addr.Next()
	if !addr.IsValid() || !r.Contains(addr) || addr.Is4() && !r.Contains(addr.Next()) {
		return r.Addr().Next()
	}
	return addr
}

func (a *allocator) release(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.free(id)
}

func (a *allocator) free(id string) {
	for addr, owner := range a.owner {
		if owner == id {
			delete(a.owner, addr)
			a.released[addr] = a.now()
		}
	}
}

func (a *allocator) save() error {
	data, err := json.Marshal(a.last)
	if err != nil {
		return err
	}
	if err := os.WriteFile(a.path+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(a.path+".new", a.path)
}
