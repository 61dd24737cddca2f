package podnet

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the one nftables table of the Pod network.
const tableName = "fairway-podnet"

// ownLinks begins the names of the links between nodes and of the node's own
// interface: what leaves there stays inside of the cluster.
const ownLinks = "fairway"

// Registers as nftables numbers them: reg32 is the first 4 bytes of the 16 byte
// register 1, and so on.
const (
	reg1     = unix.NFT_REG_1
	reg32    = unix.NFT_REG32_00
	proto4   = 0x02 // NFPROTO_IPV4
	proto6   = 0x0a // NFPROTO_IPV6
	natOrder = 10   // distance to the priorities that Services use
)

// family is what differs between IPv4 and IPv6 in a rule.
type family struct {
	name       string
	proto      byte
	size       uint32 // bytes of an address
	src, dst   uint32 // their offsets in the header
	address    nftables.SetDatatype
	anyPorts   *nftables.Set // protocol . port -> address . port
	boundPorts *nftables.Set // address . protocol . port -> address . port
	hairpins   *nftables.Set // address . address
}

// rules is the table.
type rules struct {
	table    *nftables.Table
	inside   []netip.Prefix
	families []*family
	// want is the table as the kernel told it when it was made, with the ports
	// that were set since; see readTable.
	want map[string]string
}

// newRules makes the table anew.
func newRules(pods, cluster []netip.Prefix) (*rules, error) {
	r := &rules{
		table:  &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet},
		inside: append(append([]netip.Prefix(nil), pods...), cluster...),
	}
	return r, r.make(nil)
}

// make makes the table anew with the host ports of the given Pods, in one
// transaction.
func (r *rules) make(pods map[string]*attachment) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	// Adding before deleting: deleting what does not exist is an error.
	conn.AddTable(r.table)
	conn.DelTable(r.table)
	conn.AddTable(r.table)
	r.families = nil
	if hasRange(r.inside, netip.Addr.Is4) {
		r.families = append(r.families, &family{name: "4", proto: proto4, size: 4, src: 12, dst: 16, address: nftables.TypeIPAddr})
	}
	if hasRange(r.inside, netip.Addr.Is6) {
		r.families = append(r.families, &family{name: "6", proto: proto6, size: 16, src: 8, dst: 24, address: nftables.TypeIP6Addr})
	}
	for _, f := range r.families {
		if err := r.addSets(conn, f); err != nil {
			return err
		}
	}
	r.addGuard(conn)
	r.addHostPorts(conn)
	r.addMasquerade(conn, r.inside)
	ports, err := r.fill(conn, pods)
	if err != nil {
		return err
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables table %s: %w", tableName, err)
	}
	want, err := readTable(conn)
	if err != nil {
		return err
	}
	if want == nil { // gone already: the next comparison sees it
		want = map[string]string{}
	}
	maps.Copy(want, ports)
	r.want = want
	return nil
}

func (r *rules) addSets(conn *nftables.Conn, f *family) error {
	target := nftables.MustConcatSetType(f.address, nftables.TypeInetService)
	f.anyPorts = &nftables.Set{
		Table: r.table, Name: "hostports" + f.name, IsMap: true, Concatenation: true, DataType: target,
		KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
	}
	f.boundPorts = &nftables.Set{
		Table: r.table, Name: "hostports" + f.name + "-bound", IsMap: true, Concatenation: true, DataType: target,
		KeyType: nftables.MustConcatSetType(f.address, nftables.TypeInetProto, nftables.TypeInetService),
	}
	f.hairpins = &nftables.Set{
		Table: r.table, Name: "hairpins" + f.name, Concatenation: true,
		KeyType: nftables.MustConcatSetType(f.address, f.address),
	}
	for _, s := range []*nftables.Set{f.anyPorts, f.boundPorts, f.hairpins} {
		if err := conn.AddSet(s, nil); err != nil {
			return fmt.Errorf("nftables set %s: %w", s.Name, err)
		}
	}
	return nil
}

// addGuard drops what Pods send to 127.0.0.0/8, which the kernel would take from
// links with route_localnet (CVE-2020-8558).
func (r *rules) addGuard(conn *nftables.Conn) {
	chain := conn.AddChain(&nftables.Chain{
		Name: "guard", Table: r.table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	})
	f := &family{proto: proto4, size: 4, src: 12, dst: 16}
	exprs := append(interfaceIs(expr.MetaKeyIIFNAME, linkPattern), f.in(f.dst, netip.MustParsePrefix("127.0.0.0/8"))...)
	conn.AddRule(&nftables.Rule{Table: r.table, Chain: chain, Exprs: append(exprs, verdict(expr.VerdictDrop))})
}

// addHostPorts redirects connections to the node's own addresses.
func (r *rules) addHostPorts(conn *nftables.Conn) {
	hostPorts := conn.AddChain(&nftables.Chain{Name: "hostports", Table: r.table})
	for _, f := range r.families {
		if f.proto == proto6 {
			// The kernel has no route_localnet for IPv6: leave ::1 alone.
			exprs := append(f.in(f.dst, netip.MustParsePrefix("::1/128")), verdict(expr.VerdictReturn))
			conn.AddRule(&nftables.Rule{Table: r.table, Chain: hostPorts, Exprs: exprs})
		}
		conn.AddRule(&nftables.Rule{Table: r.table, Chain: hostPorts, Exprs: f.redirect(f.boundPorts, true)})
		conn.AddRule(&nftables.Rule{Table: r.table, Chain: hostPorts, Exprs: f.redirect(f.anyPorts, false)})
	}
	priority := nftables.ChainPriorityRef(*nftables.ChainPriorityNATDest - natOrder)
	for name, hook := range map[string]*nftables.ChainHook{"prerouting": nftables.ChainHookPrerouting, "output": nftables.ChainHookOutput} {
		chain := conn.AddChain(&nftables.Chain{Name: name, Table: r.table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: priority})
		conn.AddRule(&nftables.Rule{Table: r.table, Chain: chain, Exprs: []expr.Any{
			&expr.Fib{Register: reg1, ResultADDRTYPE: true, FlagDADDR: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
			&expr.Verdict{Kind: expr.VerdictJump, Chain: hostPorts.Name},
		}})
	}
}

// addMasquerade gives the node's address to what Pods send out of the cluster,
// and to host port connections that would not come back otherwise.
func (r *rules) addMasquerade(conn *nftables.Conn, inside []netip.Prefix) {
	chain := conn.AddChain(&nftables.Chain{
		Name: "postrouting", Table: r.table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting,
		Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityNATSource + natOrder),
	})
	add := func(parts ...[]expr.Any) {
		var exprs []expr.Any
		for _, p := range parts {
			exprs = append(exprs, p...)
		}
		conn.AddRule(&nftables.Rule{Table: r.table, Chain: chain, Exprs: exprs})
	}
	leave, masquerade := []expr.Any{verdict(expr.VerdictReturn)}, []expr.Any{&expr.Masq{}}
	toPods := interfaceIs(expr.MetaKeyOIFNAME, linkPattern)
	for _, f := range r.families {
		add(toPods, f.hairpin(), masquerade)
		if f.proto == proto4 {
			add(toPods, f.in(f.src, netip.MustParsePrefix("127.0.0.0/8")), masquerade)
		}
	}
	add(toPods, leave)
	add(interfaceIs(expr.MetaKeyOIFNAME, "lo\x00"), leave)
	add(interfaceIs(expr.MetaKeyOIFNAME, ownLinks), leave)
	for _, f := range r.families {
		for _, p := range inside {
			if p.Addr().Is4() == (f.proto == proto4) {
				add(f.in(f.dst, p), leave)
			}
		}
		multicast := netip.MustParsePrefix("224.0.0.0/4")
		if f.proto == proto6 {
			multicast = netip.MustParsePrefix("ff00::/8")
		}
		add(f.in(f.dst, multicast), leave)
	}
	for _, f := range r.families {
		for _, p := range inside {
			if p.Addr().Is4() == (f.proto == proto4) {
				add(f.in(f.src, p), masquerade)
			}
		}
	}
}

// setPorts replaces the host ports by those of the given Pods, in one
// transaction.
func (r *rules) setPorts(pods map[string]*attachment) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	ports, err := r.fill(conn, pods)
	if err != nil {
		return err
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("host ports: %w", err)
	}
	maps.Copy(r.want, ports)
	return nil
}

// fill has conn replace the elements of all sets, and returns what they are
// then, as readTable does.
func (r *rules) fill(conn *nftables.Conn, pods map[string]*attachment) (map[string]string, error) {
	parts := map[string]string{}
	for _, f := range r.families {
		anyPorts, boundPorts, hairpins := f.elements(pods)
		for _, s := range []struct {
			set      *nftables.Set
			elements []nftables.SetElement
		}{{f.anyPorts, anyPorts}, {f.boundPorts, boundPorts}, {f.hairpins, hairpins}} {
			parts[setPart(s.set)] = elementsText(s.elements)
			conn.FlushSet(s.set)
			if len(s.elements) == 0 {
				continue
			}
			if err := conn.SetAddElements(s.set, s.elements); err != nil {
				return nil, fmt.Errorf("host ports: %w", err)
			}
		}
	}
	return parts, nil
}

// elements are those of the family's three sets. Of two Pods that ask for the
// same port, which the scheduler prevents, one wins.
func (f *family) elements(pods map[string]*attachment) (anyPorts, boundPorts, hairpins []nftables.SetElement) {
	seen := map[string]bool{}
	for _, a := range pods {
		for _, addr := range a.addresses {
			if addr.Is4() != (f.proto == proto4) || len(a.ports) == 0 {
				continue
			}
			hairpins = append(hairpins, nftables.SetElement{Key: append(addr.AsSlice(), addr.AsSlice()...)})
			for _, p := range a.ports {
				key := append([]byte{p.Protocol, 0, 0, 0}, port(p.HostPort)...)
				bound := p.HostIP.IsValid() && !p.HostIP.IsUnspecified()
				if bound {
					if p.HostIP.Is4() != addr.Is4() {
						continue
					}
					key = append(p.HostIP.AsSlice(), key...)
				}
				if seen[string(key)] {
					continue
				}
				seen[string(key)] = true
				element := nftables.SetElement{Key: key, Val: append(addr.AsSlice(), port(p.PodPort)...)}
				if bound {
					boundPorts = append(boundPorts, element)
				} else {
					anyPorts = append(anyPorts, element)
				}
			}
		}
	}
	return anyPorts, boundPorts, hairpins
}

// port is padded as parts of concatenations are.
func port(p uint16) []byte { return append(binaryutil.BigEndian.PutUint16(p), 0, 0) }

// remove deletes the table.
func (r *rules) remove() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	conn.DelTable(r.table)
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove nftables table %s: %w", tableName, err)
	}
	return nil
}

func (f *family) isFamily() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{f.proto}},
	}
}

// in matches an address of the header against a range.
func (f *family) in(offset uint32, p netip.Prefix) []expr.Any {
	mask := make([]byte, f.size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(f.isFamily(),
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: f.size, Mask: mask, Xor: make([]byte, f.size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: p.Masked().Addr().AsSlice()},
	)
}

// hairpin matches connections of a Pod to its own host port.
func (f *family) hairpin() []expr.Any {
	return append(f.isFamily(),
		&expr.Payload{DestRegister: reg32, Base: expr.PayloadBaseNetworkHeader, Offset: f.src, Len: f.size},
		&expr.Payload{DestRegister: reg32 + f.size/4, Base: expr.PayloadBaseNetworkHeader, Offset: f.dst, Len: f.size},
		&expr.Lookup{SourceRegister: reg32, SetName: f.hairpins.Name, SetID: f.hairpins.ID},
	)
}

// redirect looks up the destination in a map of host ports and translates it.
func (f *family) redirect(ports *nftables.Set, bound bool) []expr.Any {
	exprs := f.isFamily()
	next := uint32(reg32)
	if bound {
		exprs = append(exprs, &expr.Payload{DestRegister: next, Base: expr.PayloadBaseNetworkHeader, Offset: f.dst, Len: f.size})
		next += f.size / 4
	}
	return append(exprs,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: next},
		&expr.Payload{DestRegister: next + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg32, DestRegister: reg32, IsDestRegSet: true, SetName: ports.Name, SetID: ports.ID},
		&expr.NAT{
			Type: expr.NATTypeDestNAT, Family: uint32(f.proto),
			RegAddrMin: reg32, RegProtoMin: reg32 + f.size/4, Specified: true,
		},
	)
}

// interfaceIs matches interface names that begin with prefix.
func interfaceIs(key expr.MetaKey, prefix string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte(prefix)},
	}
}

func verdict(kind expr.VerdictKind) expr.Any { return &expr.Verdict{Kind: kind} }

func hasRange(prefixes []netip.Prefix, is func(netip.Addr) bool) bool {
	for _, p := range prefixes {
		if is(p.Addr()) {
			return true
		}
	}
	return false
}
