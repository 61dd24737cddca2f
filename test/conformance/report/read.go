package report

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/onsi/ginkgo/v2/types"
	"go.yaml.in/yaml/v2"
	conformance "k8s.io/kubernetes/test/conformance/testdata"
)

// Results of a test.
const (
	Passed   = "passed"
	Failed   = "failed"
	Skipped  = "skipped"  // by the test itself, which says why
	Excluded = "excluded" // by the lists of this package, which say why
	Missing  = "missing"  // should have run and did not
)

// Test is one test of a suite.
type Test struct {
	// Name is the full name that Kubernetes gives it.
	Name string `json:"name"`
	// Result is one of the constants above.
	Result string `json:"result"`
	// Seconds is how long it ran, set-up and clean-up included.
	Seconds float64 `json:"seconds"`
	// Reason says why a test did not pass; "" if it did.
	Reason string `json:"reason,omitempty"`
}

// Read reads the JSON report of a Ginkgo run. It returns the tests of SIG
// network that have been started, and the names of all that the program holds.
func Read(r io.Reader) (tests []Test, all []string, err error) {
	var runs []types.Report
	if err := json.NewDecoder(r).Decode(&runs); err != nil {
		return nil, nil, fmt.Errorf("ginkgo's report: %w", err)
	}
	for _, run := range runs {
		for _, spec := range run.SpecReports {
			name := spec.FullText()
			if spec.LeafNodeType != types.NodeTypeIt || !strings.HasPrefix(name, sigNetwork) {
				if spec.Failed() && spec.LeafNodeType != types.NodeTypeIt {
					return nil, nil, fmt.Errorf("%s of the suite failed: %s", spec.LeafNodeType, firstLine(spec.FailureMessage()))
				}
				continue
			}
			all = append(all, name)
			// What the selection leaves out, and what a time limit does not let
			// begin, is skipped without an attempt.
			if spec.NumAttempts == 0 {
				continue
			}
			test := Test{Name: name, Seconds: math.Round(spec.RunTime.Seconds()*10) / 10}
			switch {
			case spec.State.Is(types.SpecStatePassed):
				test.Result = Passed
			case spec.State.Is(types.SpecStateSkipped | types.SpecStatePending):
				test.Result, test.Reason = Skipped, firstLine(spec.Failure.Message)
			default:
				test.Result, test.Reason = Failed, firstLine(spec.Failure.Message)
			}
			tests = append(tests, test)
		}
	}
	if len(all) == 0 {
		return nil, nil, fmt.Errorf("ginkgo's report has no test of %s", sigNetwork)
	}
	sortTests(tests)
	slices.Sort(all)
	return tests, all, nil
}

// Required returns the names of the conformance tests of SIG network, as
// Kubernetes publishes them for this version.
func Required() ([]string, error) {
	const path = "test/conformance/testdata/conformance.yaml"
	data, err := conformance.GetConformanceTestdataFS().ReadTestFile(path)
	if err != nil {
		return nil, fmt.Errorf("list of conformance tests: %w", err)
	}
	var entries []struct {
		Codename string `yaml:"codename"`
	}
	if err := yaml.Unmarshal(data, &entries); err != nil {
		return nil, fmt.Errorf("list of conformance tests: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Codename, sigNetwork) {
			names = append(names, e.Codename)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("list of conformance tests: none of %s", sigNetwork)
	}
	slices.Sort(names)
	return names, nil
}

// Complete adds to the tests that ran those that should have and did not.
func Complete(ran []Test, required []string) []Test {
	out := slices.Clone(ran)
	for _, name := range required {
		if !slices.ContainsFunc(ran, func(t Test) bool { return t.Name == name }) {
			out = append(out, Test{Name: name, Result: Missing, Reason: "was not run"})
		}
	}
	sortTests(out)
	return out
}

func sortTests(tests []Test) {
	slices.SortFunc(tests, func(a, b Test) int { return strings.Compare(a.Name, b.Name) })
}

// firstLine keeps a reason to what fits in a table.
func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	if runes := []rune(s); len(runes) > 200 {
		s = string(runes[:200]) + "…"
	}
	return s
}
