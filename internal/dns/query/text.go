package query

import (
	"fmt"
	"strings"
	"time"
)

// Text returns the report for people.
func (r *Report) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s asks %s", r.Client, r.Server)
	if r.Via != "" {
		fmt.Fprintf(&b, ", %s", r.Via)
	}
	fmt.Fprintln(&b)
	if len(r.Steps) > 1 || len(r.Steps) == 1 && r.Steps[0].Name != r.Name {
		fmt.Fprintf(&b, "search path: %s; ndots:%d\n", strings.Join(r.Resolver.Search, " "), r.Resolver.Ndots)
	}
	for i, s := range r.Steps {
		fmt.Fprintf(&b, "\n%d. %s\n", i+1, s.Name)
		for _, a := range s.Answers {
			a.text(&b)
		}
	}
	fmt.Fprintln(&b)
	switch last := len(r.Steps); {
	case r.Found && last == 1:
		fmt.Fprintf(&b, "found by the first name asked for\n")
	case r.Found:
		fmt.Fprintf(&b, "found by name %d of the search path\n", last)
	case len(r.Unasked) > 0:
		fmt.Fprintf(&b, "not found: there was no time to ask for %s\n", strings.Join(r.Unasked, " "))
	case last == 1:
		fmt.Fprintf(&b, "not found\n")
	default:
		fmt.Fprintf(&b, "not found: none of %d names has an answer\n", last)
	}
	return b.String()
}

func (a *Answer) text(b *strings.Builder) {
	took := (time.Duration(a.Micros) * time.Microsecond).Round(10 * time.Microsecond)
	if a.Error != "" {
		fmt.Fprintf(b, "   %-5s %s\n", a.Type, a.Error)
	} else {
		result := a.Rcode
		if result == "NOERROR" && len(a.Records) == 0 {
			result = "NOERROR without records"
		}
		source := ""
		if a.Source != "" {
			source = ", from " + a.Source
		}
		fmt.Fprintf(b, "   %-5s %s%s, in %s", a.Type, result, source, took)
		if a.TTL > 0 {
			fmt.Fprintf(b, ", good for %d s", a.TTL)
		}
		if a.Truncated {
			fmt.Fprint(b, ", by TCP as it is long")
		}
		fmt.Fprintln(b)
	}
	for _, r := range a.Records {
		fmt.Fprintf(b, "         %s\n", r)
	}
	for _, w := range a.Why {
		fmt.Fprintf(b, "         - %s\n", w)
	}
}
