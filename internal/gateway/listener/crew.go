package listener

import "sync/atomic"

// maxSpare is how many goroutines of a crew wait for connections.
const maxSpare = 64

// crew has a goroutine for each connection. Some of those that have served one
// serve others: their stacks have grown by then, which costs more than to wake
// them.
type crew[T any] struct {
	serve func(T)
	next  chan T       // for those that wait
	spare atomic.Int64 // how many do
	ended <-chan struct{}
}

// init has serve be called for each connection; it returns once that is over.
// Nobody waits for further ones when ended is closed.
func (c *crew[T]) init(serve func(T), ended <-chan struct{}) {
	c.serve, c.next, c.ended = serve, make(chan T), ended
}

// take has a connection served, and does not wait for it.
func (c *crew[T]) take(conn T) {
	select {
	case c.next <- conn:
	default:
		go c.work(conn)
	}
}

// work serves a connection, and then others.
func (c *crew[T]) work(conn T) {
	for {
		c.serve(conn)
		if c.spare.Add(1) > maxSpare {
			c.spare.Add(-1)
			return
		}
		var none T
		conn = none // what is over is not to be kept
		select {
		case conn = <-c.next:
			c.spare.Add(-1)
		case <-c.ended:
			return
		}
	}
}
