package kube

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"fairway.dev/fairway/internal/model"
)

// kind is how one kind is watched and translated.
type kind struct {
	name   string
	object runtime.Object
	lw     cache.ListerWatcher
	// put translates an object, remove takes back what came of it.
	put    func(object any) change
	remove func(key model.Key) change
	// first, where it is there, follows what came of the first list, or takes its
	// place where the kind may not be read.
	first change
	// optional kinds may be unknown to the API.
	optional bool
	// mayBeForbidden: without permission to read it, there is none of it.
	mayBeForbidden bool
}

// absentRetry is how soon the API is asked again for a kind that it did not
// know: somebody may install it.
const absentRetry = 10 * time.Second

// watcher follows one kind. It is the store of its reflector, but instead of
// objects it keeps their keys only, to know what a new list lacks.
type watcher struct {
	kind
	source *Source
	known  map[model.Key]struct{}
	listed bool

	forbidden bool // and said so
}

func (w *watcher) run(ctx context.Context) {
	r := cache.NewReflectorWithOptions(listWatch{w}, w.object, w, cache.ReflectorOptions{
		Name: w.name, TypeDescription: w.name, Backoff: backoff(),
	})
	if !w.optional && !w.mayBeForbidden {
		r.RunWithContext(ctx)
		return
	}
	delay := backoff()
	for ctx.Err() == nil {
		err := r.ListAndWatchWithContext(ctx)
		wait := absentRetry
		switch {
		case err == nil:
			continue
		case apierrors.IsNotFound(err):
			_ = w.Replace(nil, "") // there is none of it
		case apierrors.IsForbidden(err) && w.mayBeForbidden:
			w.refused(err)
		default:
			wait = delay.Step()
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// refused goes on without a kind that may not be read. What was read of it before
// stays.
func (w *watcher) refused(err error) {
	if !w.forbidden {
		w.forbidden = true
		w.source.logger.Warn("not allowed to read "+w.name+", going on without; allow get, list and watch of it, or name another with the flag for it", "error", err)
	}
	w.hasListed()
}

// hasListed is called with each list, once it is in a batch.
func (w *watcher) hasListed() {
	if w.listed {
		return
	}
	w.listed = true
	if w.first != nil {
		w.source.commit(w.first)
	}
	w.source.listed()
}

// translated is an object of which only what came of it is left.
type translated struct {
	key    model.Key
	change change
}

func (w *watcher) translate(object any) (translated, error) {
	m, err := meta.Accessor(object)
	if err != nil {
		return translated{}, err
	}
	return translated{model.Key{Namespace: m.GetNamespace(), Name: m.GetName()}, w.put(object)}, nil
}

// Transformer implements cache.TransformingStore. The reflector gathers a whole
// list before it hands it over: what it gathers are translations, a fraction of
// the objects' size.
func (w *watcher) Transformer() cache.TransformFunc {
	return func(object any) (any, error) { return w.translate(object) }
}

// Add implements cache.ReflectorStore.
func (w *watcher) Add(object any) error {
	t, err := w.translate(object)
	if err != nil {
		return err
	}
	w.known[t.key] = struct{}{}
	w.source.commit(t.change)
	return nil
}

// Update implements cache.ReflectorStore.
func (w *watcher) Update(object any) error { return w.Add(object) }

// Delete implements cache.ReflectorStore.
func (w *watcher) Delete(object any) error {
	m, err := meta.Accessor(object)
	if err != nil {
		return err
	}
	key := model.Key{Namespace: m.GetNamespace(), Name: m.GetName()}
	delete(w.known, key)
	w.source.commit(w.remove(key))
	return nil
}

// Replace implements cache.ReflectorStore: list is all there is, as objects or
// translated already.
func (w *watcher) Replace(list []any, _ string) error {
	before := w.known
	w.known = make(map[model.Key]struct{}, len(list))
	changes := make([]change, 0, len(list))
	for _, object := range list {
		t, ok := object.(translated)
		if !ok {
			var err error
			if t, err = w.translate(object); err != nil {
				return err
			}
		}
		w.known[t.key] = struct{}{}
		changes = append(changes, t.change)
	}
	for key := range before {
		if _, ok := w.known[key]; !ok {
			changes = append(changes, w.remove(key))
		}
	}
	w.source.commit(changes...)
	w.hasListed()
	return nil
}

// Resync implements cache.ReflectorStore; there is nothing to repeat.
func (w *watcher) Resync() error { return nil }

// listWatch reports to the outage log how the API does.
type listWatch struct{ w *watcher }

func (l listWatch) List(options metav1.ListOptions) (runtime.Object, error) {
	return l.ListWithContext(context.Background(), options)
}

func (l listWatch) ListWithContext(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	list, err := cache.ToListerWatcherWithContext(l.w.lw).ListWithContext(ctx, options)
	l.note(ctx, err)
	return list, err
}

func (l listWatch) Watch(options metav1.ListOptions) (watch.Interface, error) {
	return l.WatchWithContext(context.Background(), options)
}

func (l listWatch) WatchWithContext(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	events, err := cache.ToListerWatcherWithContext(l.w.lw).WatchWithContext(ctx, options)
	l.note(ctx, err)
	return events, err
}

// IsWatchListSemanticsUnSupported passes on what the client says of itself, by
// the name that client-go asks for.
func (l listWatch) IsWatchListSemanticsUnSupported() bool {
	u, ok := l.w.lw.(interface{ IsWatchListSemanticsUnSupported() bool })
	return ok && u.IsWatchListSemanticsUnSupported()
}

func (l listWatch) note(ctx context.Context, err error) {
	switch {
	case err == nil:
		l.w.source.outage.succeeded()
	case ctx.Err() != nil, l.w.optional && apierrors.IsNotFound(err), l.w.mayBeForbidden && apierrors.IsForbidden(err), apierrors.IsResourceExpired(err), apierrors.IsGone(err):
	default:
		l.w.source.outage.failed(l.w.name, err)
	}
}
