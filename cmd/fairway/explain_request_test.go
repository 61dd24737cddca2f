package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/internal/gateway/gatewaytest"
	"fairway.dev/fairway/internal/gateway/upstream"
	"fairway.dev/fairway/internal/testenv/kubeapi"
)

// clusterOfShop is an API with two Ingresses for one host, and a kubeconfig for it.
func clusterOfShop(t *testing.T) (kubeconfig string) {
	t.Helper()
	api := kubeapi.New()
	of := func(name string, age time.Duration) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "shop", Name: name, CreationTimestamp: metav1.NewTime(time.Unix(1_700_000_000, 0).Add(-age))}
	}
	rule := func(host, path, service string) networkingv1.IngressRule {
		prefix := networkingv1.PathTypePrefix
		return networkingv1.IngressRule{Host: host, IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{
			Paths: []networkingv1.HTTPIngressPath{{Path: path, PathType: &prefix, Backend: networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{
				Name: service, Port: networkingv1.ServiceBackendPort{Number: 80},
			}}}},
		}}}
	}
	ingress := func(name, class string, age time.Duration, rules ...networkingv1.IngressRule) *networkingv1.Ingress {
		return &networkingv1.Ingress{ObjectMeta: of(name, age), Spec: networkingv1.IngressSpec{IngressClassName: &class, Rules: rules}}
	}
	shop := ingress("shop", "fairway", time.Hour, rule("shop.test", "/", "web"), rule("shop.test", "/gone", "nope"))
	shop.Annotations = map[string]string{"nginx.ingress.kubernetes.io/whitelist-source-range": "10.244.0.0/16", "nginx.ingress.kubernetes.io/proxy-read-timeout": "5"}
	secure := ingress("secure", "fairway", time.Hour, rule("www.shop.test", "/", "web"), rule("www.shop.test", "/old/(.*)", "web"))
	secure.Annotations = map[string]string{"nginx.ingress.kubernetes.io/rewrite-target": "/$1"}
	secure.Spec.TLS = []networkingv1.IngressTLS{{Hosts: []string{"www.shop.test"}, SecretName: "www-tls"}}
	canary := ingress("secure-canary", "fairway", 0, rule("www.shop.test", "/old/(.*)", "nope"))
	canary.Annotations = map[string]string{"nginx.ingress.kubernetes.io/canary": "true", "nginx.ingress.kubernetes.io/canary-by-header": "X-Canary", "nginx.ingress.kubernetes.io/canary-weight": "10"}
	pair := gatewaytest.Secret(t, "www-tls", "www.shop.test")
	secret := &corev1.Secret{ObjectMeta: of("www-tls", 0), Type: corev1.SecretTypeTLS, Data: map[string][]byte{corev1.TLSCertKey: pair.Chain, corev1.TLSPrivateKeyKey: pair.PrivateKey}}
	name, port, protocol, node := "http", int32(8080), corev1.ProtocolTCP, "node-1"
	api.Put(
		secure, canary, secret,
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}},
		&networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: "nginx"}, Spec: networkingv1.IngressClassSpec{Controller: "k8s.io/ingress-nginx"}},
		&corev1.Pod{ObjectMeta: of("cart", 0), Spec: corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{PodIP: "10.244.3.4"}},
		&corev1.Pod{ObjectMeta: of("outsider", 0), Spec: corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{PodIP: "10.9.9.9"}},
		&corev1.Service{ObjectMeta: of("web", 0), Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.20", ClusterIPs: []string{"10.96.0.20"}, Ports: []corev1.ServicePort{{Name: name, Port: 80, Protocol: protocol}}}},
		&discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}}, AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.244.0.9"}, NodeName: &node, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "shop", Name: "web-5d9c"}}},
			Ports:     []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &protocol}},
		},
		shop, ingress("young", "fairway", 0, rule("shop.test", "/", "web")), ingress("old-nginx", "nginx", 0, rule("nginx.test", "/", "web")),
		ingress("typo", "fairwax", 0, rule("typo.test", "/", "web")),
	)
	listener, err := api.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(listener.Stop)
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: shop
clusters: [{name: shop, cluster: {server: "http://%s"}}]
users: [{name: shop, user: {}}]
contexts: [{name: shop, context: {cluster: shop, user: shop, namespace: shop}}]
`, listener.Addr), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

// TestExplainRequest runs the command against an API.
func TestExplainRequest(t *testing.T) {
	kubeconfig, dataDir := clusterOfShop(t), t.TempDir()
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/debug/state/services" || !strings.HasPrefix(r.Host, "127.0.0.1:") {
			http.Error(w, r.URL.Path, http.StatusForbidden)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"services": []upstream.PoolState{{Service: "shop/web", Port: "80/TCP",
			Endpoints: []upstream.EndpointState{{Address: "10.244.0.9:8080", State: "unhealthy", Check: "status 500"}}}}})
	}))
	defer gateway.Close()
	live := strings.TrimPrefix(gateway.URL, "http://")
	for _, test := range []struct {
		args string
		code int
		has  []string
	}{
		{"http://shop.test/a", 0, []string{
			"goes to Service shop/web, port 80", "only some clients are let in", "limits each read to 5s", "10.244.0.9:8080  web-5d9c  node-1", "ready",
			"does not  Ingress shop/young", "Ingress shop/shop has the same host and path, and the older object goes first",
			"problem: Ingress shop/young: ", // what its Event says
		}},
		{"http://shop.test/a --metrics-address " + live, 0, []string{"NOW", "ready  UNHEALTHY: status 500"}},
		{"http://shop.test/a --metrics-address 127.0.0.1:1", 0, []string{"how the endpoints are now is not known here: no gateway answers", "ready"}},
		{"svc/web --metrics-address " + live, 1, []string{"! --metrics-address is for a URL"}},
		{"http://shop.test/a --from cart", 0, []string{"from 10.244.3.4,", "goes to Service shop/web"}},
		{"http://shop.test/a --from shop/outsider", 1, []string{"the gateway answers 403 Forbidden"}},
		{"http://shop.test/a --from 203.0.113.7 -X POST -H X-A:b", 1, []string{"POST http://shop.test/a", "from 203.0.113.7,"}},
		{"http://shop.test/gone", 1, []string{"gets 503 Service Unavailable: service shop/nope: ", "problem: Ingress shop/shop: spec.rules[1].http.paths[0]", "Service shop/nope does not exist"}},
		{"http://www.shop.test/old/a", 1, []string{"308 Permanent Redirect to https://www.shop.test/old/a", "spec.tls of Ingress shop/secure covers the host", "that of Secret shop/www-tls, made out for www.shop.test"}},
		{"https://www.shop.test/old/a?b -H X-Canary:never", 0, []string{"goes to Service shop/web", "/old/(.*) (Regex)", "replaces the path by /$1", "GET /a?b\n", "0 % (header X-Canary)"}},
		{"https://www.shop.test/old/a", 1, []string{"90 % goes to Service shop/web, port 80; 10 % gets 503", "canary of Ingress shop/secure-canary: Service shop/nope, port 80, 10 % (weight 10 of 100)"}},
		{"http://typo.test/", 1, []string{"404 Not Found", `IngressClass "fairwax" does not exist`}},
		{"http://nginx.test/", 1, []string{"404 Not Found", `has a rule for host "nginx.test"`}},
		{"http://nginx.test/ --serve-nginx-class", 0, []string{"goes to Service shop/web"}},
		{"http://shop.test/a -o json", 0, []string{`"reaches": true`, `"service": "shop/web"`}},
		{"http://shop.test/a --node nowhere", 1, []string{"! there is no Node nowhere"}},
		{"http://shop.test/a --from nobody", 1, []string{"! there is no Pod nobody in namespace shop; give an address, or a Pod"}},
		{"http://shop.test/a --port http", 1, []string{"! --port is for a Service; write the port into the URL"}},
		{"svc/web -X POST", 1, []string{"! --request is for a URL, and svc/web is a Service"}},
		{"shop.test/a", 1, []string{"! a request with its scheme, as http://shop.test/a or https://shop.test/a"}},
	} {
		t.Run(test.args, func(t *testing.T) {
			var out bytes.Buffer
			cmd := newRootCommand()
			cmd.SetOut(&out)
			cmd.SetArgs(append([]string{"explain", "--kubeconfig", kubeconfig, "--data-dir", dataDir}, strings.Fields(test.args)...))
			err := cmd.ExecuteContext(context.Background())
			code := 0
			if err != nil {
				code, _ = exitCode(err)
			}
			if code != test.code {
				t.Errorf("exit status %d (%v), want %d", code, err, test.code)
			}
			for _, s := range test.has {
				text := out.String()
				if part, ok := strings.CutPrefix(s, "! "); ok {
					s, text = part, fmt.Sprint(err)
				}
				if !strings.Contains(text, s) {
					t.Errorf("no %q in:\n%s", s, text)
				}
			}
			if strings.HasSuffix(test.args, "json") && !json.Valid(out.Bytes()) {
				t.Errorf("no JSON: %s", &out)
			}
		})
	}
}
