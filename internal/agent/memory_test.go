package agent

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestReleaseProgram releases the pages of this program, which goes on running.
func TestReleaseProgram(t *testing.T) {
	before := programPages(t)
	if err := releaseProgram(); err != nil {
		t.Fatal(err)
	}
	if after := programPages(t); after >= before {
		t.Errorf("%d kB of the program are mapped, before it were %d", after, before)
	}
}

// programPages is how much of the executable file is mapped and in memory, in kB.
func programPages(t *testing.T) (sum int) {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	ours := false
	for line := range bytes.Lines(data) {
		text := strings.TrimSpace(string(line))
		if head, _, _ := strings.Cut(text, " "); strings.Contains(head, "-") {
			ours = strings.HasSuffix(text, program)
		}
		if value, ok := strings.CutPrefix(text, "Rss:"); ok && ours {
			n, err := strconv.Atoi(strings.Fields(value)[0])
			if err != nil {
				t.Fatal(err)
			}
			sum += n
		}
	}
	return sum
}
