package dialect

import (
	"fmt"
	"strconv"

	"go.yaml.in/yaml/v3"
)

const (
	annotationIngressClass = "kubernetes.io/ingress.class"
	// className is the name of Fairway's IngressClass.
	className = "fairway"
)

// ingress brings the spec of a v1beta1 Ingress into the form of v1
// (https://kubernetes.io/docs/reference/using-api/deprecation-guide/#ingress-v122).
func (w *work) ingress(spec *yaml.Node) {
	if !isMapping(spec) {
		return
	}
	w.ingressClass(spec)
	if backend := lookup(spec, "backend"); backend != nil {
		if lookup(spec, "defaultBackend") != nil {
			w.problem("spec.backend", "is the old name of spec.defaultBackend, which is there as well; remove one of them")
			return
		}
		rename(spec, "backend", "defaultBackend")
		w.changed("spec.backend", "written as spec.defaultBackend")
	}
	backends := []backend{}
	if b, ok := w.backend("spec.defaultBackend", lookup(spec, "defaultBackend")); ok {
		backends = append(backends, b)
	}
	for i, rule := range items(lookup(spec, "rules")) {
		for j, path := range items(at(rule, "http", "paths")) {
			field := fmt.Sprintf("spec.rules[%d].http.paths[%d]", i, j)
			if !isMapping(path) {
				continue
			}
			b, ok := w.backend(field+".backend", lookup(path, "backend"))
			if lookup(path, "backend") == nil {
				w.problem(field+".backend", "is missing; name a Service and its port in service.name and service.port")
			}
			if !isSet(lookup(path, "pathType")) {
				setBefore(path, "backend", "pathType", text("ImplementationSpecific"))
				w.changed(field+".pathType", "was not set; set to ImplementationSpecific, which is what that meant")
			}
			if ok {
				b.path = stringAt(path, "path")
				backends = append(backends, b)
			}
		}
	}
	if len(w.problems) == 0 {
		w.stream(spec, backends)
	}
}

// ingressClass moves the class of old from its annotation, if it is Fairway's.
// Another name need not be that of an IngressClass, and the API refuses both
// at once, so any other stays where it is: v1 still knows the annotation.
func (w *work) ingressClass(spec *yaml.Node) {
	class, ok := w.annotation(annotationIngressClass)
	if !ok || class != className || isSet(lookup(spec, "ingressClassName")) {
		return
	}
	annotations := at(w.node, "metadata", "annotations")
	remove(annotations, annotationIngressClass)
	if len(annotations.Content) == 0 {
		remove(lookup(w.node, "metadata"), "annotations")
	}
	prepend(spec, "ingressClassName", text(class))
	w.changed("metadata.annotations["+annotationIngressClass+"]", "written as spec.ingressClassName")
}

// backend is where a path of an Ingress leads.
type backend struct {
	field string
	// path is empty for the default backend.
	path    string
	service string
	// portName or port is set.
	portName string
	port     int
}

// backend converts serviceName and servicePort, and returns the Service that
// an old or new backend names.
func (w *work) backend(field string, n *yaml.Node) (backend, bool) {
	b := backend{field: field}
	if n == nil {
		return b, false
	}
	if !isMapping(n) {
		w.problem(field, "is no mapping; name a Service and its port in service.name and service.port")
		return b, false
	}
	w.unknown(field, n, "serviceName", "servicePort", "service", "resource")
	name, port := lookup(n, "serviceName"), lookup(n, "servicePort")
	if name == nil && port == nil {
		return w.newBackend(b, n)
	}
	if lookup(n, "service") != nil {
		w.problem(field, "has serviceName or servicePort beside service; remove the former")
		return b, false
	}
	var ok bool
	if b.service, ok = scalar(name); !ok || b.service == "" {
		w.problem(field+".serviceName", "is missing; name the Service")
		return b, false
	}
	value, ok := scalar(port)
	if !ok || value == "" {
		w.problem(field+".servicePort", "is missing; give a port of Service %s by name or number", b.service)
		return b, false
	}
	if n, err := strconv.Atoi(value); err == nil && (n < 1 || n > 65535) {
		w.problem(field+".servicePort", "%s is no port; ports are from 1 to 65535", value)
		return b, false
	}
	var written *yaml.Node
	if b.port, ok = portNumber(port); ok {
		// The name of a port has a letter, so a number in quotes is a number.
		written = mapping(text("number"), number(b.port))
	} else {
		b.portName = value
		written = mapping(text("name"), text(value))
	}
	copyComments(written, port)
	rename(n, "serviceName", "service")
	set(n, "service", mapping(text("name"), name, text("port"), written))
	remove(n, "servicePort")
	w.changed(field, "serviceName and servicePort written as service.name and service.port.%s", written.Content[0].Value)
	return b, true
}

// newBackend reads a backend that is already written as in v1.
func (w *work) newBackend(b backend, n *yaml.Node) (backend, bool) {
	b.service = stringAt(lookup(n, "service"), "name")
	port := at(n, "service", "port")
	b.portName = stringAt(port, "name")
	b.port, _ = portNumber(lookup(port, "number"))
	if b.service == "" && lookup(n, "service") == nil && lookup(n, "resource") == nil {
		w.problem(b.field, "names no Service; name one and its port in service.name and service.port")
	}
	return b, b.service != "" && (b.port > 0 || b.portName != "")
}

// copyComments moves the comments of a scalar to the mapping in its place.
func copyComments(to, from *yaml.Node) {
	last := to.Content[len(to.Content)-1]
	last.LineComment, last.HeadComment, last.FootComment = from.LineComment, from.HeadComment, from.FootComment
}

// setBefore puts a field before another one, or at the end.
func setBefore(m *yaml.Node, before, key string, value *yaml.Node) {
	remove(m, key)
	i := index(m, before)
	if i < 0 {
		set(m, key, value)
		return
	}
	m.Content = append(m.Content[:i:i], append([]*yaml.Node{text(key), value}, m.Content[i:]...)...)
}
