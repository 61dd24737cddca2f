package agent

import (
	"bytes"
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestReleaseProgram releases the pages of this program, which goes on running.
func TestReleaseProgram(t *testing.T) {
	before := programPages(t)
	if err := releaseProgram(); err != nil {
		t.Fatal(err)
	}
	if after := programPages(t); after >= before {
		t.Errorf("%d kB of the program are mapped, before it were %d", after, before)
	}
}

// TestUnused counts garbage, and what was garbage, until it is given back.
func TestUnused(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // none but those that are asked for here
	debug.FreeOSMemory()
	before := unused()
	much := make([]byte, 64<<20)
	clear(much) // it is in memory, too
	runtime.KeepAlive(much)
	if grown := unused(); grown < before+32<<20 {
		t.Errorf("%d bytes are unused with 64 MiB of garbage, %d before it", grown, before)
	}
	debug.FreeOSMemory()
	if after := unused(); after > before+32<<20 {
		t.Errorf("%d bytes are unused once all was given back, %d before", after, before)
	}
}

// TestDeferCollections puts collections off for as long as little is in use.
func TestDeferCollections(t *testing.T) {
	t.Setenv("GOGC", "")
	percent, limit := collecting()
	usual := func() bool {
		p, l := collecting()
		return p == percent && l == limit
	}
	settle := deferCollections()
	if usual() {
		t.Error("collections are as usual at once")
	}
	settle()
	if !usual() {
		t.Error("collections are not as usual once settled")
	}

	settle = deferCollections()
	defer settle()
	var collections atomic.Int64
	afterCollection(func() bool { return collections.Add(1) < 3 })
	eventually(t, "three collections are told of", func() bool { runtime.GC(); return collections.Load() == 3 })
	if usual() {
		t.Error("collections are as usual though little is in use")
	}
	much := make([]byte, startMemory)
	eventually(t, "collections are as usual once much is in use", func() bool { runtime.GC(); return usual() })
	runtime.KeepAlive(much)

	t.Setenv("GOGC", "70")
	if deferCollections()(); !usual() {
		t.Error("the environment does not count")
	}
}

// TestSaveMemoryOfLongStart has a node that is never ready save memory all the same.
func TestSaveMemoryOfLongStart(t *testing.T) {
	t.Setenv("GOGC", "")
	percent, _ := collecting()
	defer debug.SetGCPercent(int(percent))
	synctest.Test(t, func(t *testing.T) {
		var settled atomic.Bool
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			done <- gates{{"never", func() bool { return false }}}.saveMemory(ctx, func() { settled.Store(true) })
		}()
		time.Sleep(longStart - time.Second)
		synctest.Wait()
		if settled.Load() {
			t.Error("it ends the start before its time")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if now, _ := collecting(); !settled.Load() || now != gcPercent {
			t.Errorf("after %v: settled %t, collections at %d %%", longStart, settled.Load(), now)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// collecting is how garbage is collected now.
func collecting() (percent, limit uint64) {
	list := []metrics.Sample{{Name: "/gc/gogc:percent"}, {Name: "/gc/gomemlimit:bytes"}}
	metrics.Read(list)
	return list[0].Value.Uint64(), list[1].Value.Uint64()
}

// programPages is how much of the executable file is mapped and in memory, in kB.
func programPages(t *testing.T) (sum int) {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	ours := false
	for line := range bytes.Lines(data) {
		text := strings.TrimSpace(string(line))
		if head, _, _ := strings.Cut(text, " "); strings.Contains(head, "-") {
			ours = strings.HasSuffix(text, program)
		}
		if value, ok := strings.CutPrefix(text, "Rss:"); ok && ours {
			n, err := strconv.Atoi(strings.Fields(value)[0])
			if err != nil {
				t.Fatal(err)
			}
			sum += n
		}
	}
	return sum
}
