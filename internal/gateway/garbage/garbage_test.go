package garbage

import (
	"context"
	"runtime"
	"runtime/debug"
	rt "runtime/metrics"
	"testing"
	"time"
)

// TestCollectRarely goes by what is in use.
func TestCollectRarely(t *testing.T) {
	read := func(name string) uint64 {
		list := []rt.Sample{{Name: name}}
		rt.Read(list)
		return list[0].Value.Uint64()
	}
	percent := func() uint64 { return read("/gc/gogc:percent") }
	eventually := func(what string, is func(uint64) bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !is(percent()); runtime.GC() {
			if time.Now().After(deadline) {
				t.Fatalf("%s: it is %d %%", what, percent())
			}
			time.Sleep(time.Millisecond)
		}
	}
	defer debug.SetGCPercent(debug.SetGCPercent(90))
	t.Setenv("GOGC", "")
	much := make([]byte, 4*roomForGarbage)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stopped := make(chan error)
	go func() { stopped <- CollectRarely(ctx) }()
	eventually("much is in use", func(p uint64) bool { return p == 100 })
	runtime.KeepAlive(much)
	much = nil
	eventually("little is in use", func(p uint64) bool { return p > 100 && p <= 100*roomForGarbage/smallestHeap })
	much = make([]byte, 4*roomForGarbage)
	eventually("much is in use again", func(p uint64) bool { return p == 100 })
	runtime.KeepAlive(much)

	// Nothing else comes than garbage, unless it is collected for another reason.
	before := read("/gc/cycles/forced:gc-cycles")
	var made time.Time
	for deadline := time.Now().Add(time.Minute); read("/gc/cycles/forced:gc-cycles") == before; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("garbage stays though nothing happens")
		}
		if time.Since(made) > 5*time.Second {
			much = make([]byte, 2*roomForGarbage)
			runtime.KeepAlive(much)
			made = time.Now()
		}
	}
	cancel()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if p := percent(); p != 90 {
		t.Errorf("%d %% once it is stopped", p)
	}
	t.Setenv("GOGC", "90")
	if err := CollectRarely(t.Context()); err != nil {
		t.Error(err)
	}
	if p := percent(); p != 90 {
		t.Errorf("%d %% though the environment says 90", p)
	}
}
