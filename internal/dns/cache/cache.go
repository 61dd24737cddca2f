package cache

import (
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/miekg/dns"
)

// DefaultBytes is the memory that a cache may take if nothing else is said.
const DefaultBytes = 16 << 20

// Options bound a cache.
type Options struct {
	// MaxBytes bounds the memory of all answers with what keeps them. Default [DefaultBytes].
	MaxBytes int
	// Limits are those of answers that are put without limits of their own.
	Limits
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

// Limits say which answers are kept, and how long.
type Limits struct {
	// MinTTL and MaxTTL bound how long a positive answer is fresh. Defaults 0 and 1 h.
	MinTTL, MaxTTL time.Duration
	// MinNegativeTTL and MaxNegativeTTL bound how long "there is none" is fresh.
	// Defaults 0 and 5 min.
	MinNegativeTTL, MaxNegativeTTL time.Duration
	// StaleFor is how long an answer is kept after that, for when no server
	// answers. Default 1 h; negative turns stale answers off.
	StaleFor time.Duration
	// PrefetchHits is after how many uses an answer is told to be expiring, when
	// PrefetchPercent of its time are left. Defaults 2 and 10; negative hits turn
	// that off.
	PrefetchHits, PrefetchPercent int
	// NoSuccess keeps no positive answers, NoDenial no others.
	NoSuccess, NoDenial bool
}

// withDefaults returns the limits with what they leave out.
func (l Limits) withDefaults() (Limits, error) {
	if l.MaxTTL == 0 {
		l.MaxTTL = time.Hour
	}
	if l.MaxNegativeTTL == 0 {
		l.MaxNegativeTTL = 5 * time.Minute
	}
	if l.StaleFor == 0 {
		l.StaleFor = time.Hour
	}
	if l.PrefetchHits == 0 {
		l.PrefetchHits = 2
	}
	if l.PrefetchPercent == 0 {
		l.PrefetchPercent = 10
	}
	if l.MinTTL < 0 || l.MaxTTL < l.MinTTL || l.MinNegativeTTL < 0 || l.MaxNegativeTTL < l.MinNegativeTTL {
		return Limits{}, fmt.Errorf("cache limits: TTL %v to %v, negative TTL %v to %v: must not be negative and in order",
			l.MinTTL, l.MaxTTL, l.MinNegativeTTL, l.MaxNegativeTTL)
	}
	return l, nil
}

// Key is a question of class IN. DNSSEC records and unchecked answers are
// answers of their own (RFC 4035 section 3.2).
type Key struct {
	// Name is packed as in a message, whole and in lower case.
	Name string
	Type uint16
	// DNSSECOK is the DO bit, CheckingDisabled the CD bit.
	DNSSECOK, CheckingDisabled bool
}

// Freshness tells how good a cached answer is.
type Freshness uint8

// The grades of freshness.
const (
	// Miss: there is no answer.
	Miss Freshness = iota
	// Fresh: within its TTL.
	Fresh
	// Expiring: fresh, used before, and near its end: worth to be fetched again
	// now. One look-up a second is told so.
	Expiring
	// Stale: past its TTL; only for when no server answers.
	Stale
	// StaleForNow: stale, and servers failed a moment ago: do not wait for them again.
	StaleForNow
)

// StaleTTL is the TTL of stale answers, in seconds (RFC 8767 section 4).
const StaleTTL = 30

// retryAfter is how long after a failure stale answers are given without
// asking again (RFC 8767 section 5, failure recheck timer).
const retryAfter = 5 * time.Second

// expiringEvery is how often one answer is told to be expiring.
const expiringEvery = time.Second

// overhead is what an answer costs beside its bytes: the entry, its place in
// the map, and what allocation rounds up.
const overhead = int(unsafe.Sizeof(entry{})) + 2*int(unsafe.Sizeof(Key{})+unsafe.Sizeof(uintptr(0))) + 32

const shardCount = 16

// Cache holds answers. It is safe for concurrent use.
type Cache struct {
	opts   Options
	bytes  atomic.Int64 // that all answers may take
	seed   maphash.Seed
	shards [shardCount]shard
}

type shard struct {
	mu    sync.Mutex
	byKey map[Key]*entry
	ring  entry // ring.next was used last, ring.prev is the next to go
	bytes int

	denials   int    // among the entries
	evictions [2]int // by kind
	malformed int
}

// entry is one answer in the order of use.
type entry struct {
	next, prev *entry

	key       Key
	answer    *packed
	limits    *Limits
	size      int
	stored    time.Time
	ttl       time.Duration
	hits      int
	retryAt   time.Time // of stale answers
	expiredAt time.Time // when it was last told to be expiring
}

// New returns an empty cache.
func New(o Options) (*Cache, error) {
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultBytes
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MaxBytes < 0 {
		return nil, fmt.Errorf("cache limits: size %d must not be negative", o.MaxBytes)
	}
	var err error
	if o.Limits, err = o.Limits.withDefaults(); err != nil {
		return nil, err
	}
	c := &Cache{opts: o, seed: maphash.MakeSeed()}
	c.bytes.Store(int64(o.MaxBytes))
	for i := range c.shards {
		s := &c.shards[i]
		s.byKey = map[Key]*entry{}
		s.ring.next, s.ring.prev = &s.ring, &s.ring
	}
	return c, nil
}

func (c *Cache) shard(name string) *shard {
	return &c.shards[maphash.String(c.seed, name)%shardCount]
}

// Get returns what there is for a question. It allocates nothing, and does not
// keep the key's name.
func (c *Cache) Get(k Key) Hit {
	now := c.opts.Now()
	s := c.shard(k.Name)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byKey[k]
	if e == nil {
		return Hit{}
	}
	age := max(0, now.Sub(e.stored))
	if age >= e.ttl+max(0, e.limits.StaleFor) {
		s.drop(e)
		return Hit{}
	}
	s.use(e)
	e.hits++
	h := Hit{packed: e.answer, Freshness: Fresh}
	if age >= e.ttl {
		h.Freshness, h.stale = Stale, true
		if now.Before(e.retryAt) {
			h.Freshness = StaleForNow
		}
		return h
	}
	h.age = uint32(age / time.Second)
	soon := e.ttl * time.Duration(e.limits.PrefetchPercent) / 100
	if e.limits.PrefetchHits > 0 && e.hits >= e.limits.PrefetchHits && e.ttl >= 10*time.Second && e.ttl-age <= soon && now.Sub(e.expiredAt) >= expiringEvery {
		h.Freshness, e.expiredAt = Expiring, now
	}
	return h
}

// Check reports what is wrong with limits, and fills in their defaults.
func Check(l Limits) (*Limits, error) {
	l, err := l.withDefaults()
	return &l, err
}

// Limits returns those of answers that are put without limits of their own.
func (c *Cache) Limits() *Limits { return &c.opts.Limits }

// Put stores an answer, as far as it may be stored. The TTLs of msg are brought
// within the limits, so that whoever is given it now keeps it no longer than
// whoever is given it later.
func (c *Cache) Put(k Key, msg *dns.Msg) { c.PutWithin(&c.opts.Limits, k, msg) }

// PutWithin is Put with limits of [Check], which must not change.
func (c *Cache) PutWithin(l *Limits, k Key, msg *dns.Msg) { c.put(l, k, msg, false) }

// PutAlias is PutWithin for an answer that is an alias and not what it leads to,
// as that is known better elsewhere: see [Hit.Alias].
func (c *Cache) PutAlias(l *Limits, k Key, msg *dns.Msg) { c.put(l, k, msg, true) }

func (c *Cache) put(l *Limits, k Key, msg *dns.Msg, alias bool) {
	ttl, ok := l.lifetime(k.Type, msg, alias)
	if ttl > 0 {
		bound(msg, ttl)
	}
	if !ok {
		return
	}
	answer, err := pack(k, msg)
	if err != nil { // nothing that can be given to a client
		s := c.shard(k.Name)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.malformed++
		return
	}
	answer.alias = alias
	e := &entry{key: k, answer: answer, limits: l, size: answer.size() + len(k.Name) + overhead, stored: c.opts.Now(), ttl: ttl}
	s := c.shard(k.Name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.byKey[k]; old != nil {
		s.drop(old)
	}
	limit := int(c.bytes.Load()) / shardCount
	if e.size > limit {
		return
	}
	s.byKey[k] = e
	s.link(e)
	s.bytes += e.size
	s.denials += kindOf(e)
	s.shrink(limit)
}

// Failed says that servers did not answer the question just now.
func (c *Cache) Failed(k Key) {
	s := c.shard(k.Name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.byKey[k]; e != nil {
		e.retryAt = c.opts.Now().Add(retryAfter)
	}
}

// Resize changes the memory that all answers may take.
func (c *Cache) Resize(maxBytes int) {
	c.bytes.Store(int64(maxBytes))
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		s.shrink(maxBytes / shardCount)
		s.mu.Unlock()
	}
}

// Forget drops the answer to one question.
func (c *Cache) Forget(k Key) {
	s := c.shard(k.Name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.byKey[k]; e != nil {
		s.drop(e)
	}
}

// Clear forgets all answers.
func (c *Cache) Clear() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		s.byKey, s.bytes, s.denials = map[Key]*entry{}, 0, 0
		s.ring.next, s.ring.prev = &s.ring, &s.ring
		s.mu.Unlock()
	}
}

// Len returns the number of answers held.
func (c *Cache) Len() int {
	n := 0
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		n += len(s.byKey)
		s.mu.Unlock()
	}
	return n
}

// Bytes returns the size of all answers, as bounded by MaxBytes.
func (c *Cache) Bytes() int {
	n := 0
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		n += s.bytes
		s.mu.Unlock()
	}
	return n
}

// Stats are what a cache holds and has done; the pairs are positive answers and
// those that there is none.
type Stats struct {
	Entries, Evictions [2]int
	Malformed          int
}

// Stats returns them as of now.
func (c *Cache) Stats() (t Stats) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		t.Entries[0] += len(s.byKey) - s.denials
		t.Entries[1] += s.denials
		t.Evictions[0] += s.evictions[0]
		t.Evictions[1] += s.evictions[1]
		t.Malformed += s.malformed
		s.mu.Unlock()
	}
	return t
}

// kindOf is the place of an answer in the pairs of [Stats].
func kindOf(e *entry) int {
	if e.answer.denial {
		return 1
	}
	return 0
}

// shrink drops what was not used for longest until the rest fits; like all
// below, with s.mu held.
func (s *shard) shrink(limit int) {
	for s.bytes > limit {
		e := s.ring.prev
		s.evictions[kindOf(e)]++
		s.drop(e)
	}
}

// drop removes an entry.
func (s *shard) drop(e *entry) {
	s.unlink(e)
	delete(s.byKey, e.key)
	s.bytes -= e.size
	s.denials -= kindOf(e)
}

func (s *shard) use(e *entry) {
	if s.ring.next != e {
		s.unlink(e)
		s.link(e)
	}
}

func (s *shard) link(e *entry) {
	e.prev, e.next = &s.ring, s.ring.next
	e.prev.next, e.next.prev = e, e
}

func (s *shard) unlink(e *entry) { e.prev.next, e.next.prev = e.next, e.prev }

// lifetime returns how long the answer is fresh and whether it may be stored;
// alias: it is whole without a record of the type.
func (l *Limits) lifetime(qtype uint16, msg *dns.Msg, alias bool) (time.Duration, bool) {
	if msg.Truncated || len(msg.Question) != 1 {
		return 0, false
	}
	if msg.Rcode != dns.RcodeSuccess && msg.Rcode != dns.RcodeNameError {
		return 0, false
	}
	lowest := l.MaxTTL
	found := alias
	for _, rr := range msg.Answer {
		lowest = min(lowest, time.Duration(rr.Header().Ttl)*time.Second)
		found = found || rr.Header().Rrtype == qtype || qtype == dns.TypeANY
	}
	if msg.Rcode == dns.RcodeSuccess && found {
		ttl := max(lowest, l.MinTTL)
		return ttl, ttl > 0 && !l.NoSuccess
	}
	for _, rr := range msg.Ns {
		if soa, ok := rr.(*dns.SOA); ok { // RFC 2308 section 5: without it, do not store
			ttl := time.Duration(min(soa.Minttl, soa.Hdr.Ttl)) * time.Second
			ttl = max(min(ttl, lowest, l.MaxNegativeTTL), l.MinNegativeTTL)
			return ttl, ttl > 0 && !l.NoDenial
		}
	}
	return 0, false
}

// bound brings the TTLs of a message to the time that it is kept for: those of
// answers up to it, and none above.
func bound(msg *dns.Msg, ttl time.Duration) {
	most := uint32(ttl / time.Second)
	for _, rr := range msg.Answer {
		rr.Header().Ttl = max(rr.Header().Ttl, most)
	}
	for _, section := range [][]dns.RR{msg.Answer, msg.Ns, msg.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				h.Ttl = min(h.Ttl, most)
			}
		}
	}
}
