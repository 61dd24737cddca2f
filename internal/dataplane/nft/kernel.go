package nft

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// kernel reads and writes our tables. It keeps nothing of them, but its
// sockets: when one is closed after something was removed, the kernel waits
// until no processor uses that any more, which takes some 10 ms.
type kernel struct {
	netns    int // 0 for the caller's own
	families [2]*family
	// conn, and spare for a transaction that is made while one of conn is carried
	// out, are nil until needed.
	conn, spare *nftables.Conn
	raw         *netlink.Conn // nil until needed
	buffer      int           // of sockets, in bytes; 0 for bufferBytes
}

const (
	// messageElements keeps one message below the 64 KiB that the length of a
	// netlink attribute can tell.
	messageElements = 400
	// bufferBytes is room for the largest transaction and for its answers.
	bufferBytes = 64 << 20
)

func (k *kernel) open() (*nftables.Conn, error) {
	if k.conn != nil {
		return k.conn, nil
	}
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(k.netns), nftables.WithSockOptions(func(c *netlink.Conn) error {
		// Answers need not repeat what they answer.
		if err := c.SetOption(netlink.CapAcknowledge, true); err != nil {
			return err
		}
		buffer := cmp.Or(k.buffer, bufferBytes)
		return errors.Join(c.SetReadBuffer(buffer), c.SetWriteBuffer(buffer))
	}))
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	k.conn = conn
	return conn, nil
}

// close closes the sockets; they are opened again when needed.
func (k *kernel) close() error {
	var errs [3]error
	if k.conn != nil {
		errs[0] = k.conn.CloseLasting()
	}
	if k.spare != nil {
		errs[1] = k.spare.CloseLasting()
	}
	if k.raw != nil {
		errs[2] = k.raw.Close()
	}
	k.conn, k.spare, k.raw = nil, nil, nil
	return errors.Join(errs[:]...)
}

// closeAfter drops sockets that may have unread answers of what failed.
func (k *kernel) closeAfter(err *error) {
	if *err != nil {
		_ = k.close()
	}
}

// tableState is what there is of one family.
type tableState struct {
	// present is false when there is no table; current when it has our layout,
	// and damaged when it has, but not all the rules of it.
	present, current, damaged bool
	chains                    map[string]bool // those made when needed
}

// read returns the state of both tables, and the elements of those that have
// our layout, without the ones that packets write.
func (k *kernel) read() (states [2]tableState, have elements, err error) {
	defer k.closeAfter(&err)
	conn, err := k.open()
	if err != nil {
		return states, nil, err
	}
	have = elements{}
	for i, f := range k.families {
		states[i], err = k.readTable(conn, f)
		if err == nil && (states[i].current || states[i].damaged) {
			err = k.readElements(fam(i), have)
		}
		if err != nil {
			return states, nil, fmt.Errorf("nftables: reading table %s: %w", f.label(), err)
		}
	}
	return states, have, nil
}

func (f *family) label() string {
	if f.bytes == 4 {
		return "ip " + tableName
	}
	return "ip6 " + tableName
}

func (k *kernel) readTable(conn *nftables.Conn, f *family) (tableState, error) {
	s := tableState{chains: map[string]bool{}}
	tables, err := conn.ListTablesOfFamily(f.table.Family)
	if err != nil {
		return s, err
	}
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName }) {
		return s, nil
	}
	s.present = true
	chains, err := conn.ListChainsOfTableFamily(f.table.Family)
	if err != nil {
		return s, err
	}
	for _, c := range chains {
		if c.Table.Name != tableName {
			continue
		}
		s.current = s.current || c.Name == f.layout()
		if made(c.Name) {
			s.chains[c.Name] = true
		}
	}
	if s.current {
		s.current, err = k.intact(f, s.chains)
		s.damaged = err == nil && !s.current
	}
	return s, err
}

// intact reports whether the fixed chains, and those made that there are, have
// the number of rules that they should: somebody may have flushed them.
func (k *kernel) intact(f *family, made map[string]bool) (bool, error) {
	table, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: []byte(tableName + "\x00")}})
	if err != nil {
		return false, err
	}
	rules, err := k.ask(unix.NFT_MSG_GETRULE, netlink.Dump, byte(f.table.Family), table)
	if err != nil {
		return false, err
	}
	count := map[string]int{}
	for _, ad := range rules {
		for ad.Next() {
			if ad.Type() == unix.NFTA_RULE_CHAIN {
				count[ad.String()]++
			}
		}
	}
	for _, c := range f.fixed() {
		if count[c.def.Name] != len(c.rules) {
			return false, nil
		}
	}
	for name := range made {
		if count[name] != len(f.needed(name).rules) {
			return false, nil
		}
	}
	return true, nil
}

// ask sends a question that the library has no words for.
func (k *kernel) ask(message uint16, flags netlink.HeaderFlags, family byte, attrs []byte) (out []*netlink.AttributeDecoder, err error) {
	defer k.closeAfter(&err)
	if k.raw == nil {
		if k.raw, err = netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: k.netns}); err != nil {
			return nil, err
		}
	}
	reply, err := k.raw.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | message), Flags: netlink.Request | flags},
		Data:   append([]byte{family, unix.NFNETLINK_V0, 0, 0}, attrs...),
	})
	if err != nil {
		return nil, err
	}
	out = make([]*netlink.AttributeDecoder, len(reply))
	for i, m := range reply {
		if out[i], err = netlink.NewAttributeDecoder(m.Data[4:]); err != nil {
			return nil, err
		}
		out[i].ByteOrder = binary.BigEndian
	}
	return out, nil
}

func (k *kernel) readElements(family fam, into elements) error {
	for id := setID(0); id < setCount; id++ {
		if id.packets() {
			continue
		}
		err := into.addWhole(func(visit func(element, string)) error {
			return k.walk(k.families[family], id, func(e walked) {
				visit(element{fam: family, set: id, end: e.end, key: e.key}, e.value)
			})
		})
		if err != nil {
			return fmt.Errorf("set %s: %w", id, err)
		}
	}
	return nil
}

// walkTries bounds how often a set is walked that the kernel is rebuilding, and
// walkPause is from one time to the next.
const (
	walkTries = 20
	walkPause = 20 * time.Millisecond
)

// addWhole adds all elements of a set, once walk has visited each of them. While
// the kernel rebuilds a map that has grown, which goes on after the change that
// made it grow, a walk leaves out some elements and visits as many others twice.
// What is missing in the end is found when it is written and refused.
func (m elements) addWhole(walk func(visit func(element, string)) error) error {
	before := len(m)
	for try := range walkTries {
		if try > 0 {
			time.Sleep(walkPause)
		}
		visited := 0
		err := walk(func(e element, value string) {
			visited++
			m[e] = value
		})
		if err != nil || visited == len(m)-before {
			return err
		}
	}
	return nil
}

// generation returns the number of changes that all rules of the network
// namespace have seen.
func (k *kernel) generation() (uint32, error) {
	reply, err := k.ask(unix.NFT_MSG_GETGEN, 0, unix.AF_UNSPEC, nil)
	if err != nil {
		return 0, fmt.Errorf("nftables: reading the generation: %w", err)
	}
	for _, ad := range reply {
		for ad.Next() {
			if ad.Type() == unix.NFTA_GEN_ID {
				return ad.Uint32(), nil
			}
		}
	}
	return 0, errors.New("nftables: the kernel told no generation")
}

// transaction is a set of changes that hold all at once or not at all.
type transaction struct {
	// drop removes the table first, create makes it with all fixed chains.
	drop, create [2]bool
	// chains are further chains to make, by family.
	chains [2][]string
	// oldChains are such chains to remove.
	oldChains [2][]string
	// remove and add are what the changes of subjects come to; a value changes
	// by removing and adding it.
	remove, add batch
	// becomes has the subjects that get another value, gone those that go.
	becomes map[element]string
	gone    []element
}

// batch has elements by family and set.
type batch [2][setCount][]addition

type addition struct {
	element
	value string
}

func (b *batch) put(e element, value string) {
	b[e.fam][e.set] = append(b[e.fam][e.set], addition{e, value})
}

// emptied takes all elements out and leaves the memory that they took.
func (b *batch) emptied() *batch {
	for i := range b {
		for set, list := range b[i] {
			clear(list)
			b[i][set] = list[:0]
		}
	}
	return b
}

// all returns the elements of each set that has any. Ranges are in order, as
// the kernel wants them.
func (b *batch) all() iter.Seq[[]addition] {
	return func(yield func([]addition) bool) {
		for i := range b {
			for set, list := range b[i] {
				if setID(set).intervals() {
					slices.SortFunc(list, func(a, b addition) int { return a.element.compare(b.element) })
				}
				if len(list) > 0 && !yield(list) {
					return
				}
			}
		}
	}
}

// describe says in words how many there are.
func (b *batch) describe(what string) (out []string) {
	n, first := 0, ""
	for list := range b.all() {
		if n == 0 {
			first = list[0].String()
		}
		n += len(list)
	}
	if n > 0 {
		out = append(out, fmt.Sprintf("%s %d elements from %s", what, n, first))
	}
	return out
}

// change adds what makes one value of a subject another.
func (t *transaction) change(e element, from string, had bool, to string, wanted bool) {
	if e.set != frontends {
		if had {
			t.remove.put(e, from)
		}
		if wanted {
			t.add.put(e, to)
		}
		return
	}
	differ(block(from), block(to),
		func(p part) { t.remove.put(p.of(e), p.value) },
		func(p part) { t.add.put(p.of(e), p.value) })
}

func (t *transaction) empty() bool {
	return len(t.becomes) == 0 && len(t.gone) == 0 && t.drop == [2]bool{} && t.create == [2]bool{} &&
		len(t.oldChains[v4]) == 0 && len(t.oldChains[v6]) == 0
}

// write carries out a transaction.
func (k *kernel) write(t *transaction) (err error) {
	defer k.closeAfter(&err)
	send, err := k.prepare(t)
	if err != nil {
		return err
	}
	return send()
}

// prepare encodes a transaction and returns what has the kernel carry it out. Until
// send has returned the kernel may be asked for nothing else, unless swap was called
// before. After an error, of either, everything is to be closed.
func (k *kernel) prepare(t *transaction) (send func() error, err error) {
	if t.empty() {
		return func() error { return nil }, nil
	}
	conn, err := k.open()
	if err != nil {
		return nil, err
	}
	if err := k.encode(conn, t); err != nil {
		return nil, err
	}
	return func() error {
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("nftables: %s: %w", t.describe(), explain(err, t.create != [2]bool{}))
		}
		return nil
	}, nil
}

// swap has everything else go another way than the transaction prepared last.
func (k *kernel) swap() { k.conn, k.spare = k.spare, k.conn }

// encode adds the messages of a transaction.
func (k *kernel) encode(conn *nftables.Conn, t *transaction) error {
	for i, f := range k.families {
		if t.drop[i] {
			conn.AddTable(f.table) // so that there is one to remove
			conn.DelTable(f.table)
		}
		if t.create[i] {
			if err := f.create(conn); err != nil {
				return err
			}
		}
	}
	if err := k.removeElements(conn, &t.remove); err != nil {
		return err
	}
	for i, f := range k.families {
		for _, name := range t.chains[i] {
			f.addChain(conn, f.needed(name))
		}
	}
	if err := k.addElements(conn, &t.add); err != nil {
		return err
	}
	for i, f := range k.families {
		for _, name := range t.oldChains[i] {
			c := &nftables.Chain{Name: name, Table: f.table}
			conn.FlushChain(c)
			conn.DelChain(c)
		}
	}
	return nil
}

// describe names the objects of a transaction for an error.
func (t *transaction) describe() string {
	parts := append(t.add.describe("adding"), t.remove.describe("removing")...)
	if t.create != [2]bool{} {
		parts = append(parts, "creating tables")
	}
	if len(parts) == 0 {
		parts = append(parts, "removing chains or tables")
	}
	return strings.Join(parts, ", ")
}

func (f *family) create(conn *nftables.Conn) error {
	conn.AddTable(f.table)
	for id := setID(0); id < setCount; id++ {
		if err := conn.AddSet(f.set(id), nil); err != nil {
			return fmt.Errorf("nftables: set %s: %w", id, err)
		}
	}
	for _, c := range f.fixed() {
		f.addChain(conn, c)
	}
	return nil
}

func (f *family) addChain(conn *nftables.Conn, c chain) {
	conn.AddChain(&c.def)
	for _, exprs := range c.rules {
		conn.AddRule(&nftables.Rule{Table: f.table, Chain: &c.def, Exprs: exprs})
		f.knowLength(conn)
	}
}

// knowLength makes the rule added last read the original destination by the
// key of its family (NFT_CT_DST_IP, NFT_CT_DST_IP6; kernel 4.17) in place of
// NFT_CT_DST, whose length libnftables does not know, so that it aborts. The
// library cannot encode these keys with a direction, hence this detour.
func (f *family) knowLength(conn *nftables.Conn) {
	last := lastMessage(conn)
	key := func(k expr.CtKey) []byte {
		return binary.BigEndian.AppendUint32([]byte{8, 0, unix.NFTA_CT_KEY, 0}, uint32(k))
	}
	last.Data = bytes.ReplaceAll(last.Data, key(expr.CtKeyDST), key(f.ctDst))
}

// lastMessage is what the library has added to a transaction last.
func lastMessage(conn *nftables.Conn) *netlink.Message {
	field := reflect.ValueOf(conn).Elem().FieldByName("messages")
	messages := *(*[]netlink.Message)(field.Addr().UnsafePointer())
	return &messages[len(messages)-1]
}

func (k *kernel) removeElements(conn *nftables.Conn, all *batch) error {
	elems := make([]nftables.SetElement, 0, messageElements)
	for list := range all.all() {
		for run := range slices.Chunk(list, messageElements) {
			elems = elems[:0]
			for _, e := range run {
				elems = append(elems, nftables.SetElement{Key: []byte(e.key), IntervalEnd: e.end})
			}
			if err := conn.SetDeleteElements(k.families[run[0].fam].set(run[0].set), elems); err != nil {
				return fmt.Errorf("nftables: %s: %w", run[0], err)
			}
		}
	}
	return nil
}

// addElements is where a first load spends its time, so the elements are encoded
// here: the library makes several copies of every part of each.
func (k *kernel) addElements(conn *nftables.Conn, all *batch) error {
	for list := range all.all() {
		for run := range slices.Chunk(list, messageElements) {
			set := k.families[run[0].fam].set(run[0].set)
			if err := conn.SetAddElements(set, nil); err != nil {
				return fmt.Errorf("nftables: %s: %w", run[0].element, err)
			}
			lastMessage(conn).Data = encodeElements(set, run)
		}
	}
	return nil
}

// forget removes what is remembered of clients whose endpoint is not current
// any more, and tells whether there was any. Elements that expire by themselves while this runs make the kernel
// refuse the whole, so it starts over then.
func (k *kernel) forget(current func(frontend element, endpoint string) bool) (changed bool, err error) {
	const tries = 5
	for range tries {
		if changed, err = k.tryForget(current); !errors.Is(err, unix.ENOENT) {
			break
		}
	}
	if err != nil {
		return false, fmt.Errorf("nftables: forgetting clients of endpoints that left: %w", err)
	}
	return changed, nil
}

func (k *kernel) tryForget(current func(frontend element, endpoint string) bool) (changed bool, err error) {
	defer k.closeAfter(&err)
	conn, err := k.open()
	if err != nil {
		return false, err
	}
	var gone batch
	seen := map[element]struct{}{} // a map that grows meanwhile shows elements twice
	for i, f := range k.families {
		for known, valid := range map[setID]setID{affinity: sticky, affinityExternal: stickyExternal} {
			err := k.walk(f, known, func(w walked) {
				frontend := element{fam: fam(i), set: valid, key: w.key[:len(w.key)-int(f.bytes)]}
				e := element{fam: fam(i), set: known, key: w.key}
				if _, again := seen[e]; !again && !current(frontend, w.value) {
					seen[e] = struct{}{}
					gone.put(e, w.value)
				}
			})
			if err != nil {
				return false, err
			}
		}
	}
	if len(seen) == 0 {
		return false, nil
	}
	if err := k.removeElements(conn, &gone); err != nil {
		return false, err
	}
	return true, conn.Flush()
}

// walked is an element as the kernel tells it. The value of a verdict is the
// chain that it goes to, or "drop".
type walked struct {
	end        bool
	key, value string
}

// walk calls visit for each element of a set or map. With every answer the kernel
// walks the map from its beginning, so answers should be few and large: they
// are as large as the buffer that the one before was received into.
func (k *kernel) walk(f *family, set setID, visit func(walked)) error {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: []byte(tableName + "\x00")},
		{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: []byte(set.String() + "\x00")},
	})
	if err != nil {
		return err
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: k.netns})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Send(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETSETELEM, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{byte(f.table.Family), unix.NFNETLINK_V0, 0, 0}, attrs...),
	})
	if err != nil {
		return err
	}
	socket, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	for {
		var n int
		var failed error
		if err := socket.Read(func(fd uintptr) bool {
			n, _, failed = unix.Recvfrom(int(fd), buf, 0)
			return failed != unix.EAGAIN && failed != unix.EINTR
		}); err != nil {
			return err
		}
		if failed != nil {
			return failed
		}
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return err
		}
		for _, m := range messages {
			switch m.Header.Type {
			case unix.NLMSG_DONE:
				return ended(m.Data)
			case unix.NLMSG_ERROR:
				return syscall.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
			}
			if err := visitElements(m.Data[4:], visit); err != nil {
				return err
			}
		}
	}
}

// ended returns the error that the end of an answer tells: the kernel may not have
// been able to go on, and what came until then is not all.
func ended(data []byte) error {
	if len(data) < 4 {
		return nil
	}
	if code := int32(binary.NativeEndian.Uint32(data)); code < 0 {
		return syscall.Errno(-code)
	}
	return nil
}

// visitElements reads the elements of one answer.
func visitElements(message []byte, visit func(walked)) error {
	ad, err := netlink.NewAttributeDecoder(message)
	if err != nil {
		return err
	}
	verdict := func(v *netlink.AttributeDecoder) (chain string) {
		chain = verdictDrop
		v.Nested(func(d *netlink.AttributeDecoder) error {
			for d.Next() {
				if d.Type() == unix.NFTA_VERDICT_CHAIN {
					chain = d.String()
				}
			}
			return nil
		})
		return chain
	}
	data := func(of *netlink.AttributeDecoder) (value string) {
		of.Nested(func(d *netlink.AttributeDecoder) error {
			for d.Next() {
				switch d.Type() {
				case unix.NFTA_DATA_VALUE:
					value = string(d.Bytes())
				case unix.NFTA_DATA_VERDICT:
					value = verdict(d)
				}
			}
			return nil
		})
		return value
	}
	one := func(e *netlink.AttributeDecoder) error {
		var w walked
		for e.Next() {
			switch e.Type() {
			case unix.NFTA_SET_ELEM_KEY:
				w.key = data(e)
			case unix.NFTA_SET_ELEM_DATA:
				w.value = data(e)
			case unix.NFTA_SET_ELEM_FLAGS:
				w.end = binary.BigEndian.Uint32(e.Bytes())&unix.NFT_SET_ELEM_INTERVAL_END != 0
			}
		}
		visit(w)
		return nil
	}
	for ad.Next() {
		if ad.Type() == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			ad.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					list.Nested(one)
				}
				return nil
			})
		}
	}
	return ad.Err()
}

// removeTables removes both tables of that name, if they are there.
func (k *kernel) removeTables(name string) (err error) {
	defer func() { err = errors.Join(err, k.close()) }()
	conn, err := k.open()
	if err != nil {
		return err
	}
	for _, f := range k.families {
		table := &nftables.Table{Name: name, Family: f.table.Family}
		conn.AddTable(table)
		conn.DelTable(table)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables: removing tables %s: %w", name, err)
	}
	return nil
}
