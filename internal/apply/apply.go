package apply

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"

	"fairway.dev/fairway/internal/dialect"
)

// FieldManager owns the fields that are applied.
const FieldManager = "fairway-apply"

// Options say how to apply.
type Options struct {
	// Cluster is required.
	Cluster Cluster
	// Namespace is that of objects which name none; by default the cluster's.
	// Where it is given, objects that name another one are refused, as by kubectl.
	Namespace string
	// DryRun lets the API server check everything and keep nothing.
	DryRun bool
	// ForceConflicts takes over fields of other managers.
	ForceConflicts bool
	// Kept reports whether an object is one that Fairway keeps itself; optional.
	Kept func(kind, namespace, name string, labels map[string]string) bool
	// Patience is how long to wait for a definition, or a namespace's service
	// account, that comes into being; 30 s by default.
	Patience time.Duration
}

// Applier applies objects. Make one with New.
type Applier struct {
	options Options
	client  dynamic.Interface
	mapper  *restmapper.DeferredDiscoveryRESTMapper
}

// New makes the clients, and asks the API server whether it is there.
func New(o Options) (*Applier, error) {
	if o.Patience == 0 {
		o.Patience = 30 * time.Second
	}
	config := *o.Cluster.Config
	// A person waits: no throttling on this side. The API server has its own.
	config.QPS = -1
	config.UserAgent = "fairway"
	config.WarningHandlerWithContext = collectWarnings{}
	client, err := dynamic.NewForConfig(&config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Cluster.Origin, err)
	}
	disco, err := discovery.NewDiscoveryClientForConfig(&config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Cluster.Origin, err)
	}
	if _, err := disco.ServerVersion(); apierrors.ReasonForError(err) != metav1.StatusReasonUnknown {
		return nil, fmt.Errorf("the API server %s refuses the user of %s: %w", config.Host, o.Cluster.Origin, err)
	} else if err != nil {
		return nil, fmt.Errorf("the API server %s of %s does not answer: %w; is it running? `fairway status` tells", config.Host, o.Cluster.Origin, err)
	}
	return &Applier{options: o, client: client, mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(disco))}, nil
}

// Outcome is what became of one object.
type Outcome struct {
	// Resource is the object as kubectl names it: "ingress.networking.k8s.io/web".
	Resource string
	// Change is "created", "configured" or "unchanged"; in a dry run also why
	// the object could not be checked.
	Change string
	DryRun bool
	// Warnings are the API server's, with file, document and object.
	Warnings []string
}

// String returns the line that people read.
func (o Outcome) String() string {
	how := "server-side applied"
	if o.DryRun {
		how = "server dry run"
	}
	return fmt.Sprintf("%s %s (%s)", o.Resource, o.Change, how)
}

// Apply applies the objects in an order that lets each find what it needs,
// several at a time where they need nothing of each other. It goes on after an
// error; done and failed are called one at a time, for each object in order.
func (a *Applier) Apply(ctx context.Context, objects []*dialect.Object, done func(Outcome), failed func(error)) {
	b := batch{created: map[string]bool{}}
	for _, wave := range waves(order(objects)) {
		if wave[0].Kind != kindDefinition {
			a.settle(ctx, &b, failed)
		}
		for i, result := range a.applyAll(ctx, wave) {
			o, r := wave[i], <-result
			if ctx.Err() != nil && r.err != nil {
				failed(fmt.Errorf("stopped before %s: %s: %w", o.Source, o, ctx.Err()))
				return
			}
			a.finish(&b, o, r, done, failed)
			if utilnet.IsConnectionRefused(r.err) {
				failed(fmt.Errorf("stopped after %s: the API server %s is gone; apply the rest again when it is back", o.Source, a.options.Cluster.Config.Host))
				return
			}
		}
	}
}

// finish tells what became of an object, and keeps it for those that follow.
func (a *Applier) finish(b *batch, o *dialect.Object, r result, done func(Outcome), failed func(error)) {
	if why, ok := a.unchecked(b, o, r.err); ok {
		r = result{outcome: Outcome{Resource: resourceName(o.APIVersion, o.Kind, o.Name), Change: why, DryRun: true}}
	}
	if r.err != nil {
		for _, p := range explain(o, r.err) {
			failed(p)
		}
		return
	}
	if r.outcome.Change == changeCreated {
		b.created[o.Kind+"/"+o.Name] = true
	}
	if o.Kind == kindDefinition {
		b.definitions = append(b.definitions, o.Name)
	}
	done(r.outcome)
}

// workers is how many objects are applied at a time.
const workers = 8

type result struct {
	outcome Outcome
	err     error
}

// applyAll starts applying the objects of a wave, and returns at once.
func (a *Applier) applyAll(ctx context.Context, wave []*dialect.Object) []chan result {
	results := make([]chan result, len(wave))
	for i := range wave {
		results[i] = make(chan result, 1)
	}
	next := make(chan int, len(wave))
	for i := range wave {
		next <- i
	}
	close(next)
	for range min(workers, len(wave)) {
		go func() {
			for i := range next {
				var r result
				if r.err = ctx.Err(); r.err == nil {
					r.outcome, r.err = a.applyOne(ctx, wave[i])
				}
				results[i] <- r
			}
		}()
	}
	return results
}

const (
	kindDefinition = "CustomResourceDefinition"
	kindNamespace  = "Namespace"
	changeCreated  = "created"
)

// batch is what one Apply has done so far.
type batch struct {
	// definitions are the ones applied that may not be established yet.
	definitions []string
	// created are the objects that were not there before, as Kind/name.
	created map[string]bool
}

// settle waits for the definitions of the batch, so that their kinds are known.
func (a *Applier) settle(ctx context.Context, b *batch, failed func(error)) {
	if len(b.definitions) == 0 || a.options.DryRun {
		return
	}
	for _, name := range b.definitions {
		if err := a.waitEstablished(ctx, name); err != nil {
			failed(err)
		}
	}
	b.definitions = nil
	a.mapper.Reset()
}

// unchecked tells why a dry run cannot check an object: what it needs would be
// made by the same input, and a dry run makes nothing.
func (a *Applier) unchecked(b *batch, o *dialect.Object, err error) (why string, ok bool) {
	if !a.options.DryRun || err == nil {
		return "", false
	}
	if namespace, missing := missingNamespace(err); missing && b.created[kindNamespace+"/"+namespace] {
		return "not checked, as namespace " + namespace + " does not exist yet", true
	}
	group, _, _ := strings.Cut(o.APIVersion, "/")
	for _, name := range b.definitions {
		if _, of, _ := strings.Cut(name, "."); of == group && errors.As(err, new(*problem)) {
			return "not checked, as its definition " + name + " does not exist yet", true
		}
	}
	return "", false
}

func (a *Applier) applyOne(ctx context.Context, o *dialect.Object) (Outcome, error) {
	j, err := o.JSON()
	if err != nil {
		return Outcome{}, err
	}
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(j); err != nil {
		return Outcome{}, err
	}
	for _, field := range []string{"name", "namespace"} {
		// What is no text counts as missing otherwise, and another namespace is taken.
		if v, there, err := unstructured.NestedFieldNoCopy(u.Object, "metadata", field); there && err == nil && v != nil {
			if _, ok := v.(string); !ok {
				return Outcome{}, fieldError("metadata."+field, fmt.Sprintf("is %v where a string is wanted; write it in quotes", v))
			}
		}
	}
	if u.GetName() == "" {
		return Outcome{}, fieldError("metadata.name", "is missing: generateName cannot be applied; give a name, or use kubectl create")
	}
	resource, err := a.resource(u)
	if err != nil {
		return Outcome{}, err
	}
	ctx, warned := withWarnings(ctx)
	before, err := resource.Get(ctx, u.GetName(), metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return Outcome{}, err
	}
	manager := FieldManager
	if apierrors.IsNotFound(err) {
		before = nil
	} else if before, manager, err = a.adopt(ctx, resource, before); err != nil {
		return Outcome{}, err
	}
	after, err := a.patch(ctx, resource, u, manager)
	if err != nil {
		return Outcome{}, err
	}
	return Outcome{
		Resource: resourceName(u.GetAPIVersion(), u.GetKind(), u.GetName()),
		Change:   change(before, after, a.options.DryRun),
		DryRun:   a.options.DryRun,
		Warnings: warned.about(o),
	}, nil
}

// patch applies, and again while the namespace still lacks the service account
// that Pods need: it is made a moment after the namespace.
func (a *Applier) patch(ctx context.Context, resource dynamic.ResourceInterface, u *unstructured.Unstructured, manager string) (after *unstructured.Unstructured, err error) {
	data, err := u.MarshalJSON()
	if err != nil {
		return nil, err
	}
	options := metav1.PatchOptions{FieldManager: manager, Force: &a.options.ForceConflicts, FieldValidation: metav1.FieldValidationStrict}
	if a.options.DryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	last := wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, a.options.Patience, true, func(ctx context.Context) (bool, error) {
		after, err = resource.Patch(ctx, u.GetName(), types.ApplyPatchType, data, options)
		return !lacksServiceAccount(err), nil
	})
	if err == nil && last != nil {
		err = last
	}
	return after, err
}

func lacksServiceAccount(err error) bool {
	return apierrors.IsForbidden(err) && strings.Contains(err.Error(), "error looking up service account")
}

// resource finds where objects of a kind live.
func (a *Applier) resource(u *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	gvk := u.GroupVersionKind()
	mapping, err := a.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if meta.IsNoMatchError(err) {
		return nil, fieldError("apiVersion", a.unservedMessage(gvk))
	}
	if err != nil {
		return nil, err
	}
	client := a.client.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameRoot {
		return client, nil
	}
	namespace := u.GetNamespace()
	switch {
	case namespace == "" && a.options.Namespace != "":
		namespace = a.options.Namespace
	case namespace == "":
		namespace = a.options.Cluster.Namespace
	case a.options.Namespace != "" && namespace != a.options.Namespace:
		return nil, fieldError("metadata.namespace", fmt.Sprintf("is %s, but -n asks for %s; leave out one of them", namespace, a.options.Namespace))
	}
	u.SetNamespace(namespace)
	return client.Namespace(namespace), nil
}

func (a *Applier) unservedMessage(gvk schema.GroupVersionKind) string {
	said := fmt.Sprintf("the API server does not serve kind %s in %s", gvk.Kind, gvk.GroupVersion())
	if m, err := a.mapper.RESTMapping(gvk.GroupKind()); err == nil {
		return fmt.Sprintf("%s; write %s", said, m.GroupVersionKind.GroupVersion())
	}
	return said + "; check the spelling, or apply its CustomResourceDefinition first"
}

// waitEstablished waits until a definition's kinds can be used.
func (a *Applier) waitEstablished(ctx context.Context, name string) error {
	resource := a.client.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, a.options.Patience, true, func(ctx context.Context) (bool, error) {
		u, err := resource.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, nil
		}
		conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
		for _, c := range conditions {
			if c, ok := c.(map[string]any); ok && c["type"] == "Established" && c["status"] == "True" {
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil {
		return fmt.Errorf("CustomResourceDefinition %s: is not established after %s, so objects of its kind may fail: %w", name, a.options.Patience, err)
	}
	return nil
}

// resourceName is kind.group/name, as kubectl prints it.
func resourceName(apiVersion, kind, name string) string {
	gk := schema.FromAPIVersionAndKind(apiVersion, kind).GroupKind()
	return strings.ToLower(gk.String()) + "/" + name
}

func change(before, after *unstructured.Unstructured, dryRun bool) string {
	switch {
	case before == nil:
		return changeCreated
	case !dryRun && before.GetResourceVersion() == after.GetResourceVersion():
		return "unchanged"
	case dryRun && reflect.DeepEqual(content(before), content(after)):
		return "unchanged"
	}
	return "configured"
}

// content is an object without what a write alone changes.
func content(u *unstructured.Unstructured) map[string]any {
	u = u.DeepCopy()
	for _, field := range []string{"managedFields", "resourceVersion", "generation"} {
		unstructured.RemoveNestedField(u.Object, "metadata", field)
	}
	return u.Object
}

// ServicePorts implements dialect.Services.
func (a *Applier) ServicePorts(namespace, name string) ([]dialect.ServicePort, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	u, err := a.client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "services"}).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, false
	}
	var out []dialect.ServicePort
	ports, _, _ := unstructured.NestedSlice(u.Object, "spec", "ports")
	for _, p := range ports {
		m, ok := p.(map[string]any)
		if !ok {
			continue
		}
		port := dialect.ServicePort{}
		port.Name, _ = m["name"].(string)
		port.Protocol, _ = m["protocol"].(string)
		port.AppProtocol, _ = m["appProtocol"].(string)
		if n, ok := m["port"].(int64); ok {
			port.Port = int(n)
		}
		if t, ok := m["targetPort"]; ok {
			port.TargetPort = fmt.Sprint(t)
		}
		out = append(out, port)
	}
	return out, true
}

var _ dialect.Services = (*Applier)(nil)
