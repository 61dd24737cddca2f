package supervise

import (
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestExcerptOfLines(t *testing.T) {
	for _, test := range []struct{ name, log, want string }{
		{"nothing", "", ""},
		{"no error", "a\nb\nc\nd", "b\nc\nd"},
		{"panic with its cause", "a\nI\terror\tearlier\nT\tpanic\tno WAL\t{no space}\npanic: no WAL\n\ngoroutine 1 [running]:\nmain.main()\n\t/main.go:48", "T\tpanic\tno WAL\t{no space}\npanic: no WAL"},
		{"runtime", "a\nfatal error: out of memory\n\ngoroutine 1 [running]:\nx", "fatal error: out of memory"},
		{"error of the command", "a\nT\terror\tbootstrap failed\nerror: start etcd: crc mismatch\nb", "error: start etcd: crc mismatch\nb"},
		{"klog", "I1123 a\nE1123 06:00:00 first\nE1123 06:00:01 second\nb\nc\nd", "E1123 06:00:00 first\nE1123 06:00:01 second\nb"},
		{"klog fatal", "E1123 06:00:00 first\nF1123 06:00:01 second\nb", "F1123 06:00:01 second\nb"},
		{"no klog", "Every day\nErr\nE12", "Every day\nErr\nE12"},
		{"slog", "time=1 level=INFO msg=a\ntime=2 level=ERROR msg=b\nc", "time=2 level=ERROR msg=b\nc"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := strings.Join(excerpt(strings.Split(test.log, "\n"), 3), "\n"); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestExcerptIsOfTheLastRun(t *testing.T) {
	s := start(t, `echo "error: no luck"; exit 1`, nil)
	eventually(t, "it runs several times", func() bool { return strings.Count(s.output(), "no luck") > 2 })
	s.stop()
	s.wait()
	if got := s.Excerpt(10); !slices.Equal(got, []string{"error: no luck"}) { // of the run before, where the last was ended before its first word
		t.Errorf("got %q", got)
	}
}

func TestStoppedProcessEndsInGoodOrder(t *testing.T) {
	s := start(t, `trap 'echo tidy; exit 3' TERM; echo up; while :; do sleep 0.01; done`, nil)
	eventually(t, "it writes its log", func() bool { return strings.Contains(s.output(), "up") && s.Status().PID > 0 })
	if err := syscall.Kill(s.Status().PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	identity := s.Status().Identity
	eventually(t, "it is stopped", func() bool { return identity.Halted() == BySignal })
	s.stop()
	s.wait()
	if !strings.Contains(s.output(), "tidy") || s.Status().LastExit != "exit status 3" {
		t.Errorf("log %q, exit %q", s.output(), s.Status().LastExit)
	}
	if halt := identity.Halted(); halt != "" {
		t.Errorf("halted (%s) after its end", halt)
	}
}
