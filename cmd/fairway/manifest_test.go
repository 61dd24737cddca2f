package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

// execute runs a command as main does, without its exit.
func execute(cmd *cobra.Command, stdin string, args ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	cmd.SetArgs(args)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	err = cmd.Execute()
	return out.String(), errs.String(), err
}

const (
	manifestA = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"
	manifestB = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\n"
	old       = "apiVersion: v1\nkind: Service\nmetadata: {name: old}\nspec: {externalName: a.example}\n"
	oldNow    = "apiVersion: v1\nkind: Service\nmetadata: {name: old}\nspec: {type: ExternalName, externalName: a.example}\n"
	oldTold   = "document 1: Service old: spec.type: was not set; set to ExternalName, as spec.externalName is set\n"
)

func TestConvertCommand(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	a, b := write("in/a.yaml", manifestA), write("in/deep/b.yml", manifestB)
	write("in/notes.txt", "no manifest")
	bad := write("bad.yaml", "a: [\n---\n"+manifestA)
	write("empty/notes.txt", "")
	in := filepath.Join(dir, "in")
	web := httptest.NewServer(http.FileServer(http.Dir(in)))
	defer web.Close()
	tests := []struct {
		name, stdin, stdout, stderr string
		args                        []string
		err                         string
	}{
		{name: "files", args: []string{"-f", a, "-f", b}, stdout: manifestA + "---\n" + manifestB},
		{name: "list of files", args: []string{"-f", a + "," + b}, stdout: manifestA + "---\n" + manifestB},
		{name: "directory", args: []string{"-f", in}, stdout: manifestA},
		{name: "all below", args: []string{"-R", "-f", in}, stdout: manifestA + "---\n" + manifestB},
		{name: "URL", args: []string{"-f", web.URL + "/a.yaml", "-f", b}, stdout: manifestA + "---\n" + manifestB},
		{name: "URL of nothing", args: []string{"-f", web.URL + "/gone.yaml", "-f", a}, stdout: manifestA, stderr: "error: " + web.URL + "/gone.yaml: answered with 404 Not Found", err: "exit"},
		{name: "standard input", stdin: old, args: []string{"-f", "-"}, stdout: oldNow, stderr: "-: " + oldTold},
		{name: "JSON", stdin: manifestA, args: []string{"-f", "-", "-o", "json"}, stdout: "{\n  \"apiVersion\": \"v1\",\n  \"kind\": \"ConfigMap\",\n  \"metadata\": {\n    \"name\": \"a\"\n  }\n}\n"},
		{name: "other format", stdin: manifestA, args: []string{"-f", "-", "-o", "xml"}, err: "want yaml or json"},
		{name: "no such file", args: []string{"-f", filepath.Join(dir, "gone"), "-f", a}, stdout: manifestA, stderr: "no such file", err: "exit"},
		{name: "no manifest in it", args: []string{"-f", filepath.Join(dir, "empty")}, stderr: "-R", err: "exit"},
		{name: "one is bad", args: []string{"-f", bad}, stdout: manifestA, stderr: "document 1: is no YAML: line 1", err: "exit"},
		{name: "nothing", args: []string{"-f", "-"}, err: "holds no object"},
		{name: "no -f", err: "filename"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			stdout, stderr, err := execute(newConvertCommand(), tt.stdin, tt.args...)
			if d := cmp.Diff(tt.stdout, stdout); d != "" {
				t.Errorf("stdout (-want +got):\n%s", d)
			}
			if !strings.Contains(stderr, tt.stderr) || tt.stderr == "" && stderr != "" {
				t.Errorf("stderr: got %q, want %q", stderr, tt.stderr)
			}
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error: got %v, want %q", err, tt.err)
			}
		})
	}
}

func TestApplyCommandWithoutCluster(t *testing.T) {
	t.Setenv("KUBECONFIG", "")
	t.Setenv("HOME", t.TempDir())
	data := t.TempDir()
	stdout, stderr, err := execute(newApplyCommand(), old, "-f", "-", "--dry-run=client")
	if stdout != "Service old would be applied (client dry run)\n" || stderr != "-: "+oldTold || err != nil {
		t.Errorf("client dry run: %q, %q, %v", stdout, stderr, err)
	}
	_, _, err = execute(newApplyCommand(), old, "-f", "-", "--data-dir", data)
	if err == nil || !strings.Contains(err.Error(), "fairway up") {
		t.Errorf("no cluster: %v", err)
	}
	_, _, err = execute(newApplyCommand(), old, "-f", "-", "--dry-run=maybe")
	if err == nil || !strings.Contains(err.Error(), "want server, client or none") {
		t.Errorf("--dry-run=maybe: %v", err)
	}
}
