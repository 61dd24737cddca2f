package http1

import (
	"net"
	"testing"
	"time"
)

// TestSilence goes by what the kernel has carried, whoever carries it, and not by
// what keeps a connection alive.
func TestSilence(t *testing.T) {
	a, nearA := tcpPair(t)
	b, nearB := tcpPair(t)
	for name, conns := range map[string][2]net.Conn{"both": {nearA, nearB}, "one": {nearA, nil}} {
		t.Run(name, func(t *testing.T) {
			cuts := 0
			var list []control
			for _, c := range conns {
				list = append(list, controlOf(c))
			}
			stop := watchSilence(time.Hour, func() { cuts++ }, list...)
			defer stop()
			w := &silence{limit: time.Hour, conns: list[:1], cut: func() { cuts++ }, timer: time.NewTimer(time.Hour), since: time.Now()}
			if conns[1] != nil {
				w.conns = list
			}
			w.seen = w.carried()
			late := func() { w.since = time.Now().Add(-2 * time.Hour) }
			for what, carry := range map[string]func(){
				"received": func() { say(t, a, nearA) }, "sent": func() { say(t, nearA, a) },
			} {
				before := w.carried()
				carry()
				await(t, what, func() bool { return w.carried() != before })
				late()
				if w.look(); cuts != 0 {
					t.Fatalf("%s: cut although there was something", what)
				}
			}
			await(t, "all is acknowledged", func() bool { n := w.carried(); time.Sleep(100 * time.Millisecond); return n == w.carried() })
			w.look()
			late()
			if w.look(); cuts != 1 {
				t.Fatalf("cut %d times after two hours of silence", cuts)
			}
			if w.look(); cuts != 1 {
				t.Error("cut again")
			}
			_ = b
		})
	}
	t.Run("stopped", func(t *testing.T) {
		w := &silence{limit: time.Nanosecond, conns: []control{controlOf(nearA)}, cut: func() { t.Error("cut") }, timer: time.NewTimer(time.Hour)}
		w.stop()
		w.look()
		watchSilence(0, nil, controlOf(nearA))()
		watchSilence(time.Nanosecond, nil, controlOf(nil))() // nothing of TCP could tell
	})
}

// say sends a message from one end to the other.
func say(t *testing.T, from, to net.Conn) {
	t.Helper()
	if _, err := from.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := to.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}
