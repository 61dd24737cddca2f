package translate

import (
	"strings"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"fairway.dev/fairway/internal/model"
)

const (
	// Controller is the name in spec.controller of the IngressClasses that
	// Fairway serves.
	Controller = "fairway.dev/ingress"
	// ClassName is the name of Fairway's own IngressClass.
	ClassName = "fairway"
	// NginxController is the controller name of ingress-nginx.
	NginxController = "k8s.io/ingress-nginx"

	// annotationIngressClass names a class in the way from before
	// networking.k8s.io/v1. The class need not exist as an object.
	annotationIngressClass = "kubernetes.io/ingress.class"
)

// Class is one IngressClass.
type Class struct {
	Name       string
	Controller string
	// Default is true for the class of Ingresses that name none.
	Default bool
	Created time.Time
}

// IngressClass translates an IngressClass.
func IngressClass(o *networkingv1.IngressClass) Class {
	return Class{
		Name:       o.Name,
		Controller: o.Spec.Controller,
		Default:    o.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true",
		Created:    o.CreationTimestamp.Time,
	}
}

// Classes tell which Ingresses Fairway serves.
type Classes struct {
	// ByName are all IngressClasses that exist.
	ByName map[string]Class
	// ServeNginx takes the classes of controller k8s.io/ingress-nginx as
	// Fairway's own, for clusters that move from ingress-nginx.
	ServeNginx bool
}

// ours reports whether an IngressClass is served by Fairway.
func (c Classes) ours(class Class) bool {
	return class.Controller == Controller || c.ServeNginx && class.Controller == NginxController
}

// defaultClass returns the class of Ingresses that name none. Where several
// are marked it is the newest, as in the API server's admission.
func (c Classes) defaultClass() (Class, bool) {
	var best Class
	found := false
	for _, class := range c.ByName {
		newer := class.Created.After(best.Created) || class.Created.Equal(best.Created) && class.Name < best.Name
		if class.Default && (!found || newer) {
			best, found = class, true
		}
	}
	return best, found
}

// Serves reports whether Fairway serves the Ingress. The problems are those of
// an Ingress that no controller at all can be meant to serve.
func (c Classes) Serves(o *networkingv1.Ingress) (bool, model.Problems) {
	r := newReport("Ingress", o)
	if legacy, ok := o.Annotations[annotationIngressClass]; ok && o.Spec.IngressClassName == nil {
		class, exists := c.ByName[legacy]
		return exists && c.ours(class) || !exists && c.legacyName(legacy), nil
	}
	if o.Spec.IngressClassName == nil {
		class, ok := c.defaultClass()
		if !ok {
			r.add(ReasonNoClass, "spec.ingressClassName", "is not set and no IngressClass is the default, so nobody serves this Ingress; set it to %s", ClassName)
		}
		return ok && c.ours(class), r.problems
	}
	name := *o.Spec.IngressClassName
	class, exists := c.ByName[name]
	if !exists && name != ClassName {
		r.add(ReasonNoClass, "spec.ingressClassName", "IngressClass %q does not exist, so nobody serves this Ingress; set it to one of: %s", name, c.names())
		return false, r.problems
	}
	// Without the object, Fairway's own name still means Fairway.
	return !exists || c.ours(class), nil
}

func (c Classes) legacyName(name string) bool {
	return name == ClassName || c.ServeNginx && name == "nginx"
}

func (c Classes) names() string {
	names := sortedKeys(c.ByName)
	if len(names) == 0 {
		return ClassName
	}
	return strings.Join(names, ", ")
}
