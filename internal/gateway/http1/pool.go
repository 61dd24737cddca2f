package http1

import (
	"strings"
	"sync"
)

// bufferSize holds the head of nearly every request, and a good piece of a body.
const bufferSize = 16 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

func getBuffer() *[]byte { return buffers.Get().(*[]byte) }

func putBuffer(b *[]byte) {
	if len(*b) == bufferSize {
		buffers.Put(b)
	}
}

// trailerAllowed is false for plain fields that must not stand in trailers.
func trailerAllowed(name string) bool {
	switch {
	case strings.EqualFold(name, "Authorization"), strings.EqualFold(name, "Cookie"), strings.EqualFold(name, "Set-Cookie"),
		strings.EqualFold(name, "Content-Type"), strings.EqualFold(name, "Content-Encoding"), strings.EqualFold(name, "Content-Range"),
		strings.EqualFold(name, "Max-Forwards"), strings.EqualFold(name, "Cache-Control"), strings.EqualFold(name, "Range"):
		return false
	}
	return !(len(name) > 12 && strings.EqualFold(name[:12], "X-Forwarded-")) && !strings.EqualFold(name, "X-Real-Ip")
}
