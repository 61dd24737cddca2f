package cases

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestExceptionsAreDocumented holds the list in the documentation to the table
// of cases: the same exceptions, made by the same kinds of data paths, each
// with a reason. Run holds the table to what data paths do.
func TestExceptionsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../../docs/features/services.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n## Where data paths differ\n")
	if !ok {
		t.Fatal("docs/features/services.md has no section \"Where data paths differ\"")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	documented := map[Exception]string{}
	for _, row := range regexp.MustCompile(`(?m)^\| (.+?) \| (.+?) \| (.+?) \|$`).FindAllStringSubmatch(section, -1)[1:] {
		if documented[Exception(row[1])] = row[2]; len(row[3]) < 20 {
			t.Errorf("%q has no reason", row[1])
		}
	}
	for _, e := range Exceptions {
		var kinds []string
		for _, k := range e.Kinds {
			kinds = append(kinds, string(k))
		}
		if want := strings.Join(kinds, "; "); documented[e.Name] != want {
			t.Errorf("exception %q is documented for %q, but made by %q", e.Name, documented[e.Name], want)
		}
		delete(documented, e.Name)
	}
	for name := range documented {
		t.Errorf("exception %q is documented, but no data path makes it", name)
	}
}

// TestExceptionsHaveNames: what a case lets differ is one of the exceptions.
func TestExceptionsHaveNames(t *testing.T) {
	for _, c := range table {
		for _, p := range c.probes {
			if (p.sockets != "") != (p.exception != "") {
				t.Errorf("case %q, %s to %s: an outcome that differs by the data path needs the name of an exception", c.name, p.from, p.to)
			}
		}
	}
}
