package translate

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/internal/model"
)

// FuzzAnnotations: whatever stands in an annotation, nothing panics, and
// Fairway either follows it or says why not.
func FuzzAnnotations(f *testing.F) {
	for _, v := range []string{"", "true", "8m", "/$1", "https://a/b", "10.0.0.0/8", "a,b", "([", "3306", "GRPC", "-1", "\x00", "/a\r\nb: c", ","} {
		for i := range ingressAnnotations {
			f.Add(byte(i), v, "/path(.*)")
		}
	}
	f.Fuzz(func(t *testing.T, which byte, value, path string) {
		name := ingressAnnotations[int(which)%len(ingressAnnotations)]
		backend := networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: "s", Port: networkingv1.ServiceBackendPort{Number: 80}}}
		o := &networkingv1.Ingress{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "i", Annotations: map[string]string{name: value}},
			Spec: networkingv1.IngressSpec{Rules: []networkingv1.IngressRule{{Host: "a.example.com", IngressRuleValue: networkingv1.IngressRuleValue{
				HTTP: &networkingv1.HTTPIngressRuleValue{Paths: []networkingv1.HTTPIngressPath{{Path: path, Backend: backend}}},
			}}}},
		}
		got, problems := Ingress(o)
		for _, p := range problems {
			if p.Message == "" || p.Field == "" || p.Reason == "" {
				t.Errorf("problem without message, field or reason: %+v", p)
			}
		}
		if got.Route == nil {
			if name != AnnotationTCPPort {
				t.Fatalf("%s: %q takes the route away", name, value)
			}
			return
		}
		for _, r := range got.Route.Rules {
			if slices.Contains(annotationsAccess, name) && strings.TrimSpace(value) != "" && len(r.Filters.AllowFrom) == 0 {
				t.Errorf("%s: %q lets in everybody", name, value)
			}
			for _, text := range placesOf(&r.Filters) {
				if strings.ContainsAny(text, "\x00\r\n") {
					t.Errorf("%s: %q ends a line of HTTP", name, text)
				}
			}
			if r.Path.Type != model.PathRegex && !strings.HasPrefix(r.Path.Value, "/") {
				t.Errorf("path %q", r.Path.Value)
			}
		}
	})
}

// placesOf returns the texts that go into lines of HTTP.
func placesOf(f *model.Filters) (list []string) {
	if f.Redirect != nil {
		list = append(list, f.Redirect.Location)
	}
	if f.Rewrite != nil {
		list = append(list, f.Rewrite.Target)
	}
	if f.Session != nil {
		list = append(list, f.Session.Cookie, f.Session.Path, f.Session.Domain, f.Session.SameSite)
	}
	return list
}

// FuzzServiceAnnotations: a mistake must not turn TLS off or open a Service.
func FuzzServiceAnnotations(f *testing.F) {
	for _, v := range []string{"", "s", "a,b", "reencrypt", "443", "*.example.com", "10.0.0.0/8", "x y"} {
		for i := range annotationsTLS {
			f.Add(byte(i), v)
		}
	}
	f.Fuzz(func(t *testing.T, which byte, value string) {
		name := annotationsTLS[int(which)%len(annotationsTLS)]
		annotations := map[string]string{
			AnnotationTLSSecret:                          "s",
			corev1.AnnotationLoadBalancerSourceRangesKey: value,
			annotationsLoadBalancerIPs[0]:                value,
		}
		annotations[name] = value
		s, _ := Service(&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "x", Annotations: annotations},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 443}}},
		})
		if s.TLS == nil {
			t.Fatalf("%s: %q turns TLS off", name, value)
		}
		if len(commaList(value)) > 0 && len(s.LoadBalancer.SourceRanges) == 0 {
			t.Errorf("source ranges %q let in everybody", value)
		}
		if len(commaList(annotations[AnnotationTLSHosts])) > 0 && len(s.TLS.Hosts) == 0 {
			t.Errorf("hosts %q let in every name", value)
		}
	})
}

// FuzzStreamServices: every entry becomes a route or a problem.
func FuzzStreamServices(f *testing.F) {
	for _, v := range []string{"default/a:80", "a:80", "default/a:http:PROXY:PROXY", "", "/:", "default/a::"} {
		f.Add("9000", v)
		f.Add("x", v)
	}
	f.Fuzz(func(t *testing.T, key, value string) {
		o := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "tcp"}, Data: map[string]string{key: value}}
		for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
			routes, problems := StreamServices(o, protocol)
			if len(routes)+len(problems) != 1 {
				t.Fatalf("%q: %q gives %d routes and %d problems", key, value, len(routes), len(problems))
			}
			for _, r := range routes {
				if r.Port == 0 || r.Backend.Service.Name == "" || r.Backend.Port == (model.PortRef{}) {
					t.Errorf("%q: %q gives %+v", key, value, r)
				}
			}
		}
	})
}
