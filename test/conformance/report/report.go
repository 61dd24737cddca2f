package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// DataPaths are the data paths that there may be a run of, in the order of the
// page.
var DataPaths = []string{"ebpf", "nft"}

// Run is what the JSON file of a data path holds.
type Run struct {
	DataPath string  `json:"dataPath"`
	Suites   []Suite `json:"suites"`
}

// Suite is one start of the tests against one cluster.
type Suite struct {
	Name string `json:"name"`
	// Date is when it began.
	Date       time.Time `json:"date"`
	Fairway    string    `json:"fairway"`
	Kubernetes string    `json:"kubernetes"`
	Kernel     string    `json:"kernel"`
	Nodes      int       `json:"nodes"`
	// Zones are the zones that the nodes are in by turns.
	Zones   string  `json:"zones,omitempty"`
	Seconds float64 `json:"seconds"`
	Tests   []Test  `json:"tests"`
}

// Count returns how many tests have a result.
func (s Suite) Count(result string) int {
	n := 0
	for _, t := range s.Tests {
		if t.Result == result {
			n++
		}
	}
	return n
}

// Err tells that something is not as it has to be: a conformance test that did
// not pass, whatever the reason, or another test that failed or did not run.
func (r Run) Err() error {
	var errs []error
	for _, s := range r.Suites {
		for _, t := range s.Tests {
			if t.Result == Passed || s.Name != Conformance && (t.Result == Skipped || t.Result == Excluded) {
				continue
			}
			errs = append(errs, fmt.Errorf("%s on %s: %s: %s (%s)", s.Name, r.DataPath, t.Name, t.Result, t.Reason))
		}
	}
	return errors.Join(errs...)
}

// Write stores a run as DIR/<data path>.json. Suites that the run does not have
// are kept from the file that was there, so that one can be run alone.
func Write(dir string, run Run) error {
	path := filepath.Join(dir, run.DataPath+".json")
	before, err := load(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		run.Suites = merge(before.Suites, run.Suites)
	}
	data, err := json.MarshalIndent(run, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

func merge(before, now []Suite) []Suite {
	var out []Suite
	for _, name := range Suites {
		for _, suites := range [][]Suite{now, before} {
			if s, ok := find(suites, name); ok {
				out = append(out, s)
				break
			}
		}
	}
	return out
}

func find(suites []Suite, name string) (Suite, bool) {
	for _, s := range suites {
		if s.Name == name {
			return s, true
		}
	}
	return Suite{}, false
}

func load(path string) (Run, error) {
	var run Run
	data, err := os.ReadFile(path)
	if err != nil {
		return run, err
	}
	if err := json.Unmarshal(data, &run); err != nil {
		return run, fmt.Errorf("%s: %w", path, err)
	}
	return run, nil
}

// Render writes DIR/report.md from the runs in DIR.
func Render(dir string) error {
	var runs []Run
	for _, dataPath := range DataPaths {
		run, err := load(filepath.Join(dir, dataPath+".json"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		runs = append(runs, run)
	}
	return os.WriteFile(filepath.Join(dir, "report.md"), []byte(page(runs)), 0o644)
}

// page is the whole report.
func page(runs []Run) string {
	var b strings.Builder
	b.WriteString("# Conformance report\n\nMade by `make conformance`; [how, and what it proves](README.md).\n\n" +
		"| data path | suite | passed | not passed | nodes | took | date | Fairway | Kubernetes | Linux |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range runs {
		for _, s := range r.Suites {
			nodes := fmt.Sprint(s.Nodes)
			if s.Zones != "" {
				nodes += " in zones " + s.Zones
			}
			fmt.Fprintf(&b, "| %s | %s | %d | %s | %s | %.0f s | %s | %s | %s | %s |\n", r.DataPath, s.Name, s.Count(Passed), s.notPassed(),
				nodes, s.Seconds, s.Date.UTC().Format(time.DateOnly), s.Fairway, s.Kubernetes, s.Kernel)
		}
	}
	section(&b, runs, Conformance, "Conformance tests of SIG network")
	section(&b, runs, Services, "Other tests of SIG network")
	section(&b, runs, Local, "Other tests of SIG network: external traffic to the node of the Pod")
	return b.String()
}

// notPassed counts what did not pass, by result.
func (s Suite) notPassed() string {
	var parts []string
	for _, result := range []string{Failed, Missing, Skipped} {
		if n := s.Count(result); n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, result))
		}
	}
	if len(parts) == 0 {
		return "0"
	}
	return strings.Join(parts, ", ")
}

// section is the part of one suite: a table of the tests with a column for each
// data path, the reasons of those that did not pass, and those that did not run.
func section(b *strings.Builder, runs []Run, suite, title string) {
	var of []Run // with the suite
	for _, r := range runs {
		if _, ok := find(r.Suites, suite); ok {
			of = append(of, r)
		}
	}
	if len(of) == 0 {
		return
	}
	fmt.Fprintf(b, "\n## %s\n\n", title)
	cells := map[string]map[string]Test{} // by test, data path
	var ran, out []string
	for _, r := range of {
		s, _ := find(r.Suites, suite)
		for _, t := range s.Tests {
			if cells[t.Name] == nil {
				cells[t.Name] = map[string]Test{}
				if t.Result == Excluded {
					out = append(out, t.Name)
				} else {
					ran = append(ran, t.Name)
				}
			}
			cells[t.Name][r.DataPath] = t
		}
	}
	b.WriteString("| test |")
	for _, r := range of {
		fmt.Fprintf(b, " %s |", r.DataPath)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(of)) + "\n")
	var reasons []string
	for _, name := range ran {
		fmt.Fprintf(b, "| %s |", short(name))
		for _, r := range of {
			t := cells[name][r.DataPath]
			fmt.Fprintf(b, " %s |", cell(t))
			if t.Reason != "" {
				reasons = append(reasons, fmt.Sprintf("| %s | %s, %s | %s |\n", short(name), r.DataPath, t.Result, escape(t.Reason)))
			}
		}
		b.WriteString("\n")
	}
	if len(reasons) > 0 {
		b.WriteString("\nDid not pass:\n\n| test | result | reason |\n|---|---|---|\n" + strings.Join(reasons, ""))
	}
	notRun(b, out, cells)
}

// notRun groups the tests that are left out by their reason.
func notRun(b *strings.Builder, names []string, cells map[string]map[string]Test) {
	if len(names) == 0 {
		return
	}
	var order []string
	groups := map[string][]string{}
	for _, name := range names {
		reason := ""
		for _, t := range cells[name] {
			reason = t.Reason
		}
		if groups[reason] == nil {
			order = append(order, reason)
		}
		groups[reason] = append(groups[reason], short(name))
	}
	b.WriteString("\nNot run:\n\n| why | tests |\n|---|---|\n")
	for _, reason := range order {
		tests := groups[reason]
		if n := len(tests); n > 3 {
			tests = append(tests[:2:2], fmt.Sprintf("and %d more", n-2))
		}
		fmt.Fprintf(b, "| %s | %s |\n", escape(reason), strings.Join(tests, "; "))
	}
}

func cell(t Test) string {
	switch t.Result {
	case "":
		return ""
	case Passed:
		return fmt.Sprintf("%.1f s", t.Seconds)
	case Failed, Missing:
		return "**" + t.Result + "**"
	}
	return t.Result
}

// short leaves out of a test's name what all have in common.
func short(name string) string {
	name = strings.TrimPrefix(name, sigNetwork+" ")
	return escape(strings.TrimSuffix(strings.ReplaceAll(name, " [Conformance]", ""), " "))
}

func escape(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
