package up

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// Progress writes what happens, one line per step with the time it took. On a terminal the steps under way are shown in a
// line of their own below, which the next line replaces.
type Progress struct {
	mu       sync.Mutex
	w        io.Writer
	terminal bool
	active   []string
}

// NewProgress returns a Progress that writes to w. Errors of writing are ignored: nobody watches any more.
func NewProgress(w io.Writer, terminal bool) *Progress {
	return &Progress{w: w, terminal: terminal}
}

// Step says that something has begun. The function returned says that it is done; given an empty text it only stops
// saying that it is under way.
func (p *Progress) Step(doing string) (done func(format string, args ...any)) {
	started := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.active = append(p.active, doing)
	p.redraw("")
	return func(format string, args ...any) {
		p.mu.Lock()
		defer p.mu.Unlock()
		for i, a := range p.active {
			if a == doing {
				p.active = append(p.active[:i], p.active[i+1:]...)
				break
			}
		}
		text := ""
		if format != "" {
			text = fmt.Sprintf("%s%-36s %6.1f s\n", p.mark("✓ "), fmt.Sprintf(format, args...), time.Since(started).Seconds())
		}
		p.redraw(text)
	}
}

// Note writes a line that is no step.
func (p *Progress) Note(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.redraw(p.mark("! ") + fmt.Sprintf(format, args...) + "\n")
}

// Print writes text as it is.
func (p *Progress) Print(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.redraw(text)
}

func (p *Progress) mark(s string) string {
	if p.terminal {
		return s
	}
	return ""
}

// redraw writes text in place of the line of steps under way, and that line again below it.
func (p *Progress) redraw(text string) {
	if !p.terminal {
		_, _ = io.WriteString(p.w, text)
		return
	}
	line := ""
	if len(p.active) > 0 {
		line = "  " + strings.Join(p.active, ", ") + " ..."
	}
	if len(line) > 78 {
		line = line[:75] + "..."
	}
	_, _ = io.WriteString(p.w, "\r\x1b[K"+text+line)
}
