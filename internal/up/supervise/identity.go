package supervise

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Identity names one process for good: ids are used again, an id with a start time is not.
type Identity struct {
	PID int `json:"pid"`
	// StartTicks is the time of start in clock ticks since boot (field 22 of proc_pid_stat(5)).
	StartTicks uint64 `json:"startTicks"`
}

// Identify looks a running process up.
func Identify(pid int) (Identity, error) {
	identity, _, err := look(pid)
	return identity, err
}

// look returns a running process and the letter of its state, both from proc_pid_stat(5).
func look(pid int) (identity Identity, state string, err error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return Identity{}, "", err
	}
	// The second field is the name in parentheses and may contain anything; count from the last parenthesis.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return Identity{}, "", fmt.Errorf("process %d has ended", pid)
	}
	ticks, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return Identity{}, "", fmt.Errorf("process %d: %w", pid, err)
	}
	return Identity{PID: pid, StartTicks: ticks}, fields[0], nil
}

// Alive says whether that very process still runs.
func (i Identity) Alive() bool {
	if i.PID <= 0 {
		return false
	}
	now, err := Identify(i.PID)
	return err == nil && now == i
}

// Halt is why a process that is alive does nothing.
type Halt string

const (
	// BySignal processes got SIGSTOP or the like, and wait for SIGCONT.
	BySignal Halt = "signal"
	// ByDebugger processes are held by whoever traces them.
	ByDebugger Halt = "debugger"
)

// Halted says whether and why that very process, being alive, is stopped; empty when it is not.
func (i Identity) Halted() Halt {
	now, state, err := look(i.PID)
	switch {
	case err != nil || now != i:
		return ""
	case state == "T":
		return BySignal
	case state == "t":
		return ByDebugger
	}
	return ""
}
