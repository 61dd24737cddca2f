package listener

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/upstream"
	"fairway.dev/fairway/internal/model"
)

// The reasons of problems with stream routes.
const (
	ReasonPortInUse    = "PortInUse"
	ReasonPortConflict = "StreamConflict"
)

// defaultUDPIdle ends UDP sessions in which nothing was sent for so long.
const defaultUDPIdle = 60 * time.Second

// StreamOptions configure [Streams].
type StreamOptions struct {
	// Host is the address to listen at; "" for all of both families.
	Host string
	// Reserved are TCP ports that belong to the gateway itself. Optional.
	Reserved []uint16
	// ReservedUDP are UDP ports that belong to the gateway itself. Optional.
	ReservedUDP []uint16
	// UDPIdle ends UDP sessions in which nothing was sent for so long; default 60 s.
	UDPIdle time.Duration
	// DrainTimeout is how long connections may go on at the end; default 30 s.
	DrainTimeout time.Duration
	// Clients bounds the TCP connections of each client. Optional.
	Clients *Clients
	// Sessions bounds the UDP sessions of each client. Optional.
	Sessions *Clients
	// Refuse says whether TCP connections are closed at once, and no UDP sessions
	// begin, for each. Optional.
	Refuse func() bool
	// OnConnection is told of each TCP connection and UDP session that ended;
	// err is nil unless no backend took it. Optional.
	OnConnection func(route *model.StreamRoute, err error)
	// Logger is told what happens to ports. Required.
	Logger *slog.Logger
}

// Stream is a stream route with the pool of its backend.
type Stream struct {
	model.StreamRoute
	Pool *upstream.Pool
	// Except are hosts that a wildcard of Hosts covers and that are somebody else's
	// all the same, whose TLS is ended at the HTTPS ports. Optional.
	Except []string
}

// Streams serves TCP and UDP ports.
type Streams struct {
	options StreamOptions

	mu    sync.Mutex
	ports map[portKey]port
	ended bool // no more are opened

	through atomic.Pointer[table] // the routes at the HTTPS ports; nil for none
	passing atomic.Int64          // connections of those

	crew    crew[arrival]
	ferries http1.Ferries // carry TCP
	conns   sync.WaitGroup
	ctx     context.Context // ends connections at the end of draining
	cancel  context.CancelFunc
}

type portKey struct {
	protocol model.Protocol
	number   uint16
}

// httpsPorts stands for the ports that the gateway serves HTTPS at.
var httpsPorts = portKey{model.TCP, 0}

// String says what belongs to routes.
func (k portKey) String() string { return fmt.Sprintf("%d/%s", k.number, k.protocol) }

// port is an open port.
type port interface {
	// use makes table the routes for what comes from now on.
	use(t *table)
	// state returns the routes, and how much is under way.
	state() (*table, int64)
	Close() error
}

// NewStreams returns streams without ports.
func NewStreams(o StreamOptions) *Streams {
	o.UDPIdle = cmp.Or(o.UDPIdle, defaultUDPIdle)
	o.DrainTimeout = cmp.Or(o.DrainTimeout, defaultDrainTimeout)
	if o.OnConnection == nil {
		o.OnConnection = func(*model.StreamRoute, error) {}
	}
	s := &Streams{options: o, ports: map[portKey]port{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.crew.init(arrival.serve, s.ctx.Done())
	return s
}

// Sync opens and closes ports until they are those of the routes, and returns
// what is wrong. Connections of a route that is gone go on to their end. Ports
// that could not be opened are tried again by the next Sync. Once Run ends it opens
// none.
func (s *Streams) Sync(ctx context.Context, routes []Stream) []model.Problem {
	tables, problems := compileTables(routes)
	s.through.Store(tables[httpsPorts])
	delete(tables, httpsPorts)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return problems
	}
	for key, p := range s.ports {
		if tables[key] == nil {
			s.options.Logger.Info("stream port closed", "port", key.String())
			_ = p.Close()
			delete(s.ports, key)
		}
	}
	for key, t := range tables {
		if p := s.ports[key]; p != nil {
			p.use(t)
			continue
		}
		p, err := s.open(ctx, key, t)
		if err != nil {
			for _, r := range t.all {
				problems = append(problems, model.Problem{Object: r.Ref, Reason: ReasonPortInUse, Field: r.Field,
					Message: fmt.Sprintf("port %s cannot be opened: %v", key, err)})
			}
			continue
		}
		s.options.Logger.Info("stream port opened", "port", key.String(), "route", t.all[0].Ref.String())
		s.ports[key] = p
	}
	return problems
}

func (s *Streams) open(ctx context.Context, key portKey, t *table) (port, error) {
	if key.protocol == model.TCP && slices.Contains(s.options.Reserved, key.number) {
		return nil, fmt.Errorf("the gateway itself uses it for HTTP or HTTPS: choose another port")
	}
	if key.protocol == model.UDP && slices.Contains(s.options.ReservedUDP, key.number) {
		return nil, fmt.Errorf("the gateway itself uses it for HTTP/3: choose another port, or turn HTTP/3 off (--http3=false)")
	}
	addr := net.JoinHostPort(s.options.Host, strconv.Itoa(int(key.number)))
	if key.protocol == model.UDP {
		return s.openUDP(ctx, addr, t)
	}
	return s.openTCP(ctx, addr, t)
}

// Run waits for ctx to end, closes all ports and lets connections finish, up
// to the drain timeout. UDP ports stay open for the answers to what has come.
func (s *Streams) Run(ctx context.Context) error {
	<-ctx.Done()
	s.mu.Lock()
	s.ended = true
	for key, p := range s.ports {
		if udp, ok := p.(*udpPort); ok {
			s.conns.Go(udp.retire)
		} else {
			_ = p.Close()
		}
		delete(s.ports, key)
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		if s.through.Load() != nil {
			time.Sleep(defaultLameDuck) // those that HTTPS ports are about to find out about
		}
		for s.passing.Load() > 0 {
			time.Sleep(5 * time.Millisecond)
		}
		s.conns.Wait()
		s.ferries.Close()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(s.options.DrainTimeout):
	}
	s.cancel()
	return nil
}

// table is the routes of one port; never changed.
type table struct {
	all      []*Stream          // oldest first
	byHost   map[string]*Stream // nil for a host that a wildcard does not cover
	fallback *Stream
}

// compileTables sorts routes into ports. Of routes that claim the same port
// and host the older one wins, and the other is told.
func compileTables(routes []Stream) (map[portKey]*table, []model.Problem) {
	routes = slices.Clone(routes)
	slices.SortStableFunc(routes, func(a, b Stream) int {
		return cmp.Or(a.Created.Compare(b.Created), a.Ref.Compare(b.Ref), cmp.Compare(a.Field, b.Field))
	})
	tables := map[portKey]*table{}
	var problems []model.Problem
	for i := range routes {
		r := &routes[i]
		key := portKey{r.Protocol, r.Port}
		t := tables[key]
		if t == nil {
			t = &table{byHost: map[string]*Stream{}}
			tables[key] = t
		}
		if winner := t.add(r); winner != nil {
			problems = append(problems, model.Problem{Object: r.Ref, Reason: ReasonPortConflict, Field: r.Field,
				Message: conflict(key, winner)})
		}
	}
	return tables, problems
}

// conflict says which older route has what another one claims.
func conflict(key portKey, winner *Stream) string {
	if key == httpsPorts {
		return fmt.Sprintf("TLS for the host already passes through to the backend of %s, which is older: choose another host, or remove it there", winner.Ref)
	}
	return fmt.Sprintf("port %s already belongs to %s, which is older and serves it: choose another port, or give both host names to tell TLS clients apart", key, winner.Ref)
}

// add puts a route into the table; it returns the older route that leaves it
// nothing to serve, if there is one.
func (t *table) add(r *Stream) (winner *Stream) {
	hosts := r.Hosts
	if r.Protocol == model.UDP {
		hosts = nil // there is no SNI to tell by
	}
	if len(hosts) == 0 {
		if f := t.fallback; f != nil && (len(f.Hosts) == 0 || r.Protocol == model.UDP) {
			return f
		}
		t.fallback = r // goes before routes that are the fallback only for their age
		t.all = append(t.all, r)
		return nil
	}
	serves := false
	for _, h := range hosts {
		if w := t.byHost[h]; w != nil {
			winner = w
			continue
		}
		t.byHost[h] = r
		serves = true
	}
	if !serves {
		return winner
	}
	for _, h := range r.Except {
		if _, ok := t.byHost[h]; !ok {
			t.byHost[h] = nil
		}
	}
	t.all = append(t.all, r)
	if t.fallback == nil {
		t.fallback = r
	}
	return nil
}

// forName returns the route for a TLS server name.
func (t *table) forName(name string) *Stream { return cmp.Or(t.named(name), t.fallback) }

// named returns the route that has a host of that name; nil if none does.
func (t *table) named(name string) *Stream {
	if r, ok := t.byHost[name]; ok {
		return r
	}
	if i := strings.IndexByte(name, '.'); i >= 0 {
		return t.byHost["*"+name[i:]]
	}
	return nil
}
