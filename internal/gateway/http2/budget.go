package http2

import "time"

// Reasons of floods, as metrics tell them.
const (
	// Resets are streams that their client resets, or makes the server reset or
	// refuse.
	Resets = "resets"
	// Frames are PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty and unknown ones,
	// and those of streams that are no more.
	Frames = "frames"
	// Continuations are those of one header block.
	Continuations = "continuations"
	// Headers are bytes of large ones.
	Headers = "headers"
)

// maxContinuations bounds the frames of one header block. Four of them hold
// the 64 KiB that a header may have.
const maxContinuations = 8

// refusal is what a stream beyond the limit costs: many clients begin hundreds
// before they know of it.
const refusal = 0.25

// budget is what a client may do that costs it little. It comes back with time
// and with what is sent to the client.
type budget struct {
	most, perSecond, perByte float64

	left float64
	last int64 // nanoseconds
	seen int64
}

// Streams that are given up are normal: pages that are left, hedged calls.
func newResets() budget { return budget{most: 500, perSecond: 100, perByte: 1. / 256} }

// gRPC measures round trips by PING while it receives.
func newChores() budget { return budget{most: 1000, perSecond: 200, perByte: 1. / 32} }

// plainHeader is how much of a header block costs nothing: as much as HPACK's
// table holds, where most of a header is a client's second time.
const plainHeader = 4 << 10

// Decoding what is more than that takes a client hardly any time to ask for: a
// Huffman code costs several times what it takes to receive.
func newHeaders() budget { return budget{most: 8 << 20, perSecond: 1 << 20, perByte: 1} }

// take spends cost, if there is as much. Written is how many bytes the client
// has been sent in all, of what pays for something.
func (b *budget) take(cost float64, now, written int64) bool {
	if b.last == 0 {
		b.left = b.most
	} else {
		b.left = min(b.most, b.left+float64(now-b.last)/float64(time.Second)*b.perSecond+float64(max(0, written-b.seen))*b.perByte)
	}
	b.last, b.seen = now, max(b.seen, written)
	if b.left < cost {
		return false
	}
	b.left -= cost
	return true
}
