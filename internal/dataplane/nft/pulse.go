package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/google/nftables"
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
	made [2]bool
	// unowned is true where the kernel knows no owners of tables: what a process
	// leaves there expires.
	unowned bool
	own     map[element]string // by frontend
	until   time.Time          // when it ceases to count as one that answers
	// changes is the number of transactions, which Verify is not to take for
	// those of others.
	changes uint32
}

func newPulse(netns int) *pulse { return &pulse{netns: netns, families: families(false)} }

// beat has the server count as one that answers for some time from now on.
func (p *pulse) beat(valid time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.until = time.Now().Add(valid)
	return p.write()
}

// set says which frontends have the node's own server as their backend. It is
// kept as it is.
func (p *pulse) set(own map[element]string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if maps.Equal(own, p.own) {
		return nil
	}
	p.own = maps.Clone(own)
	return p.write()
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
	p.conn, p.made = nil, [2]bool{}
	return err
}

// write makes the tables what they should be.
func (p *pulse) write() error {
	err := p.tryWrite()
	if err != nil && !p.unowned && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)) {
		p.unowned = true
		err = p.tryWrite()
	}
	if err != nil {
		return fmt.Errorf("nftables: table %s: %w", pulseTable, err)
	}
	return nil
}

func (p *pulse) tryWrite() (err error) {
	var wanted [2][]nftables.SetElement
	if valid := time.Until(p.until); valid > 0 {
		for e, value := range p.own {
			wanted[e.fam] = append(wanted[e.fam], nftables.SetElement{Key: []byte(e.key), Val: []byte(value), Timeout: max(valid, time.Millisecond)})
		}
	}
	made := p.made
	if len(wanted[v4]) == 0 && len(wanted[v6]) == 0 && made == [2]bool{} {
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
		set := f.set(ownServer)
		set.Table, set.HasTimeout = table, true
		switch {
		case len(wanted[i]) > 0 && !made[i]:
			if err := p.create(f, table, set); err != nil {
				return err
			}
			made[i] = true
		case len(wanted[i]) > 0:
			p.conn.FlushSet(set)
		case made[i]:
			p.conn.DelTable(table)
			made[i] = false
		}
		if len(wanted[i]) > 0 {
			if err := p.conn.SetAddElements(set, wanted[i]); err != nil {
				return err
			}
		}
	}
	if err := p.conn.Flush(); err != nil {
		return err
	}
	p.made = made
	p.changes++
	return nil
}

// create makes a table of one family.
func (p *pulse) create(f *family, table *nftables.Table, set *nftables.Set) error {
	p.conn.AddTable(table) // so that there is one to remove: an earlier process may have left one without owner
	p.conn.DelTable(table)
	p.conn.AddTable(table)
	if !p.unowned {
		// The library has no flags for tables.
		flags := func(n uint32) []byte {
			return binary.BigEndian.AppendUint32(binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(nil, 8), unix.NFTA_TABLE_FLAGS), n)
		}
		const owner = 2 // NFT_TABLE_F_OWNER
		last := lastMessage(p.conn)
		last.Data = bytes.ReplaceAll(last.Data, flags(0), flags(owner))
	}
	if err := p.conn.AddSet(set, nil); err != nil {
		return err
	}
	for name, hook := range map[string]*nftables.ChainHook{"prerouting": nftables.ChainHookPrerouting, "output": nftables.ChainHookOutput} {
		priority := nftables.ChainPriority(pulsePriority)
		chain := &nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: &priority}
		p.conn.AddChain(chain)
		p.conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: f.rule(f.destination(0), lookup(ownServer, 0, 0), f.dnat(0))})
	}
	return nil
}
