package up

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadRanges(t *testing.T) {
	const good = `"service":["10.1.0.0/16"],"pod":["10.2.0.0/16"],"node":["10.3.0.0/24"]`
	for _, test := range []struct{ name, text, error string }{
		{"with a pool", `{` + good + `,"pool":["10.4.0.0/24","fd01::/112"]}`, ""},
		{"with a mode", `{` + good + `,"poolMode":"none"}`, ""},
		{"empty", "", "EOF"},
		{"garbage", "\x00\x01 garbage", "invalid character"},
		{"no object", `[]`, "cannot unmarshal array"},
		{"more behind it", `{` + good + `,"poolMode":"none"} {}`, "something follows"},
		{"unknown key", `{` + good + `,"poolMode":"none","services":[]}`, `unknown field "services"`},
		{"null", `null`, `"service" is missing`},
		{"no Pod range", `{"service":["10.1.0.0/16"],"node":["10.3.0.0/24"],"poolMode":"none"}`, `"pod" is missing`},
		{"no pool", `{` + good + `}`, `both "pool" and "poolMode" are missing`},
		{"pool and mode", `{` + good + `,"pool":["10.4.0.0/24"],"poolMode":"node"}`, `both "pool" and "poolMode" are there`},
		{"unknown mode", `{` + good + `,"poolMode":"some"}`, `"poolMode" is "some"`},
		{"no range", `{` + good + `,"pool":["10.4"]}`, "10.4"},
		{"empty range", `{` + good + `,"pool":[""]}`, `"pool": item 1 is not a range`},
		{"two of a family", `{` + good + `,"pool":["10.4.0.0/24","10.5.0.0/24"]}`, `"pool" has two ranges of one family`},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := dir(t.TempDir())
			if err := os.WriteFile(d.ranges(), []byte(test.text), 0o644); err != nil {
				t.Fatal(err)
			}
			r, err := d.readRanges()
			if test.error == "" {
				if err != nil || r.check() != nil {
					t.Errorf("%+v, %v", r, err)
				}
				return
			}
			if err == nil {
				t.Fatalf("got %+v, want error %q", r, test.error)
			}
			for _, want := range []string{d.ranges(), test.error, "restore it from a copy, or remove it", "may lose their addresses"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %v lacks %q", err, want)
				}
			}
		})
	}
}

func TestRangesAreReadAsWritten(t *testing.T) {
	d := dir(t.TempDir())
	for _, pool := range []string{"", poolNode, "10.9.0.0/24"} {
		chosen, err := chooseRanges(Options{LBPool: pool}, nil, nil, true)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.writeRanges(chosen); err != nil {
			t.Fatal(err)
		}
		if _, err := d.readRanges(); err != nil {
			t.Errorf("pool %q: %v", pool, err)
		}
	}
}

func TestStatusOfGarbage(t *testing.T) {
	for _, test := range []struct{ name, text, error string }{
		{"empty", "", "unexpected end of JSON input"},
		{"garbage", "garbage", "invalid character"},
		{"another version", `{"version":7}`, "version is 7, must be 1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := dir(t.TempDir())
			if err := d.make(); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(d.state(), []byte(test.text), 0o644); err != nil {
				t.Fatal(err)
			}
			_, err := Status(context.Background(), string(d))
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range []string{d.state(), test.error, "fairway down --data-dir " + string(d), "restore the file from a copy, or remove it"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %v lacks %q", err, want)
				}
			}
		})
	}
}

// What the error says of fairway down.
func TestDownWithGarbage(t *testing.T) {
	l := newLab(t)
	before := l.traces()
	l.upReady(l.request())
	if err := os.WriteFile(dir(l.dataDir).state(), []byte("garbage"), 0o644); err != nil {
		t.Fatal(err)
	}
	if found, output := l.down(); !found || !strings.Contains(output, "fairway stopped") {
		t.Errorf("found %v: %s", found, output)
	}
	l.gone(before)
}

func TestDamagedStore(t *testing.T) {
	for _, test := range []struct {
		name, says string
		damaged    bool
	}{
		{"log", "start etcd in d/etcd: walpb: crc mismatch: expected: 92db86f4 computed: d0c8876a", true},
		{"database", "panic: freepages: failed to get all reachable pages", true},
		{"full disk", "panic: wal: write: no space left on device", false},
		{"other", "the sky is falling", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := damagedStore([]string{"a", test.says}); got != test.damaged {
				t.Errorf("damaged: %v", got)
			}
		})
	}
}

func TestUpWithDamagedStore(t *testing.T) {
	l := newLab(t)
	if err := os.MkdirAll(filepath.Join(l.dataDir, "fake"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.dataDir, "fake", "fail-control"), []byte("walpb: crc mismatch"), 0o644); err != nil {
		t.Fatal(err)
	}
	output, ok := l.up(l.request()).wait()
	if ok || strings.Count(output, "walpb: crc mismatch") != 1 ||
		!strings.Contains(output, "the cluster's data in "+dir(l.dataDir).etcd()+" is damaged: restore that directory from a copy, or remove it and lose all objects") {
		t.Errorf("ok %v: %s", ok, output)
	}
}
