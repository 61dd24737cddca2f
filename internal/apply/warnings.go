package apply

import (
	"context"
	"slices"

	"fairway.dev/fairway/internal/dialect"
)

// warnings are what the API server warns of in the requests for one object,
// each once.
type warnings struct{ texts []string }

type warningsKey struct{}

// withWarnings returns a context whose requests collect their warnings. The
// requests must follow one another.
func withWarnings(ctx context.Context) (context.Context, *warnings) {
	w := &warnings{}
	return context.WithValue(ctx, warningsKey{}, w), w
}

// about returns the warnings with file, document and object.
func (w *warnings) about(o *dialect.Object) []string {
	var out []string
	for _, text := range w.texts {
		out = append(out, dialect.Remark{Source: o.Source, Object: o.String(), Message: "warning of the API server: " + text}.String())
	}
	return out
}

// collectWarnings implements rest.WarningHandlerWithContext.
type collectWarnings struct{}

// HandleWarningHeaderWithContext keeps a warning in the request's context. The
// API server sends code 299 only (RFC 7234, 5.5).
func (collectWarnings) HandleWarningHeaderWithContext(ctx context.Context, code int, _, text string) {
	w, ok := ctx.Value(warningsKey{}).(*warnings)
	if ok && code == 299 && text != "" && !slices.Contains(w.texts, text) {
		w.texts = append(w.texts, text)
	}
}
