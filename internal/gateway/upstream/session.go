package upstream

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"fairway.dev/fairway/internal/model"
)

// mark is how cookies and hashes know an endpoint.
type mark struct {
	id   uint64 // stands in cookies
	seed uint64 // makes its numbers in byHash
}

// markOf derives an endpoint's mark from its address. The key is the Service's
// UID: every gateway knows it, at any time, and no client does, who could
// otherwise find the address behind a cookie by trying all that there are, or
// keys that all go to one endpoint.
func markOf(uid, addr string) mark {
	sum := digest(uid, "endpoint", addr)
	return mark{binary.BigEndian.Uint64(sum[:]), binary.BigEndian.Uint64(sum[8:])}
}

// tagOf derives what tells the cookies of one Service port from those of others.
func tagOf(uid string, service model.Key, port uint16) uint32 {
	sum := digest(uid, "service", fmt.Sprintf("%s:%d", service, port))
	return binary.BigEndian.Uint32(sum[:])
}

func digest(uid, what, text string) (sum [sha256.Size]byte) {
	h := hmac.New(sha256.New, []byte(uid))
	h.Write([]byte("fairway " + what + "\x00" + text))
	h.Sum(sum[:0])
	return sum
}

// Session is what a client's cookie says, and what it is to say.
//
// With a persistent session it names the endpoint. Otherwise it is a number
// from which byHash finds the endpoint, so that a share of all sessions moves
// to an endpoint that is added. In both cases it reaches nothing but endpoints
// that the Service has, whatever the client makes of it.
type Session struct {
	persistent, change bool
	client             uint64 // a number of the client's address

	sent, next cookie
	known      bool // whether sent is one of ours
	renewed    bool // whether the client is to get next
}

// cookie is what stands in one.
type cookie struct {
	id  uint64 // of the endpoint, or the number
	tag uint32 // of the Service port
}

// cookieBytes and cookieLength are the size of a cookie, plain and in text.
const cookieBytes, cookieLength = 12, 16

// NewSession reads the cookie that a client has sent, "" for none. What is no
// cookie of ours begins a new session. Change moves sessions whose endpoint
// fails for good. While an endpoint fails, its persistent sessions, whose cookies
// are all the same, are shared out by the client's address.
func NewSession(value string, persistent, change bool, client netip.Addr) Session {
	s := Session{persistent: persistent, change: change}
	if persistent {
		b := client.As16()
		s.client = mix(binary.BigEndian.Uint64(b[:]) ^ mix(binary.BigEndian.Uint64(b[8:])))
	}
	if len(value) != cookieLength {
		return s
	}
	var raw [cookieBytes]byte
	if _, err := base64.RawURLEncoding.Decode(raw[:], []byte(value)); err == nil {
		s.sent, s.known = cookie{binary.BigEndian.Uint64(raw[:]), binary.BigEndian.Uint32(raw[8:])}, true
	}
	return s
}

// Renewed returns the cookie that the client is to get with its answer; false
// if the one that it has is right.
func (s *Session) Renewed() (string, bool) {
	if !s.renewed {
		return "", false
	}
	var raw [cookieBytes]byte
	binary.BigEndian.PutUint64(raw[:], s.next.id)
	binary.BigEndian.PutUint32(raw[8:], s.next.tag)
	return base64.RawURLEncoding.EncodeToString(raw[:]), true
}

// Has reports whether a session is one of this pool's.
func (p *Pool) Has(s *Session) bool {
	m := p.members.Load()
	return s.known && m.err == nil && s.sent.tag == m.tag
}

func (s *Session) renew(m *members, id uint64) { s.next, s.renewed = cookie{id, m.tag}, true }

// bySession returns the endpoint that the session leads to. If that cannot
// serve, another takes its place: the same one for each request, so that a
// client's state is made once more and not many times. nil means that no
// endpoint is known to be sound; the session is left as it is.
func (m *members) bySession(c *Choice, turn uint64, tried []*endpoint, now time.Time) *endpoint {
	s := c.Session
	s.renewed = false // by an attempt before
	known, id := s.known && s.sent.tag == m.tag, s.sent.id
	switch {
	case !known && s.persistent:
		e := m.inTurns(turn, c, tried, now)
		if e != nil {
			s.renew(m, e.id)
		}
		return e
	case !known:
		return m.draw(c, tried, now)
	case s.persistent:
		present := false
		for e := range m.all() {
			if e.id == id {
				if present = true; !slices.Contains(tried, e) && e.admits(now, c.Repeatable) {
					return e
				}
			}
		}
		e := m.byHash(id^s.client, false, c, tried, now)
		if e != nil && (!present || s.change) {
			s.renew(m, e.id)
		}
		return e
	case s.change:
		if e, _ := m.owner(id, now); !slices.Contains(tried, e) && e.admits(now, c.Repeatable) {
			return e
		}
		return m.draw(c, tried, now)
	}
	return m.byHash(id, true, c, tried, now)
}

// owner is the endpoint that a number leads to while none fails; all tells
// whether it is one for every request and not only for sessions.
func (m *members) owner(id uint64, now time.Time) (best *endpoint, all bool) {
	var cold *endpoint
	var top, topCold uint64
	for _, e := range m.endpoints {
		n := mix(e.seed ^ id)
		switch {
		case best != nil && n <= top:
		case m.keeps(e, id, now):
			best, top = e, n
		case cold == nil || n > topCold:
			cold, topCold = e, n
		}
	}
	if best == nil {
		best, top = cold, topCold
	}
	all = true
	for _, e := range m.others {
		if n := mix(e.seed ^ id); n > top && m.keeps(e, id, now) {
			best, top, all = e, n, false
		}
	}
	return best, all
}

// maxDraws is how many numbers are drawn for a session. If half of the
// endpoints may not have new ones, a search finds none once in 2^64 times.
const maxDraws = 64

// draw begins a session with a number that leads to an endpoint which may have
// new ones: of two, the one that should sooner get a request. nil means that
// none was found; the next request of the client looks again.
func (m *members) draw(c *Choice, tried []*endpoint, now time.Time) *endpoint {
	var first *endpoint
	for range maxDraws {
		id := rand.Uint64()
		e, all := m.owner(id, now)
		if !all || e == first || slices.Contains(tried, e) {
			continue
		}
		switch {
		case !e.healthy():
			if !e.admits(now, c.Repeatable) {
				continue
			}
			// It is this endpoint's trial, which nobody else may get.
			c.Session.renew(m, id)
			return e
		case first == nil:
			first = e
			c.Session.renew(m, id)
			if len(m.endpoints) == 1 {
				return e
			}
			continue
		case e.before(first, c.Balance, now):
			c.Session.renew(m, id)
			return e
		}
		return first
	}
	return first
}
