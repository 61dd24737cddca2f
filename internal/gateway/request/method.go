package request

import (
	"fmt"
	"strings"
)

// CheckMethod refuses a method that is no token (RFC 9110, 9.1 and 5.6.2). In
// HTTP/2 and HTTP/3 it is a field that can hold anything; passed on by HTTP/1
// it would be another request than the one that was matched.
func CheckMethod(method string) error {
	if method == "" || strings.ContainsFunc(method, notInToken) {
		return fmt.Errorf("method %q is not a token", method)
	}
	return nil
}

func notInToken(c rune) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return false
	}
	return !strings.ContainsRune("!#$%&'*+-.^_`|~", c)
}
