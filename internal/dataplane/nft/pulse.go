package nft

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// pulseTable is the name of the tables that lead clients to the node's own server
// while it answers. They come before those named tableName, which lead the
// same clients to the servers of other nodes: the kernel removes a table with
// the socket that owns it (Linux 5.12), and so with the process, however that
// ends; and its elements expire when the process hangs.
const pulseTable = "fairway-own-server"

// pulsePriority is before that of DNAT.
const pulsePriority = -101

// pulse is whether the node's own server answers, as the kernel knows it.
type pulse struct {
	netns    int
	families [2]*family

	mu   sync.Mutex
	conn *nftables.Conn // owns the tables; nil until needed
	made [2]madeTable
	// unowned is true where the kernel knows no owners of tables: what a process
	// leaves there expires.
	unowned bool
	own     map[element]string // by frontend
	until   time.Time          // when it ceases to count as one that answers
	direct  []netip.AddrPort   // where it answers at the addresses of frontends
	// replies are all ports that were asked at direct, also those that own or direct has
	// no longer: the server may still answer. Such go with lateReply.
	replies   map[element]reply
	lateReply time.Duration
	// changes is the number of transactions, which Verify is not to take for
	// those of others.
	changes uint32
}

// reply is what the rule for the server's answers to a frontend's clients needs.
type reply struct {
	port string // that clients asked at
	at   netip.AddrPort
	last time.Time // when the server was last said to answer there
}

func newPulse(netns int) *pulse {
	return &pulse{netns: netns, families: families(false), replies: map[element]reply{}, lateReply: lateReply}
}

// beat has the server count as one that answers for some time from now on.
func (p *pulse) beat(valid time.Duration, direct []netip.AddrPort) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.until, p.direct = time.Now().Add(valid), direct
	return p.write(nil)
}

// set says which frontends have the node's own server as their backend. It is
// kept as it is.
func (p *pulse) set(own map[element]string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if maps.Equal(own, p.own) {
		return nil
	}
	before := p.own
	p.own = maps.Clone(own)
	return p.write(before)
}

// close has clients go to other nodes.
func (p *pulse) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.drop()
}

// drop closes the socket that owns the tables.
func (p *pulse) drop() error {
	if p.conn == nil {
		return nil
	}
	err := p.conn.CloseLasting()
	p.conn, p.made = nil, [2]madeTable{}
	return err
}

// madeTable is what there is of the table of one family.
type madeTable struct {
	there bool
	// direct are the addresses that its rules for queries are about.
	direct []netip.AddrPort
	// replies are what those for answers are about, see pulse.
	replies map[element]string
}

// untrackedQueries is the map of queries that are spared connection tracking: the
// server's port by what the client asked at.
const untrackedQueries = "untracked-queries"

// untrackedPriority is before connection tracking.
const untrackedPriority = -300

const (
	// directSlack is how much longer queries go untracked than the server counts as
	// one that answers: a data path before this one in a stack is told later.
	directSlack = 100 * time.Millisecond
	// directLeaves is for how long they do so where a frontend has ceased to have the
	// server as its backend, for the same reason.
	directLeaves = 50 * time.Millisecond
	// lateReply is for how long answers may come from where the server is not said to
	// answer any more: no client waits longer for one.
	lateReply = 3 * time.Second
)

// write makes the tables what they should be. before are the frontends with the
// node's own server until now, where those are others.
func (p *pulse) write(before map[element]string) error {
	err := p.tryWrite(before)
	if err != nil && !p.unowned && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)) {
		p.unowned = true
		err = p.tryWrite(before)
	}
	if err != nil {
		return fmt.Errorf("nftables: table %s: %w", pulseTable, err)
	}
	return nil
}

// pulseElements are those of one family.
type pulseElements struct {
	own, queries []nftables.SetElement
	// replies are those of pulse.replies. An answer that is late must not make the
	// kernel think of a connection that the client's next query would be part of, so they
	// do not expire.
	replies map[element]string
}

// any reports whether there are some.
func (e *pulseElements) any() bool { return len(e.own) > 0 || len(e.replies) > 0 }

// elements are what the tables should hold now.
func (p *pulse) elements(before map[element]string) (out [2]pulseElements) {
	entry := func(key, value string, lasts time.Duration) nftables.SetElement {
		return nftables.SetElement{Key: []byte(key), Val: []byte(value), Timeout: max(lasts, time.Millisecond)}
	}
	now := time.Now()
	for e, r := range p.replies {
		if slices.Contains(p.direct, r.at) {
			r.last = now
			p.replies[e] = r
		} else if now.Sub(r.last) >= p.lateReply {
			delete(p.replies, e)
		}
	}
	query := func(e element, lasts time.Duration) {
		at, ok := p.directAt(e)
		if !ok {
			return
		}
		out[e.fam].queries = append(out[e.fam].queries, entry(e.key, portWord(at.Port())[:2], lasts))
		end := len(e.key) - len(portWord(0))
		answers := e
		answers.key = e.key[:end] + portWord(at.Port())
		p.replies[answers] = reply{port: e.key[end : end+2], at: at, last: now}
	}
	valid := p.until.Sub(now)
	if valid > 0 {
		for e, value := range p.own {
			out[e.fam].own = append(out[e.fam].own, entry(e.key, value, valid))
			query(e, valid+directSlack)
		}
		for e := range before {
			if _, stays := p.own[e]; !stays {
				query(e, min(valid, directLeaves))
			}
		}
	}
	for e, r := range p.replies {
		if out[e.fam].replies == nil {
			out[e.fam].replies = map[element]string{}
		}
		out[e.fam].replies[e] = r.port
	}
	return out
}

// directAt returns where the server answers what is sent to the address of an
// element, if it does so directly.
func (p *pulse) directAt(e element) (netip.AddrPort, bool) {
	i := slices.IndexFunc(p.direct, func(a netip.AddrPort) bool { return e.key[:p.families[e.fam].bytes] == addrBytes(a.Addr()) })
	if i < 0 {
		return netip.AddrPort{}, false
	}
	return p.direct[i], true
}

func (p *pulse) tryWrite(before map[element]string) (err error) {
	wanted := p.elements(before)
	becomes := p.made
	if !wanted[v4].any() && !wanted[v6].any() && !p.made[v4].there && !p.made[v6].there {
		return nil
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.drop())
		}
	}()
	if p.conn == nil {
		if p.conn, err = nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(p.netns)); err != nil {
			return err
		}
	}
	for i, f := range p.families {
		table := &nftables.Table{Name: pulseTable, Family: f.table.Family}
		if !wanted[i].any() {
			if p.made[i].there {
				p.conn.DelTable(table)
				becomes[i] = madeTable{}
			}
			continue
		}
		var direct []netip.AddrPort
		for _, a := range p.direct {
			if famOf(a.Addr()) == fam(i) {
				direct = append(direct, a)
			}
		}
		own, queries := f.pulseSets(table)
		if p.made[i].there && slices.Equal(p.made[i].direct, direct) && maps.Equal(p.made[i].replies, wanted[i].replies) {
			p.conn.FlushSet(own)
			p.conn.FlushSet(queries)
		} else {
			becomes[i] = madeTable{true, direct, wanted[i].replies}
			if err := p.create(f, table, p.made[i].there && !p.unowned, becomes[i], own, queries); err != nil {
				return err
			}
		}
		for set, elements := range map[*nftables.Set][]nftables.SetElement{own: wanted[i].own, queries: wanted[i].queries} {
			if len(elements) == 0 {
				continue
			}
			if err := p.conn.SetAddElements(set, elements); err != nil {
				return err
			}
		}
	}
	if err := p.conn.Flush(); err != nil {
		return err
	}
	p.made = becomes
	p.changes++
	return nil
}

// pulseSets are the maps of the table.
func (f *family) pulseSets(table *nftables.Table) (own, queries *nftables.Set) {
	own, queries = f.set(ownServer), f.set(ownServer)
	own.Table, own.HasTimeout = table, true
	queries.Table, queries.HasTimeout = table, true
	queries.Name, queries.DataType = untrackedQueries, nftables.TypeInetService
	return own, queries
}

// create makes a table of one family, in the place of the one that there is; owned is
// whether that has an owner.
func (p *pulse) create(f *family, table *nftables.Table, owned bool, what madeTable, sets ...*nftables.Set) error {
	if !owned { // by us: the kernel refuses to add to what has an owner a table without
		p.conn.AddTable(table) // so that there is one to remove: an earlier process may have left one without owner
	}
	p.conn.DelTable(table)
	p.conn.AddTable(table)
	if !p.unowned {
		const owner = 2 // NFT_TABLE_F_OWNER
		p.amend(unix.NFTA_TABLE_FLAGS, 0, owner)
	}
	for _, s := range sets {
		if err := p.conn.AddSet(s, nil); err != nil {
			return err
		}
	}
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority, rules ...[]expr.Any) {
		c := &nftables.Chain{Name: name, Table: table, Type: kind, Hooknum: hook, Priority: &priority}
		p.conn.AddChain(c)
		for _, exprs := range rules {
			p.conn.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: exprs})
			p.amend(unix.NFTA_PAYLOAD_CSUM_TYPE, unix.NFT_PAYLOAD_CSUM_INET, unix.NFT_PAYLOAD_CSUM_NONE) // see untracked
		}
	}
	translate := f.rule(f.destination(0), lookup(ownServer, 0, 0), f.dnat(0))
	chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, pulsePriority, translate)
	chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, pulsePriority, translate)
	if len(what.direct) == 0 && len(what.replies) == 0 {
		return nil
	}
	// All packets of the machine pass here: the first comparison has to be cheap.
	var queries, replies [][]expr.Any
	for _, a := range what.direct {
		port := &expr.Lookup{SourceRegister: reg(0), DestRegister: reg(0), IsDestRegSet: true, SetName: untrackedQueries}
		queries = append(queries, f.rule(f.dst(0), equals(0, a.Addr().AsSlice()), f.destination(0), port, untracked(2)))
	}
	sorted := slices.SortedFunc(maps.Keys(what.replies), func(a, b element) int { return -cmp.Compare(a.key, b.key) }) // UDP before TCP
	for _, from := range sorted {
		addr, protocol, port := from.key[:f.bytes], from.key[f.bytes:f.bytes+1], from.key[f.bytes+4:f.bytes+6]
		replies = append(replies, f.rule(
			f.src(0), equals(0, []byte(addr)), f.meta(expr.MetaKeyL4PROTO, 0), equals(0, []byte(protocol)), sport(0), equals(0, []byte(port)),
			&expr.Immediate{Register: reg(0), Data: []byte(what.replies[from])}, untracked(0)))
	}
	chain("untracked-prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, untrackedPriority, queries...)
	chain("untracked-output", nftables.ChainTypeFilter, nftables.ChainHookOutput, untrackedPriority, slices.Concat(replies, queries)...)
	return nil
}

// amend writes another number into attributes of the last message where the
// library has no way to say it.
func (p *pulse) amend(attribute uint16, from, to uint32) {
	encode := func(n uint32) []byte {
		return binary.BigEndian.AppendUint32(binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(nil, 8), attribute), n)
	}
	last := lastMessage(p.conn)
	last.Data = bytes.ReplaceAll(last.Data, encode(from), encode(to))
}

// sport loads the source port.
func sport(to uint32) expr.Any {
	return &expr.Payload{DestRegister: reg(to), Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2}
}

// untracked writes the port in register 0 into a packet, at an offset in the
// transport header, and has connection tracking, and with it all NAT, leave the packet alone.
func untracked(offset uint32) []expr.Any {
	return []expr.Any{
		// By this flag the kernel mends the checksum where the packet's protocol has it,
		// and leaves a UDP packet that has none without. The type would have it do
		// so at an offset, whatever the protocol; it is here since the library leaves
		// out the flag without it, and is taken out of the message by create.
		&expr.Payload{
			OperationType: expr.PayloadWrite, SourceRegister: reg(0), Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2,
			CsumType: expr.CsumTypeInet, CsumFlags: unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR,
		},
		&expr.Notrack{},
	}
}
