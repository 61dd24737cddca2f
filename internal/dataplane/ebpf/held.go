package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/plan"
)

// ErrAbsent is returned by Read where no maps are pinned.
var ErrAbsent = errors.New("eBPF: no maps of Fairway's are pinned for this network namespace")

// Holdings are what the maps of a network namespace had when they were read.
type Holdings struct {
	frontends map[frontendKey]frontend
	backends  []backend // up to the last one in use
	addresses map[address]uint32
	sources   map[uint32][]netip.Prefix // by guard, in order
	proxies   [2]backend
	// sockets and ingress tell whether programs with these maps are attached.
	sockets, ingress bool
	// translates tells whether the table is there without which packets that the
	// ingress programs have decided on go on as they are.
	translates bool
}

var _ dataplane.Holdings = (*Holdings)(nil)

// Read returns what the kernel holds now. It opens the maps for reading only,
// and takes no notice of a process that is at work. Of the options NetNS and
// Pins count; Pins may be a pattern as filepath.Match has it.
func Read(o Options) (*Holdings, error) {
	cookie, err := netnsCookie(o.NetNS)
	if err != nil {
		return nil, fmt.Errorf("eBPF: %w", err)
	}
	found, err := filepath.Glob(filepath.Join(string(pinsOf(o.Pins, cookie)), mapsPrefix+"*"))
	if err != nil {
		return nil, fmt.Errorf("eBPF: %w", err)
	}
	var out *Holdings
	foreign := false
	for _, dir := range found {
		maps, err := openForReading(dir)
		if err != nil {
			return nil, fmt.Errorf("eBPF: %w", err)
		}
		if maps == nil {
			foreign = true
			continue
		}
		h, err := readHoldings(maps, filepath.Join(filepath.Dir(dir), linksDir))
		closeAll(maps)
		if err != nil {
			return nil, fmt.Errorf("eBPF: %w", err)
		}
		// While a process takes over from one with maps of another size there are
		// two sets: the one that serves counts.
		if out == nil || !out.sockets {
			out = h
		}
	}
	switch {
	case foreign && (out == nil || !out.sockets):
		return nil, errors.New("eBPF: the maps are those of another version of Fairway")
	case out == nil:
		return nil, ErrAbsent
	}
	n := netfilter{o.NetNS}
	conn, err := n.conn()
	if err == nil {
		out.translates, err = n.intact(conn)
	}
	if err != nil {
		return nil, fmt.Errorf("eBPF: %w", err)
	}
	return out, nil
}

// openForReading opens the maps in a directory; nil if they are of another layout.
func openForReading(dir string) (map[string]*ebpf.Map, error) {
	spec, err := loadSocket()
	if err != nil {
		return nil, err
	}
	specs, out := map[string]*ebpf.MapSpec{}, map[string]*ebpf.Map{}
	for name, s := range spec.Maps {
		if name[0] == '.' { // the programs' constants
			continue
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), &ebpf.LoadPinOptions{ReadOnly: true})
		if errors.Is(err, fs.ErrNotExist) {
			closeAll(out)
			return nil, nil
		}
		if err != nil {
			closeAll(out)
			return nil, fmt.Errorf("map %s: %w", name, err)
		}
		out[name] = m
		s.MaxEntries = m.MaxEntries() // it was said by a flag
		specs[name] = s
	}
	if layoutOf(specs) != filepath.Base(dir) {
		closeAll(out)
		return nil, nil
	}
	return out, nil
}

func readHoldings(maps map[string]*ebpf.Map, links string) (*Holdings, error) {
	h := &Holdings{sources: map[uint32][]netip.Prefix{}}
	have, err := readMaps(maps)
	if err != nil {
		return nil, err
	}
	h.frontends, h.addresses, h.proxies = have.frontends, have.addresses, have.proxies
	if h.backends, err = readBackends(maps, h.frontends); err != nil {
		return nil, err
	}
	sources, err := readTrie[sourceKey, uint8](maps[socketMapSources])
	if err != nil {
		return nil, fmt.Errorf("read map %s: %w", socketMapSources, err)
	}
	for k := range sources {
		h.sources[k.Guard] = append(h.sources[k.Guard], k.prefix())
	}
	for _, list := range h.sources {
		slices.SortFunc(list, netip.Prefix.Compare)
	}
	ours, err := mapID(maps[socketMapFrontends])
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(links)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		l, err := link.LoadPinnedLink(filepath.Join(links, e.Name()), nil)
		if err != nil {
			continue // it is just being replaced
		}
		info, err := l.Info()
		_ = l.Close()
		if err != nil || !usesMap(info.Program, ours) {
			continue
		}
		if strings.HasPrefix(e.Name(), pinPrefix) {
			h.ingress = true
		} else {
			h.sockets = true
		}
	}
	return h, nil
}

// Mode implements dataplane.Holdings.
func (h *Holdings) Mode() string { return "ebpf" }

// Ingress reports whether packets that arrive are served by the same maps.
func (h *Holdings) Ingress() bool { return h.ingress }

// Held implements dataplane.Holdings. Where no program is attached there is
// nothing, whatever is in the maps.
func (h *Holdings) Held(f *plan.Frontend) (dataplane.Held, bool) {
	v, ok := h.frontends[frontendKeyOf(f)]
	if !ok || !h.sockets {
		return dataplane.Held{}, false
	}
	return dataplane.Held{Internal: h.pool(v, inside), External: h.pool(v, outside)}, true
}

func (h *Holdings) pool(v frontend, class int) dataplane.HeldPool {
	out := dataplane.HeldPool{Action: plan.Drop} // as programs do with what they do not know
	for _, a := range []plan.Action{plan.Forward, plan.Redirect, plan.Reject} {
		if actionOf(a) == v.Actions[class] {
			out.Action = a
		}
	}
	if out.Action == plan.Forward {
		for _, b := range rowOf(h.backends, v.Pools[class]) {
			out.Backends = append(out.Backends, b.addrPort())
		}
		slices.SortFunc(out.Backends, netip.AddrPort.Compare)
	}
	return out
}

// Differences implements dataplane.Holdings.
func (h *Holdings) Differences(f *plan.Frontend) []string {
	v, ok := h.frontends[frontendKeyOf(f)]
	if !ok {
		return nil
	}
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if h.ingress && !h.translates {
		say("table inet %s is missing or was changed: packets that arrive are not translated", netfilterTable)
	}
	if v.Kind != uint8(f.Kind) {
		say("it is not taken for an address of kind %s", f.Kind)
	}
	if f.Kind == plan.ClusterIP && h.addresses[addressOf(f.Addr)]&addressCluster == 0 {
		say("%s is not taken for a cluster IP: other ports of it are not refused", f.Addr)
	}
	if a := addressOf(f.Addr); h.ingress && dialled(a) && h.addresses[a]&addressFrontend == 0 {
		say("%s is not taken for an address that is served: packets that arrive are not", f.Addr)
	}
	if want := wholeSeconds(f.AffinityTimeout); v.Affinity != want {
		say("clients stay with their endpoint for %s, planned is %s", time.Duration(v.Affinity)*time.Second, time.Duration(want)*time.Second)
	}
	switch admitted := h.sources[v.Guard]; {
	case f.Restricted && v.Guard == 0:
		say("everybody may connect")
	case !f.Restricted && v.Guard != 0, !slices.Equal(admitted, f.SourceRanges):
		say("only %v may connect", admitted)
	}
	out = append(out, h.standbyDifferences(f, v)...)
	if own := v.Standby&serverOwn != 0; own != f.OwnServer {
		say("that clients may be answered by this node's server without translation is %t, planned is %t", own, f.OwnServer)
	}
	said := map[backend]bool{}
	for class, p := range []plan.Pool{inside: f.Internal, outside: f.External} {
		for _, want := range p.Backends {
			if p.Action != plan.Forward || v.Actions[class] != actionForward {
				break
			}
			for _, b := range rowOf(h.backends, v.Pools[class]) {
				if b.addrPort() != want.AddrPort || b == backendOf(want) || said[b] {
					continue
				}
				said[b] = true
				where := "another node"
				if b.Flags&backendLocal != 0 {
					where = "this node"
				}
				say("%s is taken for an endpoint on %s (flags %#x, planned %#x)", want.AddrPort, where, b.Flags, backendOf(want).Flags)
			}
		}
		if p.Action == plan.Redirect && h.proxies[familyOf(f.Addr)].Port.number() == 0 {
			say("there is no TLS proxy to go to")
		}
	}
	return slices.Compact(out)
}

// standbyDifferences says what is not as planned of where clients go while the
// node's own server does not answer.
func (h *Holdings) standbyDifferences(f *plan.Frontend, v frontend) []string {
	var want, got []netip.AddrPort
	for _, b := range f.Standby.Backends {
		want = append(want, b.AddrPort)
	}
	if v.Standby&serverStandby != 0 {
		got = h.pool(h.frontends[frontendKeyOf(f).standby()], inside).Backends
	}
	if slices.Equal(got, want) {
		return nil
	}
	return []string{fmt.Sprintf("while this node's server does not answer, clients go to %v, planned is %v", got, want)}
}
