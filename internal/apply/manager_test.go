package apply

import (
	"net/http"
	"strings"
	"testing"
)

func TestAdoptsWhatAnOlderVersionApplied(t *testing.T) {
	const service = "/api/v1/namespaces/default/services/web"
	old := func(f *fakeAPI) {
		f.objects[service] = map[string]any{"apiVersion": "v1", "kind": "Service", "metadata": map[string]any{
			"name": "web", "namespace": "default", "resourceVersion": "0",
			"managedFields": []any{
				map[string]any{"manager": "kubelet", "operation": "Update"},
				map[string]any{"manager": "fairway", "operation": "Update"},
				map[string]any{"manager": "fairway", "operation": "Apply"},
			},
		}}
	}
	managers := func(f *fakeAPI) string {
		var all []string
		for _, m := range f.objects[service]["metadata"].(map[string]any)["managedFields"].([]any) {
			all = append(all, m.(map[string]any)["manager"].(string)+" "+m.(map[string]any)["operation"].(string))
		}
		return strings.Join(all, ", ")
	}
	const manifest = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n"
	const unchanged, adopted = "kubelet Update, fairway Update, fairway Apply", "kubelet Update, fairway Update, fairway-apply Apply"
	tests := []struct {
		name    string
		options Options
		fault   bool
		want    string
		query   string
	}{
		{"applied", Options{}, false, adopted, "fieldManager=fairway-apply&"},
		{"somebody writes meanwhile", Options{}, true, adopted, "fieldManager=fairway-apply&"},
		{"dry run", Options{DryRun: true}, false, unchanged, "fieldManager=fairway&"},
		{"Fairway's own", Options{Kept: func(kind, namespace, name string, _ map[string]string) bool {
			return kind == "Service" && namespace == "default" && name == "web"
		}}, false, unchanged, "fieldManager=fairway-apply&"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f, cluster := startFake(t)
			old(f)
			f.fault = func(_ http.ResponseWriter, r *http.Request) bool {
				if test.fault && r.Method == http.MethodPatch {
					test.fault = false
					f.objects[service]["metadata"].(map[string]any)["resourceVersion"] = "other"
				}
				return false
			}
			test.options.Cluster = cluster
			_, errs := run(t, test.options, manifest)
			check(t, "errors", nil, errs)
			if got := managers(f); got != test.want {
				t.Errorf("managers are %s, want %s", got, test.want)
			}
			if q := f.queries[len(f.queries)-1]; !strings.Contains(q, test.query) {
				t.Errorf("asked %q, want %q", q, test.query)
			}
			// What is adopted is so for good, and no write by itself.
			patches := len(f.patched)
			if run(t, test.options, manifest); len(f.patched) != patches+1 {
				t.Errorf("again: patched %d times", len(f.patched)-patches)
			}
		})
	}
}
