package explain

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
)

// shown is how many endpoints of a frontend stand in a line, and listed how many
// of a port have one each, unless all are asked for.
const shown, listed = 6, 40

// Text returns the report for people.
func (r *Report) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Service %s (%s), as node %s", r.Service, r.Type, r.Node)
	if r.Zone != "" {
		fmt.Fprintf(&b, " in zone %s", r.Zone)
	}
	fmt.Fprint(&b, " serves it")
	if r.From != "" {
		fmt.Fprintf(&b, " to %s", r.From)
	}
	fmt.Fprintln(&b)
	for _, s := range r.Notes {
		fmt.Fprintf(&b, "  %s\n", s)
	}
	for _, s := range r.Problems {
		fmt.Fprintf(&b, "  problem: %s\n", s)
	}
	for i := range r.Ports {
		r.Ports[i].text(&b, r.Kernel.Mode != "", r.all)
	}
	fmt.Fprintln(&b)
	switch {
	case r.Kernel.Mode == "":
	case r.Kernel.Differs:
		fmt.Fprintf(&b, "the kernel (%s) differs where it is said above\n", r.Kernel.Mode)
	default:
		fmt.Fprintf(&b, "the kernel (%s) holds just that\n", r.Kernel.Mode)
	}
	if r.Kernel.Unread != "" {
		fmt.Fprintf(&b, "the kernel was not read: %s\n", r.Kernel.Unread)
	}
	return b.String()
}

func (p *Port) text(b *strings.Builder, kernel, all bool) {
	name := p.Name
	if name != "" {
		name += " "
	}
	fmt.Fprintf(b, "\nport %s%d/%s\n", name, p.Port, p.Protocol)
	local := false
	for _, f := range p.Frontends {
		for _, c := range f.Clients {
			local = local || c.Policy == "Local"
		}
	}
	rows := [][]string{{"ENDPOINT", "POD", "NODE", "ZONE", "", "WHY"}}
	if local {
		rows[0] = []string{"ENDPOINT", "POD", "NODE", "ZONE", "CLUSTER", "LOCAL", "WHY"}
	}
	var reasons []string
	more := map[string]int{}
	for i, e := range p.Endpoints {
		row := []string{e.Address, e.Pod, e.Node, e.Zone, inOut(e.Cluster.In)}
		why := e.Cluster.Why
		if local {
			row = append(row, inOut(e.Local.In))
			if e.Local.Why != why {
				why += "; Local: " + e.Local.Why
			}
		}
		if i < listed || all {
			rows = append(rows, append(row, why))
			continue
		}
		reason := inOut(e.Cluster.In) + ": " + why
		if local {
			reason = "Cluster " + inOut(e.Cluster.In) + ", Local " + inOut(e.Local.In) + ": " + why
		}
		if more[reason] == 0 {
			reasons = append(reasons, reason)
		}
		more[reason]++
	}
	if len(rows) > 1 {
		table(b, rows)
		if len(reasons) > 0 {
			fmt.Fprintf(b, "  and %d more (--all lists them):\n", len(p.Endpoints)-listed)
		}
		for _, reason := range reasons {
			fmt.Fprintf(b, "    %d %s\n", more[reason], reason)
		}
		fmt.Fprintln(b)
	}
	rows = [][]string{{"ADDRESS", "KIND", "CLIENTS", "POLICY", "GET"}}
	if kernel {
		rows[0] = append(rows[0], "KERNEL")
	}
	for _, f := range p.Frontends {
		for i, c := range f.Clients {
			row := []string{f.address(), f.Kind, c.Who, c.Policy, f.gets(&c)}
			if i > 0 {
				row[0], row[1] = "", ""
			}
			if kernel {
				row = append(row, f.kernel(&c))
			}
			rows = append(rows, row)
		}
	}
	if len(rows) > 1 {
		table(b, rows)
	}
}

// address is the address for people: a NodePort is at those of the node.
func (f *Frontend) address() string {
	at, err := netip.ParseAddrPort(f.Address)
	if err == nil && at.Addr().IsUnspecified() {
		family := "IPv4"
		if at.Addr().Is6() {
			family = "IPv6"
		}
		return fmt.Sprintf("the node's %s:%d", family, at.Port())
	}
	return f.Address
}

func (f *Frontend) gets(c *Class) string {
	if f.TakenBy != "" {
		return "nothing: Service " + f.TakenBy + " has the address"
	}
	var text string
	switch c.Action {
	case "forward":
		text = backends(c.Backends)
	case "redirect":
		text = "the node's TLS proxy, which goes on to " + backends(c.Backends)
	case "reject":
		text = "refused: " + c.Why
	case "drop":
		text = "no answer: " + c.Why
	}
	if f.SourceRanges != nil && len(f.SourceRanges) == 0 {
		return "no answer: no range of loadBalancerSourceRanges is of the address's family"
	}
	if c.Barred {
		text = "no answer: the source ranges do not admit the client"
	}
	if f.SourceRanges != nil {
		text += fmt.Sprintf(" (only from %s)", strings.Join(f.SourceRanges, ", "))
	}
	if f.Affinity != "" && c.Action == "forward" {
		text += fmt.Sprintf(" (the same one for %s)", f.Affinity)
	}
	if f.Untracked {
		text += " (without connection tracking)"
	}
	if len(f.Standby) > 0 {
		text += fmt.Sprintf(" (while it does not answer, %s)", backends(f.Standby))
	}
	return text
}

func backends(list []string) string {
	more := ""
	if len(list) > shown {
		more = fmt.Sprintf(" and %d more", len(list)-shown)
		list = list[:shown]
	}
	return strings.Join(list, ", ") + more
}

func (f *Frontend) kernel(c *Class) string {
	switch {
	case f.TakenBy != "":
		return "-"
	case c.Differs != "":
		return "DIFFERS: " + c.Differs
	}
	return "the same"
}

func inOut(in bool) string {
	if in {
		return "in"
	}
	return "out"
}

// table writes rows in aligned columns, without blanks at the ends of lines.
func table(w io.Writer, rows [][]string) {
	var raw bytes.Buffer
	t := tabwriter.NewWriter(&raw, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if cell == "" {
				row[i] = " "
			}
		}
		fmt.Fprintln(t, "  "+strings.Join(row, "\t"))
	}
	_ = t.Flush() // a buffer takes everything
	for line := range strings.Lines(raw.String()) {
		fmt.Fprintln(w, strings.TrimRight(line, " \n"))
	}
}
