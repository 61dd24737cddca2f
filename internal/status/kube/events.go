package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/reconcile"
)

const (
	// component names Fairway in Events.
	component = "fairway"
	// renewAfter is the age at which the Event of a problem that lasts is
	// renewed, before the API server drops it after an hour.
	renewAfter = 40 * time.Minute
	// eventsPerSecond and eventBurst spare the API when many problems appear at
	// once, after a mistake in a template for instance.
	eventsPerSecond, eventBurst = 20, 100
	// problemsPerObject limits the Events about one object.
	problemsPerObject = 20
	maxMessage        = 1024
)

// events writes one Event for each problem when it appears, and renews it
// while it lasts, unless it is mere advice. Its name follows from the problem,
// so that neither a new leader nor a problem that comes back makes a second one.
type events struct {
	client  kubernetes.Interface
	logger  *slog.Logger
	now     func() time.Time
	limiter *rate.Limiter
	written map[model.Problem]time.Time
	since   map[model.Problem]time.Time // when those without Event appeared
	failed  map[model.Problem]int       // how often in vain
	settle  time.Duration
}

func newEvents(client kubernetes.Interface, logger *slog.Logger, now func() time.Time, settle time.Duration) *events {
	return &events{
		client: client, logger: logger, now: now,
		limiter: rate.NewLimiter(eventsPerSecond, eventBurst),
		written: map[model.Problem]time.Time{}, since: map[model.Problem]time.Time{}, failed: map[model.Problem]int{}, settle: settle,
	}
}

const (
	// eventRetry is the pause after an Event could not be written, and
	// eventRetryMax where that lasts.
	eventRetry, eventRetryMax = 2 * time.Second, time.Minute
	// failuresInARow end a round: the API does not take any, most likely.
	failuresInARow = 5
)

// run writes Events for the newest problems until ctx ends.
func (e *events) run(ctx context.Context, newest <-chan map[model.Ref]model.Problems) {
	var problems map[model.Ref]model.Problems
	var retry <-chan time.Time
	backoff := reconcile.Backoff{Min: eventRetry, Max: eventRetryMax}
	for {
		select {
		case <-ctx.Done():
			return
		case problems = <-newest:
		case <-retry:
		}
		retry = nil
		wait, err := e.write(ctx, problems)
		switch {
		case err == nil:
			backoff.Reset()
		case ctx.Err() == nil:
			delay := backoff.Next()
			e.logger.Warn("cannot write Events", "error", err, "retryIn", delay)
			if wait == 0 || delay < wait {
				wait = delay
			}
		}
		if wait > 0 {
			retry = time.After(wait)
		}
	}
}

// write makes the Events of the problems that are new and have stayed, and
// forgets those that are cured. One that the API does not take keeps no other
// back. It returns when to call it again for others, 0 if there are none.
func (e *events) write(ctx context.Context, problems map[model.Ref]model.Problems) (again time.Duration, err error) {
	present := map[model.Problem]bool{}
	var fresh []model.Problem
	now := e.now()
	for _, list := range problems {
		if len(list) > problemsPerObject {
			list = list[:problemsPerObject]
		}
		for _, p := range list {
			if present[p] {
				continue
			}
			present[p] = true
			at, ok := e.written[p]
			if ok && (p.Severity == model.Advice || now.Sub(at) < renewAfter) {
				continue
			}
			if _, known := e.since[p]; !ok && !known {
				e.since[p] = time.Now()
			}
			if left := e.settle - time.Since(e.since[p]); !ok && left > 0 {
				if again == 0 || left < again {
					again = left
				}
				continue
			}
			fresh = append(fresh, p)
		}
	}
	for p := range e.written {
		if !present[p] {
			delete(e.written, p)
		}
	}
	for p := range e.since {
		if !present[p] {
			delete(e.since, p)
		}
	}
	for p := range e.failed {
		if !present[p] {
			delete(e.failed, p)
		}
	}
	slices.SortFunc(fresh, func(a, b model.Problem) int {
		return cmp.Or(cmp.Compare(e.failed[a], e.failed[b]), a.Object.Compare(b.Object), strings.Compare(a.Field+a.Message, b.Field+b.Message))
	})
	var errs []error
	inARow := 0
	for _, p := range fresh {
		if err := e.limiter.Wait(ctx); err != nil {
			return 0, err
		}
		if err := e.writeOne(ctx, p, now); err != nil {
			e.failed[p]++
			errs = append(errs, fmt.Errorf("write Event for %s: %w", p.Object, err))
			if inARow++; inARow == failuresInARow || ctx.Err() != nil {
				break
			}
			continue
		}
		inARow = 0
		e.written[p] = now
		delete(e.since, p)
		delete(e.failed, p)
	}
	return again, errors.Join(errs...)
}

// writeOne creates the Event, or renews the one that is there. An Event that
// the API refuses for good is logged in its place.
func (e *events) writeOne(ctx context.Context, p model.Problem, now time.Time) error {
	event := eventOf(p, now)
	client := e.client.CoreV1().Events(event.Namespace)
	_, err := client.Create(ctx, event, metav1.CreateOptions{FieldManager: FieldManager})
	if apierrors.IsAlreadyExists(err) {
		if err = nil; p.Severity != model.Advice {
			err = e.renew(ctx, event, now)
		}
	}
	switch {
	case err == nil:
		e.logger.Debug("problem", "object", p.Object.String(), "reason", p.Reason, "message", event.Message)
		return nil
	case apierrors.IsForbidden(err), apierrors.IsInvalid(err), apierrors.IsNotFound(err):
		// The namespace is going away, for instance.
		e.logger.Info("problem without Event", "object", p.Object.String(), "reason", p.Reason, "message", event.Message, "error", err)
		return nil
	}
	return err
}

// renew counts an Event that exists once more, unless that was done lately by
// a leader before this one.
func (e *events) renew(ctx context.Context, event *corev1.Event, now time.Time) error {
	client := e.client.CoreV1().Events(event.Namespace)
	present, err := client.Get(ctx, event.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if now.Sub(present.LastTimestamp.Time) < renewAfter/2 {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"count": present.Count + 1, "lastTimestamp": metav1.NewTime(now)})
	if err != nil {
		return err
	}
	_, err = client.Patch(ctx, event.Name, types.MergePatchType, patch, patchOptions())
	return err
}

// eventOf returns the Event of a problem.
func eventOf(p model.Problem, now time.Time) *corev1.Event {
	message := p.Message
	if p.Field != "" {
		message = p.Field + ": " + message
	}
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage-3], "") + "..."
	}
	namespace := p.Object.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault // where Events of cluster-wide objects go
	}
	kind := corev1.EventTypeWarning
	if p.Severity == model.Advice {
		kind = corev1.EventTypeNormal
	}
	at := metav1.NewTime(now)
	return &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: eventName(p)},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: apiVersion(p.Object.Kind), Kind: p.Object.Kind,
			Namespace: p.Object.Namespace, Name: p.Object.Name, UID: types.UID(p.Object.UID),
		},
		Reason: p.Reason, Message: message, Type: kind,
		Source:         corev1.EventSource{Component: component},
		FirstTimestamp: at, LastTimestamp: at, Count: 1,
		ReportingController: component,
	}
}

// eventName is the object's name and a hash of the problem.
func eventName(p model.Problem) string {
	h := fnv.New64a()
	for _, s := range []string{p.Object.Kind, p.Object.UID, p.Reason, p.Field, p.Message} {
		_, _ = h.Write([]byte(s))
		_, _ = h.Write([]byte{0})
	}
	name := p.Object.Name
	if len(name) > 200 {
		name = name[:200]
	}
	return fmt.Sprintf("%s.%016x", strings.TrimRight(name, ".-"), h.Sum64())
}

// apiVersion is that of the kinds that problems are about.
func apiVersion(kind string) string {
	switch kind {
	case "Ingress", "IngressClass":
		return "networking.k8s.io/v1"
	case "EndpointSlice":
		return "discovery.k8s.io/v1"
	case "IPAddressPool":
		return "metallb.io/v1beta1"
	}
	return "v1"
}
