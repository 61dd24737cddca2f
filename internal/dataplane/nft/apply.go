package nft

import (
	"context"
	"fmt"
	"slices"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
)

// pieceSize is the number of Services in one transaction of a first load: half of
// the work is the kernel's, which it does for one piece while the next is made ready.
const pieceSize = 250

// piece is some changes on their way to the kernel.
type piece struct {
	changes []reconcile.Change[model.Key, plan.Service]
	touched [][]element // by each
	all     []element
	*transaction
	send func() error
	err  error         // of making it ready
	done chan struct{} // closed once it was sent, with the outcome in err
}

// Apply implements reconcile.Target. When the kernel refuses changes, what it
// holds is read again and each Service is tried by itself.
//
// Until everything is known changes are carried out in pieces, one while the next is
// made ready; from then on all at once, so that what one Service gives up
// and another one takes is nobody's at no time.
func (d *Dataplane) Apply(ctx context.Context, changes []reconcile.Change[model.Key, plan.Service]) map[model.Key]error {
	d.mu.Lock()
	defer d.mu.Unlock()
	failed := map[model.Key]error{}
	size := max(len(changes), 1)
	if !d.pruned {
		size = min(size, pieceSize)
	}
	var before *piece
	for some := range slices.Chunk(changes, size) {
		p := d.take(some)
		if !d.staged {
			d.prepare(p, before)
			if before != nil && !d.finish(before, failed) {
				d.prepare(p, nil) // it was made for what has not come about
			}
			d.begin(p)
			before = p
		}
	}
	if before != nil {
		d.finish(before, failed)
	}
	for _, c := range changes {
		if o := d.owners[c.Key]; o != nil && failed[c.Key] == nil {
			o.unsettled = nil
			if o.wants == nil {
				delete(d.owners, c.Key)
			} else if err := d.conflict(o); err != nil {
				failed[c.Key] = err
			}
		}
	}
	return failed
}

// take stages changes.
func (d *Dataplane) take(changes []reconcile.Change[model.Key, plan.Service]) *piece {
	p := &piece{changes: changes, touched: make([][]element, len(changes))}
	for i, c := range changes {
		p.touched[i] = d.stage(c)
		p.all = append(p.all, p.touched[i]...)
	}
	return p
}

// prepare makes a piece ready to be sent after another one; nil for none.
func (d *Dataplane) prepare(p, after *piece) {
	var underWay *transaction
	if after != nil {
		underWay = after.transaction
	}
	p.transaction = d.changing(p.all, underWay)
	d.complete(p.transaction, underWay)
	p.send, p.err = d.kernel.prepare(p.transaction)
	d.kernel.swap()
}

// begin has the kernel carry out a piece, while another one is made ready.
func (d *Dataplane) begin(p *piece) {
	p.done = make(chan struct{})
	go func() {
		defer close(p.done)
		if p.err == nil {
			p.err = p.send()
		}
	}()
}

// finish waits until a piece is carried out, and notes it. When that fails, each of
// its Services is tried by itself, and false returned: the kernel holds something
// else than it should.
func (d *Dataplane) finish(p *piece, failed map[model.Key]error) bool {
	<-p.done
	err := p.err
	if err == nil {
		err = d.written(p.transaction)
	}
	if err == nil {
		if !d.pruned {
			d.spare = append(d.spare, p.transaction.add.emptied())
		}
		return true
	}
	_ = d.kernel.close() // there may be unread answers, and the messages of the next piece
	d.log.Warn("nftables: a batch failed, its Services are tried one by one", "services", len(p.changes), "error", err)
	if err := d.recover(); err != nil {
		for i, c := range p.changes {
			d.unsettle(c.Key, p.touched[i])
			failed[c.Key] = err
		}
		return false
	}
	for i, c := range p.changes {
		if err := d.commit(p.touched[i]); err != nil {
			d.unsettle(c.Key, p.touched[i])
			failed[c.Key] = fmt.Errorf("service %s: %w", c.Key, err)
		}
	}
	return false
}
