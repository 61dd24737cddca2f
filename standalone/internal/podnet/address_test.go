package podnet

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func prefixes(cidrs ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, c := range cidrs {
		out = append(out, netip.MustParsePrefix(c))
	}
	return out
}

func newTestAllocator(t *testing.T, dir string, cidrs ...string) *allocator {
	t.Helper()
	a, err := newAllocator(dir, prefixes(cidrs...))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func take(t *testing.T, a *allocator, id string) string {
	t.Helper()
	addrs, err := a.take(id)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(addrs)
}

func TestAllocateInTurn(t *testing.T) {
	a := newTestAllocator(t, t.TempDir(), "10.0.0.0/29", "fd00::/64")
	for i := 1; i <= 6; i++ {
		want := fmt.Sprintf("[10.0.0.%d fd00::%d]", i, i)
		if got := take(t, a, fmt.Sprint(i)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if _, err := a.take("7"); err == nil || !strings.Contains(err.Error(), "10.0.0.0/29") {
		t.Errorf("a full range: %v", err)
	}
	if len(a.owner) != 12 {
		t.Errorf("a failed allocation keeps an address: %v", a.owner)
	}
	a.release("2")
	a.release("no such")
	if got := take(t, a, "8"); !strings.HasPrefix(got, "[10.0.0.2 ") {
		t.Errorf("got %s, want the only free one", got)
	}
}

func TestReleasedAddressRests(t *testing.T) {
	a := newTestAllocator(t, t.TempDir(), "10.0.0.0/29")
	now := time.Unix(0, 0)
	a.now = func() time.Time { return now }
	for i := 1; i <= 5; i++ {
		take(t, a, fmt.Sprint(i))
	}
	a.release("3")
	now = now.Add(time.Second)
	a.release("1")
	steps := []struct {
		wait time.Duration
		want string
	}{
		{0, "[10.0.0.6]"}, // never used
		{0, "[10.0.0.3]"}, // the longest at rest of those that rest
		{0, "[10.0.0.1]"}, // the last one
	}
	for i, s := range steps {
		now = now.Add(s.wait)
		if got := take(t, a, fmt.Sprint("new", i)); got != s.want {
			t.Errorf("step %d: got %s, want %s", i, got, s.want)
		}
	}
	a.release("4")
	a.release("5")
	now = now.Add(2 * reuseAfter)
	a.release("2")
	if got := take(t, a, "rested"); got != "[10.0.0.4]" {
		t.Errorf("got %s, want the next that has rested", got)
	}
}

func TestAllocatorRemembers(t *testing.T) {
	dir := t.TempDir()
	a := newTestAllocator(t, dir, "10.0.0.0/24", "fd00::/64")
	take(t, a, "1")
	take(t, a, "2")
	a = newTestAllocator(t, dir, "10.0.0.0/24", "fd00::/64")
	if got := take(t, a, "1"); got != "[10.0.0.3 fd00::3]" {
		t.Errorf("after a restart %s", got)
	}
	a = newTestAllocator(t, dir, "10.1.0.0/24")
	if got := take(t, a, "1"); got != "[10.1.0.1]" {
		t.Errorf("with another range %s", got)
	}
	path := filepath.Join(dir, "addresses.json")
	if err := os.WriteFile(path, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := newAllocator(dir, prefixes("10.0.0.0/24")); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a broken file: %v", err)
	}
	if _, err := newAllocator(t.TempDir(), prefixes("10.0.0.0/31")); err == nil || !strings.Contains(err.Error(), "10.0.0.0/31") {
		t.Errorf("a range without room: %v", err)
	}
}
