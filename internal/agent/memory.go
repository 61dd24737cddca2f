package agent

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// gcPercent is how much a node that serves lets its heap grow between two
// collections. It changes little then, so collections are rare in any case,
// and every node pays for the memory.
const gcPercent = 25

// calm is how long after all gates have opened what they let in has started, too.
const calm = 5 * time.Second

// releaseEvery is how often a node that serves looks for memory to give back, and
// releaseFrom how much it must be: doing so collects garbage, some 50 ms in the
// largest clusters.
const (
	releaseEvery = time.Minute
	releaseFrom  = 4 << 20
)

// longStart is when a node that is not ready yet has most likely no API to get
// ready by: it serves from what was last known, maybe for days.
const longStart = 15 * time.Second

// startMemory is what a node may use while it starts before it collects garbage.
// A heap that begins small is searched twenty times in the second that reading a
// large cluster takes, which is a quarter of the work.
// More would save little more, and the fewer collections there are, the farther
// apart lies what stays: with half as much again a large cluster takes 7 MiB more.
const startMemory = 64 << 20

// deferCollections has garbage collected only when startMemory is in use, for as
// long as that leaves collections worth their while: until a third of it or more
// is no garbage, or settle is called. All is as usual from then on. The
// environment (GOGC) can say otherwise.
func deferCollections() (settle func()) {
	limit := debug.SetMemoryLimit(-1) // only asks
	if os.Getenv("GOGC") != "" || limit <= startMemory {
		return func() {}
	}
	debug.SetMemoryLimit(startMemory)
	percent := debug.SetGCPercent(-1)
	settled := make(chan struct{})
	settle = sync.OnceFunc(func() {
		close(settled)
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(limit)
	})
	afterCollection(func() (again bool) {
		select {
		case <-settled:
			return false
		default:
		}
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		if metrics.Read(live); live[0].Value.Uint64() < startMemory/3 {
			return true
		}
		settle()
		return false
	})
	return settle
}

// afterCollection calls f after each collection until it returns false.
func afterCollection(f func() bool) {
	type canary struct{ _ *canary } // that nothing refers to one is found by a collection
	var arm func()
	arm = func() {
		runtime.AddCleanup(new(canary), func(struct{}) {
			if f() {
				arm()
			}
		}, struct{}{})
	}
	arm()
}

// saveMemory gives back what starting has left over once all gates are open, and
// where that takes its time before that too, and collects garbage sooner from then
// on, unless the environment (GOGC) says how. What gathers later, such as after
// many changes, it gives back as well, until ctx ends.
// settle is what deferCollections has returned.
func (g gates) saveMemory(ctx context.Context, settle func()) error {
	if os.Getenv("GOGC") != "" {
		return nil
	}
	release := func() {
		debug.FreeOSMemory()
		_ = releaseProgram() // it is worth a try, no more
	}
	save := sync.OnceFunc(func() {
		settle()
		debug.SetGCPercent(gcPercent)
	})
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	long := time.After(longStart)
	for len(g.waiting()) > 0 {
		select {
		case <-ctx.Done():
			return nil
		case <-long:
			save()
			release()
		case <-tick.C:
		}
	}
	save()
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(calm):
	}
	release()
	again := time.NewTicker(releaseEvery)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
			if unused() >= releaseFrom {
				release()
			}
		}
	}
}

// unused is how much memory this process has that it makes no use of: garbage
// that is not collected yet, and what has been free without being given back. The
// runtime keeps some of that for a heap that grows, and for good where nothing
// more is allocated than in a cluster in which little happens.
func unused() uint64 {
	list := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/free:bytes"}}
	metrics.Read(list)
	objects, live, free := list[0].Value.Uint64(), list[1].Value.Uint64(), list[2].Value.Uint64()
	return max(objects, live) - live + free
}

// releaseProgram lets go of the pages of the executable file. Starting touches
// most of the program once: what packages set up, tables of the roles that do
// not run here. Such pages count as this process's memory for as long as it has
// them mapped. They are the file's, so nothing is lost: what is used from now on
// is mapped again as it is used, from the page cache.
func releaseProgram() error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	file, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// For example "00400000-01855000 r-xp 00000000 fe:00 268 /usr/bin/fairway".
		var start, end uintptr
		var mode string
		if n, _ := fmt.Sscanf(lines.Text(), "%x-%x %s", &start, &end, &mode); n != 3 || !strings.HasSuffix(lines.Text(), " "+program) {
			continue
		}
		if strings.Contains(mode, "w") {
			continue // variables: what was written to them is not in the file
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, start, end-start, unix.MADV_DONTNEED); errno != 0 {
			return errno
		}
	}
	return lines.Err()
}
