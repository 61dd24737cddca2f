package forward

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// streamIdle is how long a connection without questions is kept.
	streamIdle = 10 * time.Second
	// streamPipeline bounds the unanswered questions on one connection.
	streamPipeline = 64
	// streamWrite bounds the time that a server takes to receive a question.
	streamWrite = 2 * time.Second
	// maxStreams bounds the connections to one server.
	maxStreams = 16
)

// errStreamClosed ends questions whose connection ended before their answer.
var errStreamClosed = errors.New("connection closed")

// streams are the connections to one server by DNS over TLS. They are kept for
// further questions, several of which may be under way on each (RFC 7858
// section 3.4).
type streams struct {
	server  Server
	config  *tls.Config
	metrics *metrics
	dialing chan struct{} // held by who opens a connection, so that the rest can use it

	mu   sync.Mutex
	open []*stream
}

func newStreams(s Server, roots *x509.CertPool, m *metrics) *streams {
	name := s.Name
	if name == "" {
		name = s.Addr.Addr().WithZone("").String() // a certificate may be one for an address
	}
	return &streams{
		server: s, metrics: m, dialing: make(chan struct{}, 1),
		config: &tls.Config{
			ServerName: name, RootCAs: roots, MinVersion: tls.VersionTLS12,
			ClientSessionCache: tls.NewLRUClientSessionCache(4), NextProtos: []string{"dot"},
		},
	}
}

// ask asks on a connection that is open, or on a new one. A connection that
// the server had closed meanwhile costs another try, not the answer.
func (p *streams) ask(ctx context.Context, m *dns.Msg) (*dns.Msg, error) {
	for {
		s, fresh, err := p.get(ctx)
		if err != nil {
			return nil, err
		}
		p.metrics.connected(p.server, "tcp-tls", !fresh)
		reply, err := s.roundTrip(ctx, m)
		if errors.Is(err, errStreamClosed) && !fresh && ctx.Err() == nil {
			continue
		}
		return reply, err
	}
}

// get returns a connection with room for a question, and whether it is new.
func (p *streams) get(ctx context.Context) (*stream, bool, error) {
	if s := p.usable(); s != nil {
		return s, false, nil
	}
	select {
	case p.dialing <- struct{}{}:
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	defer func() { <-p.dialing }()
	if s := p.usable(); s != nil { // opened while we waited
		return s, false, nil
	}
	p.mu.Lock()
	full := len(p.open) >= maxStreams
	p.mu.Unlock()
	if full {
		return nil, false, fmt.Errorf("all %d connections have %d questions under way", maxStreams, streamPipeline)
	}
	dialer := tls.Dialer{Config: p.config}
	conn, err := dialer.DialContext(ctx, "tcp", p.server.Addr.String())
	if err != nil {
		return nil, false, err
	}
	s := &stream{conn: conn, waiting: map[uint16]*pending{}}
	s.touch()
	p.mu.Lock()
	p.open = append(p.open, s)
	p.mu.Unlock()
	go func() {
		s.read()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.open = slices.DeleteFunc(p.open, func(o *stream) bool { return o == s })
	}()
	return s, true, nil
}

func (p *streams) usable() *stream {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.open {
		if s.hasRoom() {
			return s
		}
	}
	return nil
}

// close ends all connections.
func (p *streams) close() {
	p.mu.Lock()
	open := slices.Clone(p.open)
	p.mu.Unlock()
	for _, s := range open {
		s.close()
	}
}

// stream is one connection.
type stream struct {
	conn   net.Conn
	writeM sync.Mutex

	mu      sync.Mutex
	waiting map[uint16]*pending
	answers int // that came so far
	closed  bool
}

// pending is a question on the way.
type pending struct {
	asked *dns.Msg
	reply chan *dns.Msg // closed where there will be none
}

func (s *stream) hasRoom() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.closed && len(s.waiting) < streamPipeline
}

// touch puts off the end of an idle connection.
func (s *stream) touch() { _ = s.conn.SetReadDeadline(time.Now().Add(streamIdle)) }

func (s *stream) close() {
	s.conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	for id, p := range s.waiting {
		delete(s.waiting, id)
		close(p.reply)
	}
}

// register gives the question an ID that no other on this connection has.
func (s *stream) register(m *dns.Msg) (p *pending, answers int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, 0, false
	}
	m = m.Copy()
	for {
		m.Id = uint16(rand.Uint32())
		if s.waiting[m.Id] == nil {
			break
		}
	}
	p = &pending{asked: m, reply: make(chan *dns.Msg, 1)}
	s.waiting[m.Id] = p
	return p, s.answers, true
}

func (s *stream) roundTrip(ctx context.Context, m *dns.Msg) (*dns.Msg, error) {
	p, before, ok := s.register(m)
	if !ok {
		return nil, errStreamClosed
	}
	packed, err := p.asked.Pack()
	if err != nil {
		s.forget(p, before)
		return nil, fmt.Errorf("pack query: %w", err)
	}
	s.touch()
	s.writeM.Lock()
	_ = s.conn.SetWriteDeadline(time.Now().Add(streamWrite))
	_, err = s.conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...))
	s.writeM.Unlock()
	if err != nil {
		s.close()
		return nil, errStreamClosed
	}
	select {
	case reply, ok := <-p.reply:
		if !ok {
			return nil, errStreamClosed
		}
		return reply, nil
	case <-ctx.Done():
		s.forget(p, before)
		return nil, ctx.Err()
	}
}

// forget gives up a question. Where no answer at all came since it was asked,
// the connection is taken for dead, lest further questions wait on it.
func (s *stream) forget(p *pending, before int) {
	s.mu.Lock()
	delete(s.waiting, p.asked.Id)
	dead := s.answers == before
	s.mu.Unlock()
	if dead {
		s.close()
	}
}

// read hands out answers until the connection ends. A server that says what
// nobody asked for loses the connection.
func (s *stream) read() {
	defer s.close()
	for {
		var length [2]byte
		if _, err := io.ReadFull(s.conn, length[:]); err != nil {
			return
		}
		buf := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(s.conn, buf); err != nil {
			return
		}
		reply, err := unpackReply(buf)
		if err != nil {
			return
		}
		s.touch()
		s.mu.Lock()
		p := s.waiting[reply.Id]
		if p != nil && answers(reply, p.asked) && !reply.Truncated {
			delete(s.waiting, reply.Id)
			s.answers++
			p.reply <- reply
			p = nil
		}
		s.mu.Unlock()
		if p != nil {
			return // an answer to another question under the ID of this one
		}
	}
}
