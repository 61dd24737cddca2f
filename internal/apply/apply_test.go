package apply

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/internal/dialect"
)

// run applies a manifest and returns what it says: outcomes, then errors.
func run(t *testing.T, o Options, manifest string) (said, errs []string) {
	t.Helper()
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	namespace := o.Namespace
	if namespace == "" {
		namespace = o.Cluster.Namespace
	}
	r := dialect.Convert([]dialect.Input{{Name: "in.yaml", Data: []byte(manifest)}}, dialect.Options{Namespace: namespace, Services: a})
	for _, p := range r.Problems {
		t.Error(p)
	}
	a.Apply(t.Context(), r.Objects,
		func(o Outcome) { said = append(said, o.String()) },
		func(err error) { errs = append(errs, err.Error()) })
	return said, errs
}

func check(t *testing.T, what string, want, got []string) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

const twoObjects = `apiVersion: networking.k8s.io/v1beta1
kind: Ingress
metadata: {name: web}
spec: {backend: {serviceName: web, servicePort: 80}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{port: 80, nodePort: 30001}]}
`

func TestOutcomes(t *testing.T) {
	f, cluster := startFake(t)
	o := Options{Cluster: cluster}
	dry := Options{Cluster: cluster, DryRun: true}
	service, ingress := "/api/v1/namespaces/default/services/web", "/apis/networking.k8s.io/v1/namespaces/default/ingresses/web"

	said, errs := run(t, dry, twoObjects)
	check(t, "dry run", []string{"service/web created (server dry run)", "ingress.networking.k8s.io/web created (server dry run)"}, said)
	check(t, "dry run", nil, errs)
	if len(f.objects) > 0 || f.queries[0] != "dryRun=All&fieldManager=fairway-apply&fieldValidation=Strict&force=false" {
		t.Errorf("dry run kept %v, asked %q", f.objects, f.queries)
	}
	said, _ = run(t, o, twoObjects)
	check(t, "first", []string{"service/web created (server-side applied)", "ingress.networking.k8s.io/web created (server-side applied)"}, said)
	check(t, "order", []string{service, ingress}, f.patched[2:])
	said, _ = run(t, o, twoObjects)
	check(t, "again", []string{"service/web unchanged (server-side applied)", "ingress.networking.k8s.io/web unchanged (server-side applied)"}, said)
	said, _ = run(t, dry, strings.ReplaceAll(twoObjects, "port: 80,", "port: 81,"))
	check(t, "dry run of a change", []string{"service/web configured (server dry run)", "ingress.networking.k8s.io/web unchanged (server dry run)"}, said)
	o.ForceConflicts = true
	said, _ = run(t, o, strings.ReplaceAll(twoObjects, "port: 80,", "port: 81,"))
	check(t, "change", []string{"service/web configured (server-side applied)", "ingress.networking.k8s.io/web unchanged (server-side applied)"}, said)
	if q := f.queries[len(f.queries)-1]; q != "fieldManager=fairway-apply&fieldValidation=Strict&force=true" {
		t.Errorf("forced with %q", q)
	}
}

func TestNamespaces(t *testing.T) {
	f, cluster := startFake(t)
	cluster.Namespace = "of-context"
	const manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: b, namespace: shop}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"
	_, errs := run(t, Options{Cluster: cluster}, manifest)
	check(t, "errors", nil, errs)
	slices.Sort(f.patched[1:])
	check(t, "context", []string{"/api/v1/namespaces/shop", "/api/v1/namespaces/of-context/configmaps/a", "/api/v1/namespaces/shop/configmaps/b"}, f.patched)
	f.patched = nil
	_, errs = run(t, Options{Cluster: cluster, Namespace: "flag"}, manifest)
	check(t, "flag", []string{"/api/v1/namespaces/shop", "/api/v1/namespaces/flag/configmaps/a"}, f.patched)
	check(t, "errors", []string{"in.yaml: document 2: ConfigMap shop/b: metadata.namespace: is shop, but -n asks for flag; leave out one of them"}, errs)
}

// TestNamesThatAreNoText has plain words that YAML 1.1, which kubectl reads, takes for something else.
func TestNamesThatAreNoText(t *testing.T) {
	f, cluster := startFake(t)
	const manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: no}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: 1}\n" +
		"---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: b, namespace: null}\n"
	_, errs := run(t, Options{Cluster: cluster}, manifest)
	check(t, "errors", []string{
		"in.yaml: document 1: ConfigMap no/a: metadata.namespace: is false where a string is wanted; write it in quotes",
		"in.yaml: document 2: ConfigMap 1: metadata.name: is 1 where a string is wanted; write it in quotes",
	}, errs)
	check(t, "applied", []string{"/api/v1/namespaces/default/configmaps/b"}, f.patched)
}

func TestFaults(t *testing.T) {
	const service = "apiVersion: v1\nkind: Service\nmetadata: {name: NAME}\nspec: {ports: [{port: 80}]}\n"
	tests := []struct {
		name   string
		status metav1.Status
		want   []string
	}{
		{"invalid", metav1.Status{Code: 422, Reason: metav1.StatusReasonInvalid, Message: "all", Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{
			{Field: "spec.ports[0].nodePort", Message: "Invalid value: 8080: provided port is not in the valid range. The range of valid ports is 30000-32767"},
			{Field: "spec.type", Message: "Unsupported value"},
		}}}, []string{
			"in.yaml: document 2: Service bad: spec.ports[0].nodePort: Invalid value: 8080: provided port is not in the valid range. The range of valid ports is 30000-32767",
			"in.yaml: document 2: Service bad: spec.type: Unsupported value",
		}},
		{"conflict", metav1.Status{Code: 409, Reason: metav1.StatusReasonConflict, Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{
			{Type: metav1.CauseTypeFieldManagerConflict, Field: ".spec.ports", Message: `conflict with "kubectl" using v1`},
		}}}, []string{`in.yaml: document 2: Service bad: spec.ports: conflict with "kubectl" using v1; --force-conflicts takes the field over`}},
		{"server error", metav1.Status{Code: 500, Reason: metav1.StatusReasonInternalError, Message: "etcd has no leader"},
			[]string{"in.yaml: document 2: Service bad: etcd has no leader"}},
		{"no namespace", metav1.Status{Code: 404, Reason: metav1.StatusReasonNotFound, Message: `namespaces "x" not found`, Details: &metav1.StatusDetails{Kind: "namespaces", Name: "x"}},
			[]string{"in.yaml: document 2: Service bad: metadata.namespace: namespace x does not exist; create it, or add it to the input"}},
		{"unknown field", metav1.Status{Code: 500, Message: "failed to create typed patch object (default/bad; /v1, Kind=Service): .spec.prts: field not declared in schema"},
			[]string{"in.yaml: document 2: Service bad: spec.prts: is not known to the API; check its spelling"}},
		{"several unknown fields", metav1.Status{Code: 500, Message: "failed to create typed patch object (default/bad; /v1, Kind=Service): errors:\n  .data.n: expected string, got &value.valueUnstructured{Value:31}\n  .spec.ports[port=80,protocol=\"TCP\"].x: field not declared in schema\n  .metadata: expected map, got &value.valueUnstructured{Value:\"a\"}"},
			[]string{
				"in.yaml: document 2: Service bad: data.n: is 31 where a string is wanted; write it in quotes",
				`in.yaml: document 2: Service bad: spec.ports[port=80,protocol="TCP"].x: is not known to the API; check its spelling`,
				`in.yaml: document 2: Service bad: metadata: is "a" where a map is wanted`,
			}},
		{"forbidden", metav1.Status{Code: 403, Reason: metav1.StatusReasonForbidden, Message: "user may not patch"},
			[]string{"in.yaml: document 2: Service bad: user may not patch"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, cluster := startFake(t)
			f.fault = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodPatch && strings.HasSuffix(r.URL.Path, "/bad") {
					fail(w, tt.status)
					return true
				}
				return false
			}
			manifest := strings.Replace(service, "NAME", "one", 1) + "---\n" + strings.Replace(service, "NAME", "bad", 1) + "---\n" + strings.Replace(service, "NAME", "two", 1)
			said, errs := run(t, Options{Cluster: cluster}, manifest)
			check(t, "errors", tt.want, errs)
			check(t, "others", []string{"service/one created (server-side applied)", "service/two created (server-side applied)"}, said)
		})
	}
}

// TestCutConnection breaks a connection in the middle of an answer.
func TestCutConnection(t *testing.T) {
	f, cluster := startFake(t)
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPatch && strings.HasSuffix(r.URL.Path, "/services/web") {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte(`{"kind":`))
			panic(http.ErrAbortHandler)
		}
		return false
	}
	said, errs := run(t, Options{Cluster: cluster}, twoObjects)
	check(t, "others", []string{"ingress.networking.k8s.io/web created (server-side applied)"}, said)
	if len(errs) != 1 || !strings.HasPrefix(errs[0], "in.yaml: document 2: Service web: ") {
		t.Errorf("errors: %q", errs)
	}
}

// TestServerGone holds that a server which goes away is told once, and not for
// each object.
func TestServerGone(t *testing.T) {
	f, cluster := startFake(t)
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Connection", "close") // no idle connection is left to use
		if strings.HasSuffix(r.URL.Path, "/services/web") {
			f.stop()
		}
		return false
	}
	said, errs := run(t, Options{Cluster: cluster}, twoObjects+"---\napiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: more}\n")
	check(t, "outcomes", nil, said)
	if len(errs) != 2 || !strings.Contains(errs[0], "document 2: Service web: ") || !strings.HasSuffix(errs[1], "is gone; apply the rest again when it is back") {
		t.Errorf("errors: %q", errs)
	}
}

func TestUnserved(t *testing.T) {
	_, cluster := startFake(t)
	said, errs := run(t, Options{Cluster: cluster}, "apiVersion: networking.k8s.io/v2\nkind: Ingress\nmetadata: {name: a}\n---\napiVersion: x.example/v1\nkind: Foo\nmetadata: {name: a}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {generateName: a-}\n")
	check(t, "outcomes", nil, said)
	check(t, "errors", []string{
		"in.yaml: document 3: ConfigMap a-: metadata.name: is missing: generateName cannot be applied; give a name, or use kubectl create",
		"in.yaml: document 2: Foo a: apiVersion: the API server does not serve kind Foo in x.example/v1; check the spelling, or apply its CustomResourceDefinition first",
		"in.yaml: document 1: Ingress a: apiVersion: the API server does not serve kind Ingress in networking.k8s.io/v2; write networking.k8s.io/v1",
	}, errs)
}

// TestDefinitionFirst holds that custom resources wait for their definition,
// wherever it stands in the input.
func TestDefinitionFirst(t *testing.T) {
	f, cluster := startFake(t)
	f.crdAfter = 3
	said, errs := run(t, Options{Cluster: cluster}, "apiVersion: example.com/v1\nkind: Thing\nmetadata: {name: a}\n---\napiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: things.example.com}\n")
	check(t, "errors", nil, errs)
	check(t, "outcomes", []string{"customresourcedefinition.apiextensions.k8s.io/things.example.com created (server-side applied)", "thing.example.com/a created (server-side applied)"}, said)
}

func TestDefinitionNeverEstablished(t *testing.T) {
	f, cluster := startFake(t)
	f.crdAfter = 1 << 30
	_, errs := run(t, Options{Cluster: cluster, Patience: 300 * time.Millisecond}, "apiVersion: example.com/v1\nkind: Thing\nmetadata: {name: a}\n---\napiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: things.example.com}\n")
	if len(errs) != 2 || !strings.Contains(errs[0], "things.example.com: is not established") {
		t.Errorf("got %q", errs)
	}
}

// TestServiceAccountOfNewNamespace holds that a Pod waits for the service
// account that appears a moment after its namespace.
func TestServiceAccountOfNewNamespace(t *testing.T) {
	f, cluster := startFake(t)
	refused := 0
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPatch && strings.Contains(r.URL.Path, "/pods/") && refused < 2 {
			refused++
			fail(w, metav1.Status{Code: 403, Reason: metav1.StatusReasonForbidden, Message: `pods "a" is forbidden: error looking up service account shop/default: serviceaccount "default" not found`})
			return true
		}
		return false
	}
	said, errs := run(t, Options{Cluster: cluster}, "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")
	check(t, "errors", nil, errs)
	check(t, "outcomes", []string{"namespace/shop created (server-side applied)", "pod/a created (server-side applied)"}, said)
	refused = -1 << 30
	_, errs = run(t, Options{Cluster: cluster, Patience: 300 * time.Millisecond}, "apiVersion: v1\nkind: Pod\nmetadata: {name: b, namespace: shop}\n")
	if len(errs) != 1 || !strings.Contains(errs[0], "service account") {
		t.Errorf("got %q", errs)
	}
}

func TestCancel(t *testing.T) {
	_, cluster := startFake(t)
	a, err := New(Options{Cluster: cluster})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := dialect.Convert([]dialect.Input{{Name: "in.yaml", Data: []byte(twoObjects)}}, dialect.Options{})
	var errs []string
	a.Apply(ctx, r.Objects, func(o Outcome) { t.Error(o) }, func(err error) { errs = append(errs, err.Error()) })
	check(t, "errors", []string{"stopped before in.yaml: document 2: Service web: context canceled"}, errs)
}

// TestDryRunOfWhatIsNotThere holds that a dry run tells what it cannot check
// from what is wrong.
func TestDryRunOfWhatIsNotThere(t *testing.T) {
	f, cluster := startFake(t)
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPatch && strings.Contains(r.URL.Path, "/configmaps/") {
			name := strings.Split(r.URL.Path, "/")[4]
			fail(w, metav1.Status{Code: 404, Reason: metav1.StatusReasonNotFound, Message: "not found", Details: &metav1.StatusDetails{Kind: "namespaces", Name: name}})
			return true
		}
		return false
	}
	said, errs := run(t, Options{Cluster: cluster, DryRun: true}, `apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.example.com}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: a, namespace: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: b, namespace: gone}
---
apiVersion: example.com/v1
kind: Thing
metadata: {name: c}
`)
	check(t, "outcomes", []string{
		"namespace/shop created (server dry run)",
		"customresourcedefinition.apiextensions.k8s.io/things.example.com created (server dry run)",
		"configmap/a not checked, as namespace shop does not exist yet (server dry run)",
		"thing.example.com/c not checked, as its definition things.example.com does not exist yet (server dry run)",
	}, said)
	check(t, "errors", []string{"in.yaml: document 4: ConfigMap gone/b: metadata.namespace: namespace gone does not exist; create it, or add it to the input"}, errs)
}

func TestWarnings(t *testing.T) {
	f, cluster := startFake(t)
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/services/web") {
			w.Header().Set("Warning", `299 - "old annotation"`)
		}
		return false
	}
	a, err := New(Options{Cluster: cluster})
	if err != nil {
		t.Fatal(err)
	}
	r := dialect.Convert([]dialect.Input{{Name: "in.yaml", Data: []byte(twoObjects)}}, dialect.Options{})
	var got []string
	a.Apply(t.Context(), r.Objects, func(o Outcome) { got = append(got, o.Warnings...) }, func(err error) { t.Error(err) })
	check(t, "warnings", []string{"in.yaml: document 2: Service web: warning of the API server: old annotation"}, got)
}

// TestServicesOfCluster takes the protocol of a backend from the cluster.
func TestServicesOfCluster(t *testing.T) {
	f, cluster := startFake(t)
	_, errs := run(t, Options{Cluster: cluster}, "apiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec: {ports: [{name: db, port: 3307, targetPort: mysql}]}\n")
	check(t, "errors", nil, errs)
	_, errs = run(t, Options{Cluster: cluster}, "apiVersion: networking.k8s.io/v1beta1\nkind: Ingress\nmetadata: {name: db}\nspec: {backend: {serviceName: db, servicePort: db}}\n")
	check(t, "errors", nil, errs)
	metadata := f.objects["/apis/networking.k8s.io/v1/namespaces/default/ingresses/db"]["metadata"].(map[string]any)
	if d := cmp.Diff(map[string]any{"fairway.dev/tcp-port": "3307"}, metadata["annotations"]); d != "" {
		t.Errorf("annotations (-want +got):\n%s", d)
	}
}

func TestUnreachable(t *testing.T) {
	f, cluster := startFake(t)
	f.fault = func(w http.ResponseWriter, _ *http.Request) bool {
		fail(w, metav1.Status{Code: 401, Reason: metav1.StatusReasonUnauthorized, Message: "Unauthorized"})
		return true
	}
	if _, err := New(Options{Cluster: cluster}); err == nil || !strings.Contains(err.Error(), "refuses the user of test") {
		t.Errorf("got %v", err)
	}
	cluster.Config.Host = "http://127.0.0.1:1"
	if _, err := New(Options{Cluster: cluster}); err == nil || !strings.Contains(err.Error(), "is it running?") {
		t.Errorf("got %v", err)
	}
}

const kubeconfigText = `apiVersion: v1
kind: Config
current-context: NAME
clusters: [{name: c, cluster: {server: "https://NAME.test:6443"}}]
contexts:
- {name: NAME, context: {cluster: c, namespace: of-NAME}}
- {name: other, context: {cluster: c}}
`

func TestKubeconfigOfSomebodyElse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to stop being root")
	}
	t.Setenv("KUBECONFIG", "")
	data := t.TempDir()
	for _, d := range []string{filepath.Dir(data), data} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(data, "kubeconfig")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: only this thread's user changes, and it ends with the goroutine
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
			got <- errno
			return
		}
		_, err := FindCluster(ClusterOptions{DataDir: data})
		got <- err
	}()
	if err := <-got; err == nil || !strings.HasPrefix(err.Error(), file+": may be read by its owner only; try as root") {
		t.Errorf("error %v", err)
	}
}

func TestFindCluster(t *testing.T) {
	dir := t.TempDir()
	write := func(path string) string {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		name := strings.Split(strings.TrimPrefix(path, dir+"/"), "/")[0]
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(kubeconfigText, "NAME", name)), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	flag, env, data, home := write("flag"), write("env"), write("data/kubeconfig"), write("home/.kube/config")
	nowhere := filepath.Join(dir, "nowhere")
	tests := []struct {
		name      string
		o         ClusterOptions
		env, home string
		host      string
		namespace string
		err       string
	}{
		{name: "flag first", o: ClusterOptions{Kubeconfig: flag, DataDir: filepath.Dir(data)}, env: env, home: "home", host: "https://flag.test:6443", namespace: "of-flag"},
		{name: "then KUBECONFIG", o: ClusterOptions{DataDir: filepath.Dir(data)}, env: nowhere + ":" + env, home: "home", host: "https://env.test:6443", namespace: "of-env"},
		{name: "then the data directory", o: ClusterOptions{DataDir: filepath.Dir(data)}, home: "home", host: "https://data.test:6443", namespace: "of-data"},
		{name: "then the home directory", o: ClusterOptions{DataDir: nowhere}, home: "home", host: "https://home.test:6443", namespace: "of-home"},
		{name: "context", o: ClusterOptions{Kubeconfig: home, Context: "other"}, host: "https://home.test:6443", namespace: "default"},
		{name: "no such context", o: ClusterOptions{Kubeconfig: home, Context: "gone"}, err: `context "gone" does not exist`},
		{name: "no such file", o: ClusterOptions{Kubeconfig: nowhere}, err: "nowhere"},
		{name: "nothing", o: ClusterOptions{DataDir: nowhere}, home: "nowhere", err: "fairway up"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", tt.env)
			t.Setenv("HOME", filepath.Join(dir, tt.home))
			c, err := FindCluster(tt.o)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.Config.Host != tt.host || c.Namespace != tt.namespace {
				t.Errorf("got %s, namespace %s", c.Config.Host, c.Namespace)
			}
		})
	}
}

// TestSameTwice holds that the later of two documents wins, and that answers
// come in the order of the input, whatever is done at a time.
func TestSameTwice(t *testing.T) {
	f, cluster := startFake(t)
	var manifest strings.Builder
	var want []string
	for i := range 100 {
		fmt.Fprintf(&manifest, "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: m%d}\ndata: {i: \"%d\"}\n", i%50, i)
		said := "configmap/m%d created (server-side applied)"
		if i >= 50 {
			said = "configmap/m%d configured (server-side applied)"
		}
		want = append(want, fmt.Sprintf(said, i%50))
	}
	said, errs := run(t, Options{Cluster: cluster}, manifest.String())
	check(t, "errors", nil, errs)
	check(t, "outcomes", want, said)
	if got := f.objects["/api/v1/namespaces/default/configmaps/m7"]["data"].(map[string]any)["i"]; got != "57" {
		t.Errorf("m7 holds %v, want the later 57", got)
	}
}

func TestOrder(t *testing.T) {
	var manifest strings.Builder
	for _, kind := range []string{"ValidatingWebhookConfiguration", "Ingress", "Deployment", "EndpointSlice", "Service", "Pod", "RoleBinding", "Secret", "IngressClass", "CustomResourceDefinition", "PersistentVolumeClaim", "Namespace", "Thing"} {
		manifest.WriteString("---\napiVersion: v1\nkind: " + kind + "\nmetadata: {name: a}\n")
	}
	r := dialect.Convert([]dialect.Input{{Data: []byte(manifest.String())}}, dialect.Options{})
	var got []string
	for _, o := range order(r.Objects) {
		got = append(got, o.Kind)
	}
	check(t, "order", []string{"Namespace", "CustomResourceDefinition", "IngressClass", "Secret", "RoleBinding", "PersistentVolumeClaim", "EndpointSlice", "Service", "Deployment", "Pod", "Thing", "Ingress", "ValidatingWebhookConfiguration"}, got)
}
