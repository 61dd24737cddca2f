package apply

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"fairway.dev/fairway/internal/dialect"
)

// problem is an error about one field, found on this side.
type problem struct{ field, message string }

func fieldError(field, message string) error { return &problem{field, message} }

// Error implements error.
func (p *problem) Error() string { return p.field + ": " + p.message }

// explain makes of an error one line for each thing that is wrong with the
// object, with its file, document and field.
func explain(o *dialect.Object, err error) []error {
	at := func(field, message string) error {
		return &dialect.Problem{Source: o.Source, Object: o.String(), Field: field, Message: message}
	}
	var own *problem
	if errors.As(err, &own) {
		return []error{at(own.field, own.message)}
	}
	if namespace, ok := missingNamespace(err); ok {
		return []error{at("metadata.namespace", fmt.Sprintf("namespace %s does not exist; create it, or add it to the input", namespace))}
	}
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return []error{at("", err.Error())}
	}
	s := status.Status()
	if problems := schemaProblems(s.Message); len(problems) > 0 {
		var out []error
		for _, p := range problems {
			out = append(out, at(p.field, p.message))
		}
		return out
	}
	if s.Details == nil || len(s.Details.Causes) == 0 {
		return []error{at("", s.Message)}
	}
	cure := ""
	if apierrors.IsConflict(err) {
		cure = "; --force-conflicts takes the field over"
	}
	var out []error
	for _, c := range s.Details.Causes {
		out = append(out, at(strings.TrimPrefix(c.Field, "."), c.Message+cure))
	}
	return out
}

// missingNamespace returns the namespace that an object's namespace should be.
func missingNamespace(err error) (string, bool) {
	var status apierrors.APIStatus
	if !apierrors.IsNotFound(err) || !errors.As(err, &status) {
		return "", false
	}
	d := status.Status().Details
	if d == nil || d.Kind != "namespaces" {
		return "", false
	}
	return d.Name, true
}

// schemaProblems reads what server-side apply says of an object that does not
// fit the schema of its kind. That comes as one text, without causes.
func schemaProblems(message string) []problem {
	_, text, ok := strings.Cut(message, "failed to create typed patch object (")
	if !ok {
		return nil
	}
	got := regexp.MustCompile(`^expected (\S+), got &value\.valueUnstructured\{Value:(.*)\}$`)
	var out []problem
	for _, m := range regexp.MustCompile(`(?m)(?:\): |^\s+)\.(.+?): (.+)$`).FindAllStringSubmatch(text, -1) {
		p := problem{m[1], m[2]}
		if p.message == "field not declared in schema" {
			p.message = "is not known to the API; check its spelling"
		} else if g := got.FindStringSubmatch(p.message); g != nil {
			p.message = fmt.Sprintf("is %s where a %s is wanted", g[2], g[1])
			if g[1] == "string" {
				p.message += "; write it in quotes"
			}
		}
		out = append(out, p)
	}
	return out
}
