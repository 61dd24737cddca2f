package fairway

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "fairway.dev/fairway"

// depsRule is one line of the lattice.
type depsRule struct {
	pkg   string
	may   []string
	k8s   bool     // may import any k8s.io and sigs.k8s.io package
	other []string // single packages of those that it may import
}

// depsRules is the import lattice of docs/architecture.md: what each package
// may import from this module. A name that ends in "/..." stands for the
// package and all below it.
//
// DO NOT CHANGE THIS DATA TO FIX A BUILD. A new edge is a decision about the
// architecture: say why in docs/adr.
var depsRules = []depsRule{
	{pkg: "internal/model"},
	{pkg: "internal/httppath"},
	{pkg: "internal/corefile", may: []string{"internal/model"}},
	{pkg: "internal/state", may: []string{"internal/model"}},
	{pkg: "internal/plan", may: []string{"internal/model", "internal/state"}},
	{pkg: "internal/lastknown", may: []string{"internal/model", "internal/state"}},
	{pkg: "internal/reconcile", may: []string{"internal/model", "internal/state"}},
	{pkg: "internal/certs", may: []string{"internal/model", "internal/state"}},

	{pkg: "internal/source/translate", may: []string{"internal/model", "internal/state", "internal/certs", "internal/httppath", "internal/corefile"}, k8s: true},
	{pkg: "internal/source/...", may: []string{"internal/model", "internal/state", "internal/source/translate", "internal/source/slim"}, k8s: true},

	{pkg: "internal/dataplane/cases", may: []string{"internal/model", "internal/state", "internal/plan", "internal/reconcile", "internal/dataplane", "internal/testenv"}},
	{pkg: "internal/dataplane/...", may: consumer("internal/dataplane")},
	{pkg: "internal/conntrack", may: consumer()},
	{pkg: "internal/healthport", may: consumer()},
	{pkg: "internal/dns/...", may: consumer("internal/dns/...", "internal/listen")},
	{pkg: "internal/gateway/...", may: consumer("internal/gateway/...")},
	{pkg: "internal/sysctl"},
	{pkg: "internal/listen"},
	{pkg: "internal/explain", may: consumer("internal/dataplane", "internal/gateway/...")},
	{pkg: "internal/servicetls", may: consumer("internal/listen")},
	{pkg: "internal/lb/...", may: consumer("internal/lb/...")},
	{pkg: "internal/status/kube", may: consumer("internal/lb/ipam", "internal/source/translate"), k8s: true},
	{pkg: "internal/bootstrap", may: []string{"internal/model"}, k8s: true},

	{pkg: "internal/echo/...", may: []string{"internal/echo/..."}},
	{pkg: "internal/dialect", k8s: true},
	{pkg: "internal/apply", may: []string{"internal/dialect"}, k8s: true},
	{pkg: "internal/up/...", may: []string{"internal/up/..."}, other: []string{"sigs.k8s.io/yaml"}},
	{pkg: "internal/tour"},
	{pkg: "test/scenario"},
	{pkg: "test/bench/l4", may: []string{"internal/testenv/kubeapi"}, k8s: true},
	{pkg: "test/bench/httpload", may: []string{"internal/testenv/kubeapi"}, k8s: true},
	{pkg: "test/bench/http", may: []string{"internal/model", "internal/state", "internal/gateway", "internal/gateway/garbage"}},
	{pkg: "internal/testenv/...", may: []string{"internal/testenv/..."}, k8s: true},
	{pkg: "internal/agent", may: []string{"internal/..."}, k8s: true},
	{pkg: "cmd/fairway", may: []string{"internal/..."}, other: []string{"k8s.io/client-go/tools/clientcmd"}},
	{pkg: "."},
}

// consumer is what every consumer of snapshots may import, and extra.
func consumer(extra ...string) []string {
	return append([]string{"internal/model", "internal/state", "internal/plan", "internal/reconcile", "internal/certs", "internal/httppath"}, extra...)
}

type pkgInfo struct {
	ImportPath  string
	Doc         string
	Imports     []string
	TestImports []string
	Deps        []string
}

// rel is the package's path in the module.
func (p pkgInfo) rel() string {
	if p.ImportPath == module {
		return "."
	}
	return strings.TrimPrefix(p.ImportPath, module+"/")
}

func listPackages(t *testing.T) []pkgInfo {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command("go", "list", "-json=ImportPath,Doc,Imports,TestImports,Deps", "./...")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var all []pkgInfo
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkgInfo
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func matches(pattern, pkg string) bool {
	if dir, ok := strings.CutSuffix(pattern, "/..."); ok {
		return pkg == dir || strings.HasPrefix(pkg, dir+"/")
	}
	return pattern == pkg
}

func TestImportLattice(t *testing.T) {
	for _, p := range listPackages(t) {
		i := slices.IndexFunc(depsRules, func(r depsRule) bool { return matches(r.pkg, p.rel()) })
		if i < 0 {
			t.Errorf("%s stands in no rule of depsRules", p.rel())
			continue
		}
		rule := depsRules[i]
		for _, imp := range p.Imports {
			if own, ok := strings.CutPrefix(imp, module+"/"); ok {
				if !slices.ContainsFunc(rule.may, func(m string) bool { return matches(m, own) }) {
					t.Errorf("%s must not import %s", p.rel(), own)
				}
				continue
			}
			isK8s := strings.HasPrefix(imp, "k8s.io/") || strings.HasPrefix(imp, "sigs.k8s.io/")
			if isK8s && !rule.k8s && !slices.Contains(rule.other, imp) {
				t.Errorf("%s must not import %s: Kubernetes types end in internal/source", p.rel(), imp)
			}
			if rule.pkg == "internal/model" && strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") {
				t.Errorf("%s must import the standard library only, not %s", p.rel(), imp)
			}
		}
	}
}

// TestSmallCore keeps the core module light: Kubernetes itself belongs to the
// standalone module.
func TestSmallCore(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, dep := range p.Deps {
			if strings.HasPrefix(dep, "k8s.io/kubernetes/") || strings.HasPrefix(dep, "k8s.io/apiserver/") || strings.HasPrefix(dep, "go.etcd.io/") {
				t.Errorf("%s depends on %s", p.rel(), dep)
			}
		}
	}
}

func TestEveryPackageIsDocumented(t *testing.T) {
	for _, p := range listPackages(t) {
		if p.Doc == "" {
			t.Errorf("%s has no package doc: say what it owns and what it must not do", p.rel())
		}
	}
}

// TestNoTraces keeps out of the repository what belongs to somebody's machine.
func TestNoTraces(t *testing.T) {
	out, err := exec.Command("git", "grep", "-nIE", `(^|[^A-Za-z0-9._/-])/(work|root|home)/[A-Za-z.]|proxy\.golang\.org|registry\.npmjs`, "--", ".", ":!go.sum", ":!*/go.sum", ":!deps_test.go").Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		return // nothing found
	}
	if err != nil {
		t.Fatalf("git grep: %v", err)
	}
	t.Errorf("paths of a machine, or hosts of a registry:\n%s", out)
}
