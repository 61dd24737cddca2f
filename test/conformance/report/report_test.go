package report

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// Names in testdata/ginkgo.json, which is cut out of a real run.
const (
	affinity = "[sig-network] Services should be able to switch session affinity for NodePort service [LinuxOnly] [Conformance]"
	hostPort = "[sig-network] HostPort validates that there is no conflict between pods with same hostPort but different hostIP and protocol [LinuxOnly] [Conformance]"
	hairpin  = "[sig-network] Services should allow pods to hairpin back to themselves through services"
	byItself = "[sig-network] Services should be skipped by itself"
)

func readTestdata(t *testing.T) ([]Test, []string) {
	t.Helper()
	f, err := os.Open("testdata/ginkgo.json")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tests, all, err := Read(f)
	if err != nil {
		t.Fatal(err)
	}
	return tests, all
}

// TestRead tells passed, failed, skipped by itself and never begun apart, and
// leaves other SIGs out.
func TestRead(t *testing.T) {
	tests, all := readTestdata(t)
	want := []Test{
		{hostPort, Failed, 48.7, "Failed to connect to exposed host ports"},
		{affinity, Passed, 40.1, ""},
		{byItself, Skipped, 1.5, "Need at least 3 schedulable nodes for this test"},
	}
	if !slices.Equal(tests, want) {
		t.Errorf("got %+v, want %+v", tests, want)
	}
	if len(all) != 5 || !slices.Contains(all, hairpin) || slices.ContainsFunc(all, func(s string) bool { return !strings.HasPrefix(s, sigNetwork) }) {
		t.Errorf("all: %q", all)
	}
	for what, text := range map[string]string{
		"no JSON":  "Ran 47 of 1001 Specs",
		"no tests": `[{"SpecReports":[]}]`,
		"suite":    `[{"SpecReports":[{"LeafNodeType":"BeforeSuite","State":"failed","Failure":{"Message":"no cluster"}}]}]`,
	} {
		if _, _, err := Read(strings.NewReader(text)); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

// TestRequired holds the selection to Kubernetes' own list: 47 tests in this
// version, none of them left out by an exclusion.
func TestRequired(t *testing.T) {
	required, err := Required()
	if err != nil {
		t.Fatal(err)
	}
	if len(required) != 47 || !slices.Contains(required, affinity) || !slices.Contains(required, hostPort) {
		t.Errorf("%d tests: %q", len(required), required)
	}
	pattern, _ := Selection(Conformance, "nft")
	focus := regexp.MustCompile(pattern)
	for _, name := range required {
		if reason := reasonFor(name, "nft"); reason != "" {
			t.Errorf("%s is excluded: %s", name, reason)
		}
		if !focus.MatchString(name) {
			t.Errorf("%s is not selected by %s", name, focus)
		}
	}
}

// TestMissingIsAFailure must not let a test that was not run pass for one that
// does not exist.
func TestMissingIsAFailure(t *testing.T) {
	tests, _ := readTestdata(t)
	got := Complete(tests, []string{affinity, hostPort, "[sig-network] other"})
	if n := len(got); n != 4 || !slices.Contains(got, Test{Name: "[sig-network] other", Result: Missing, Reason: "was not run"}) {
		t.Errorf("%d tests: %+v", n, got)
	}
}

// TestExpect puts every test into one suite or among the excluded, and the
// selection that Ginkgo gets says the same.
func TestExpect(t *testing.T) {
	_, all := readTestdata(t)
	required := []string{affinity, hostPort}
	const local = "[sig-network] LoadBalancers ExternalTrafficPolicy: Local [Feature:LoadBalancer] should work from pods [Slow]"
	all = append(all, local)
	const loopback = "[sig-network] LocalhostNodePorts should honor sessionAffinity=ClientIP for localhost NodePort"
	all = append(all, loopback)
	for _, dataPath := range DataPaths {
		services := []string{hairpin, byItself, loopback}
		if dataPath == "nft" {
			services = services[:2]
		}
		seen := map[string]int{}
		for _, suite := range Suites {
			run, excluded := Expect(suite, dataPath, all, required)
			for _, name := range run {
				seen[name]++
				focus, skip := Selection(suite, dataPath)
				if !regexp.MustCompile(focus).MatchString(name) || len(skip) > 0 && regexp.MustCompile(strings.Join(skip, "|")).MatchString(name) {
					t.Errorf("%s on %s: %s is expected and not selected", suite, dataPath, name)
				}
			}
			for _, e := range excluded {
				seen[e.Name]++
				if e.Result != Excluded || e.Reason == "" {
					t.Errorf("%+v", e)
				}
			}
			if want := map[string][]string{Conformance: required, Services: services, Local: {local}}[suite]; !slices.Equal(run, want) {
				t.Errorf("%s on %s: %q", suite, dataPath, run)
			}
		}
		for _, name := range all {
			if seen[name] != 1 {
				t.Errorf("%s: %s is in %d places", dataPath, name, seen[name])
			}
		}
	}
}

// TestErr: of the conformance tests nothing but passed will do; of the others
// what is skipped or excluded is no failure.
func TestErr(t *testing.T) {
	for _, tt := range []struct {
		suite, result string
		fails         bool
	}{
		{Conformance, Passed, false}, {Conformance, Failed, true}, {Conformance, Missing, true}, {Conformance, Skipped, true}, {Conformance, Excluded, true},
		{Services, Passed, false}, {Services, Failed, true}, {Services, Missing, true}, {Services, Skipped, false}, {Services, Excluded, false},
	} {
		run := Run{DataPath: "nft", Suites: []Suite{{Name: tt.suite, Tests: []Test{{Name: hairpin, Result: tt.result, Reason: "because"}}}}}
		err := run.Err()
		if (err != nil) != tt.fails || err != nil && !(strings.Contains(err.Error(), hairpin) && strings.Contains(err.Error(), "because")) {
			t.Errorf("%s %s: %v", tt.suite, tt.result, err)
		}
	}
}

// TestWriteAndRender keeps the suite and the data path that were not run again.
func TestWriteAndRender(t *testing.T) {
	dir := t.TempDir()
	date := time.Date(2026, 11, 25, 8, 0, 0, 0, time.UTC)
	suite := func(name string, nodes int, tests ...Test) Suite {
		return Suite{Name: name, Date: date, Fairway: "v1", Kubernetes: "v1.37.2", Kernel: "6.18", Nodes: nodes, Seconds: 61, Tests: tests}
	}
	for _, run := range []Run{
		{"nft", []Suite{suite(Conformance, 2, Test{Name: affinity, Result: Passed, Seconds: 40.1})}},
		{"nft", []Suite{suite(Services, 6, Test{Name: hairpin, Result: Skipped, Reason: "no | cause"}, Test{Name: "[sig-network] Netpol x", Result: Excluded, Reason: "not ours"})}},
		{"ebpf", []Suite{suite(Conformance, 2, Test{Name: affinity, Result: Failed, Seconds: 3, Reason: "timeout"})}},
	} {
		if err := Write(dir, run); err != nil {
			t.Fatal(err)
		}
	}
	if err := Render(dir); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "report.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"| ebpf | conformance | 0 | 1 failed | 2 | 61 s | 2026-11-25 | v1 | v1.37.2 | 6.18 |",
		"| nft | conformance | 1 | 0 | 2 | 61 s | 2026-11-25 | v1 | v1.37.2 | 6.18 |",
		"| nft | services | 0 | 1 skipped | 6 | 61 s | 2026-11-25 | v1 | v1.37.2 | 6.18 |",
		"| Services should be able to switch session affinity for NodePort service [LinuxOnly] | **failed** | 40.1 s |",
		"| Services should be able to switch session affinity for NodePort service [LinuxOnly] | ebpf, failed | timeout |",
		"| Services should allow pods to hairpin back to themselves through services | skipped |",
		`| Services should allow pods to hairpin back to themselves through services | nft, skipped | no \| cause |`,
		"| not ours | Netpol x |",
	} {
		if !strings.Contains(string(data), "\n"+line+"\n") {
			t.Errorf("the page lacks the line %s\n%s", line, data)
		}
	}
}
