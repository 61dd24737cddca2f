package explain

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// Text returns the report for people.
func (r *RequestReport) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s\n  %s\n", r.Method, r.URL, r.result())
	fmt.Fprintf(&b, "  from %s", r.Client)
	if r.Path != "" {
		fmt.Fprintf(&b, ", read as host %q and path %q", r.Host, r.Path)
		if r.Query != "" {
			fmt.Fprintf(&b, " with query %q", r.Query)
		}
	}
	fmt.Fprintln(&b)
	for _, s := range r.Notes {
		fmt.Fprintf(&b, "  %s\n", s)
	}
	for _, s := range r.Problems {
		fmt.Fprintf(&b, "  problem: %s\n", s)
	}
	r.rulesText(&b)
	r.TLS.text(&b)
	if len(r.Filters) > 0 {
		fmt.Fprintf(&b, "\nfilters, in order\n")
		after := false
		for _, f := range r.Filters {
			switch {
			case after:
				fmt.Fprintf(&b, "  %s (not reached)\n", f.What)
			case f.Answers:
				fmt.Fprintf(&b, "  %s: ANSWERS\n", f.What)
			default:
				fmt.Fprintf(&b, "  %s\n", f.What)
			}
			after = after || f.Answers
		}
	}
	r.Sent.text(&b)
	for i := range r.Backends {
		r.Backends[i].text(&b)
	}
	return b.String()
}

// result says in a line what becomes of the request.
func (r *RequestReport) result() string {
	if r.Answer != nil {
		return "the gateway answers " + r.Answer.text()
	}
	var parts []string
	for i := range r.Backends {
		b := &r.Backends[i]
		if b.Percent == 0 {
			continue
		}
		text := "goes to " + b.name()
		if b.Answer != nil {
			text = "gets " + b.Answer.text()
		}
		if b.Percent < 100 {
			text = fmt.Sprintf("%.4g %% %s", b.Percent, text)
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, "; ")
}

func (a *Answer) text() string {
	text := fmt.Sprintf("%d %s", a.Status, http.StatusText(a.Status))
	if a.Location != "" {
		text += " to " + a.Location
	}
	if a.Reason != "" {
		text += ": " + a.Reason
	}
	return text
}

func (r *RequestReport) rulesText(b *strings.Builder) {
	if r.Route == nil && len(r.Candidates) == 0 {
		return
	}
	fmt.Fprintf(b, "\nroute\n")
	rows := [][]string{{"", "OBJECT", "FIELD", "HOST", "PATH", "WHY"}}
	add := func(mark string, rule *RouteRule) {
		host, path := rule.Host, "(default backend)"
		if host == "" {
			host = "*"
		}
		if rule.PathType != "" {
			path = fmt.Sprintf("%s (%s)", rule.Path, rule.PathType)
		}
		rows = append(rows, []string{mark, rule.Object, rule.Field, host, path, rule.Why})
	}
	if r.Route != nil {
		add("takes it", r.Route)
	}
	for i := range r.Candidates {
		add("does not", &r.Candidates[i])
	}
	table(b, rows)
	if r.More > 0 {
		fmt.Fprintf(b, "  and %d more that do not\n", r.More)
	}
}

func (t *RequestTLS) text(b *strings.Builder) {
	if t == nil {
		return
	}
	fmt.Fprintf(b, "\ntls\n")
	if t.Redirect != "" {
		fmt.Fprintf(b, "  %s\n", t.Redirect)
	}
	if t.ClientAuth != "" {
		fmt.Fprintf(b, "  the gateway %s; a request by https is taken here as one with a good certificate\n", t.ClientAuth)
	}
	if t.Names == nil {
		return
	}
	from, name := "the gateway's own", t.ServerName
	if t.Secret != "" {
		from = "that of Secret " + t.Secret
	}
	if name == "" {
		name = "no server name"
	}
	fmt.Fprintf(b, "  the certificate for %s is %s, made out for %s, valid until %s\n", name, from, strings.Join(t.Names, ", "), t.NotAfter)
	if t.Refused != "" {
		fmt.Fprintf(b, "  clients will refuse it: %s\n", t.Refused)
	}
}

func (s *SentRequest) text(b *strings.Builder) {
	if s == nil {
		return
	}
	fmt.Fprintf(b, "\nthe backend gets\n  %s %s\n  Host: %s\n", s.Method, s.Target, s.Host)
	for _, line := range s.Set {
		fmt.Fprintf(b, "  %s\n", line)
	}
	fmt.Fprintf(b, "  and the client's other headers")
	if len(s.Removed) > 0 {
		fmt.Fprintf(b, " without %s", strings.Join(s.Removed, ", "))
	}
	fmt.Fprintln(b)
}

func (b *RequestBackend) name() string {
	if b.Service == "" {
		return "no backend"
	}
	return fmt.Sprintf("Service %s, port %s", b.Service, b.Port)
}

func (b *RequestBackend) text(w *strings.Builder) {
	kind := "backend"
	if b.Canary {
		kind = "canary of " + b.Object
	}
	fmt.Fprintf(w, "\n%s: %s, %.4g %%", kind, b.name(), b.Percent)
	if b.Why != "" {
		fmt.Fprintf(w, " (%s)", b.Why)
	}
	if b.Protocol != "" {
		fmt.Fprintf(w, ", by %s", b.Protocol)
	}
	fmt.Fprintln(w)
	if b.TLS != "" {
		fmt.Fprintf(w, "  TLS: %s\n", b.TLS)
	}
	if b.Answer != nil {
		fmt.Fprintf(w, "  clients get %s\n", b.Answer.text())
	}
	if len(b.Endpoints) == 0 {
		return
	}
	live := slices.ContainsFunc(b.Endpoints, func(e RequestEndpoint) bool { return e.Now != "" })
	rows := [][]string{{"ENDPOINT", "POD", "NODE", "ZONE", "", "WHY"}}
	if live {
		rows[0] = append(rows[0], "NOW")
	}
	for _, e := range b.Endpoints {
		row := []string{e.Address, e.Pod, e.Node, e.Zone, inOut(e.In), e.Why}
		if live {
			row = append(row, e.Now)
		}
		rows = append(rows, row)
	}
	table(w, rows)
}
