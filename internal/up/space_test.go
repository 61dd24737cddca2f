package up

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// smallFileSystem mounts a file system of that size for the test.
func smallFileSystem(t *testing.T, at, size string) {
	t.Helper()
	if err := unix.Mount("none", at, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func TestCheckSpace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a file system")
	}
	for _, test := range []struct {
		name, size string
		used       bool // there is a cluster already
		error      string
	}{
		{"new and too small", "100m", false, "only 100 MiB are free on its file system, 256 MiB are needed"},
		{"new", "300m", false, ""},
		{"used", "100m", true, ""},
		{"few files", "300m,nr_inodes=200", false, "more files can be made on its file system (df -i shows it), 500 are needed"},
		{"any number of files", "300m,nr_inodes=0", false, ""},
		{"used and too small", "20m", true, "MiB are free on its file system, 64 MiB are needed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := t.TempDir()
			smallFileSystem(t, d, test.size)
			if test.used {
				if err := os.MkdirAll(filepath.Join(d, "etcd", "member"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			err := dir(d).checkSpace()
			if test.error == "" && err != nil || test.error != "" && (err == nil || !strings.Contains(err.Error(), "data directory "+d+": ") || !strings.Contains(err.Error(), test.error)) {
				t.Errorf("error %v, want %q", err, test.error)
			}
		})
	}
}

func TestUpAndDownOnFullFileSystem(t *testing.T) {
	l := newLab(t)
	smallFileSystem(t, l.dataDir, "1m")
	if err := dir(l.dataDir).make(); err != nil {
		t.Fatal(err)
	}
	// Fails when nothing more fits.
	_ = os.WriteFile(filepath.Join(l.dataDir, "ballast"), make([]byte, 2<<20), 0o600)
	output, ok := l.up(l.request()).wait()
	if ok || !strings.Contains(output, "data directory "+l.dataDir+": only 0 MiB are free") {
		t.Errorf("ok %v: %s", ok, output)
	}
	if found, output := l.down(); found {
		t.Errorf("down found something: %s", output)
	}
}

func TestUpAndDownOnReadOnlyFileSystem(t *testing.T) {
	l := newLab(t)
	smallFileSystem(t, l.dataDir, "300m")
	// Of a run that was killed, state is left.
	l.upReady(l.request()).signal(syscall.SIGKILL)
	remount := func(flags uintptr) {
		t.Helper()
		// Files that are open for writing prevent it, until the children have ended.
		l.eventually("remounted", func() error { return unix.Mount("none", l.dataDir, "tmpfs", unix.MS_REMOUNT|flags, "") })
	}
	remount(unix.MS_RDONLY)
	t.Cleanup(func() { remount(0) }) // for what the lab takes away
	output, ok := l.up(l.request()).wait()
	if ok || !strings.Contains(output, "data directory "+l.dataDir+": cannot be written") {
		t.Errorf("up: ok %v: %s", ok, output)
	}
	report, err := Status(t.Context(), l.dataDir)
	if err != nil || len(report.Problems) == 0 || !strings.Contains(report.Problems[0], "was killed") {
		t.Errorf("status: %q, %v", report.Problems, err)
	}
	var b strings.Builder
	found, err := Down(t.Context(), l.dataDir, NewProgress(&b, false))
	if !found || err == nil || !strings.HasPrefix(err.Error(), "data directory "+l.dataDir+": cannot be written") {
		t.Errorf("down: found %v, %v: %s", found, err, b.String())
	}
	if _, exists := l.ns.Owner(); exists {
		t.Error("down leaves the interface behind where it cannot write")
	}
	remount(0)
	if found, output := l.down(); !found || !strings.Contains(output, "remains of a crash cleared") {
		t.Errorf("down again: found %v: %s", found, output)
	}
}
