package filter

import (
	"math/bits"
	"strconv"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"

	"fairway.dev/fairway/internal/gateway/router"
	"fairway.dev/fairway/internal/model"
)

// balance says how the endpoint is to be chosen.
type balance struct {
	session *model.Session
	by      []model.HashPart
	how     model.Balance
}

func newBalance(f *model.Filters, _ Environment) Filter {
	if f.Session == nil && len(f.HashBy) == 0 && f.Balance == model.BalanceTurns {
		return nil
	}
	return &balance{f.Session, f.HashBy, f.Balance}
}

// String implements Filter.
func (b *balance) String() string {
	switch {
	case b.session != nil:
		return "keeps clients at an endpoint by the cookie " + b.session.Cookie
	case len(b.by) > 0:
		var text strings.Builder
		for _, p := range b.by {
			text.WriteString(p.String())
		}
		return "sends requests with the same " + text.String() + " to the same endpoint"
	}
	return "prefers endpoints that answer sooner"
}

func (b *balance) Apply(x *Exchange) *Answer {
	x.Balance = b.how
	switch {
	case b.session != nil:
		x.Session = b.session
		x.SessionCookie, _ = x.View.Cookie(b.session.Cookie)
	case len(b.by) > 0:
		x.Hash, x.Hashed = hashOf(x, b.by)
	}
	return nil
}

// hashOf hashes what a request has of the parts; false if it has nothing of
// them: all such requests would go to one endpoint.
func hashOf(x *Exchange, by []model.HashPart) (uint64, bool) {
	// Parts are hashed one by one, so that their ends count, and nothing is
	// put together.
	var sum uint64
	found := false
	v := x.View
	for i := range by {
		p := &by[i]
		var value string
		ok := true
		switch p.Source {
		case model.HashText:
			value, ok = p.Name, false
		case model.HashURI:
			sum = join(sum, xxhash.Sum64String(v.Path))
			value = v.Query
		case model.HashPath:
			value = v.Path
		case model.HashQuery:
			value = v.Query
		case model.HashClient:
			address := v.Client.As16()
			sum = join(sum, xxhash.Sum64(address[:]))
			found = true
			continue
		case model.HashHost:
			value = v.Host
		case model.HashMethod:
			value = v.Method
		case model.HashScheme:
			value = v.Scheme
		case model.HashHeader:
			value, ok = v.First(p.Name)
		case model.HashArg:
			value, ok = v.QueryValue(p.Name)
		case model.HashCookie:
			value, ok = v.Cookie(p.Name)
		}
		sum = join(sum, xxhash.Sum64String(value))
		found = found || ok && value != "" || p.Source == model.HashURI
	}
	return sum, found
}

// prime is one of xxHash's.
const prime = 0x9e3779b185ebca87

func join(sum, part uint64) uint64 { return (bits.RotateLeft64(sum, 5) ^ part) * prime }

// SetCookie returns the Set-Cookie that gives a session its value. It is always
// HttpOnly: no script has a use for it.
func SetCookie(s *model.Session, rule *router.Rule, scheme, value string, now time.Time) string {
	var b strings.Builder
	b.WriteString(s.Cookie + "=" + value + "; Path=" + cookiePath(s, &rule.Spec.Path))
	if s.Domain != "" {
		b.WriteString("; Domain=" + s.Domain)
	}
	if s.Expires != 0 {
		b.WriteString("; Expires=" + now.Add(s.Expires).UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT"))
	}
	if s.MaxAge != 0 {
		b.WriteString("; Max-Age=" + strconv.FormatInt(int64(s.MaxAge/time.Second), 10))
	}
	b.WriteString("; HttpOnly")
	if s.Secure != nil && *s.Secure || s.Secure == nil && scheme == "https" {
		b.WriteString("; Secure")
	}
	if s.SameSite != "" {
		b.WriteString("; SameSite=" + s.SameSite)
	}
	return b.String()
}

// cookiePath is the rule's path where it is plain, else the part of it that is.
func cookiePath(s *model.Session, p *model.PathMatch) string {
	switch {
	case s.Path != "":
		return s.Path
	case p.Type == model.PathRegex || strings.Contains(p.Value, ";"):
		return "/"
	case p.Type == model.PathGlob:
		before, _, _ := strings.Cut(p.Value, "*")
		dir := before[:strings.LastIndexByte(before, '/')]
		if dir == "" {
			return "/"
		}
		return dir
	}
	return p.Value
}
