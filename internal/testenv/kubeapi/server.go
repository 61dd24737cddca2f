package kubeapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
)

// Server holds objects and answers requests about them.
type Server struct {
	kinds map[schema.GroupVersionResource]schema.GroupVersionKind

	mu      sync.Mutex
	changed chan struct{} // closed and replaced with every change
	version uint64
	objects map[schema.GroupVersionResource]map[name]*object
	// history has every change, oldest first, so that a watch can go on from
	// where one broke off.
	history []event
}

type name struct{ namespace, name string }

// object is an object as it travels.
type object struct {
	name    name
	labels  labels.Set
	fields  fields.Set
	raw     json.RawMessage
	version uint64
	// protobuf is the same in the other form, and added the event that it was
	// added in that form, each made when it is first asked for: an API server
	// keeps them as well, and shall not be what is measured.
	protobuf, added func() []byte
}

type event struct {
	resource schema.GroupVersionResource
	kind     watch.EventType
	// object is the new one, or the last where it was deleted; before is the
	// one that it replaced, if any.
	object, before *object
}

// New returns a server without objects.
func New() *Server {
	s := &Server{
		kinds:   map[schema.GroupVersionResource]schema.GroupVersionKind{},
		changed: make(chan struct{}),
		objects: map[schema.GroupVersionResource]map[name]*object{},
	}
	for gvk := range scheme.Scheme.AllKnownTypes() {
		if !strings.HasSuffix(gvk.Kind, "List") && !strings.HasSuffix(gvk.Kind, "Options") {
			plural, _ := meta.UnsafeGuessKindToResource(gvk)
			s.kinds[plural] = gvk
		}
	}
	return s
}

// Put adds the objects or replaces those of the same name. It panics when given
// what client-go has no kind for.
func (s *Server) Put(list ...runtime.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range list {
		resource, gvk := resourceOf(o)
		fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		if err != nil {
			panic(fmt.Sprintf("kubeapi: %T: %v", o, err))
		}
		fields["apiVersion"], fields["kind"] = gvk.GroupVersion().String(), gvk.Kind
		s.store(resource, fields)
	}
	s.tell()
}

// Delete removes the objects of the same kinds and names.
func (s *Server) Delete(list ...runtime.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range list {
		resource, _ := resourceOf(o)
		m, err := meta.Accessor(o)
		if err != nil {
			panic(fmt.Sprintf("kubeapi: %T: %v", o, err))
		}
		s.remove(resource, name{m.GetNamespace(), m.GetName()})
	}
	s.tell()
}

func resourceOf(o runtime.Object) (schema.GroupVersionResource, schema.GroupVersionKind) {
	kinds, _, err := scheme.Scheme.ObjectKinds(o)
	if err != nil {
		panic(fmt.Sprintf("kubeapi: %v", err))
	}
	resource, _ := meta.UnsafeGuessKindToResource(kinds[0])
	return resource, kinds[0]
}

// store keeps an object. The caller holds mu, and tells afterwards.
func (s *Server) store(resource schema.GroupVersionResource, o map[string]any) *object {
	s.version++
	m, _ := o["metadata"].(map[string]any)
	if m == nil {
		m = map[string]any{}
		o["metadata"] = m
	}
	m["resourceVersion"] = strconv.FormatUint(s.version, 10)
	text := func(key string) string { v, _ := m[key].(string); return v }
	n := name{text("namespace"), text("name")}
	if text("uid") == "" {
		m["uid"] = fmt.Sprintf("%s-%s-%s", resource.Resource, n.namespace, n.name)
	}
	if text("creationTimestamp") == "" {
		m["creationTimestamp"] = time.Unix(1700000000, 0).UTC().Format(time.RFC3339)
	}
	stored := &object{name: n, labels: labels.Set{}, version: s.version}
	if all, ok := m["labels"].(map[string]any); ok {
		for k, v := range all {
			stored.labels[k], _ = v.(string)
		}
	}
	stored.fields = fields.Set{"metadata.name": n.name, "metadata.namespace": n.namespace}
	stored.fields["type"], _ = o["type"].(string)
	if status, ok := o["status"].(map[string]any); ok {
		stored.fields["status.phase"], _ = status["phase"].(string)
	}
	var err error
	if stored.raw, err = json.Marshal(o); err != nil {
		panic(fmt.Sprintf("kubeapi: %v: %v", n, err))
	}
	stored.protobuf = sync.OnceValue(func() []byte { return toProtobuf(stored.raw) })
	stored.added = sync.OnceValue(func() []byte { return frame(watch.Added, stored.protobuf()) })
	of := s.objects[resource]
	if of == nil {
		of = map[name]*object{}
		s.objects[resource] = of
	}
	e := event{resource: resource, kind: watch.Added, object: stored, before: of[n]}
	if e.before != nil {
		e.kind = watch.Modified
	}
	of[n] = stored
	s.history = append(s.history, e)
	return stored
}

// remove drops an object. The caller holds mu, and tells afterwards.
func (s *Server) remove(resource schema.GroupVersionResource, n name) bool {
	old := s.objects[resource][n]
	if old == nil {
		return false
	}
	s.version++
	delete(s.objects[resource], n)
	last := *old
	last.version = s.version
	s.history = append(s.history, event{resource: resource, kind: watch.Deleted, object: &last, before: old})
	return true
}

func (s *Server) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// request is what a path asks for.
type request struct {
	resource schema.GroupVersionResource
	kind     schema.GroupVersionKind
	name     name
	selects  func(*object) bool
}

// parse reads /api/VERSION/… and /apis/GROUP/VERSION/….
func (s *Server) parse(r *http.Request) (request, error) {
	var q request
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case len(parts) >= 3 && parts[0] == "api":
		q.resource.Version, parts = parts[1], parts[2:]
	case len(parts) >= 4 && parts[0] == "apis":
		q.resource.Group, q.resource.Version, parts = parts[1], parts[2], parts[3:]
	default:
		return q, fmt.Errorf("no such path: %s", r.URL.Path)
	}
	if parts[0] == "namespaces" && len(parts) >= 3 {
		q.name.namespace, parts = parts[1], parts[2:]
	}
	q.resource.Resource = parts[0]
	if len(parts) > 1 {
		q.name.name = parts[1]
	}
	var ok bool
	if q.kind, ok = s.kinds[q.resource]; !ok {
		return q, fmt.Errorf("no such resource: %v", q.resource)
	}
	byLabel, err := labels.Parse(r.URL.Query().Get("labelSelector"))
	if err != nil {
		return q, err
	}
	byField, err := fields.ParseSelector(r.URL.Query().Get("fieldSelector"))
	if err != nil {
		return q, err
	}
	namespace := q.name.namespace
	q.selects = func(o *object) bool {
		return (namespace == "" || o.name.namespace == namespace) && byLabel.Matches(o.labels) && byField.Matches(o.fields)
	}
	return q, nil
}

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/version" {
		reply(w, http.StatusOK, map[string]string{"major": "1", "minor": "37", "gitVersion": "v1.37.2"})
		return
	}
	q, err := s.parse(r)
	if err != nil {
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, err.Error())
		return
	}
	switch r.Method {
	case http.MethodGet:
		switch {
		case q.name.name != "":
			s.get(w, q)
		case r.URL.Query().Get("watch") == "true" || r.URL.Query().Get("watch") == "1":
			s.watch(w, r, q)
		default:
			s.list(w, q)
		}
	case http.MethodDelete:
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.remove(q.resource, q.name) {
			fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, q.name.name+" not found")
			return
		}
		s.tell()
		reply(w, http.StatusOK, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess})
	default:
		s.write(w, r, q)
	}
}

func (s *Server) get(w http.ResponseWriter, q request) {
	s.mu.Lock()
	o := s.objects[q.resource][q.name]
	s.mu.Unlock()
	if o == nil {
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, q.name.name+" not found")
		return
	}
	reply(w, http.StatusOK, o.raw)
}

// selected returns the objects that q asks for, in order of their names, and the version of that. The caller holds mu.
func (s *Server) selected(q request) []*object {
	var list []*object
	for _, o := range s.objects[q.resource] {
		if q.selects(o) {
			list = append(list, o)
		}
	}
	slices.SortFunc(list, func(a, b *object) int {
		if c := strings.Compare(a.name.namespace, b.name.namespace); c != 0 {
			return c
		}
		return strings.Compare(a.name.name, b.name.name)
	})
	return list
}

func (s *Server) list(w http.ResponseWriter, q request) {
	s.mu.Lock()
	list, version := s.selected(q), s.version
	s.mu.Unlock()
	items := make([]json.RawMessage, 0, len(list))
	for _, o := range list {
		items = append(items, o.raw)
	}
	reply(w, http.StatusOK, map[string]any{
		"kind": q.kind.Kind + "List", "apiVersion": q.kind.GroupVersion().String(),
		"metadata": map[string]string{"resourceVersion": strconv.FormatUint(version, 10)}, "items": items,
	})
}

// decode reads an object, in whichever form it was sent.
func decode(data []byte) (body map[string]any, err error) {
	if !bytes.HasPrefix(data, []byte("k8s\x00")) {
		return body, json.Unmarshal(data, &body)
	}
	o, _, err := scheme.Codecs.UniversalDeserializer().Decode(data, nil, nil)
	if err != nil {
		return nil, err
	}
	return runtime.DefaultUnstructuredConverter.ToUnstructured(o)
}

// write creates, replaces, or merges what an apply or a merge patch says.
func (s *Server) write(w http.ResponseWriter, r *http.Request, q request) {
	var body map[string]any
	data, err := io.ReadAll(r.Body)
	if err == nil && strings.Contains(r.Header.Get("Content-Type"), "protobuf") {
		data, err = fromProtobuf(data)
	}
	if err == nil {
		body, err = decode(data)
	}
	if err != nil {
		fail(w, http.StatusUnsupportedMediaType, metav1.StatusReasonUnsupportedMediaType, "want JSON or protobuf: "+err.Error())
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Method == http.MethodPatch {
		if old := s.objects[q.resource][q.name]; old != nil {
			present := map[string]any{}
			if err := json.Unmarshal(old.raw, &present); err != nil {
				panic(err)
			}
			merge(present, body)
			body = present
		}
		if manager := r.URL.Query().Get("fieldManager"); manager != "" && strings.Contains(r.Header.Get("Content-Type"), "apply") {
			merge(body, map[string]any{"metadata": map[string]any{"managedFields": []any{
				map[string]any{"manager": manager, "operation": string(metav1.ManagedFieldsOperationApply)},
			}}})
		}
	}
	m, _ := body["metadata"].(map[string]any)
	if m == nil {
		m = map[string]any{}
		body["metadata"] = m
	}
	if q.name.namespace != "" {
		m["namespace"] = q.name.namespace
	}
	if q.name.name != "" {
		m["name"] = q.name.name
	}
	body["apiVersion"], body["kind"] = q.kind.GroupVersion().String(), q.kind.Kind
	stored := s.store(q.resource, body)
	s.tell()
	reply(w, http.StatusOK, stored.raw)
}

// merge puts the fields of patch over those of into (RFC 7396).
func merge(into, patch map[string]any) {
	for k, v := range patch {
		inner, ok := v.(map[string]any)
		present, both := into[k].(map[string]any)
		switch {
		case v == nil:
			delete(into, k)
		case ok && both:
			merge(present, inner)
		case ok:
			into[k] = maps.Clone(inner)
		default:
			into[k] = v
		}
	}
}

// watch streams events from a version on, or after what there is now.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, q request) {
	query := r.URL.Query()
	after, _ := strconv.ParseUint(query.Get("resourceVersion"), 10, 64)
	send, flush := streamTo(w, r)
	s.mu.Lock()
	next := 0
	if query.Get("sendInitialEvents") == "true" || after == 0 {
		initial, version := s.selected(q), s.version
		next = len(s.history)
		s.mu.Unlock()
		for _, o := range initial {
			if send(watch.Added, o) != nil {
				return
			}
		}
		if query.Get("sendInitialEvents") == "true" && send(watch.Bookmark, bookmark(q.kind, version)) != nil {
			return
		}
		s.mu.Lock()
	} else {
		next, _ = slices.BinarySearchFunc(s.history, after+1, func(e event, v uint64) int {
			return int(int64(e.object.version) - int64(v))
		})
	}
	for {
		news, changed := s.history[next:], s.changed
		next = len(s.history)
		s.mu.Unlock()
		for _, e := range news {
			if e.resource != q.resource {
				continue
			}
			is, was := q.selects(e.object), e.before != nil && q.selects(e.before)
			kind := e.kind
			switch {
			case kind == watch.Deleted && is, is && was:
			case is:
				kind = watch.Added
			case was:
				kind = watch.Deleted // it no longer matches
			default:
				continue
			}
			if send(kind, e.object) != nil {
				return
			}
		}
		if flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		}
		s.mu.Lock()
	}
}

// bookmark tells that the initial events are all there.
func bookmark(kind schema.GroupVersionKind, version uint64) *object {
	raw, err := json.Marshal(map[string]any{
		"kind": kind.Kind, "apiVersion": kind.GroupVersion().String(),
		"metadata": map[string]any{
			"resourceVersion": strconv.FormatUint(version, 10),
			"annotations":     map[string]string{metav1.InitialEventsAnnotationKey: "true"},
		},
	})
	if err != nil {
		panic(err)
	}
	return &object{raw: raw, protobuf: func() []byte { return toProtobuf(raw) }}
}

func reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}

func fail(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	reply(w, code, metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message,
	})
}
