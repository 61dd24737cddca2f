package listener

import (
	"hash/maphash"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// ClientsOptions configure [Clients].
type ClientsOptions struct {
	// Most is how many connections one client may have open; 0 for any number.
	Most int
	// Sessions tells that what is counted are sessions of UDP, which are refused
	// by leaving their datagrams out. Whoever sends a datagram can write any address
	// on it: they must not be counted together with connections, whose clients have
	// shown that they are where they say.
	Sessions bool
	// Exempt tells clients that may have any number. Optional.
	Exempt func(netip.Addr) bool
	// OnRefused is called for each connection that is closed. Optional.
	OnRefused func()
	// Logger is told of a client that reaches the limit, once a minute at most. Required.
	Logger *slog.Logger
}

// Clients counts the connections of each client, over all servers that it is
// given to. A client is an IPv4 address or the first 64 bits of an IPv6 one:
// less than that nobody is given, and each client can use all of it.
type Clients struct {
	options ClientsOptions
	seed    maphash.Seed // so that nobody can aim at a shard
	shards  [clientShards]clientShard
	warned  atomic.Int64 // when, in Unix seconds
}

// clientShards keeps processors that accept connections out of each other's way.
const clientShards = 64

type clientShard struct {
	mu   sync.Mutex
	open map[netip.Addr]int
	_    [48]byte // a cache line for each
}

// NewClients returns nil, which counts and refuses nothing, without a limit.
func NewClients(o ClientsOptions) *Clients {
	if o.Most <= 0 {
		return nil
	}
	c := &Clients{options: o, seed: maphash.MakeSeed()}
	for i := range c.shards {
		c.shards[i].open = map[netip.Addr]int{}
	}
	return c
}

// client is who is counted for a connection from an address; the zero value for
// nobody.
func (c *Clients) client(a netip.Addr) netip.Addr {
	if c == nil {
		return netip.Addr{}
	}
	a = a.Unmap()
	if !a.IsValid() || c.options.Exempt != nil && c.options.Exempt(a) {
		return netip.Addr{}
	}
	if a.Is6() {
		network, _ := a.WithZone("").Prefix(64)
		a = network.Addr()
	}
	return a
}

func (c *Clients) shard(client netip.Addr) *clientShard {
	return &c.shards[maphash.Comparable(c.seed, client)%clientShards]
}

// enter counts a connection, unless its client has as many as it may. Each
// that was counted is to leave.
func (c *Clients) enter(from netip.Addr) (client netip.Addr, ok bool) {
	client = c.client(from)
	if !client.IsValid() {
		return client, true
	}
	s := c.shard(client)
	s.mu.Lock()
	n := s.open[client]
	ok = n < c.options.Most
	if ok {
		s.open[client] = n + 1
	}
	s.mu.Unlock()
	if !ok {
		c.refused(client)
	}
	return client, ok
}

// full reports whether another connection would be refused, and counts it as
// refused then.
func (c *Clients) full(from netip.Addr) bool {
	client := c.client(from)
	if !client.IsValid() {
		return false
	}
	s := c.shard(client)
	s.mu.Lock()
	full := s.open[client] >= c.options.Most
	s.mu.Unlock()
	if full {
		c.refused(client)
	}
	return full
}

// leave counts a connection out.
func (c *Clients) leave(client netip.Addr) {
	if !client.IsValid() {
		return
	}
	s := c.shard(client)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.open[client]; n > 1 {
		s.open[client] = n - 1
	} else {
		delete(s.open, client)
	}
}

func (c *Clients) refused(client netip.Addr) {
	if c.options.OnRefused != nil {
		c.options.OnRefused()
	}
	now, last := time.Now().Unix(), c.warned.Load()
	if now-last < 60 || !c.warned.CompareAndSwap(last, now) {
		return
	}
	what := "a client has as many connections as it may, more are closed"
	if c.options.Sessions {
		what = "a client has as many UDP sessions as it may, datagrams of others are left out"
	}
	c.options.Logger.Warn(what+"; if it is a proxy for others, name it in --trusted-proxies or raise --max-connections-per-client",
		"client", client.String(), "limit", c.options.Most)
}
