package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/dataplane"
)

// Packet marks by which the ingress programs tell the rules of our table what
// to do with a packet. A program sets one only where the packet had none, and
// the table takes it off again right behind conntrack, before routing and
// before anybody else's mangle, nat and filter chains: only raw chains see it.
const (
	// markRefuse asks to answer with a TCP reset or ICMP port unreachable.
	markRefuse = 0x46770001
	// markStray is on TCP packets to a Service that do not open a connection:
	// if conntrack does not know theirs, nobody here does, and the client is
	// told by a reset. So it goes when an address moves to another node.
	markStray = 0x46770002
)

// netfilterTable is the name of our table, of family inet.
const netfilterTable = "fairway-ebpf"

// netfilter is the small table that the ingress programs cannot do without. It
// never changes with Services. A chain of type nat, even an empty one, makes
// the kernel translate, and the use of conntrack state makes it track.
type netfilter struct{ netns int }

func (n netfilter) table() *nftables.Table {
	return &nftables.Table{Name: netfilterTable, Family: nftables.TableFamilyINet}
}

func (n netfilter) conn() (*nftables.Conn, error) {
	c, err := nftables.New(nftables.WithNetNSFd(n.netns))
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	return c, nil
}

type netfilterChain struct {
	def   nftables.Chain
	rules [][]expr.Any
}

// chains is what the table holds.
func (n netfilter) chains() []netfilterChain {
	t := n.table()
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority, rules ...[]expr.Any) netfilterChain {
		return netfilterChain{nftables.Chain{Name: name, Table: t, Type: kind, Hooknum: hook, Priority: &priority}, rules}
	}
	mark := func(value uint32) []expr.Any {
		return []expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: word(value)}}
	}
	tcp := []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}}}
	state := func(bit uint32) []expr.Any {
		return []expr.Any{
			&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: word(bit), Xor: word(0)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: word(0)},
		}
	}
	unmark := []expr.Any{&expr.Immediate{Register: 1, Data: word(0)}, &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1}}
	reset := []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
	unreachable := []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}}
	accept := []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop := []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	const behindConntrack, dstnat, filter = -199, -100, 0
	return []netfilterChain{
		base("marked", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, behindConntrack,
			slices.Concat(mark(0), accept),
			slices.Concat(mark(markRefuse), tcp, unmark, reset),
			slices.Concat(mark(markRefuse), unmark, unreachable),
			slices.Concat(mark(markStray), tcp, state(expr.CtStateBitNEW), unmark, reset),
			slices.Concat(mark(markStray), unmark)),
		base("translate", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, dstnat),
		// Such packets would pass untranslated, and the other side would answer
		// them with a reset (kubernetes/kubernetes#74839).
		base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, filter,
			slices.Concat(state(expr.CtStateBitINVALID), drop)),
	}
}

func word(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

// ensure makes the table what it should be, in one transaction, and notes that.
// It leaves the table alone if it is.
func (n netfilter) ensure(fixed dataplane.Repairs) error {
	conn, err := n.conn()
	if err != nil {
		return err
	}
	intact, err := n.intact(conn)
	if err != nil || intact {
		return err
	}
	t := n.table()
	conn.AddTable(t)
	conn.DelTable(t)
	conn.AddTable(t)
	for _, c := range n.chains() {
		conn.AddChain(&c.def)
		for _, exprs := range c.rules {
			conn.AddRule(&nftables.Rule{Table: t, Chain: &c.def, Exprs: exprs})
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables: creating table inet %s: %w", netfilterTable, err)
	}
	fixed.Add(repairedTables, 1)
	return nil
}

// intact reports whether all chains are there with as many rules as they should have.
func (n netfilter) intact(conn *nftables.Conn) (bool, error) {
	for _, c := range n.chains() {
		rules, err := conn.GetRules(n.table(), &c.def)
		switch {
		case errors.Is(err, unix.ENOENT):
			return false, nil
		case err != nil:
			return false, fmt.Errorf("nftables: reading table inet %s: %w", netfilterTable, err)
		case len(rules) != len(c.rules):
			return false, nil
		}
		if len(c.rules) > 0 {
			continue
		}
		if _, err := conn.ListChain(n.table(), c.def.Name); err != nil {
			return false, nil
		}
	}
	return true, nil
}

// remove removes the table, if it is there. If not, it changes nothing, for
// every change has others look through their rules.
func (n netfilter) remove() error {
	conn, err := n.conn()
	if err != nil {
		return err
	}
	tables, err := conn.ListTablesOfFamily(n.table().Family)
	if err != nil {
		return fmt.Errorf("nftables: listing tables: %w", err)
	}
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == netfilterTable }) {
		return nil
	}
	conn.AddTable(n.table())
	conn.DelTable(n.table())
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables: removing table inet %s: %w", netfilterTable, err)
	}
	return nil
}
