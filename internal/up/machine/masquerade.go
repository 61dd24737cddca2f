package machine

import (
	"fmt"
	"net/netip"

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
	c, err := nftables.New(nftables.WithNetNSFd(int(n.fd)))
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: masqueradeTable})
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
	return nil
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
