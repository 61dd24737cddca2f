package shed

import (
	"bytes"
	"errors"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestEpisode walks through one: readings decide, after a collection.
func TestEpisode(t *testing.T) {
	var log bytes.Buffer
	share, freed := 0., 0.
	s, err := New(Options{Above: 0.9, Share: func() (float64, error) {
		if share < 0 {
			return 0, errors.New("no reading")
		}
		return share, nil
	}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	collections := 0
	s.collect = func() {
		collections++
		if share >= 0.95 && !s.Active() || !s.Tight() {
			t.Errorf("active %v, tight %v while garbage is collected at %v", s.Active(), s.Tight(), share)
		}
		share -= freed
	}
	now := time.Now()
	for i, step := range []struct {
		after        time.Duration
		share, freed float64
		want         bool
		collections  int
	}{
		{0, 0.89, 0, false, 0},
		{0, 0.92, 0.1, false, 1},     // it was garbage
		{100, 0.92, 0.1, false, 1},   // and may be again: not more than one collection a second
		{200, 0.96, 0, true, 1},      // but this close to the limit nobody waits
		{300, 0.86, 0, true, 1},      // a little less is no end
		{400, 0.84, 0, false, 1},     // enough is free
		{1500, 0.91, 0.001, true, 2}, // no garbage
		{2000, 0.91, 0.2, true, 2},   //
		{2600, 0.91, 0.2, false, 3},  // by itself: nothing else would collect
		{4000, 0.95, 0, true, 4},     //
		{4100, -1, 0, false, 4},      // what is not known is no reason
		{4200, 0.1, 0, false, 4},     //
		{9000, 0.96, 0.2, false, 5},  // garbage, but nobody can wait for that to be known
	} {
		share, freed = step.share, step.freed
		s.look(now.Add(step.after * time.Millisecond))
		if s.Active() != step.want || collections != step.collections {
			t.Fatalf("step %d: active %v after %d collections", i, s.Active(), collections)
		}
		if s.Active() {
			s.Shed()
		}
	}
	for text, want := range map[string]int{"memory is short": 4, "memory is free again": 3, "cannot be read": 1, "turnedAway=2": 2} {
		if got := strings.Count(log.String(), text); got != want {
			t.Errorf("the log says %q %d times, want %d:\n%s", text, got, want, &log)
		}
	}
}

func TestOptions(t *testing.T) {
	for _, above := range []float64{0, -1, 1.01, math.NaN()} {
		if _, err := New(Options{Above: above, Share: func() (float64, error) { return 0, nil }, Logger: slog.New(slog.DiscardHandler)}); err == nil {
			t.Errorf("%v was taken", above)
		}
	}
	var none *Shedder
	if none.Active() || none.Share() != 0 {
		t.Error("no shedder sheds")
	}
}

func TestCgroup(t *testing.T) {
	const v2, v1 = "0::/a/b\n", "9:cpu,cpuacct:/a/b\n5:memory:/a/b\n0::/\n"
	for name, tt := range map[string]struct {
		self  string
		files map[string]string
		limit uint64
		used  uint64
		own   bool
	}{
		"version 2": {v2, map[string]string{"a/b/memory.max": "1000\n", "a/b/memory.current": "700\n", "a/b/memory.stat": "anon 5\ninactive_file 100\n"}, 1000, 600, true},
		"the parent's": {v2, map[string]string{"a/b/memory.max": "max\n", "a/memory.max": "2000\n", "a/memory.current": "700\n",
			"a/memory.stat": "inactive_file 900\n"}, 2000, 0, false},
		"no statistics": {v2, map[string]string{"a/b/memory.max": "1000\n", "a/b/memory.current": "700\n"}, 1000, 700, true},
		"a container's": {v2, map[string]string{"memory.max": "1000\n", "memory.current": "10\n"}, 1000, 10, true},
		"none":          {v2, map[string]string{"a/b/memory.max": "max\n"}, 0, 0, false},
		"no files":      {v2, nil, 0, 0, false},
		"version 1": {v1, map[string]string{"memory/a/b/memory.limit_in_bytes": "1000\n", "memory/a/b/memory.usage_in_bytes": "700\n",
			"memory/a/b/memory.stat": "inactive_file 1\ntotal_inactive_file 50\n"}, 1000, 650, true},
		"version 1, none": {v1, map[string]string{"memory/a/b/memory.limit_in_bytes": "9223372036854771712\n"}, 0, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			mount := t.TempDir()
			write(t, filepath.Join(mount, "self"), tt.self)
			for path, text := range tt.files {
				write(t, filepath.Join(mount, path), text)
			}
			g, err := findCgroup(filepath.Join(mount, "self"), mount)
			if err != nil {
				t.Fatal(err)
			}
			if g == nil {
				if tt.limit != 0 {
					t.Fatal("no limit was found")
				}
				return
			}
			used, err := g.used()
			if g.limit != tt.limit || used != tt.used || err != nil || (g.procs != "") != tt.own {
				t.Errorf("limit %d, used %d, own %q, %v", g.limit, used, g.procs, err)
			}
		})
	}
}

// TestHeld: the more waits, the less may be a request's own.
func TestHeld(t *testing.T) {
	short := false
	h := NewHeld(16<<20, func() bool { return short }) // 1 MiB may wait
	for i, step := range []struct {
		add                   int
		much, large, has, new bool // for those that have 17 KiB, 1 KiB and nothing
	}{
		{1 << 20, false, false, false, false},
		{1, true, false, false, false},
		{512 << 10, true, true, false, false},
		{512 << 10, true, true, true, true},
		{-2 << 20, false, false, false, false},
	} {
		h.Add(step.add)
		if h.Much() != step.much || h.Full(17<<10) != step.large || h.Full(1<<10) != step.has || h.Full(0) != step.new {
			t.Errorf("step %d, %d bytes held: %v", i, h.Bytes(), step)
		}
	}
	short = true
	if !h.Much() || h.Full(17<<10) {
		t.Error("memory that others take is no reason to end a request")
	}
	h.Add(400 << 10)
	if !h.Full(17<<10) || h.Full(16<<10) {
		t.Error("what waits stays although memory is short")
	}
	h.Add(200 << 10)
	if !h.Full(0) {
		t.Error("more comes although memory is short")
	}
	h.Add(-600 << 10)
	if h.Cut() != 6 || h.Bytes() != 1 {
		t.Errorf("%d cut, %d bytes held", h.Cut(), h.Bytes())
	}
	var none *Held
	none.Add(1 << 40)
	if none.Much() || none.Full(1<<40) || none.Bytes() != 0 || none.Cut() != 0 {
		t.Error("nothing holds")
	}
	var memory *Memory
	if limit := memory.Limit(); limit < 64<<20 {
		t.Errorf("the machine has %d bytes", limit)
	}
	memory = &Memory{goLimit: 500, group: &cgroup{limit: 400}}
	if limit := memory.Limit(); limit != 400 {
		t.Errorf("limit %d", limit)
	}
}

// TestSharedCgroup: what others use is no reason to turn clients away.
func TestSharedCgroup(t *testing.T) {
	dir := t.TempDir()
	g := &cgroup{limit: 100 << 30, usage: filepath.Join(dir, "usage"), procs: filepath.Join(dir, "procs")}
	write(t, g.usage, strconv.Itoa(95<<30))
	m := &Memory{group: g}
	for _, name := range runtimeMetrics {
		m.samples = append(m.samples, metrics.Sample{Name: name})
	}
	for procs, want := range map[string]float64{strconv.Itoa(os.Getpid()) + "\n": 0.95, strconv.Itoa(os.Getpid()) + "\n1\n": 0} {
		write(t, g.procs, procs)
		if got, err := m.Share(); got != want || err != nil {
			t.Errorf("group of %q: %v, %v", procs, got, err)
		}
	}
}

// TestGarbageIsNoNeed: what the runtime needs follows what is in use, not what
// has been and waits to be collected.
func TestGarbageIsNoNeed(t *testing.T) {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(8 << 30))
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	m, err := NewMemory()
	if err != nil || m.goLimit != 8<<30 {
		t.Fatal(m, err)
	}
	m.group = nil
	needs := func() int64 {
		_, n := m.ofRuntime()
		return int64(n)
	}
	runtime.GC()
	before := needs()
	for range 64 {
		sink = make([]byte, 1<<20)
	}
	if grown := needs() - before; grown > 16<<20 {
		t.Errorf("garbage counts: %d more", grown)
	}
	kept := make([][]byte, 64)
	for i := range kept {
		kept[i] = make([]byte, 1<<20)
	}
	runtime.GC()
	if grown := needs() - before; grown < 60<<20 {
		t.Errorf("64 MiB in use count as %d", grown)
	}
	runtime.KeepAlive(kept)
	if share, err := m.Share(); share <= 0 || share > 0.5 || err != nil {
		t.Errorf("share %v, %v", share, err)
	}
}

var sink []byte

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
