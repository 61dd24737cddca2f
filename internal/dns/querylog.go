package dns

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// QueryLog says which queries are logged; the zero value none.
type QueryLog struct {
	// Errors logs all answers but NOERROR and NXDOMAIN.
	Errors bool
	// Percent of the other queries are logged, chosen at random.
	Percent float64
}

// ParseQueryLog reads off, errors, all, or a share such as 1%. A share has all errors, too.
func ParseQueryLog(text string) (QueryLog, error) {
	switch text {
	case "off", "":
		return QueryLog{}, nil
	case "errors":
		return QueryLog{Errors: true}, nil
	case "all":
		return QueryLog{Errors: true, Percent: 100}, nil
	}
	number, ok := strings.CutSuffix(text, "%")
	percent, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil || !(percent > 0 && percent <= 100) {
		return QueryLog{}, fmt.Errorf("query log %q: want off, errors, all, or a share such as 1%%", text)
	}
	return QueryLog{Errors: true, Percent: percent}, nil
}

// queryLogBacklog bounds the queries that wait to be logged.
const queryLogBacklog = 4096

// queryLog writes queries to a log from a goroutine of its own. Who answers
// queries never waits for it: what it is behind with is dropped and counted.
type queryLog struct {
	errors  bool
	all     bool
	below   uint64 // of all random numbers, the share that is logged
	log     *slog.Logger
	backlog chan logged
	dropped atomic.Uint64
}

// logged is one query with its answer.
type logged struct {
	client netip.AddrPort
	tcp    bool
	name   string
	qtype  uint16
	rcode  int
	took   time.Duration
	origin string
}

// newQueryLog returns nil where nothing is to be logged.
func newQueryLog(o QueryLog, log *slog.Logger) *queryLog {
	if !o.Errors && o.Percent <= 0 {
		return nil
	}
	return &queryLog{
		errors: o.Errors, all: o.Percent >= 100, below: uint64(max(0, min(o.Percent, 99.999999)) / 100 * (1 << 63)),
		log: log, backlog: make(chan logged, queryLogBacklog),
	}
}

// wants reports whether to log an answer with this rcode. It costs nothing
// where nothing is logged.
func (q *queryLog) wants(rcode int) bool {
	switch {
	case q == nil:
		return false
	case q.all, q.errors && rcode != dns.RcodeSuccess && rcode != dns.RcodeNameError:
		return true
	}
	return q.below > 0 && rand.Uint64()>>1 < q.below
}

func (q *queryLog) add(l logged) {
	select {
	case q.backlog <- l:
	default:
		q.dropped.Add(1)
	}
}

// run writes until ctx ends, and then what was left.
func (q *queryLog) run(ctx context.Context) {
	for {
		select {
		case l := <-q.backlog:
			q.write(l)
		case <-ctx.Done():
			for {
				select {
				case l := <-q.backlog:
					q.write(l)
				default:
					return
				}
			}
		}
	}
}

func (q *queryLog) write(l logged) {
	rcode := dns.RcodeToString[l.rcode]
	if rcode == "" {
		rcode = strconv.Itoa(l.rcode)
	}
	if l.rcode == dns.RcodeBadVers {
		rcode = "BADVERS" // the library has TSIG's name for it
	}
	protocol := "udp"
	if l.tcp {
		protocol = "tcp"
	}
	source := l.origin
	if source == "" {
		source = "none"
	}
	qtype := dns.Type(l.qtype).String()
	if l.name == "" {
		qtype = ""
	}
	q.log.LogAttrs(context.Background(), slog.LevelInfo, "DNS query",
		slog.String("client", l.client.String()), slog.String("name", l.name), slog.String("type", qtype),
		slog.String("protocol", protocol), slog.String("rcode", rcode), slog.Duration("duration", l.took), slog.String("source", source))
}
