package corefile

import (
	"fmt"
	"strings"
	"unicode"
)

// Error is why a Corefile cannot be read.
type Error struct {
	// File is the name that the text was given by, Line counts from 1.
	File string
	Line int
	// Message is what is wrong there, with the cure.
	Message string
}

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("%s, line %d: %s", e.File, e.Line, e.Message) }

// token is a word with its place.
type token struct {
	file string
	line int
	text string
	// first: it begins a line.
	first bool
}

func (t token) errorf(format string, args ...any) error {
	return &Error{File: t.file, Line: t.line, Message: bounded(format, args)}
}

const (
	// maxQuoted is what a message has of a text that is longer than usual, of
	// which one may be without end; usual are names of DNS and their like.
	maxQuoted, usual = 60, 100
)

// short cuts a text that is longer than usual.
func short(text string) string {
	if len(text) <= usual {
		return text
	}
	end := 0
	for i := range text {
		if end = i; i >= maxQuoted {
			break
		}
	}
	return text[:end] + "…"
}

// bounded formats a message of which nothing that it quotes takes the reason and
// the cure away: Events, and people, read so far and no further.
func bounded(format string, args []any) string {
	for i, a := range args {
		switch a := a.(type) {
		case string:
			args[i] = short(a)
		case error:
			args[i] = short(a.Error())
		}
	}
	return fmt.Sprintf(format, args...)
}

// tokens splits text as CoreDNS does: at white space; with "..." around words
// that have some, in which \" is a quote; from # to the end of the line is a comment.
func tokens(file, text string) []token {
	var list []token
	var word strings.Builder
	line, start, fresh := 1, 1, true
	inWord, comment, quoted, escaped := false, false, false, false
	end := func() {
		if inWord {
			list = append(list, token{file, start, word.String(), fresh})
			fresh = false
		}
		word.Reset()
		inWord, quoted = false, false
	}
	for _, c := range strings.TrimPrefix(text, "\ufeff") {
		if c == '\n' {
			line++
		}
		switch {
		case quoted && escaped:
			if c != '"' {
				word.WriteByte('\\')
			}
			word.WriteRune(c)
			escaped = false
		case quoted && c == '\\':
			escaped = true
		case quoted && c == '"':
			end()
		case quoted:
			word.WriteRune(c)
		case unicode.IsSpace(c):
			if c == '\r' {
				continue
			}
			end()
			if c == '\n' {
				comment, fresh = false, true
			}
		case comment:
		case c == '#':
			comment = true // also within a word, as in CoreDNS
		case !inWord:
			inWord, start, quoted = true, line, c == '"'
			if !quoted {
				word.WriteRune(c)
			}
		default:
			word.WriteRune(c)
		}
	}
	end()
	return list
}
