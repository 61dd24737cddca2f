package gateway

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"
)

// accessLog writes a line per request.
type accessLog struct {
	skip float64      // percent of the requests that went well
	json *slog.Logger // nil for the combined format

	mu       sync.Mutex
	combined io.Writer
}

func newAccessLog(w io.Writer, format string, skip float64) (*accessLog, error) {
	switch {
	case w == nil:
		return nil, nil
	case !(skip >= 0 && skip <= 100):
		return nil, fmt.Errorf("access log that skips %v%%: want 0 to 100", skip)
	case format == "" || format == "json":
		drop := func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.LevelKey || a.Key == slog.MessageKey {
				return slog.Attr{}
			}
			return a
		}
		return &accessLog{skip: skip, json: slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{ReplaceAttr: drop}))}, nil
	case format == "combined":
		return &accessLog{skip: skip, combined: w}, nil
	}
	return nil, fmt.Errorf("access log format %q is unknown: use json or combined", format)
}

// wants reports whether a request is to be logged. Those that failed always
// are, also if that shows only in the log: a client that did not wait, an answer
// that broke off.
func (l *accessLog) wants(t *transaction, status int) bool {
	switch {
	case l == nil:
		return false
	case l.skip == 0 || status >= 400 || t.failure != "":
		return true
	}
	return rand.Float64()*100 >= l.skip
}

func (l *accessLog) write(t *transaction, status int, bytes int64, took time.Duration) {
	agent, _ := t.view.First("User-Agent")
	referer, _ := t.view.First("Referer")
	if l.json == nil {
		l.writeCombined(t, status, bytes, agent, referer)
		return
	}
	attrs := []slog.Attr{
		slog.String("requestId", t.id),
		slog.String("client", t.view.Client.String()),
		slog.String("method", t.view.Method),
		slog.String("scheme", t.view.Scheme),
		slog.String("host", t.view.Authority),
		slog.String("path", t.target),
		slog.String("protocol", t.protocol),
		slog.Int("status", status),
		slog.Int64("bytes", bytes),
		slog.Float64("seconds", took.Seconds()),
		slog.String("userAgent", agent),
		slog.String("referer", referer),
	}
	if t.span != nil {
		attrs = append(attrs, slog.String("traceId", t.span.TraceID()))
	}
	if t.rule != nil {
		attrs = append(attrs, slog.String("route", t.rule.Ref().String()), slog.String("rule", t.rule.Spec.Field))
	}
	if t.pool != nil {
		attrs = append(attrs, slog.String("service", t.pool.Key().Service.String()), slog.String("endpoint", t.endpoint))
	}
	if t.failure != "" {
		attrs = append(attrs, slog.String("failure", t.failure))
	}
	l.json.LogAttrs(context.Background(), slog.LevelInfo, "", attrs...)
}

// writeCombined writes the combined format of Apache and nginx.
func (l *accessLog) writeCombined(t *transaction, status int, bytes int64, agent, referer string) {
	request := "-" // what could not be read as one
	if t.view.Method != "" {
		request = plain(t.view.Method) + " " + plain(t.target) + " " + t.protocol
	}
	line := fmt.Sprintf("%s - - [%s] \"%s\" %d %d \"%s\" \"%s\"\n",
		t.view.Client, t.start.Format("02/Jan/2006:15:04:05 -0700"), request,
		status, bytes, plain(orDash(referer)), plain(orDash(agent)))
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = io.WriteString(l.combined, line) // a log that is full must not stop traffic
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// plain escapes what could forge a field or a line, as nginx does.
func plain(s string) string {
	if !strings.ContainsFunc(s, mustEscape) {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= 0x7f {
			fmt.Fprintf(&b, `\x%02X`, c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func mustEscape(r rune) bool { return r < ' ' || r == '"' || r == '\\' || r >= 0x7f }
