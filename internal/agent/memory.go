package agent

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// gcPercent is how much a node that serves lets its heap grow between two
// collections. It changes little then, so collections are rare in any case,
// and every node pays for the memory.
const gcPercent = 40

// saveMemory gives back what starting has left over once all gates are open,
// and collects garbage sooner from then on, unless the environment (GOGC) says how.
func (g gates) saveMemory(ctx context.Context) error {
	if os.Getenv("GOGC") != "" {
		return nil
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for len(g.waiting()) > 0 {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
	debug.SetGCPercent(gcPercent)
	debug.FreeOSMemory()
	_ = releaseProgram() // it is worth a try, no more
	return nil
}

// releaseProgram lets go of the pages of the executable file. Starting touches
// most of the program once: what packages set up, tables of the roles that do
// not run here. Such pages count as this process's memory for as long as it has
// them mapped. They are the file's, so nothing is lost: what is used from now on
// is mapped again as it is used, from the page cache.
func releaseProgram() error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	file, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// For example "00400000-01855000 r-xp 00000000 fe:00 268 /usr/bin/fairway".
		var start, end uintptr
		var mode string
		if n, _ := fmt.Sscanf(lines.Text(), "%x-%x %s", &start, &end, &mode); n != 3 || !strings.HasSuffix(lines.Text(), " "+program) {
			continue
		}
		if strings.Contains(mode, "w") {
			continue // variables: what was written to them is not in the file
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, start, end-start, unix.MADV_DONTNEED); errno != 0 {
			return errno
		}
	}
	return lines.Err()
}
