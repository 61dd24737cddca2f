package translate

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/internal/model"
)

// The reasons of problems found here, as they stand in Events.
const (
	// ReasonInvalid is a value that cannot be used.
	ReasonInvalid = "InvalidValue"
	// ReasonUnsupported is a wish that Fairway cannot fulfil.
	ReasonUnsupported = "NotSupported"
	// ReasonIneffective is a value that has no effect where it stands.
	ReasonIneffective = "NoEffect"
	// ReasonNoClass is an Ingress that no controller will serve.
	ReasonNoClass = "NoIngressClass"
)

// report collects the problems of one object.
type report struct {
	object   model.Ref
	problems model.Problems
}

func newReport(kind string, o metav1.Object) *report {
	return &report{object: refOf(kind, o)}
}

func (r *report) add(reason, field, format string, args ...any) {
	r.problems = append(r.problems, model.Problem{
		Object: r.object, Reason: reason, Field: field, Message: fmt.Sprintf(format, args...),
	})
}

func (r *report) invalid(field, format string, args ...any) {
	r.add(ReasonInvalid, field, format, args...)
}

func refOf(kind string, o metav1.Object) model.Ref {
	return model.Ref{Kind: kind, Key: keyOf(o), UID: string(o.GetUID())}
}

func keyOf(o metav1.Object) model.Key {
	return model.Key{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// annotationField is the field path of an annotation.
func annotationField(name string) string { return "metadata.annotations[" + name + "]" }
