package dialect

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "write the golden files anew")

// cluster is a Services that knows what it holds.
type cluster map[string][]ServicePort

func (c cluster) ServicePorts(namespace, name string) ([]ServicePort, bool) {
	p, ok := c[namespace+"/"+name]
	return p, ok
}

// told is what `fairway convert` prints to stderr.
func told(r Result) string {
	var b strings.Builder
	for _, m := range r.Remarks {
		fmt.Fprintln(&b, m)
	}
	for _, p := range r.Problems {
		fmt.Fprintln(&b, "error:", p)
	}
	return b.String()
}

func yamlOf(t *testing.T, r Result) string {
	t.Helper()
	b, err := YAML(r.Objects)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// checkTwice converts the result again, which must change nothing.
func checkTwice(t *testing.T, once string) {
	t.Helper()
	again := Convert([]Input{{Name: "again", Data: []byte(once)}}, Options{})
	if d := cmp.Diff(once, yamlOf(t, again)); d != "" {
		t.Errorf("converting twice changes the result:\n%s", d)
	}
	if s := told(again); s != "" {
		t.Errorf("converting twice says:\n%s", s)
	}
}

// TestArticle converts the article's manifests as they are printed.
func TestArticle(t *testing.T) {
	files, err := filepath.Glob("testdata/article/*.yaml")
	if err != nil || len(files) != 15 {
		t.Fatalf("got %d manifests, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			r := Convert([]Input{{Name: filepath.Base(file), Data: data}}, Options{})
			got := yamlOf(t, r)
			golden(t, strings.TrimSuffix(file, ".yaml")+".golden", got, told(r))
			checkTwice(t, got)
		})
	}
}

func golden(t *testing.T, file, stdout, stderr string) {
	t.Helper()
	got := txtar.Format(&txtar.Archive{Files: []txtar.File{{Name: "stdout", Data: []byte(stdout)}, {Name: "stderr", Data: []byte(stderr)}}})
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestScripts reads archives of the parts in.yaml, want.yaml and want.txt.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	known := cluster{
		"default/from-cluster": {{Name: "sql", Port: 3307, AppProtocol: "mysql"}},
		"shop/from-cluster":    {{Name: "http", Port: 3306}},
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			parts := map[string]string{}
			for _, f := range a.Files {
				parts[f.Name] = string(f.Data)
			}
			r := Convert([]Input{{Name: "in.yaml", Data: []byte(parts["in.yaml"])}}, Options{Services: known})
			got, said := yamlOf(t, r), told(r)
			checkTwice(t, got)
			if *update {
				a.Files = []txtar.File{a.Files[0], {Name: "want.yaml", Data: []byte(got)}, {Name: "want.txt", Data: []byte(said)}}
				if err := os.WriteFile(file, bytes.TrimLeft(txtar.Format(a), "\n"), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(parts["want.yaml"], got); d != "" {
				t.Errorf("output (-want +got):\n%s", d)
			}
			if d := cmp.Diff(parts["want.txt"], said); d != "" {
				t.Errorf("remarks (-want +got):\n%s", d)
			}
		})
	}
}
