package tracing

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// TestValid: of what clients send, spans keep no more than a receiver takes.
func TestValid(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "/a": "/a", "\xff/ü": "\ufffd/ü",
		strings.Repeat("x", 32<<10): strings.Repeat("x", maxText), strings.Repeat("x", maxText-1) + "ü": strings.Repeat("x", maxText-1) + "\ufffd",
	} {
		if got := valid(in); got != want || !utf8.ValidString(got) {
			t.Errorf("of %d bytes %d are left, want %d", len(in), len(got), len(want))
		}
	}
}

// TestTimeToClose: what is left of the drain bounds the end, but a receiver
// that is well gets the last spans in any case.
func TestTimeToClose(t *testing.T) {
	now := time.Unix(1e9, 0)
	for _, tt := range []struct {
		left, want time.Duration
	}{{time.Minute, closeTimeout}, {3 * time.Second, 3 * time.Second}, {100 * time.Millisecond, leastTime}, {-time.Second, leastTime}} {
		if got := timeToClose(now, now.Add(tt.left)); got != tt.want {
			t.Errorf("%v left: %v, want %v", tt.left, got, tt.want)
		}
	}
	if got := timeToClose(now, time.Time{}); got != closeTimeout {
		t.Errorf("no end: %v", got)
	}
}
