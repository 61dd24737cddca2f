package translate

import (
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"fairway.dev/fairway/internal/model"
)

// StreamServices translates ingress-nginx's ConfigMap of TCP or UDP services:
// each key is a port of the gateway, each value "namespace/service:port", for
// TCP optionally with ":PROXY" for the PROXY protocol from the client and a
// further ":PROXY" for that to the backend.
func StreamServices(o *corev1.ConfigMap, protocol model.Protocol) ([]model.StreamRoute, model.Problems) {
	r := newReport("ConfigMap", o)
	var out []model.StreamRoute
	for _, key := range sortedKeys(o.Data) {
		field := "data[" + key + "]"
		port, err := strconv.ParseUint(strings.TrimSpace(key), 10, 16)
		if err != nil || port == 0 {
			r.invalid(field, "%q is no port number; use 1 to 65535 as key", key)
			continue
		}
		route := model.StreamRoute{
			Ref: r.object, Created: o.CreationTimestamp.Time, Field: field,
			Protocol: protocol, Port: uint16(port),
		}
		if streamTarget(r, field, o.Data[key], &route) {
			out = append(out, route)
		}
	}
	return out, r.problems
}

// streamTarget parses a value of the ConfigMap into route.
func streamTarget(r *report, field, value string, route *model.StreamRoute) bool {
	parts := strings.Split(strings.TrimSpace(value), ":")
	namespace, name, ok := strings.Cut(parts[0], "/")
	if !ok || len(parts) < 2 || len(parts) > 4 || !isDNSName(namespace) || !isDNSName(name) || parts[1] == "" {
		r.invalid(field, "%q cannot be read; write namespace/service:port, for example default/mysql:3306", value)
		return false
	}
	ref := portRef(parts[1])
	if _, err := strconv.Atoi(parts[1]); err == nil && ref.Number == 0 {
		r.invalid(field, "%q is no port number; use 1 to 65535, or the name of a port of the Service", parts[1])
		return false
	}
	route.Backend = model.Backend{Service: model.Key{Namespace: namespace, Name: name}, Port: ref}
	for i, flag := range parts[2:] {
		switch {
		case flag == "":
			continue
		case !strings.EqualFold(flag, "PROXY"):
			r.invalid(field, "%q after the port is not known; use PROXY, or leave it off", flag)
			return false
		case route.Protocol != model.TCP:
			r.add(ReasonUnsupported, field, "the PROXY protocol is for TCP; leave PROXY off")
			return false
		case i == 0:
			route.ProxyIn = true
		default:
			route.ProxyOut = true
		}
	}
	return true
}
