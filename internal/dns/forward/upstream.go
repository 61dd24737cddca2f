package forward

import (
	"context"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// udpSize is the largest answer that servers may send by UDP (DNS flag day 2020).
const udpSize = 1232

// failuresUntilDown is the number of unanswered queries in a row after which
// a server counts as down, if nothing else is said.
const failuresUntilDown = 3

// upstream is one server with its health.
type upstream struct {
	server   Server
	how      manner
	streams  *streams // of a server by TLS
	metrics  *metrics
	failures atomic.Int32
	// silent is when the first of them was noticed, in Unix nanoseconds.
	silent atomic.Int64
	// looped is set when a query to it came back to us.
	looped atomic.Bool
	// probed is when it was last asked for a sign of life; of [Forwarder.Run].
	probed time.Time
}

// manner is how a server is asked.
type manner struct {
	// tcp asks by TCP alone.
	tcp bool
	// every is the pause between two probes of a server that is down, domain the
	// name that it is asked for then.
	every  time.Duration
	domain string
	// maxFails is when it counts as down; never where it is negative.
	maxFails int
}

// usually is how servers are asked if nothing else is said.
var usually = manner{every: probeInterval, domain: ".", maxFails: failuresUntilDown}

func newUpstream(s Server, how manner, roots *x509.CertPool, m *metrics) *upstream {
	u := &upstream{server: s, how: how, metrics: m}
	if s.TLS {
		u.streams = newStreams(s, roots, m)
	}
	return u
}

// close ends the connections that are kept for further questions.
func (u *upstream) close() {
	if u.streams != nil {
		u.streams.close()
	}
}

func (u *upstream) down() bool {
	return u.how.maxFails >= 0 && int(u.failures.Load()) >= u.how.maxFails
}

func (u *upstream) answered() { u.failures.Store(0) }

// failed counts an unanswered query; true if the server is now down and was not before.
func (u *upstream) failed() bool {
	n := int(u.failures.Add(1))
	if n == 1 {
		u.silent.Store(time.Now().UnixNano())
	}
	return n == u.how.maxFails
}

// errTruncated is an answer by UDP that has to be asked for by TCP.
var errTruncated = errors.New("answer is truncated")

// exchange asks the server: by UDP from a port of its own, and by TCP if the
// answer did not fit; or by TLS alone. A server that does not know EDNS is asked without it.
func (u *upstream) exchange(ctx context.Context, q Query) (*dns.Msg, error) {
	msg, err := u.ask(ctx, q.message(true))
	if err != nil {
		return nil, err
	}
	if !q.DNSSECOK && (msg.Rcode == dns.RcodeFormatError || msg.Rcode == dns.RcodeNotImplemented) {
		return u.ask(ctx, q.message(false)) // RFC 6891 section 7
	}
	return msg, nil
}

func (u *upstream) ask(ctx context.Context, m *dns.Msg) (*dns.Msg, error) {
	if u.streams != nil {
		return u.streams.ask(ctx, m)
	}
	if u.how.tcp {
		return u.roundTrip(ctx, "tcp", m)
	}
	reply, err := u.roundTrip(ctx, "udp", m)
	if errors.Is(err, errTruncated) {
		m.Id = uint16(rand.Uint32())
		return u.roundTrip(ctx, "tcp", m)
	}
	return reply, err
}

func (u *upstream) roundTrip(ctx context.Context, network string, m *dns.Msg) (*dns.Msg, error) {
	packed, err := m.Pack()
	if err != nil {
		return nil, fmt.Errorf("pack query: %w", err)
	}
	u.metrics.connected(u.server, network, false)
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, u.server.Addr.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if network == "tcp" {
		return tcpRoundTrip(conn, m, packed)
	}
	return udpRoundTrip(conn, m, packed)
}

// udpRoundTrip waits for the answer to m and lets everything else pass:
// late answers to others, and guesses of somebody off the path.
func udpRoundTrip(conn net.Conn, m *dns.Msg, packed []byte) (*dns.Msg, error) {
	if _, err := conn.Write(packed); err != nil {
		return nil, err
	}
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if n < 12 || binary.BigEndian.Uint16(buf) != m.Id {
			continue
		}
		reply, err := unpackReply(buf[:n])
		truncated := buf[2]&0x02 != 0
		switch {
		case !answers(reply, m):
			continue
		case truncated:
			return nil, errTruncated
		case err != nil:
			return nil, err
		}
		return reply, nil
	}
}

func tcpRoundTrip(conn net.Conn, m *dns.Msg, packed []byte) (*dns.Msg, error) {
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...)); err != nil {
		return nil, err
	}
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return nil, err
	}
	reply, err := unpackReply(buf)
	if err != nil {
		return nil, err
	}
	if reply.Id != m.Id || !answers(reply, m) || reply.Truncated {
		return nil, errors.New("answer does not match the question")
	}
	return reply, nil
}

// answers reports whether reply is one to m: the same question, whatever its
// case. Servers that fail may leave the question out.
func answers(reply, m *dns.Msg) bool {
	if !reply.Response || reply.Opcode != m.Opcode {
		return false
	}
	if len(reply.Question) == 0 {
		return reply.Rcode == dns.RcodeFormatError || reply.Rcode == dns.RcodeNotImplemented ||
			reply.Rcode == dns.RcodeServerFailure || reply.Rcode == dns.RcodeRefused
	}
	a, b := reply.Question[0], m.Question[0]
	return len(reply.Question) == 1 && strings.EqualFold(a.Name, b.Name) && a.Qtype == b.Qtype && a.Qclass == b.Qclass
}
