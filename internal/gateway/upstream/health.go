package upstream

import (
	"errors"
	"time"

	"fairway.dev/fairway/internal/gateway/h2client"
	"fairway.dev/fairway/internal/gateway/http1"
)

// Ejection of an endpoint doubles from ejectMin to ejectMax each time that it is ejected again before it has served.
const (
	ejectMin = time.Second
	ejectMax = 30 * time.Second
)

// trialTime is how long the one request that an endpoint gets after its ejection has for showing that it serves again,
// before another one is risked.
const trialTime = 5 * time.Second

// trialPatience is how much longer the others wait, whose failure would be their client's.
const trialPatience = time.Second

// maxStrikes is how many requests in a row an endpoint may leave unanswered, and how many answers in a row it may break
// off, before it is ejected. Answers count as such whatever their status: readiness probes judge the application, not its
// clients.
const maxStrikes = 5

// unreachable ejects an endpoint that could not be connected to.
func (e *endpoint) unreachable(begun, now time.Time) {
	e.unreached.Store(true)
	e.eject(begun, now)
}

// unanswered notes that a request was sent in vain, and reports whether the endpoint is ejected for it.
func (e *endpoint) unanswered(begun, now time.Time) bool {
	return e.strikes.Add(1) >= maxStrikes && e.eject(begun, now)
}

// eject ejects an endpoint for what was begun at a time, and reports whether it did: what was under way together when
// the endpoint failed is one failure, however many requests it was.
func (e *endpoint) eject(begun, now time.Time) bool {
	last := e.ejectedAt.Load()
	if begun.UnixNano() < last || !e.ejectedAt.CompareAndSwap(last, now.UnixNano()) {
		return false
	}
	n := e.ejections.Add(1)
	d := min(ejectMin<<min(n-1, 8), ejectMax)
	e.ejected.Store(now.Add(d).UnixNano())
	return true
}

// brokeOff notes that an answer ended before its end, and reports whether the endpoint is ejected for it.
func (e *endpoint) brokeOff(begun, now time.Time) bool {
	return e.broken.Add(1) >= maxStrikes && e.eject(begun, now)
}

// succeeded notes that a connection was opened or an answer begun, and forgets what went wrong before that. Like
// completed it writes only if something did.
func (e *endpoint) succeeded() {
	e = e.self()
	if e.strikes.Load() != 0 {
		e.strikes.Store(0)
	}
	if e.broken.Load() == 0 {
		e.reinstate() // else the answer's end decides
	}
}

// completed notes that an answer came to its end.
func (e *endpoint) completed() {
	if e.broken.Load() != 0 {
		e.broken.Store(0)
		e.reinstate()
	}
}

func (e *endpoint) reinstate() {
	if e.ejections.Load() != 0 {
		e.since.Store(time.Now().UnixNano())
		e.ejections.Store(0)
		e.unreached.Store(false)
		e.ejected.Store(0)
	}
}

// admits reports whether the endpoint may be given a request. Once an ejection is over that is one request, whose end
// decides about the others: many would wait together for an endpoint that is still gone. For a while it is one that
// another endpoint can be asked as well if it fails.
func (e *endpoint) admits(now time.Time, repeatable bool) bool {
	if e.down.Load() {
		return false
	}
	until := e.ejected.Load()
	if until == 0 {
		return true
	}
	return over(until, now, repeatable) && e.ejected.CompareAndSwap(until, now.Add(trialTime).UnixNano())
}

// over reports whether an ejection is over for a request.
func over(until int64, now time.Time, repeatable bool) bool {
	if !repeatable {
		until += int64(trialPatience)
	}
	return now.UnixNano() >= until
}

// due reports whether [endpoint.admits] may say yes, and takes nothing.
func (e *endpoint) due(now time.Time, repeatable bool) bool {
	until := e.ejected.Load()
	return !e.down.Load() && (until == 0 || over(until, now, repeatable))
}

// healthy reports whether nothing speaks against the endpoint.
func (e *endpoint) healthy() bool { return e.ejected.Load() == 0 && !e.down.Load() }

// lost reports whether the endpoint is left out since it could not be connected to.
func (e *endpoint) lost() bool { return e.unreached.Load() || e.downUnreached.Load() }

// blame notes a failed attempt at an endpoint, and reports whether nothing was sent to it.
func (p *Pool) blame(e *endpoint, err error, begun time.Time) (dialFailed bool) {
	if t := asTLSError(err); t != nil {
		p.distrusted(e, t)
		return !t.sent
	}
	e = e.self()
	now := time.Now()
	if isDialError(err) && !isShort(err) {
		e.unreachable(begun, now)
		p.tell("connect", e)
		return true
	}
	if !blameless(err) && e.unanswered(begun, now) {
		p.tell("ejected", e)
	}
	return false
}

// ended notes how an answer that had begun came to its end. One that took too long says nothing of its endpoint: streams
// may have nothing to say.
func (p *Pool) ended(e *endpoint, err error, begun time.Time) {
	e = e.self()
	switch {
	case err == nil:
		e.completed()
	case blameless(err) || errors.Is(err, ErrTimeout):
	case e.brokeOff(begun, time.Now()):
		p.tell("ejected", e)
	}
}

func (p *Pool) tell(why string, e *endpoint) {
	if p.onFailure != nil {
		p.onFailure(p.key, why, e.addr)
	}
}

// blameless reports whether a failure says nothing of the endpoint.
func blameless(err error) bool {
	return final(err) || errors.Is(err, http1.ErrClient) || errors.Is(err, h2client.ErrHeader) || errors.Is(err, http1.ErrGone) || errors.Is(err, http1.ErrBodyTooLarge)
}
