package httppath

import (
	"errors"
	"strings"
	"testing"
)

func TestNormalize(t *testing.T) {
	tests := []struct {
		name, in, want string
		err            error
	}{
		{"root", "/", "/", nil},
		{"plain", "/v1/users", "/v1/users", nil},
		{"final slash stays", "/v1/", "/v1/", nil},
		{"double slash", "//a///b", "/a/b", nil},
		{"double slash at the end", "/a//", "/a/", nil},
		{"dot", "/a/./b", "/a/b", nil},
		{"dot at the end", "/a/.", "/a/", nil},
		{"dot-dot", "/a/../b", "/b", nil},
		{"dot-dot at the end", "/a/b/..", "/a/", nil},
		{"dot-dot to the root", "/a/..", "/", nil},
		{"dot-dot above the root", "/../../etc", "/etc", nil},
		{"escaped dot-dot", "/a/%2e%2E/b", "/b", nil},
		{"three dots are a name", "/a/.../b", "/a/.../b", nil},
		{"hidden file", "/.well-known/x", "/.well-known/x", nil},
		{"unreserved decoded", "/%61%2Db%7e", "/a-b~", nil},
		{"reserved stay escaped", "/a%2fb%3F", "/a%2Fb%3F", nil},
		{"escaped slash is no separator", "/a/..%2fb", "/a/..%2Fb", nil},
		{"space", "/a b", "/a%20b", nil},
		{"not ASCII", "/ü", "/%C3%BC", nil},
		{"escaped not ASCII", "/%c3%bc", "/%C3%BC", nil},
		{"backslash", `/a\b`, "/a%5Cb", nil},
		{"sub-delims", "/a;v=1,2/*", "/a;v=1,2/*", nil},
		{"empty", "", "", ErrNotAbsolute},
		{"relative", "a/b", "", ErrNotAbsolute},
		{"escape cut off", "/a%2", "", ErrBadEscape},
		{"no hex", "/a%zz", "", ErrBadEscape},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Normalize(tt.in)
			if got != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("Normalize(%q) = %q, %v; want %q, %v", tt.in, got, err, tt.want, tt.err)
			}
		})
	}
}

func TestNormalPathsAreNotCopied(t *testing.T) {
	path := "/api/v1/users/42/%2F"
	if n := testing.AllocsPerRun(100, func() { _, _ = Normalize(path) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func FuzzNormalize(f *testing.F) {
	for _, s := range []string{"/", "/a/../b", "/%2e%2e/", "//", "/%", "/ü", "/a%2Fb"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		out, err := Normalize(in)
		if err != nil {
			return
		}
		again, err := Normalize(out)
		if err != nil || again != out {
			t.Fatalf("Normalize(%q) = %q, but again %q, %v", in, out, again, err)
		}
		for _, s := range strings.Split(out[1:], "/") {
			if s == "." || s == ".." {
				t.Fatalf("Normalize(%q) = %q has a dot segment", in, out)
			}
		}
		if strings.Contains(out, "//") {
			t.Fatalf("Normalize(%q) = %q has an empty segment", in, out)
		}
	})
}
