package translate

import (
	"regexp"
	"strings"
	"testing"
)

func TestCommonNamePattern(t *testing.T) {
	for _, tt := range []struct{ value, pattern, problem string }{
		{"CN=web", "web", ""},
		{"CN=(web|api)-[0-9]+", "(web|api)-[0-9]+", ""},
		{"CN=.*", ".*", ""},
		{"CN=(?i)web", "(?i)web", ""},
		{"CN=Doe, John", "Doe, John", ""},
		{"CN=a=b", "a=b", ""},
		{"CN=", "", "has no name after CN="},
		{"web", "", "does not begin with CN="},
		{"cn=web", "", "does not begin with CN="},
		{"^CN=web", "", "does not begin with CN="},
		{"CN=web,OU=shop", "", "goes on behind the common name"},
		{"CN=web, O =shop", "", "goes on behind the common name"},
		{"CN=(web", "", "is no regular expression"},
		{"CN=web)|(?:.*", "", "is no regular expression"}, // would leave the group that it is put into
		{`CN=(a)\1`, "", "is no regular expression"},
		{`CN=\Qweb`, "", "is no regular expression"}, // would take the end of the group for its own
		{"CN=(?=web)", "", "is no regular expression"},
	} {
		pattern, err := commonNamePattern(tt.value)
		if pattern != tt.pattern || (err == nil) != (tt.problem == "") || err != nil && !strings.Contains(err.Error(), tt.problem) {
			t.Errorf("%q: got %q, %v", tt.value, pattern, err)
		}
	}
}

// FuzzCommonNamePattern: whatever is accepted makes a pattern for all of a name.
func FuzzCommonNamePattern(f *testing.F) {
	for _, s := range []string{"CN=web", "CN=a|b", "CN=)|(", "CN=(?m)a$", "CN=\\Qa", "CN=[", "CN=a,O=b"} {
		f.Add(s, "a")
	}
	f.Fuzz(func(t *testing.T, value, name string) {
		pattern, err := commonNamePattern(value)
		if err != nil {
			return
		}
		whole, err := regexp.Compile(`\A(?:` + pattern + `)\z`)
		if err != nil {
			t.Fatalf("%q was accepted: %v", pattern, err)
		}
		// Longest: else the first alternative hides a longer one.
		part := regexp.MustCompile(pattern)
		part.Longest()
		if at := part.FindStringIndex(name); whole.MatchString(name) && (at == nil || at[0] != 0 || at[1] != len(name)) {
			t.Errorf("%q matches all of %q, but %v of it by itself", pattern, name, at)
		}
	})
}
