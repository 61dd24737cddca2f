package cache

import (
	"encoding/binary"
	"errors"
	"strings"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/wire"
)

// packed is an answer as it goes to clients. It is never changed.
type packed struct {
	// message has the question in lower case and no OPT record. Of the header
	// only the counts and the rcode mean anything.
	message []byte
	// ttls are the places of the records' TTLs.
	ttls []uint16
	// denial: there is no such name, or no record of that type; authentic: the AD
	// bit; alias: see Hit.Alias.
	denial, authentic, alias bool
}

func (p *packed) size() int { return cap(p.message) + 2*cap(p.ttls) + 64 }

// errShape is a message whose question is not that of its key.
var errShape = errors.New("not an answer to the question")

// pack makes a message that answers any client who asks for k.
func pack(k Key, msg *dns.Msg) (*packed, error) {
	name, _, err := dns.UnpackDomainName([]byte(k.Name), 0)
	if err != nil {
		return nil, err
	}
	if len(msg.Question) != 1 || !strings.EqualFold(msg.Question[0].Name, name) {
		return nil, errShape
	}
	// The name as an owner points to the question, and so has the case in which
	// it is asked for (DNS 0x20).
	for _, rr := range msg.Answer {
		if h := rr.Header(); strings.EqualFold(h.Name, name) {
			h.Name = name
		}
	}
	m := dns.Msg{
		MsgHdr: dns.MsgHdr{Response: true, Rcode: msg.Rcode}, Compress: true,
		Question: []dns.Question{{Name: name, Qtype: k.Type, Qclass: dns.ClassINET}},
		Answer:   msg.Answer, Ns: msg.Ns, Extra: msg.Extra,
	}
	message, err := m.Pack()
	if err != nil {
		return nil, err
	}
	p := &packed{
		message: append(make([]byte, 0, len(message)), message...), // the library's buffer is larger
		denial:  msg.Rcode != dns.RcodeSuccess || len(msg.Answer) == 0, authentic: msg.AuthenticatedData,
	}
	p.ttls = make([]uint16, 0, len(msg.Answer)+len(msg.Ns)+len(msg.Extra))
	ok := wire.EachTTL(p.message, func(at int) { p.ttls = append(p.ttls, uint16(at)) })
	if !ok || len(p.ttls) != cap(p.ttls) {
		return nil, errShape
	}
	return p, nil
}

// Hit is what the cache has for a question.
type Hit struct {
	Freshness
	*packed // nil for a Miss

	stale bool
	age   uint32 // seconds
}

// Message is the packed answer, with TTLs as they were when it was stored, and
// without OPT. Of its header only the counts count. It must not be changed.
func (h *Hit) Message() []byte { return h.message }

// Denial reports whether the answer is that there is none.
func (h *Hit) Denial() bool { return h.denial }

// Alias reports whether the answer is an alias, and what it leads to has to be
// looked up to make it whole.
func (h *Hit) Alias() bool { return h.alias }

// Authentic is the AD bit.
func (h *Hit) Authentic() bool { return h.authentic }

// Rcode is the answer's.
func (h *Hit) Rcode() int { return int(h.message[3] & 0xf) }

// Age sets the TTLs of a copy of Message to what they are now.
func (h *Hit) Age(copied []byte) {
	for _, at := range h.ttls {
		field := copied[at : at+4]
		binary.BigEndian.PutUint32(field, h.now(binary.BigEndian.Uint32(field)))
	}
}

// now is what is left of a TTL. No record was stored with more than the whole
// answer has; one with less goes on for as long as that is there.
func (h *Hit) now(ttl uint32) uint32 {
	switch {
	case h.stale:
		return StaleTTL
	case ttl <= h.age:
		return 1
	}
	return ttl - h.age
}

// Unpack returns a message of the caller's own.
func (h *Hit) Unpack() (*dns.Msg, error) {
	copied := append([]byte(nil), h.message...)
	h.Age(copied)
	m := new(dns.Msg)
	if err := m.Unpack(copied); err != nil {
		return nil, err
	}
	m.AuthenticatedData = h.authentic
	return m, nil
}
