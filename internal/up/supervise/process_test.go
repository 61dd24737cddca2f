package supervise

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// thread calls functions on one operating-system thread that lives as long as the test.
func thread(t *testing.T) func(func() error) error {
	t.Helper()
	calls := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range calls {
			f()
		}
	}()
	t.Cleanup(func() { close(calls) })
	return func(f func() error) error {
		done := make(chan error)
		calls <- func() { done <- f() }
		return <-done
	}
}

// started is a process under supervision that runs a shell script.
type started struct {
	*Process
	t       *testing.T
	log     string
	stop    context.CancelFunc
	ended   chan error
	changes []Status
}

func start(t *testing.T, script string, change func(*Options)) *started {
	t.Helper()
	s := &started{t: t, log: filepath.Join(t.TempDir(), "log"), ended: make(chan error, 1)}
	o := Options{
		Role: "test", Node: "node-1", Path: "/bin/sh", Args: []string{"-c", script}, Env: os.Environ(), Log: s.log,
		Launch: thread(t), MinBackoff: time.Millisecond, MaxBackoff: 4 * time.Millisecond, Grace: 10 * time.Second,
		OnChange: func(status Status) { s.changes = append(s.changes, status) },
		Logger:   slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&o)
	}
	var err error
	if s.Process, err = New(o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.stop = cancel
	go func() { s.ended <- s.Run(ctx) }()
	t.Cleanup(cancel)
	return s
}

func (s *started) wait() {
	s.t.Helper()
	select {
	case err := <-s.ended:
		if err != nil {
			s.t.Error(err)
		}
	case <-time.After(20 * time.Second):
		s.t.Fatal("does not end")
	}
}

func (s *started) output() string {
	text, err := os.ReadFile(s.log)
	if err != nil {
		return ""
	}
	return string(text)
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

func TestEndsInGoodOrder(t *testing.T) {
	s := start(t, `trap 'echo tidy; exit 3' TERM; echo up; while :; do sleep 0.01; done`, nil)
	eventually(t, "it writes its log", func() bool { return strings.Contains(s.output(), "up") && s.Status().PID > 0 })
	status := s.Status()
	if status.State != Running || !status.Alive() || status.Role != "test" || status.Node != "node-1" {
		t.Errorf("status %+v", status)
	}
	s.stop()
	s.wait()
	if !strings.Contains(s.output(), "tidy") {
		t.Errorf("was not asked to end: %q", s.output())
	}
	if last := s.Status(); last.State != Exited || last.PID != 0 || last.LastExit != "exit status 3" || last.Restarts != 0 {
		t.Errorf("status %+v", last)
	}
	if got := s.changes[len(s.changes)-1]; got != s.Status() {
		t.Errorf("the last change told was %+v", got)
	}
}

func TestIsKilledAfterGrace(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"grace": func(o *Options) { o.Grace = 20 * time.Millisecond },
		"force": func(o *Options) {
			force := make(chan struct{})
			close(force)
			o.Force = force
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, `trap '' TERM; echo up; while :; do sleep 0.01; done`, change)
			eventually(t, "it writes its log", func() bool { return strings.Contains(s.output(), "up") })
			s.stop()
			s.wait()
			if got := s.Status().LastExit; got != "signal: killed" {
				t.Errorf("ended with %q", got)
			}
		})
	}
}

func TestStartsAgain(t *testing.T) {
	s := start(t, `echo again; exit 7`, nil)
	eventually(t, "three restarts", func() bool { return s.Status().Restarts >= 3 })
	s.stop()
	s.wait()
	if n := strings.Count(s.output(), "again"); n < 3 {
		t.Errorf("log of %d runs: %q", n, s.output())
	}
	for i := 1; i < len(s.changes); i++ {
		if s.changes[i].State == s.changes[i-1].State {
			t.Errorf("changes %v then %v", s.changes[i-1].State, s.changes[i].State)
		}
		if s.changes[i].State == Restarting && s.changes[i].LastExit != "exit status 7" {
			t.Errorf("reason %q", s.changes[i].LastExit)
		}
	}
}

func TestHangingProcessIsStartedAgain(t *testing.T) {
	beat := filepath.Join(t.TempDir(), "beat")
	// The first run stops itself when it has shown a sign of life, as a process does that hangs; the second goes on.
	script := `if [ -e ` + beat + `.1 ]; then while :; do touch ` + beat + `; sleep 0.05; done; fi
sleep 0.5; touch ` + beat + `.1 ` + beat + `; kill -STOP $$`
	s := start(t, script, func(o *Options) {
		launch := o.Launch
		o.Launch = func(f func() error) error { _ = os.Remove(beat); return launch(f) }
		o.Heartbeat, o.Silence = beat, 400*time.Millisecond
	})
	eventually(t, "it is started again", func() bool { return s.Status().State == Running && s.Status().Restarts == 1 })
	if exit := s.Status().LastExit; !strings.Contains(exit, "killed") || !strings.Contains(exit, "no sign of life for 400ms") {
		t.Errorf("last exit %q", exit)
	}
	time.Sleep(1200 * time.Millisecond)
	if n := s.Status().Restarts; n != 1 {
		t.Errorf("one that is well was started again: %d restarts", n)
	}
	s.stop()
	s.wait()
}

// TestReadOnlyDiskIsNoSilence runs itself once more, in a mount namespace of its own.
func TestReadOnlyDiskIsNoSilence(t *testing.T) {
	const again = "FAIRWAY_TEST_READ_ONLY"
	if os.Getenv(again) == "" {
		if os.Geteuid() != 0 {
			t.Skip("needs root: mounts a file system")
		}
		self := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		self.Env = append(os.Environ(), again+"=yes")
		self.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		if output, err := self.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, output)
		}
		return
	}
	disk := t.TempDir()
	remount := func(flags uintptr) {
		t.Helper()
		if err := syscall.Mount("none", disk, "tmpfs", flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(0)
	defer func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) }() // else it goes with the namespace
	beat, log := filepath.Join(disk, "beat"), filepath.Join(disk, "log")
	// That of a run before, which could not be removed.
	if err := os.WriteFile(beat, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 100)
	p, err := New(Options{
		Role: "test", Path: "/bin/sleep", Args: []string{"1000"}, Env: os.Environ(), Log: log, Launch: thread(t),
		Heartbeat: beat, Silence: 50 * time.Millisecond, MinBackoff: time.Millisecond, MaxBackoff: 4 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(lines(said), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	remount(syscall.MS_REMOUNT | syscall.MS_RDONLY)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	limit := time.After(20 * time.Second)
	for text := ""; !strings.Contains(text, "cannot tell whether the process lives"); {
		select {
		case text = <-said:
		case <-limit:
			t.Fatal("nothing is said of a disk that cannot be written")
		}
	}
	if status := p.Status(); status.State != Running || status.Restarts != 0 || status.LastExit != "" {
		t.Errorf("status %+v", status)
	}
	remount(syscall.MS_REMOUNT)
	eventually(t, "one that hangs is started again, once that can be told", func() bool {
		return p.Status().Restarts > 0 && strings.Contains(p.Status().LastExit, "no sign of life")
	})
}

// lines hands on each text written.
type lines chan<- string

func (l lines) Write(text []byte) (int, error) {
	select {
	case l <- string(text):
	default: // nobody waits for more
	}
	return len(text), nil
}

func TestMissingExecutable(t *testing.T) {
	s := start(t, "", func(o *Options) { o.Path = "/nowhere/to/be/found" })
	eventually(t, "a restart", func() bool { return s.Status().Restarts >= 1 })
	s.stop()
	s.wait()
	if got := s.Status().LastExit; !strings.Contains(got, "/nowhere/to/be/found") {
		t.Errorf("reason %q", got)
	}
}

func TestSessionOfItsOwn(t *testing.T) {
	s := start(t, `echo $$; while :; do sleep 0.01; done`, nil)
	eventually(t, "it writes its log", func() bool { return s.output() != "" && s.Status().PID > 0 })
	text, err := os.ReadFile("/proc/" + strconv.Itoa(s.Status().PID) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if session := fields[3]; session != strconv.Itoa(s.Status().PID) {
		t.Errorf("session is %s, pid %d", session, s.Status().PID)
	}
	s.stop()
	s.wait()
}

func TestLogRotation(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	write := func(text string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) string {
		text, _ := os.ReadFile(name)
		return string(text)
	}
	write("of an earlier run\n")
	if _, err := New(Options{Role: "r", Path: "p", Log: path, Launch: thread(t), Logger: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	if read(path) != "" || read(path+".1") != "of an earlier run\n" {
		t.Errorf("after New: %q and %q", read(path), read(path+".1"))
	}
	write("small\n")
	if err := boundLog(path, 10); err != nil || read(path) != "small\n" {
		t.Errorf("a small log: %v %q", err, read(path))
	}
	write("and now too long\n")
	if err := boundLog(path, 15); err != nil || read(path) != "" || read(path+".1") != "small\nand now too long\n" {
		t.Errorf("a long log: %v %q %q", err, read(path), read(path+".1"))
	}
	write("0123456789")
	if err := boundLog(path, 3); err != nil || read(path+".1") != "456789" {
		t.Errorf("a log much too long: %v %q", err, read(path+".1"))
	}
	write("a\nb\nc\n")
	if got := Tail(path, 2); !slices.Equal(got, []string{"b", "c"}) {
		t.Errorf("tail %q", got)
	}
	if got := Tail(filepath.Join(dir, "none"), 2); got != nil {
		t.Errorf("tail of nothing %q", got)
	}
}

func TestIdentity(t *testing.T) {
	self, err := Identify(os.Getpid())
	if err != nil || !self.Alive() {
		t.Fatalf("%+v %v", self, err)
	}
	other := self
	other.StartTicks++
	if other.Alive() {
		t.Error("another process with the same id counts as this one")
	}
	if (Identity{}).Alive() {
		t.Error("no process is alive")
	}
}

// cgroupForTest makes one, or skips where that is not possible.
func cgroupForTest(t *testing.T) Cgroup {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(root + "/cgroup.procs"); err != nil {
			continue
		}
		c := Cgroup(root).Sub("fw-supervise-" + strconv.Itoa(os.Getpid()) + "-" + t.Name())
		if c.Make() == nil {
			t.Cleanup(func() {
				if err := c.Remove(); err != nil {
					t.Error(err)
				}
			})
			return c
		}
	}
	t.Skip("needs root and a cgroup v2 hierarchy")
	return ""
}

func TestCgroupEndsDescendants(t *testing.T) {
	c := cgroupForTest(t)
	s := start(t, `setsid sleep 1000 & setsid sleep 1000 & echo $!; wait`, func(o *Options) { o.Cgroup = c.Sub("child") })
	eventually(t, "the child's children run", func() bool {
		pids, err := c.Processes()
		return err == nil && len(pids) == 3 && s.output() != "" && s.Status().PID > 0
	})
	orphan, err := strconv.Atoi(strings.TrimSpace(s.output()))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.Status().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its successor runs", func() bool { return s.Status().Restarts > 0 })
	if _, err := Identify(orphan); err == nil {
		t.Error("a descendant goes on beside the successor")
	}
	s.stop()
	s.wait()
	if pids, err := c.Processes(); err != nil || len(pids) != 0 {
		t.Errorf("left in the cgroup: %v %v", pids, err)
	}
	if _, err := os.Stat(string(c.Sub("child"))); !os.IsNotExist(err) {
		t.Errorf("the cgroup is still there: %v", err)
	}
}

func TestChildDiesWithThread(t *testing.T) {
	calls := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range calls {
			f()
		}
	}()
	s := start(t, `while :; do sleep 0.01; done`, func(o *Options) {
		o.Launch = func(f func() error) error {
			done := make(chan error)
			calls <- func() { done <- f() }
			return <-done
		}
		o.MinBackoff = time.Hour
	})
	eventually(t, "it runs", func() bool { return s.Status().State == Running })
	close(calls)
	eventually(t, "it ended", func() bool { return s.Status().State == Restarting })
	if got := s.Status().LastExit; got != "signal: terminated" {
		t.Errorf("ended with %q", got)
	}
}
