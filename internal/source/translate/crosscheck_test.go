package translate

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"runtime"
	"strings"
	"testing"
	"time"
	"weak"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
	"fairway.dev/fairway/internal/testenv"
)

var now = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)

// tlsSecret makes a Secret with a certificate for names, valid for a year around now.
func tlsSecret(t *testing.T, name string, notAfter time.Time, names ...string) *corev1.Secret {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return tlsSecretOf(t, key, name, notAfter, names...)
}

func tlsSecretOf(t *testing.T, key crypto.Signer, name string, notAfter time.Time, names ...string) *corev1.Secret {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: notAfter.AddDate(-1, 0, 0), NotAfter: notAfter,
	}, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: "uid-" + "s"},
		Data: map[string][]byte{
			corev1.TLSCertKey:       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
			corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
			"other":                 []byte("kept nowhere"),
		},
	}
}

func TestSecret(t *testing.T) {
	good := tlsSecret(t, "s", now.AddDate(0, 6, 0), "WWW.example.com")
	other := tlsSecret(t, "s", now.AddDate(0, 6, 0), "www.example.com")
	tests := []struct {
		name    string
		data    map[string][]byte
		problem string // part of it; empty for none
	}{
		{"good", good.Data, ""},
		{"nothing", map[string][]byte{"password": []byte("x")}, "has neither tls.crt nor tls.key; make it with: kubectl create secret tls s -n default"},
		{"no key", map[string][]byte{"tls.crt": good.Data["tls.crt"]}, "tls.key is empty"},
		{"no certificate", map[string][]byte{"tls.key": good.Data["tls.key"]}, "tls.crt is empty"},
		{"no PEM", map[string][]byte{"tls.crt": []byte("x"), "tls.key": []byte("y")}, "tls.crt is not PEM"},
		{"wrong key", map[string][]byte{"tls.crt": good.Data["tls.crt"], "tls.key": other.Data["tls.key"]}, "tls.key does not belong to tls.crt"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := &corev1.Secret{ObjectMeta: good.ObjectMeta, Data: tt.data}
			c := Secret(o)
			if tt.problem == "" != (c.Problem == "") || !strings.Contains(c.Problem, tt.problem) {
				t.Errorf("problem %q, want %q", c.Problem, tt.problem)
			}
			if tt.problem == "" && (!cmp.Equal(c.Names, []string{"www.example.com"}) || !c.NotAfter.Equal(now.AddDate(0, 6, 0))) {
				t.Errorf("names %q until %v", c.Names, c.NotAfter)
			}
		})
	}
}

// load translates YAML documents into a snapshot.
func load(t *testing.T, secrets []*corev1.Secret, docs string) *state.Snapshot {
	t.Helper()
	store := state.New()
	store.Update(func(tx *state.Tx) {
		for _, s := range secrets {
			tx.PutCertificate(Secret(s))
		}
		for doc := range strings.SplitSeq(docs, "\n---\n") {
			var meta metav1.TypeMeta
			if err := yaml.Unmarshal([]byte(doc), &meta); err != nil {
				t.Fatal(err)
			}
			value, _ := translateDoc(t, meta.Kind, []byte(doc))
			switch v := value.(type) {
			case *model.Service:
				tx.PutService(v)
			case IngressResult:
				if v.Route != nil {
					tx.PutRoute(v.Route)
				}
				if len(v.Streams) > 0 {
					tx.PutStreams(v.Streams[0].Ref, v.Streams)
				}
			case []model.StreamRoute:
				tx.PutStreams(v[0].Ref, v)
			}
		}
	})
	return store.Snapshot()
}

func TestCrossCheck(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	secrets := []*corev1.Secret{
		tlsSecret(t, "good", now.AddDate(0, 1, 0), "www.example.com", "*.example.org"),
		tlsSecret(t, "expired", now.AddDate(0, -1, 0), "www.example.com"),
		tlsSecret(t, "future", now.AddDate(2, 0, 0), "www.example.com"),
		tlsSecretOf(t, rsaKey, "rsa", now.AddDate(0, 1, 0), "www.example.com", "*.example.org"),
		{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "none"}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "ca"}, Data: map[string][]byte{"ca.crt": tlsSecret(t, "x", now.AddDate(0, 1, 0), "x").Data["tls.crt"]}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "both"}, Data: tlsSecret(t, "x", now.AddDate(0, 1, 0), "x").Data},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "bad-pair"}, Data: map[string][]byte{"tls.crt": []byte("junk"), "tls.key": []byte("junk"), "ca.crt": tlsSecret(t, "x", now.AddDate(0, 1, 0), "x").Data["tls.crt"]}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "bad-ca"}, Data: map[string][]byte{"ca.crt": []byte("junk")}},
	}
	for _, s := range secrets {
		if s.Name == "both" {
			s.Data["ca.crt"] = s.Data["tls.crt"]
		}
	}
	const web = `kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]}`
	const secure = `kind: Service
metadata: {name: secure, namespace: default}
spec: {clusterIP: 10.96.0.3, ports: [{port: 443, appProtocol: https}]}`
	proxySSL := func(secret string) string {
		return `nginx.ingress.kubernetes.io/proxy-ssl-verify: "on", nginx.ingress.kubernetes.io/proxy-ssl-secret: default/` + secret
	}
	const alias = `kind: Service
metadata: {name: alias, namespace: default}
spec: {type: ExternalName, externalName: www.example.com}`
	ingress := func(name, year, annotations, spec string) string {
		return "kind: Ingress\nmetadata: {name: " + name + ", namespace: default, creationTimestamp: \"" + year + "-01-01T00:00:00Z\", annotations: {" + annotations + "}}\nspec: " + spec
	}
	rule := func(host, path, service, port string) string {
		return "{host: " + host + ", http: {paths: [{path: " + path + ", pathType: Prefix, backend: {service: {name: " + service + ", port: {" + port + "}}}}]}}"
	}
	service := func(annotations string) string {
		return "kind: Service\nmetadata: {name: tls, namespace: default, annotations: {" + annotations + "}}\nspec: {clusterIP: 10.96.0.2, ports: [{port: 443}]}"
	}
	const canary = `nginx.ingress.kubernetes.io/canary: "true", nginx.ingress.kubernetes.io/canary-weight: "10"`
	tests := []struct {
		name string
		docs []string
		want []string // "Reason: Kind ns/name: part of the message" in order
	}{
		{"all is well", []string{web, ingress("a", "2020", "", "{tls: [{hosts: [www.example.com, x.example.org], secretName: good}, {hosts: [b.example.com]}], rules: ["+rule("www.example.com", "/", "web", "number: 80")+"]}"),
			service("fairway.dev/tls-secret: good, fairway.dev/tls-hosts: www.example.com")}, nil},
		{"missing Service", []string{ingress("a", "2020", "", "{rules: ["+rule("a.com", "/", "web", "number: 80")+"]}")},
			[]string{"ServiceMissing: Ingress default/a: spec.rules[0].http.paths[0]: Service default/web does not exist; create it"}},
		{"missing port by number", []string{web, ingress("a", "2020", "", "{rules: ["+rule("a.com", "/", "web", "number: 8080")+"]}")},
			[]string{"PortMissing: Ingress default/a: spec.rules[0].http.paths[0]: Service default/web has no TCP port 8080; its ports are: http (80), dns (53)"}},
		{"port of another protocol", []string{web, ingress("a", "2020", "", "{rules: ["+rule("a.com", "/", "web", "name: dns")+"]}")},
			[]string{"PortMissing: Ingress default/a: spec.rules[0].http.paths[0]: Service default/web has no TCP port dns"}},
		{"ExternalName needs no ports", []string{alias, ingress("a", "2020", "", "{rules: ["+rule("a.com", "/", "alias", "number: 80")+"]}")}, nil},
		{"ExternalName with a named port", []string{alias, ingress("a", "2020", "", "{rules: ["+rule("a.com", "/", "alias", "name: http")+"]}")},
			[]string{"PortMissing: Ingress default/a: spec.rules[0].http.paths[0]: Service default/alias has no TCP port http; its ports are: it has none"}},
		{"the older one wins", []string{web, ingress("a-young", "2021", "", "{rules: ["+rule("a.com", "/x", "web", "number: 80")+"]}"), ingress("b-old", "2020", "", "{rules: ["+rule("A.com", "/x/", "web", "number: 80")+"]}")},
			[]string{`Duplicate: Ingress default/a-young: spec.rules[0].http.paths[0]: host "a.com" with path /x (Prefix) is claimed by the older Ingress default/b-old`}},
		{"twice in one object", []string{web, ingress("a", "2020", "", "{rules: ["+rule("a.com", "/x", "web", "number: 80")+", "+rule("a.com", "/x", "web", "number: 80")+"]}")},
			[]string{"Duplicate: Ingress default/a: spec.rules[1].http.paths[0]: host \"a.com\" with path /x (Prefix) stands in this object already"}},
		{"two default backends", []string{web, ingress("a", "2020", "", "{defaultBackend: {service: {name: web, port: {number: 80}}}}"), ingress("b", "2020", "", "{defaultBackend: {service: {name: web, port: {number: 80}}}}")},
			[]string{"Duplicate: Ingress default/b: spec.defaultBackend: a default backend is claimed by the older Ingress default/a"}},
		{"canary beside its main rule", []string{web, ingress("a", "2021", canary, "{rules: ["+rule("a.com", "/", "web", "number: 80")+"]}"), ingress("b", "2022", "", "{rules: ["+rule("a.com", "/", "web", "number: 80")+"]}")}, nil},
		{"canary of another path type", []string{web, ingress("a", "2021", canary, "{rules: ["+strings.Replace(rule("a.com", "/x", "web", "number: 80"), "Prefix", "Exact", 1)+"]}"), ingress("b", "2022", "", "{rules: ["+rule("a.com", "/x", "web", "number: 80")+"]}")}, nil},
		{"default backend beside own hosts", []string{web, ingress("a", "2020", "", "{defaultBackend: {service: {name: web, port: {number: 80}}}}"), ingress("b", "2021", "", "{defaultBackend: {service: {name: web, port: {number: 80}}}, rules: ["+rule("a.com", "/", "web", "number: 80")+"]}")}, nil},
		{"canary alone", []string{web, ingress("a", "2021", canary, "{rules: ["+rule("a.com", "/", "web", "number: 80")+"]}"), ingress("b", "2022", "", "{rules: ["+rule("a.com", "/other", "web", "number: 80")+"]}")},
			[]string{"NoCanaryTarget: Ingress default/a: spec.rules[0].http.paths[0]: no Ingress of namespace default without the canary annotation has host \"a.com\" with path /"}},
		{"canary in another namespace", []string{web, strings.Replace(ingress("a", "2021", canary, "{rules: ["+rule("a.com", "/", "web", "number: 80")+"]}"), "namespace: default", "namespace: evil", 1), ingress("b", "2022", "", "{rules: ["+rule("a.com", "/", "web", "number: 80")+"]}")},
			[]string{
				"ServiceMissing: Ingress evil/a: spec.rules[0].http.paths[0]: Service evil/web does not exist",
				"NoCanaryTarget: Ingress evil/a: spec.rules[0].http.paths[0]: no Ingress of namespace evil without the canary annotation",
			}},
		{"Secrets of an Ingress", []string{web, ingress("a", "2020", "", "{tls: [{hosts: [a.com], secretName: gone}, {hosts: [a.com], secretName: none}, {hosts: [a.com, www.example.com, x.y.example.org], secretName: good}], rules: ["+rule("a.com", "/", "web", "number: 80")+"]}")},
			[]string{
				"SecretMissing: Ingress default/a: spec.tls: Secret default/gone does not exist; create it with: kubectl create secret tls gone -n default",
				"SecretInvalid: Ingress default/a: spec.tls: Secret default/none: has neither tls.crt nor tls.key",
				"CertificateNameMismatch: Ingress default/a: spec.tls: the certificate in Secret default/good is made out for www.example.com, *.example.org and not for a.com",
				"CertificateNameMismatch: Ingress default/a: spec.tls: the certificate in Secret default/good is made out for www.example.com, *.example.org and not for x.y.example.org",
			}},
		{"a key of RSA, for two Ingresses", []string{web, ingress("a", "2020", "", "{tls: [{secretName: rsa}, {hosts: [www.example.com], secretName: rsa}], rules: ["+rule("a.com", "/", "web", "number: 80")+"]}"),
			ingress("b", "2021", "", "{tls: [{hosts: [x.example.org], secretName: rsa}], rules: ["+rule("b.com", "/", "web", "number: 80")+"]}")},
			[]string{"ExpensiveKey: Secret default/rsa: the certificate has a key of RSA"}},
		{"a key of RSA for old clients", []string{web, ingress("a", "2020", "", "{tls: [{hosts: [www.example.com, x.example.org], secretName: rsa}, {hosts: [www.example.com], secretName: good}], rules: ["+rule("a.com", "/", "web", "number: 80")+"]}"),
			ingress("b", "2021", "", "{tls: [{hosts: [x.example.org], secretName: good}], rules: ["+rule("b.com", "/", "web", "number: 80")+"]}")}, nil},
		{"CA of a Service that is none", []string{service("fairway.dev/tls-secret: good, fairway.dev/tls-mode: reencrypt, fairway.dev/tls-ca-secret: bad-ca")},
			[]string{"SecretInvalid: Service default/tls: metadata.annotations[fairway.dev/tls-ca-secret]: Secret default/bad-ca: ca.crt holds no PEM certificate; put the certificate"}},
		{"Secret of a Service missing", []string{service("fairway.dev/tls-secret: mytlssecret")},
			[]string{"SecretMissing: Service default/tls: metadata.annotations[fairway.dev/tls-secret]: Secret default/mytlssecret does not exist; create it with: kubectl create secret tls mytlssecret -n default --cert=FILE --key=FILE. Connections to the TLS ports are refused"}},
		{"times and names of a Service", []string{service(`fairway.dev/tls-secret: "expired,future,good", fairway.dev/tls-hosts: "x.example.org,other.com"`)},
			[]string{
				"CertificateNotValid: Service default/tls: metadata.annotations[fairway.dev/tls-secret]: the certificate in Secret default/expired expired on 2026-05-01T00:00:00Z",
				"CertificateNotValid: Service default/tls: metadata.annotations[fairway.dev/tls-secret]: the certificate in Secret default/future is valid from 2027-06-01T00:00:00Z only",
				"CertificateNameMismatch: Service default/tls: metadata.annotations[fairway.dev/tls-hosts]: the certificate in Secret default/expired, default/future, default/good is made out for",
			}},
		{"CA missing", []string{service(`fairway.dev/tls-secret: good, fairway.dev/tls-mode: reencrypt, fairway.dev/tls-ca-secret: gone`)},
			[]string{"SecretMissing: Service default/tls: metadata.annotations[fairway.dev/tls-ca-secret]: Secret default/gone does not exist"}},
		{"CA empty", []string{service(`fairway.dev/tls-secret: good, fairway.dev/tls-mode: reencrypt, fairway.dev/tls-ca-secret: good`)},
			[]string{"SecretInvalid: Service default/tls: metadata.annotations[fairway.dev/tls-ca-secret]: Secret default/good has no ca.crt"}},
		{"TLS to a backend", []string{web, secure, ingress("a", "2020", proxySSL("good"), "{rules: ["+rule("a.com", "/", "secure", "number: 443")+"]}"),
			ingress("b", "2020", proxySSL("ca")+`, nginx.ingress.kubernetes.io/backend-protocol: HTTPS`, "{rules: ["+rule("b.com", "/", "web", "number: 80")+"]}")}, []string{
			"SecretInvalid: Ingress default/a: metadata.annotations[nginx.ingress.kubernetes.io/proxy-ssl-secret]: Secret default/good has no ca.crt to verify the backend with; put the certificate",
		}},
		{"a canary that is not verified", []string{secure, ingress("a", "2020", proxySSL("both"), "{rules: ["+rule("a.com", "/", "secure", "number: 443")+"]}"),
			ingress("b", "2021", canary, "{rules: ["+rule("a.com", "/", "secure", "number: 443")+"]}"),
			ingress("c", "2021", canary+", "+proxySSL("both"), "{rules: ["+rule("a.com", "/", "secure", "number: 443")+"]}")}, []string{
			"CanaryNotVerified: Ingress default/b: metadata.annotations: the backends of Ingress default/a are verified, and those of this canary are not, for each goes by its own annotations; give it the same",
		}},
		{"TLS to a backend in plain", []string{web, ingress("a", "2020", proxySSL("gone"), "{rules: ["+rule("a.com", "/", "web", "number: 80")+", "+rule("b.com", "/", "web", "number: 80")+"]}")}, []string{
			"NoEffect: Ingress default/a: metadata.annotations: the annotations proxy-ssl-* have no effect on Service default/web, which is spoken to in plain; set nginx.ingress.kubernetes.io/backend-protocol: HTTPS or GRPCS, or appProtocol: https",
		}},
		{"Secrets for TLS to a backend", []string{secure, ingress("a", "2020", proxySSL("gone"), "{rules: ["+rule("a.com", "/", "secure", "number: 443")+"]}"),
			ingress("b", "2020", proxySSL("none"), "{rules: ["+rule("b.com", "/", "secure", "number: 443")+"]}"),
			ingress("c", "2020", proxySSL("bad-ca"), "{rules: ["+rule("c.com", "/", "secure", "number: 443")+"]}"),
			ingress("d", "2020", `nginx.ingress.kubernetes.io/proxy-ssl-secret: expired`, "{rules: ["+rule("d.com", "/", "secure", "number: 443")+"]}"),
			ingress("e", "2020", `nginx.ingress.kubernetes.io/proxy-ssl-secret: ca`, "{rules: ["+rule("e.com", "/", "secure", "number: 443")+"]}"),
			ingress("f", "2020", proxySSL("bad-pair"), "{rules: ["+rule("f.com", "/", "secure", "number: 443")+"]}")}, []string{
			"SecretMissing: Ingress default/a: metadata.annotations[nginx.ingress.kubernetes.io/proxy-ssl-secret]: Secret default/gone does not exist; create it with: kubectl create secret generic gone -n default --from-file=ca.crt=FILE",
			"SecretInvalid: Ingress default/b: metadata.annotations[nginx.ingress.kubernetes.io/proxy-ssl-secret]: Secret default/none has neither ca.crt nor tls.crt with tls.key",
			"SecretInvalid: Ingress default/c: metadata.annotations[nginx.ingress.kubernetes.io/proxy-ssl-secret]: Secret default/bad-ca: ca.crt holds no PEM certificate",
			"CertificateNotValid: Ingress default/d: metadata.annotations[nginx.ingress.kubernetes.io/proxy-ssl-secret]: the certificate in Secret default/expired, which is shown to the backend, expired on 2026-05-01T00:00:00Z; renew it",
			`NoEffect: Ingress default/e: metadata.annotations[nginx.ingress.kubernetes.io/proxy-ssl-secret]: Secret default/ca has no tls.crt to show to the backend, and its ca.crt has no effect without nginx.ingress.kubernetes.io/proxy-ssl-verify: "on"`,
			"SecretInvalid: Ingress default/f: metadata.annotations[nginx.ingress.kubernetes.io/proxy-ssl-secret]: Secret default/bad-pair: tls.crt is not PEM",
		}},
		{"streams", []string{web,
			ingress("a", "2020", `fairway.dev/tcp-port: "80"`, "{rules: ["+rule("a.com", "/", "web", "number: 80")+"]}"),
			ingress("b", "2021", `fairway.dev/tcp-port: "80"`, "{rules: ["+rule("a.com", "/", "web", "number: 80")+", "+rule("b.com", "/", "gone", "number: 80")+"], defaultBackend: {service: {name: web, port: {number: 80}}}}"),
			"kind: ConfigMap\nmetadata: {name: udp, namespace: z, creationTimestamp: \"2019-01-01T00:00:00Z\"}\ndata: {\"80\": \"default/web:dns\", \"81\": \"default/web:http\"}",
			"kind: ConfigMap\nmetadata: {name: tcp, namespace: z, creationTimestamp: \"2019-01-01T00:00:00Z\"}\ndata: {\"80\": \"default/web:http\"}"},
			[]string{
				"PortMissing: ConfigMap z/udp: data[81]: Service default/web has no UDP port http",
				`Duplicate: Ingress default/b: spec.rules[0].http.paths[0].backend: gateway port 80/TCP for host "a.com" is claimed by Ingress default/a already`,
				"ServiceMissing: Ingress default/b: spec.rules[1].http.paths[0].backend: Service default/gone does not exist; create it, or correct the name. Connections to it are closed until then",
				"Duplicate: Ingress default/b: spec.defaultBackend: gateway port 80/TCP is claimed by ConfigMap z/tcp already",
			}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			found := CrossCheck(load(t, secrets, strings.Join(tt.docs, "\n---\n")), now)
			total := 0
			for _, problems := range found {
				total += len(problems)
			}
			if total != len(tt.want) {
				t.Errorf("%d problems, want %d: %v", total, len(tt.want), found)
			}
			for _, want := range tt.want {
				if !contains(found, want) {
					t.Errorf("missing %q in %v", want, found)
				}
			}
		})
	}
}

func contains(found map[model.Ref]model.Problems, want string) bool {
	for _, problems := range found {
		for _, p := range problems {
			if strings.HasPrefix(p.Reason+": "+p.String(), want) {
				return true
			}
		}
	}
	return false
}

func TestClasses(t *testing.T) {
	day := func(n int) time.Time { return now.AddDate(0, 0, n) }
	fairway := Class{Name: "fairway", Controller: Controller, Created: day(1)}
	nginx := Class{Name: "nginx", Controller: NginxController, Created: day(2)}
	asDefault := func(c Class) Class { c.Default = true; return c }
	tests := []struct {
		name       string
		classes    []Class
		serveNginx bool
		class      string // spec.ingressClassName
		annotation string
		want       bool
		problem    string
	}{
		{"by name", []Class{fairway, nginx}, false, "fairway", "", true, ""},
		{"another class of ours", []Class{{Name: "internal", Controller: Controller}}, false, "internal", "", true, ""},
		{"another controller", []Class{fairway, nginx}, false, "nginx", "", false, ""},
		{"nginx taken over", []Class{fairway, nginx}, true, "nginx", "", true, ""},
		{"our name without the object", nil, false, "fairway", "", true, ""},
		{"our name with another controller", []Class{{Name: "fairway", Controller: "x.example.com/y"}}, false, "fairway", "", false, ""},
		{"no such class", []Class{fairway, nginx}, false, "gone", "", false, `IngressClass "gone" does not exist, so nobody serves this Ingress; set it to one of: fairway, nginx`},
		{"no such class, none at all", nil, false, "gone", "", false, "set it to one of: fairway"},
		{"default", []Class{asDefault(fairway), nginx}, false, "", "", true, ""},
		{"default is another", []Class{fairway, asDefault(nginx)}, false, "", "", false, ""},
		{"two defaults, the newest counts", []Class{asDefault(fairway), asDefault(nginx)}, false, "", "", false, ""},
		{"no default", []Class{fairway}, false, "", "", false, "no IngressClass is the default"},
		{"annotation", []Class{fairway}, false, "", "fairway", true, ""},
		{"annotation without the object", nil, false, "", "fairway", true, ""},
		{"annotation of another", []Class{asDefault(fairway), nginx}, false, "", "nginx", false, ""},
		{"annotation nginx taken over", []Class{fairway}, true, "", "nginx", true, ""},
		{"annotation of nobody we know", []Class{asDefault(fairway)}, false, "", "traefik", false, ""},
		{"spec before annotation", []Class{fairway, nginx}, false, "fairway", "nginx", true, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			classes := Classes{ByName: map[string]Class{}, ServeNginx: tt.serveNginx}
			for _, c := range tt.classes {
				classes.ByName[c.Name] = c
			}
			o := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "i"}}
			if tt.class != "" {
				o.Spec.IngressClassName = &tt.class
			}
			if tt.annotation != "" {
				o.Annotations = map[string]string{"kubernetes.io/ingress.class": tt.annotation}
			}
			got, problems := classes.Serves(o)
			if got != tt.want {
				t.Errorf("serves: %t, want %t", got, tt.want)
			}
			if (tt.problem == "") != (len(problems) == 0) || tt.problem != "" && !strings.Contains(problems[0].String(), tt.problem) {
				t.Errorf("problems %v, want %q", problems, tt.problem)
			}
		})
	}
}

func TestIngressClass(t *testing.T) {
	got := IngressClass(&networkingv1.IngressClass{
		ObjectMeta: metav1.ObjectMeta{Name: "fairway", Annotations: map[string]string{networkingv1.AnnotationIsDefaultIngressClass: "true"}},
		Spec:       networkingv1.IngressClassSpec{Controller: Controller},
	})
	if want := (Class{Name: "fairway", Controller: Controller, Default: true}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestCrossCheckClientAuth: Secrets of authorities that are of no use, and hosts
// of which two objects ask different things.
func TestCrossCheckClientAuth(t *testing.T) {
	root := testenv.NewAuthority(t, "root")
	secret := func(name string, ca, crl []byte) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Data: map[string][]byte{"ca.crt": ca, "ca.crl": crl}}
	}
	at := time.Now()
	snap := load(t, []*corev1.Secret{
		secret("good", root.PEM(), nil), secret("bad", []byte("x"), nil), secret("bad-list", root.PEM(), []byte("x")),
		secret("expired-list", root.PEM(), root.Revoked(t, at.Add(-time.Minute))),
	}, strings.Join([]string{
		clientAuthIngress("old", "2026-01-01T00:00:00Z", "a.test", "default/good", ""), clientAuthIngress("same", "2026-01-02T00:00:00Z", "a.test", "good", ""),
		clientAuthIngress("other", "2026-01-02T00:00:00Z", "a.test", "default/good", "optional"),
		clientAuthIngress("gone", "2026-01-01T00:00:00Z", "b.test", "default/gone", ""), clientAuthIngress("bad", "2026-01-01T00:00:00Z", "c.test", "default/bad", ""),
		clientAuthIngress("bad-list", "2026-01-01T00:00:00Z", "d.test", "default/bad-list", ""), clientAuthIngress("expired-list", "2026-01-01T00:00:00Z", "e.test", "default/expired-list", ""),
		clientAuthIngress("asks-nobody", "2026-01-01T00:00:00Z", "f.test", "default/gone", "off"),
		strings.ReplaceAll(clientAuthIngress("first", "2026-01-01T00:00:00Z", "g.test", "good", ""), "namespace: default", "namespace: other"),
		clientAuthIngress("stranger", "2026-01-02T00:00:00Z", "g.test", "good", ""),
	}, "\n---\n"))
	found := CrossCheck(snap, at)
	const field = ": metadata.annotations[nginx.ingress.kubernetes.io/auth-tls-secret]: "
	for name, want := range map[string]string{
		"old": "", "same": "",
		"other":        "ClientAuthConflict: Ingress default/other" + field + `the older Ingress default/old asks something else of the clients of host "a.test"`,
		"stranger":     "ClientAuthConflict: Ingress default/stranger" + field + `Ingress other/first of another namespace is older and serves host "g.test" as well`,
		"gone":         "SecretMissing: Ingress default/gone" + field + "Secret default/gone does not exist; create it with: kubectl create secret generic gone -n default --from-file=ca.crt=FILE. Until then requests for the hosts of the Ingress are answered with 503",
		"bad":          "SecretInvalid: Ingress default/bad" + field + "Secret default/bad: ca.crt holds no PEM certificate",
		"bad-list":     "SecretInvalid: Ingress default/bad-list" + field + "Secret default/bad-list: ca.crl holds no PEM revocation list",
		"expired-list": "CertificateNotValid: Ingress default/expired-list" + field + "Secret default/expired-list: the revocation list of CN=root in ca.crl expired on",
		"asks-nobody":  "SecretMissing: Ingress default/asks-nobody" + field + "Secret default/gone does not exist; create it with: kubectl create secret generic gone -n default --from-file=ca.crt=FILE. It is not needed while",
	} {
		var got []string
		for _, p := range found[model.Ref{Kind: "Ingress", Key: model.Key{Namespace: "default", Name: name}}] {
			if p.Reason != ReasonServiceMissing && p.Reason != ReasonDuplicate {
				got = append(got, p.Reason+": "+p.String())
			}
		}
		if want == "" && len(got) > 0 || want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], want)) {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

// TestAuthoritiesAreReadOnce: a check of all objects does not read again what has
// not changed, and forgets what is gone.
func TestAuthoritiesAreReadOnce(t *testing.T) {
	root := testenv.NewAuthority(t, "root")
	row := &model.Certificate{CA: root.PEM()}
	one, err := authoritiesOf(row)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := authoritiesOf(row); again != one {
		t.Error("read again")
	}
	changed := *row
	changed.CA = []byte("x")
	if _, err := authoritiesOf(&changed); err == nil {
		t.Error("another row is not read")
	}
	key := weak.Make(row)
	runtime.KeepAlive(row)
	row = nil
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		runtime.GC()
		if _, ok := readAuthorities.Load(key); !ok {
			break
		}
		if time.Now().After(end) {
			t.Fatal("kept after the row was gone")
		}
	}
}

func clientAuthIngress(name, created, host, secret, verify string) string {
	annotations := "nginx.ingress.kubernetes.io/auth-tls-secret: " + secret
	if verify != "" {
		annotations += ", nginx.ingress.kubernetes.io/auth-tls-verify-client: '" + verify + "'"
	}
	return fmt.Sprintf(`apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: %s, namespace: default, creationTimestamp: "%s", annotations: {%s}}
spec: {rules: [{host: %s, http: {paths: [{path: /%s, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]}`, name, created, annotations, host, name)
}
