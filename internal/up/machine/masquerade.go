package machine

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// masqueradeTable holds our one rule per family: what Pods and nodes send to the outside gets an address that the outside
// can answer to. What stays in the cluster keeps its source, as the Kubernetes network model asks.
const masqueradeTable = "fairway-outside"

// addMasquerade makes, in node 1's namespace (all that leaves the machine leaves from there):
//
//	ip saddr @own ip daddr != @cluster oifname != "lo" masquerade
//
// The loopback is left out because packets of kubectl port-forward and of the API server go over it with any source.
func (n *Namespace) addMasquerade(o Options) error {
	if err := o.Journal.Record(Thing{Kind: KindTable, Name: masqueradeTable}); err != nil {
		return err
	}
	return n.makeMasquerade(o)
}

// makeMasquerade makes the table anew, in one transaction, and remembers what the kernel has then.
func (n *Namespace) makeMasquerade(o Options) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(n.fd)))
	if err != nil {
		return err
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: masqueradeTable}
	// Adding before deleting: deleting what does not exist is an error.
	c.AddTable(table)
	c.DelTable(table)
	c.AddTable(table)
	chain := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	own := append(append([]netip.Prefix{}, o.PodCIDRs...), o.NodeCIDRs...)
	cluster := append(append([]netip.Prefix{}, own...), o.ServiceCIDRs...)
	for _, f := range []family{ipv4, ipv6} {
		if len(f.of(own)) == 0 {
			continue
		}
		ownSet, err := addRangeSet(c, table, "own-"+f.name, f, own)
		if err != nil {
			return err
		}
		clusterSet, err := addRangeSet(c, table, "cluster-"+f.name, f, cluster)
		if err != nil {
			return err
		}
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.protocol}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.source, Len: f.length},
			&expr.Lookup{SourceRegister: 1, SetName: ownSet.Name, SetID: ownSet.ID},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.destination, Len: f.length},
			&expr.Lookup{SourceRegister: 1, SetName: clusterSet.Name, SetID: clusterSet.ID, Invert: true},
			&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte("lo\x00")},
			&expr.Masq{},
		}})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables table %s: %w", masqueradeTable, err)
	}
	n.masquerade, err = readMasquerade(c)
	return err
}

// KeepMasquerade puts back what others take from the table of Build, as "nft flush ruleset" does, until ctx ends. It
// looks every interval. o is that of Build.
func (n *Namespace) KeepMasquerade(ctx context.Context, o Options, every time.Duration, logger *slog.Logger) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := n.repairMasquerade(o, logger); err != nil {
			logger.Warn("the packet rules that give Pods an address of the machine cannot be compared with what they should be", "error", err)
		}
	}
}

func (n *Namespace) repairMasquerade(o Options, logger *slog.Logger) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(n.fd)))
	if err != nil {
		return err
	}
	want := n.masquerade
	found, err := readMasquerade(c)
	if err == nil && !maps.Equal(found, want) {
		found, err = readMasquerade(c) // as a whole: before, it may have been changed while we read
	}
	if err != nil || maps.Equal(found, want) {
		return err
	}
	damage := []string{"the table is missing"}
	if len(found) > 0 {
		damage = differences(want, found)
	}
	if err := n.makeMasquerade(o); err != nil {
		return err
	}
	logger.Warn("somebody else changed the packet rules that give Pods an address of the machine; they are put back",
		"table", "inet "+masqueradeTable, "changed", strings.Join(damage, ", "))
	return nil
}

// differences says in words how found differs from want.
func differences(want, found map[string]string) []string {
	var list []string
	for _, what := range slices.Sorted(maps.Keys(want)) {
		switch is, ok := found[what]; {
		case !ok:
			list = append(list, what+" is missing")
		case is != want[what]:
			list = append(list, what+" is another")
		}
	}
	for _, what := range slices.Sorted(maps.Keys(found)) {
		if _, ok := want[what]; !ok {
			list = append(list, what+" is not ours")
		}
	}
	return list
}

// readMasquerade returns all parts of the table by what they are, without what the kernel numbers anew each time; none
// where there is no table.
func readMasquerade(c *nftables.Conn) (map[string]string, error) {
	var err error
	for range 3 { // for it may be deleted or made while we read
		var parts map[string]string
		if parts, err = readParts(c); err == nil {
			return parts, nil
		}
	}
	return nil, fmt.Errorf("reading nftables table %s: %w", masqueradeTable, err)
}

func readParts(c *nftables.Conn) (map[string]string, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == masqueradeTable })
	if i < 0 {
		return nil, nil
	}
	table := tables[i]
	parts := map[string]string{"the table": fmt.Sprint("flags ", table.Flags)}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	for _, chain := range chains {
		if chain.Table.Name != masqueradeTable {
			continue
		}
		rules, err := c.GetRules(table, chain)
		if err != nil {
			return nil, err
		}
		content := struct {
			Hook     *nftables.ChainHook
			Priority *nftables.ChainPriority
			Type     nftables.ChainType
			Policy   *nftables.ChainPolicy
			Rules    [][]expr.Any
		}{Hook: chain.Hooknum, Priority: chain.Priority, Type: chain.Type, Policy: chain.Policy}
		for _, rule := range rules {
			content.Rules = append(content.Rules, rule.Exprs)
		}
		text, err := json.Marshal(content)
		if err != nil {
			return nil, err
		}
		parts["chain "+chain.Name] = string(text)
	}
	sets, err := c.GetSets(table)
	if err != nil {
		return nil, err
	}
	for _, set := range sets {
		elements, err := c.GetSetElements(set)
		if err != nil {
			return nil, err
		}
		var lines []string
		for _, e := range elements {
			lines = append(lines, fmt.Sprintf("%x %t", e.Key, e.IntervalEnd))
		}
		slices.Sort(lines)
		parts["set "+set.Name] = strings.Join(lines, ",")
	}
	return parts, nil
}

// family is where an IP header holds its addresses.
type family struct {
	name                string
	protocol            byte
	source, destination uint32
	length              uint32
	keyType             nftables.SetDatatype
}

var (
	ipv4 = family{"v4", unix.NFPROTO_IPV4, 12, 16, 4, nftables.TypeIPAddr}
	ipv6 = family{"v6", unix.NFPROTO_IPV6, 8, 24, 16, nftables.TypeIP6Addr}
)

// of returns the prefixes that are of the family.
func (f family) of(prefixes []netip.Prefix) []netip.Prefix {
	var mine []netip.Prefix
	for _, p := range prefixes {
		if p.Addr().BitLen() == int(f.length)*8 {
			mine = append(mine, p)
		}
	}
	return mine
}

func addRangeSet(c *nftables.Conn, table *nftables.Table, name string, f family, prefixes []netip.Prefix) (*nftables.Set, error) {
	set := &nftables.Set{Table: table, Name: name, Interval: true, AutoMerge: true, KeyType: f.keyType}
	var elements []nftables.SetElement
	for _, p := range f.of(prefixes) {
		elements = append(elements, nftables.SetElement{Key: p.Masked().Addr().AsSlice()})
		if end := lastAddr(p).Next(); end.IsValid() {
			elements = append(elements, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	if err := c.AddSet(set, elements); err != nil {
		return nil, fmt.Errorf("nftables set %s: %w", name, err)
	}
	return set, nil
}

// lastAddr is the highest address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// removeTable deletes an nftables table of family inet if it is there.
func removeTable(ns *Namespace, name string) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.fd)))
	if err != nil {
		return err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return err
	}
	for _, t := range tables {
		if t.Name == name {
			c.DelTable(t)
		}
	}
	return c.Flush()
}
