package tracing

import (
	"testing"
	"time"
)

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
