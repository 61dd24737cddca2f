package apply

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// fakeAPI is an API server with faults: enough of the protocol for discovery,
// GET and PATCH, and a hook that answers instead. The real one is in
// test/scenario; this one is for what the real one does not do on demand.
type fakeAPI struct {
	mu sync.Mutex
	// objects by request path.
	objects map[string]map[string]any
	version int
	// patched are the paths of the PATCH requests, in order.
	patched []string
	// queries are their raw queries.
	queries []string
	// fault answers a request by itself and returns true; it may be nil.
	fault func(w http.ResponseWriter, r *http.Request) bool
	// stop refuses connections from now on.
	stop func()
	// crdAfter serves example.com/v1 once that many GETs of the definition were answered.
	crdAfter int
	crdGets  int
}

func startFake(t *testing.T) (*fakeAPI, Cluster) {
	t.Helper()
	f := &fakeAPI{objects: map[string]map[string]any{}}
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	f.stop = func() { _ = s.Listener.Close() }
	return f, Cluster{Config: &rest.Config{Host: s.URL}, Namespace: "default", Origin: "test"}
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault != nil && f.fault(w, r) {
		return
	}
	if v := f.discovery(r.URL.Path); v != nil {
		reply(w, 200, v)
		return
	}
	switch r.Method {
	case http.MethodGet:
		f.get(w, r)
	case http.MethodPatch:
		f.patch(w, r)
	default:
		fail(w, metav1.Status{Code: 405, Reason: metav1.StatusReasonMethodNotAllowed, Message: r.Method})
	}
}

func (f *fakeAPI) discovery(path string) any {
	resource := func(name, kind string, namespaced bool) metav1.APIResource {
		return metav1.APIResource{Name: name, Kind: kind, Namespaced: namespaced, Verbs: metav1.Verbs{"get", "patch"}}
	}
	lists := map[string][]metav1.APIResource{
		"v1":                      {resource("namespaces", "Namespace", false), resource("services", "Service", true), resource("configmaps", "ConfigMap", true), resource("pods", "Pod", true)},
		"networking.k8s.io/v1":    {resource("ingresses", "Ingress", true)},
		"apiextensions.k8s.io/v1": {resource("customresourcedefinitions", "CustomResourceDefinition", false)},
	}
	if f.crdAfter > 0 && f.crdGets >= f.crdAfter {
		lists["example.com/v1"] = []metav1.APIResource{resource("things", "Thing", true)}
	}
	if path == "/version" {
		return map[string]string{"gitVersion": "v1.37.2"}
	}
	if path == "/api" {
		return metav1.APIVersions{Versions: []string{"v1"}}
	}
	if path == "/apis" {
		var groups metav1.APIGroupList
		for gv := range lists {
			if group, version, ok := strings.Cut(gv, "/"); ok {
				v := metav1.GroupVersionForDiscovery{GroupVersion: gv, Version: version}
				groups.Groups = append(groups.Groups, metav1.APIGroup{Name: group, Versions: []metav1.GroupVersionForDiscovery{v}, PreferredVersion: v})
			}
		}
		return groups
	}
	gv := strings.TrimPrefix(strings.TrimPrefix(path, "/apis/"), "/api/")
	if l, ok := lists[gv]; ok {
		return metav1.APIResourceList{GroupVersion: gv, APIResources: l}
	}
	return nil
}

func (f *fakeAPI) get(w http.ResponseWriter, r *http.Request) {
	o, ok := f.objects[r.URL.Path]
	if !ok {
		fail(w, metav1.Status{Code: 404, Reason: metav1.StatusReasonNotFound, Message: "not found"})
		return
	}
	if strings.Contains(r.URL.Path, "/customresourcedefinitions/") {
		f.crdGets++
		if f.crdGets >= f.crdAfter {
			o["status"] = map[string]any{"conditions": []any{map[string]any{"type": "Established", "status": "True"}}}
		}
	}
	reply(w, 200, o)
}

// patch stores the object; the version grows when its content changes.
func (f *fakeAPI) patch(w http.ResponseWriter, r *http.Request) {
	f.patched = append(f.patched, r.URL.Path)
	f.queries = append(f.queries, r.URL.RawQuery)
	body, _ := io.ReadAll(r.Body)
	var o map[string]any
	if err := json.Unmarshal(body, &o); err == nil && r.Header.Get("Content-Type") == "application/merge-patch+json" {
		f.mergeManagers(w, r.URL.Path, o["metadata"].(map[string]any))
		return
	}
	if err := json.Unmarshal(body, &o); err != nil || r.Header.Get("Content-Type") != "application/apply-patch+yaml" {
		fail(w, metav1.Status{Code: 400, Reason: metav1.StatusReasonBadRequest, Message: "bad patch"})
		return
	}
	was := f.objects[r.URL.Path]
	version := fmt.Sprint(f.version)
	if was != nil {
		version = was["metadata"].(map[string]any)["resourceVersion"].(string)
	}
	o["metadata"].(map[string]any)["resourceVersion"] = version
	if was != nil && was["metadata"].(map[string]any)["managedFields"] != nil {
		o["metadata"].(map[string]any)["managedFields"] = was["metadata"].(map[string]any)["managedFields"]
	}
	a, _ := json.Marshal(was)
	b, _ := json.Marshal(o)
	if string(a) != string(b) && r.URL.Query().Get("dryRun") == "" {
		f.version++
		o["metadata"].(map[string]any)["resourceVersion"] = fmt.Sprint(f.version)
		f.objects[r.URL.Path] = o
	}
	reply(w, 200, o)
}

// mergeManagers takes managers of fields, of the newest version only.
func (f *fakeAPI) mergeManagers(w http.ResponseWriter, path string, metadata map[string]any) {
	was := f.objects[path]["metadata"].(map[string]any)
	if metadata["resourceVersion"] != was["resourceVersion"] {
		fail(w, metav1.Status{Code: 409, Reason: metav1.StatusReasonConflict, Message: "written meanwhile"})
		return
	}
	f.version++
	was["managedFields"], was["resourceVersion"] = metadata["managedFields"], fmt.Sprint(f.version)
	reply(w, 200, f.objects[path])
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func fail(w http.ResponseWriter, s metav1.Status) {
	s.Kind, s.APIVersion, s.Status = "Status", "v1", metav1.StatusFailure
	reply(w, int(s.Code), s)
}
