// Package garbage has the garbage of a process that is a gateway and nothing else collected more rarely than Go would.
package garbage

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	rt "runtime/metrics"
	"time"
)

const (
	// roomForGarbage is how much garbage there may always be. More would save
	// little more, and what stays lies the farther apart: with 32 MiB an idle
	// connection with TLS takes 12 KiB and not 9. smallestHeap is what the runtime
	// has the heap grow to in any case, at 100 %: the percentage counts for that, too.
	roomForGarbage = 12 << 20
	smallestHeap   = 4 << 20
	// A process is quiet if it has made no more than calm for a second, and
	// garbage is worth giving back from worthwhile and a quarter of the rest on.
	calm       = 256 << 10
	worthwhile = 4 << 20
)

// CollectRarely has the garbage of this process collected only when there is as
// much of it as of what is in use, as ever, and at least 12 MiB of it or a second
// in which hardly any came. What a gateway holds on to is a few MiB, and a TLS
// handshake leaves 40 KiB behind: it would collect after each hundred of them, for
// a tenth of what they cost. Limits of memory go before that, and the environment
// (GOGC) can say otherwise. It is for programs that are a gateway and nothing
// else, and is over when ctx ends.
func CollectRarely(ctx context.Context) error {
	if os.Getenv("GOGC") != "" {
		return nil
	}
	percent := 100
	usual := debug.SetGCPercent(percent)
	defer debug.SetGCPercent(usual)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	collected := afterCollections(ctx)
	list := []rt.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/heap/allocs:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}}
	var made uint64
	for {
		rt.Read(list)
		live := list[0].Value.Uint64()
		if p := int(max(100, 100*roomForGarbage/max(live, smallestHeap))); p != percent {
			percent = p
			debug.SetGCPercent(p)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-collected:
		case <-tick.C:
			rt.Read(list)
			now := list[1].Value.Uint64()
			live := list[0].Value.Uint64()
			if now < made+calm && list[2].Value.Uint64() > live+max(worthwhile, live/4) {
				debug.FreeOSMemory()
			}
			made = now
		}
	}
}

// afterCollections tells of each collection until ctx ends.
func afterCollections(ctx context.Context) <-chan struct{} {
	type canary struct{ _ *canary } // that nothing refers to one is found by a collection
	collected := make(chan struct{}, 1)
	var arm func()
	arm = func() {
		runtime.AddCleanup(new(canary), func(struct{}) {
			if ctx.Err() != nil {
				return
			}
			select {
			case collected <- struct{}{}:
			default:
			}
			arm()
		}, struct{}{})
	}
	arm()
	return collected
}
