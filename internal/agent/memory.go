package agent

import (
	"context"
	"os"
	"runtime/debug"
	"time"
)

// gcPercent is how much a node that serves lets its heap grow between two
// collections. It changes little then, so collections are rare in any case,
// and every node pays for the memory.
const gcPercent = 40

// saveMemory gives back what starting has left over once all gates are open,
// and collects garbage sooner from then on, unless the environment (GOGC) says how.
func (g gates) saveMemory(ctx context.Context) error {
	if os.Getenv("GOGC") != "" {
		return nil
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for len(g.waiting()) > 0 {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
	debug.SetGCPercent(gcPercent)
	debug.FreeOSMemory()
	return nil
}
