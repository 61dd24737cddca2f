package dialect

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Annotations of Fairway that conversions write. source/translate reads them.
const (
	annotationTLSSecret = "fairway.dev/tls-secret"
	annotationTLSHosts  = "fairway.dev/tls-hosts"
	annotationTLSPorts  = "fairway.dev/tls-ports"
	annotationTLSMode   = "fairway.dev/tls-mode"
	annotationTCPPort   = "fairway.dev/tcp-port"
)

// service fills in what a Service leaves out and moves spec.tls, which the API
// does not know.
func (w *work) service(spec *yaml.Node) {
	if !isMapping(spec) {
		return
	}
	if !isSet(lookup(spec, "type")) {
		w.serviceType(spec)
	}
	if tls := lookup(spec, "tls"); tls != nil {
		w.serviceTLS(spec, tls)
	}
}

// serviceType sets the type that the other fields of a Service without one mean.
func (w *work) serviceType(spec *yaml.Node) {
	nodePort := nodePortField(spec)
	headless := stringAt(spec, "clusterIP") == "None"
	// With a selector the API takes the Service as ClusterIP, so there it stays.
	external := isSet(lookup(spec, "externalName")) && !isSet(lookup(spec, "selector"))
	switch {
	case nodePort != "" && headless:
		w.problem(nodePort, "a headless Service (clusterIP: None) has no node port; remove nodePort, or clusterIP")
	case nodePort != "" && external:
		w.problem(nodePort, "a Service with externalName has no node port; remove nodePort, or externalName")
	case nodePort != "":
		prepend(spec, "type", text("NodePort"))
		w.changed("spec.type", "was not set; set to NodePort, as %s is set", nodePort)
	case external:
		prepend(spec, "type", text("ExternalName"))
		w.changed("spec.type", "was not set; set to ExternalName, as spec.externalName is set")
	}
}

// nodePortField returns the first field that asks for a node port.
func nodePortField(spec *yaml.Node) string {
	for i, p := range items(lookup(spec, "ports")) {
		if v, ok := scalar(lookup(p, "nodePort")); ok && v != "" && v != "0" {
			return fmt.Sprintf("spec.ports[%d].nodePort", i)
		}
	}
	return ""
}

// serviceTLS writes the article's spec.tls as Fairway's annotations.
func (w *work) serviceTLS(spec, tls *yaml.Node) {
	if isNull(tls) || tls.Kind == yaml.SequenceNode && len(tls.Content) == 0 {
		remove(spec, "tls")
		w.changed("spec.tls", "is empty, and no field of the API; removed")
		return
	}
	if tls.Kind != yaml.SequenceNode {
		w.problem("spec.tls", "is no list; write a list of hosts and secretName, or annotation %s", annotationTLSSecret)
		return
	}
	var t serviceTLS
	for i, entry := range tls.Content {
		w.tlsEntry(&t, fmt.Sprintf("spec.tls[%d]", i), entry)
	}
	if len(w.problems) > 0 {
		return
	}
	values := []struct{ name, value string }{
		{annotationTLSSecret, strings.Join(t.secrets, ",")},
		{annotationTLSHosts, strings.Join(t.hosts, ",")},
		{annotationTLSPorts, strings.Join(t.chosenPorts(spec), ",")},
		{annotationTLSMode, "terminate"},
	}
	if t.anyHost {
		values[1].value = ""
	}
	var said []string
	for _, v := range values {
		if v.value == "" {
			continue
		}
		was, ok := w.annotation(v.name)
		if ok && v.name == annotationTLSMode {
			// spec.tls has no word for the mode, so both may stand together.
			continue
		}
		if ok && was != v.value {
			w.problem("spec.tls", "and annotation %s (%s) say different things; remove one of them", v.name, was)
			return
		}
		if !w.annotate(v.name, v.value) {
			return
		}
		said = append(said, v.name+": "+v.value)
	}
	remove(spec, "tls")
	w.changed("spec.tls", "is no field of the API; written as annotations %s", strings.Join(said, ", "))
}

// serviceTLS is what the entries of spec.tls ask for together. The annotations
// list Secrets and hosts apart: which Secret answers for a host is told by the
// names in the certificates, as it is for SNI anyway.
type serviceTLS struct {
	secrets, hosts, ports []string
	// anyHost and anyPort are true when an entry names none.
	anyHost, anyPort bool
}

func (w *work) tlsEntry(t *serviceTLS, field string, entry *yaml.Node) {
	if !isMapping(entry) {
		w.problem(field, "is no mapping; write hosts and secretName")
		return
	}
	w.unknown(field, entry, "hosts", "secretName", "ports")
	secret := stringAt(entry, "secretName")
	switch {
	case secret == "":
		w.problem(field+".secretName", "is missing; name a Secret of type kubernetes.io/tls in the Service's namespace")
	case strings.ContainsAny(secret, "/, "):
		w.problem(field+".secretName", "%q is no name of a Secret in the Service's own namespace", secret)
	case !slices.Contains(t.secrets, secret):
		t.secrets = append(t.secrets, secret)
	}
	hosts, ok := words(lookup(entry, "hosts"))
	if !ok {
		w.problem(field+".hosts", "is no list of host names; write one name per item")
	}
	ports, ok := words(lookup(entry, "ports"))
	if !ok {
		w.problem(field+".ports", "is no list of ports; write names or numbers of the Service's ports")
	}
	t.anyHost = t.anyHost || len(hosts) == 0
	t.anyPort = t.anyPort || len(ports) == 0
	t.hosts = union(t.hosts, hosts)
	t.ports = union(t.ports, ports)
}

// words reads a list of plain texts without commas, as they are to share an annotation.
func words(n *yaml.Node) ([]string, bool) {
	if n == nil || isNull(n) {
		return nil, true
	}
	if n.Kind != yaml.SequenceNode {
		return nil, false
	}
	var out []string
	for _, c := range n.Content {
		s, ok := scalar(c)
		if s = strings.TrimSpace(s); !ok || s == "" || strings.ContainsAny(s, ", ") {
			return nil, false
		}
		out = append(out, s)
	}
	return out, true
}

func union(to, from []string) []string {
	for _, s := range from {
		if !slices.Contains(to, s) {
			to = append(to, s)
		}
	}
	return to
}

// chosenPorts returns the ports with TLS, nil for all. Where the entries name
// none and the Service has ports that are by their name or number for TLS
// beside others that are not, those are meant.
func (t *serviceTLS) chosenPorts(spec *yaml.Node) []string {
	if !t.anyPort {
		return t.ports
	}
	var chosen []string
	ports := items(lookup(spec, "ports"))
	for _, p := range ports {
		name, port := stringAt(p, "name"), stringAt(p, "port")
		if !meansTLS(name, port, stringAt(p, "appProtocol")) {
			continue
		}
		if name == "" {
			name = port
		}
		chosen = append(chosen, name)
	}
	if len(chosen) == len(ports) {
		return nil
	}
	return chosen
}

func meansTLS(name, port, appProtocol string) bool {
	for _, s := range []string{name, appProtocol} {
		for part := range strings.FieldsFuncSeq(strings.ToLower(s), func(r rune) bool { return r == '-' || r == '.' || r == '/' }) {
			if part == "https" || part == "tls" || part == "ssl" || part == "grpcs" || part == "wss" {
				return true
			}
		}
	}
	return port == "443" || port == "8443"
}

// annotation returns the value of an annotation.
func (w *work) annotation(name string) (string, bool) {
	return scalar(at(w.node, "metadata", "annotations", name))
}

// annotate sets an annotation, or reports that there is no place for one.
func (w *work) annotate(name, value string) bool {
	metadata := child(w.node, "metadata")
	if metadata == nil {
		w.problem("metadata", "is no mapping; write name and namespace in it")
		return false
	}
	annotations := child(metadata, "annotations")
	if annotations == nil {
		w.problem("metadata.annotations", "is no mapping; write names and values")
		return false
	}
	set(annotations, name, text(value))
	return true
}

// portNumber reads a port number, also one written as text.
func portNumber(n *yaml.Node) (int, bool) {
	s, ok := scalar(n)
	if !ok {
		return 0, false
	}
	i, err := strconv.ParseUint(s, 10, 16)
	return int(i), err == nil && i > 0
}
