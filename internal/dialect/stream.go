package dialect

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// stream reads an Ingress whose backends speak plain TCP protocols as a wish
// for a TCP listener. Only what can mean nothing else is taken so: all
// backends are of such a protocol, at one port, and nothing is told apart by
// path.
func (w *work) stream(spec *yaml.Node, backends []backend) {
	if _, ok := w.annotation(annotationTCPPort); ok || len(backends) == 0 {
		return
	}
	port, plain := 0, 0
	var service, protocol string
	for _, b := range backends {
		n, p := w.streamPort(b)
		if p == "" {
			continue
		}
		if plain++; plain == 1 {
			port, protocol, service = n, p, b.service
		}
		switch {
		case b.path != "" && b.path != "/" && b.path != "/*":
			w.remark(b.field, "Service %s speaks %s, not HTTP, which has no path %s; left as HTTP. Route / to it for a TCP listener", b.service, p, b.path)
			return
		case n == 80 || n == 443:
			w.remark(b.field, "Service %s speaks %s at port %d, which is the gateway's for HTTP; left as HTTP. Give the Service the port that clients are to use", b.service, p, n)
			return
		case n != port:
			w.remark(b.field, "leads to TCP port %d and others of this Ingress to %d; left as HTTP. Write an Ingress for each port", n, port)
			return
		}
	}
	if plain == 0 {
		return
	}
	if plain < len(backends) {
		w.remark("spec", "Service %s speaks %s, but others of this Ingress speak HTTP; left as HTTP. Write an Ingress of its own for it", service, protocol)
		return
	}
	if !w.annotate(annotationTCPPort, fmt.Sprint(port)) {
		return
	}
	w.changed("spec", "Service %s speaks %s, not HTTP: annotation %s: %q asks the gateway for a TCP listener on port %d; TLS clients are told apart by the rules' hosts (SNI)",
		service, protocol, annotationTCPPort, fmt.Sprint(port), port)
	if _, ok := w.annotation(annotationIngressClass); !ok && !isSet(lookup(spec, "ingressClassName")) {
		prepend(spec, "ingressClassName", text(className))
		w.changed("spec.ingressClassName", "was not set; set to %s, which knows that annotation", className)
	}
	if isSet(lookup(spec, "tls")) {
		w.remark("spec.tls", "has no effect on a TCP listener: TLS passes through to Service %s", service)
	}
}

// streamPort returns the Service port of a backend and its protocol, if that
// is plainly one over TCP that is not HTTP.
func (w *work) streamPort(b backend) (port int, protocol string) {
	p := ServicePort{Name: b.portName, Port: b.port}
	if ports, ok := w.ports(w.namespace(w.Object), b.service); ok {
		found := false
		for _, sp := range ports {
			if b.portName != "" && sp.Name == b.portName || b.portName == "" && sp.Port == b.port {
				p, found = sp, true
				break
			}
		}
		if !found {
			return 0, ""
		}
	}
	if p.Protocol != "" && p.Protocol != "TCP" {
		w.remark(b.field, "port %d of Service %s is %s, which an Ingress cannot route; use type LoadBalancer, or a ConfigMap for the gateway's --udp-services", p.Port, b.service, p.Protocol)
		return 0, ""
	}
	spoken, ok := p.streamProtocol()
	if !ok {
		return 0, ""
	}
	if p.Port == 0 {
		// The Service is not known; its port is most likely the usual one.
		p.Port = spoken.port
	}
	if p.Port == 0 {
		return 0, ""
	}
	return p.Port, spoken.name
}

// streamProtocol goes by what says most: appProtocol, then the names, then the
// numbers. It returns false for HTTP and where nothing tells.
func (p ServicePort) streamProtocol() (streamProtocol, bool) {
	for _, s := range []string{p.AppProtocol, p.Name, p.TargetPort} {
		if s == "" {
			continue
		}
		// Names are often PROTOCOL-PURPOSE, as in Istio.
		s = strings.ToLower(s)
		first, _, _ := strings.Cut(s[strings.LastIndex(s, "/")+1:], "-")
		if isHTTP(first) {
			return streamProtocol{}, false
		}
		if protocol, ok := streamProtocols()[first]; ok {
			return protocol, true
		}
	}
	for _, number := range []string{fmt.Sprint(p.Port), p.TargetPort} {
		for _, protocol := range streamProtocols() {
			if number == fmt.Sprint(protocol.port) && protocol.port != 0 {
				return protocol, true
			}
		}
	}
	return streamProtocol{}, false
}

func isHTTP(s string) bool {
	switch s {
	case "http", "http1", "http2", "https", "h2c", "h2", "grpc", "grpcs", "ws", "wss", "web", "www":
		return true
	}
	return false
}

type streamProtocol struct {
	name string
	// port is its usual one; 0 where there is none.
	port int
}

// streamProtocols are protocols over TCP that are not HTTP, by the names that
// people give to ports. A port number stands for one protocol only.
func streamProtocols() map[string]streamProtocol {
	mysql, postgres := streamProtocol{"MySQL", 3306}, streamProtocol{"PostgreSQL", 5432}
	mongo, sqlServer := streamProtocol{"MongoDB", 27017}, streamProtocol{"SQL Server", 1433}
	return map[string]streamProtocol{
		"tcp":   {"TCP", 0},
		"mysql": mysql, "mariadb": mysql,
		"postgres": postgres, "postgresql": postgres, "pgsql": postgres,
		"redis": {"Redis", 6379}, "memcached": {"memcached", 11211},
		"mongo": mongo, "mongodb": mongo, "mssql": sqlServer, "sqlserver": sqlServer,
		"oracle": {"Oracle", 1521}, "cassandra": {"Cassandra", 9042}, "cql": {"Cassandra", 9042},
		"zookeeper": {"ZooKeeper", 2181}, "kafka": {"Kafka", 9092}, "nats": {"NATS", 4222},
		"amqp": {"AMQP", 5672}, "amqps": {"AMQP", 5671}, "mqtt": {"MQTT", 1883}, "mqtts": {"MQTT", 8883},
		"ssh": {"SSH", 22}, "ftp": {"FTP", 21}, "ldap": {"LDAP", 389}, "ldaps": {"LDAP", 636},
		"smtp": {"SMTP", 25}, "submission": {"SMTP", 587}, "smtps": {"SMTP", 465},
		"imap": {"IMAP", 143}, "imaps": {"IMAP", 993}, "pop3": {"POP3", 110}, "pop3s": {"POP3", 995},
	}
}
