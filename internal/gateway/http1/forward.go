package http1

import (
	"iter"
	"net/http"
	"strconv"
	"strings"
)

func statusText(status int) string { return http.StatusText(status) }

// Forward is what a backend is asked for in place of what the client said.
type Forward struct {
	Path, Query string
	// Host is the Host header.
	Host string
	// Set replaces fields of the client's; an empty value removes them.
	Set []Field
	// Drop tells which further fields are left out, by their names. Optional.
	Drop func(name string) bool
	// Upgrade passes the client's wish to switch protocols on.
	Upgrade bool
}

// AppendHead appends the head of the request as a backend gets it: fields that
// end at this hop are left out, and the length of the body is told anew.
func (c *Conn) AppendHead(out []byte, f *Forward) []byte { return c.Request.appendHead(out, f) }

func (r *Request) appendHead(out []byte, f *Forward) []byte {
	out = append(out, r.Method...)
	out = append(out, ' ')
	out = append(out, f.Path...)
	if f.Query != "" {
		out = append(out, '?')
		out = append(out, f.Query...)
	}
	out = append(out, " HTTP/1.1\r\nHost: "...)
	out = append(out, f.Host...)
	out = append(out, "\r\n"...)
	hasLength := false
	for i := range r.Fields {
		field := &r.Fields[i]
		switch field.kind {
		case hostField:
			continue
		case lengthField:
			hasLength = true
			continue
		case teField:
			if strings.EqualFold(field.Value, "trailers") {
				out = append(out, "Te: trailers\r\n"...)
			}
			continue
		case trailerField:
			if r.Length >= 0 {
				continue
			}
		default:
			if r.ends(field) || f.Drop != nil && f.Drop(field.Name) {
				continue
			}
		}
		if replaced(field.Name, f.Set) {
			continue
		}
		out = appendField(out, field.Name, field.Value)
	}
	for i := range f.Set {
		if f.Set[i].Value != "" {
			out = appendField(out, f.Set[i].Name, f.Set[i].Value)
		}
	}
	switch {
	case r.Length < 0:
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	case hasLength:
		out = append(out, "Content-Length: "...)
		out = strconv.AppendInt(out, r.Length, 10)
		out = append(out, "\r\n"...)
	}
	if f.Upgrade && r.Upgrade != "" {
		out = append(out, "Connection: Upgrade\r\nUpgrade: "...)
		out = append(out, r.Upgrade...)
		out = append(out, "\r\n"...)
	}
	return append(out, "\r\n"...)
}

// Each yields the fields that a backend by another protocol gets: those that
// end at this hop are left out, and those that f sets are as it says.
func (r *Request) Each(f *Forward) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for i := range r.Fields {
			field := &r.Fields[i]
			switch field.kind {
			case hostField:
				continue
			case lengthField:
				if r.Length < 0 {
					continue
				}
			case teField:
				if !strings.EqualFold(field.Value, "trailers") {
					continue
				}
			case trailerField:
				if r.Length >= 0 {
					continue
				}
			default:
				if r.ends(field) || f.Drop != nil && f.Drop(field.Name) {
					continue
				}
			}
			if !replaced(field.Name, f.Set) && !yield(field.Name, field.Value) {
				return
			}
		}
		for i := range f.Set {
			if f.Set[i].Value != "" && !yield(f.Set[i].Name, f.Set[i].Value) {
				return
			}
		}
	}
}

func replaced(name string, set []Field) bool {
	for i := range set {
		if len(set[i].Name) == len(name) && strings.EqualFold(set[i].Name, name) {
			return true
		}
	}
	return false
}
