package dialect

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Remark tells one change to an object, or why one was not made.
type Remark struct {
	Source
	// Object is the object for people, "Service shop/web".
	Object string
	// Field is its path in the object as written.
	Field   string
	Message string
}

// String returns "FILE: document N: Kind ns/name: field: message".
func (r Remark) String() string {
	parts := []string{r.Source.String()}
	for _, p := range []string{r.Object, r.Field} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(append(parts, r.Message), ": ")
}

// Problem says what is wrong with a document, and the cure. The document
// counts as not there.
type Problem Remark

// Error implements error.
func (p *Problem) Error() string { return Remark(*p).String() }

// ServicePort is what a conversion has to know of a Service's port.
type ServicePort struct {
	Name string
	Port int
	// Protocol is TCP, UDP or SCTP; empty means TCP.
	Protocol    string
	AppProtocol string
	// TargetPort is a name or a number, as text.
	TargetPort string
}

// Services finds the ports of Services that are not in the input.
type Services interface {
	// ServicePorts returns false where the Service does not exist or cannot
	// be asked for.
	ServicePorts(namespace, name string) ([]ServicePort, bool)
}

// Options say how to convert.
type Options struct {
	// Namespace is that of objects which name none; "default" by default.
	Namespace string
	// Services are asked for Services that an Ingress names and the input
	// does not hold; optional.
	Services Services
}

// Result is what became of the inputs.
type Result struct {
	// Objects are in the order of the input, without those that have a problem.
	Objects []*Object
	Remarks []Remark
	// Problems are all of type *[Problem].
	Problems []error
}

// Convert reads the inputs and brings their objects into the form that the
// Kubernetes API takes. Converting the result again changes nothing.
func Convert(inputs []Input, o Options) Result {
	if o.Namespace == "" {
		o.Namespace = "default"
	}
	c := &converter{options: o, services: map[serviceKey][]ServicePort{}}
	var all []*Object
	for _, in := range inputs {
		objects, problems := Read(in)
		all = append(all, objects...)
		c.result.Problems = append(c.result.Problems, problems...)
	}
	for _, object := range all {
		c.learn(object)
	}
	for _, object := range all {
		w := &work{converter: c, Object: object}
		w.convert()
		if len(w.problems) > 0 {
			c.result.Problems = append(c.result.Problems, w.problems...)
			continue
		}
		c.result.Remarks = append(c.result.Remarks, w.remarks...)
		c.result.Objects = append(c.result.Objects, object)
	}
	return c.result
}

type serviceKey struct{ namespace, name string }

type converter struct {
	options Options
	// services are those of the input.
	services map[serviceKey][]ServicePort
	result   Result
}

func (c *converter) namespace(o *Object) string {
	if o.Namespace == "" {
		return c.options.Namespace
	}
	return o.Namespace
}

// learn keeps the ports of a Service for the Ingresses of the input.
func (c *converter) learn(o *Object) {
	if o.APIVersion != "v1" || o.Kind != "Service" {
		return
	}
	var ports []ServicePort
	for _, p := range items(at(o.node, "spec", "ports")) {
		n, _ := portNumber(lookup(p, "port"))
		ports = append(ports, ServicePort{
			Name: stringAt(p, "name"), Port: n, Protocol: stringAt(p, "protocol"),
			AppProtocol: stringAt(p, "appProtocol"), TargetPort: stringAt(p, "targetPort"),
		})
	}
	c.services[serviceKey{c.namespace(o), o.Name}] = ports
}

// ports returns the ports of a Service of the input or of the cluster.
func (c *converter) ports(namespace, name string) ([]ServicePort, bool) {
	if p, ok := c.services[serviceKey{namespace, name}]; ok {
		return p, true
	}
	if c.options.Services == nil {
		return nil, false
	}
	return c.options.Services.ServicePorts(namespace, name)
}

// work is the conversion of one object.
type work struct {
	*converter
	*Object
	remarks  []Remark
	problems []error
}

// changed tells a change that was made.
func (w *work) changed(field, format string, args ...any) {
	w.text = nil
	w.remark(field, format, args...)
}

// remark tells something without a change.
func (w *work) remark(field, format string, args ...any) {
	w.remarks = append(w.remarks, Remark{w.Source, w.Object.String(), field, fmt.Sprintf(format, args...)})
}

func (w *work) problem(field, format string, args ...any) {
	w.problems = append(w.problems, &Problem{w.Source, w.Object.String(), field, fmt.Sprintf(format, args...)})
}

func (w *work) convert() {
	was := w.APIVersion
	to, ok := served(was, w.Kind)
	if ok {
		set(w.node, "apiVersion", text(to))
		w.APIVersion = to
		w.changed("apiVersion", "%s is no longer served; written as %s", was, to)
	}
	spec := lookup(w.node, "spec")
	switch {
	case was == "v1" && w.Kind == "Service":
		w.service(spec)
	case !ok:
	case w.Kind == "Ingress":
		w.ingress(spec)
	case w.Kind == "EndpointSlice":
		w.endpointSlice()
	case w.Kind == "PodDisruptionBudget":
		w.disruptionBudget(spec)
	case to == "apps/v1":
		w.workload(was, spec)
	}
}

// unknown reports the fields of a mapping that are not among the known ones.
func (w *work) unknown(field string, m *yaml.Node, known ...string) {
	for _, key := range keys(m) {
		if !slices.Contains(known, key) {
			w.problem(field+"."+key, "is not known; the fields here are %s", strings.Join(known, ", "))
		}
	}
}
