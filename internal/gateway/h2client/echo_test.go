package h2client

import (
	"io"
	"net/http"
)

// echoHandler sends back what comes, trailers too.
type echoHandler struct{}

// ServeHTTP implements http.Handler.
func (echoHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Trailer", "X-End")
	w.Header().Set("X-I", r.Header.Get("X-I"))
	_, _ = io.Copy(w, r.Body)
	w.Header().Set("X-End", r.Trailer.Get("X-End"))
}
