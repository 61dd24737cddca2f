package supervise

import "strings"

// Excerpt returns at most n lines of what the process wrote since it was last started, or in the run before that while it
// has not written yet: from the line on that tells why it failed, where there is one, else the last ones. The stacks of a
// panic are left out.
func (p *Process) Excerpt(n int) []string {
	p.mu.Lock()
	from, before := p.logStart, p.logBefore
	p.mu.Unlock()
	lines := tail(p.o.Log, from)
	if len(lines) == 0 {
		lines = tail(p.o.Log, before)
	}
	return excerpt(lines, n)
}

// excerpt looks for the gravest kind of line, and takes the first of that kind.
func excerpt(lines []string, n int) []string {
	for _, grave := range []func(string) bool{isFatal, isLastWord, isError} {
		for i, line := range lines {
			if !grave(line) {
				continue
			}
			lines = lines[i:]
			for j, later := range lines {
				if j > 0 && strings.HasPrefix(later, "goroutine ") {
					lines = lines[:j]
					break
				}
			}
			for len(lines) > 1 && lines[len(lines)-1] == "" {
				lines = lines[:len(lines)-1]
			}
			return lines[:min(n, len(lines))]
		}
	}
	return lines[max(0, len(lines)-n):]
}

// isFatal recognizes panics, and what zap and klog write before they end the process.
func isFatal(line string) bool {
	return strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") ||
		strings.Contains(line, "\tpanic\t") || strings.Contains(line, "\tfatal\t") || isKlog(line, 'F')
}

// isLastWord recognizes what a command writes for an error that ends it.
func isLastWord(line string) bool {
	return strings.HasPrefix(line, "error: ") || strings.HasPrefix(line, "Error: ")
}

// isError recognizes errors in the logs of zap, slog and klog.
func isError(line string) bool {
	return strings.Contains(line, "\terror\t") || strings.Contains(line, "level=ERROR") || isKlog(line, 'E')
}

// isKlog recognizes klog's header: the severity, and month and day as four digits.
func isKlog(line string, severity byte) bool {
	return len(line) > 5 && line[0] == severity && strings.Trim(line[1:5], "0123456789") == "" && line[5] == ' '
}
