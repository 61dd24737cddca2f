package scenario

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// at asks the gateway for a host.
func at(host, path string, extra ...string) []string {
	return append(extra, "-H", "Host: "+host, "http://"+nodeAddr+path)
}

func TestSection07Ingress(t *testing.T) {
	ns := namespace(t, "s07")
	apply(t, ns, "07-ingress/workload.yaml")
	apply(t, ns, "07-ingress/ingress.yaml")
	waitReady(t, ns, "deploy/shop", "deploy/blog")
	if a := wantStatus(t, env.outside, 200, at("shop.example.com", "/cart?x=1")...); !strings.HasPrefix(a.Pod, "shop-") || a.Host != "shop.example.com" || a.Path != "/cart" {
		t.Errorf("the endpoint saw %+v", a)
	} else if got := a.Headers["X-Forwarded-For"]; len(got) != 1 || got[0] != outsideAddr {
		t.Errorf("X-Forwarded-For is %q, want the client's address %s", got, outsideAddr)
	}
	if a := wantStatus(t, env.outside, 200, at("blog.example.com", "/posts/1")...); !strings.HasPrefix(a.Pod, "blog-") {
		t.Errorf("the endpoint saw %+v", a)
	}
	for what, args := range map[string][]string{
		"another host":          at("nobody.example.com", "/"),
		"no rule for the path":  at("blog.example.com", "/"),
		"a prefix of the word":  at("blog.example.com", "/postscript"),
		"the address as a host": {"http://" + nodeAddr + "/"},
	} {
		if status, _, err := curl(env.outside, args...); err != nil || status != 404 {
			t.Errorf("%s: status %d, %v; want 404", what, status, err)
		}
	}
	t.Run("what comes is explained", func(t *testing.T) {
		type report struct {
			Reaches  bool
			Backends []struct {
				Service   string
				Endpoints []struct {
					Pod string
					In  bool
				}
			}
		}
		explain := func(args ...string) (report, string) {
			t.Helper()
			r := env.run(env.node, append([]string{env.fairway(), "explain", "--data-dir", env.data, "-o", "json"}, args...)...)
			var out report
			if err := json.Unmarshal([]byte(r.stdout), &out); err != nil || out.Reaches != (r.err == nil) {
				t.Fatalf("explain %v: %v, %v: %s", args, r.err, err, r.all())
			}
			return out, r.stdout
		}
		r, text := explain("http://shop.example.com/cart?x=1", "--from", outsideAddr)
		if !r.Reaches || len(r.Backends) != 1 || r.Backends[0].Service != ns+"/shop" || len(r.Backends[0].Endpoints) == 0 {
			t.Fatalf("explained is %s", text)
		}
		in := map[string]bool{}
		for _, e := range r.Backends[0].Endpoints {
			in[e.Pod] = e.In
		}
		if a := wantStatus(t, env.outside, 200, at("shop.example.com", "/cart?x=1")...); !in[a.Pod] {
			t.Errorf("%s answers, which is not said in %s", a.Pod, text)
		}
		if r, text := explain("http://blog.example.com/postscript"); r.Reaches || !strings.Contains(text, `"status": 404`) {
			t.Errorf("explained is %s", text)
		}
	})
	t.Run("WebSocket", func(t *testing.T) {
		r := env.run(env.outside, "curl", "-sS", "--http1.1", "--max-time", "2", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Host: shop.example.com", "-H", "Connection: Upgrade", "-H", "Upgrade: websocket",
			"-H", "Sec-WebSocket-Version: 13", "-H", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "http://"+nodeAddr+"/ws")
		if !strings.HasSuffix(r.stdout, "101") {
			t.Errorf("upgrade answers %q", r.all())
		}
	})
	t.Run("answers are streamed", func(t *testing.T) {
		start := time.Now()
		r := env.run(env.outside, "bash", "-c", fmt.Sprintf(`curl -sSN -H 'Host: shop.example.com' 'http://%s/stream?n=3&interval=1s' | head -c 1`, nodeAddr))
		if r.err != nil || len(r.stdout) != 1 || time.Since(start) > 2500*time.Millisecond {
			t.Errorf("the first byte came after %v: %q", time.Since(start), r.all())
		}
	})
	t.Run("nothing ready: 503", func(t *testing.T) {
		kubectl(t, "-n", ns, "scale", "deploy/blog", "--replicas=0")
		wantStatus(t, env.outside, 503, at("blog.example.com", "/posts")...)
		wantStatus(t, env.outside, 200, at("shop.example.com", "/")...)
	})
	t.Run("status has the gateway's address", func(t *testing.T) {
		eventually(t, 15*time.Second, func() error {
			if got := field(t, ns, "ingress/apps", "{.status.loadBalancer.ingress[*].ip}"); !strings.Contains(got, nodeAddr) {
				return fmt.Errorf("status has %q, want %s", got, nodeAddr)
			}
			return nil
		})
	})
}

// TestSection08Install runs a gateway by hand against the cluster's
// kubeconfig, as in any cluster.
func TestSection08Install(t *testing.T) {
	ns := namespace(t, "s08")
	apply(t, ns, "07-ingress/workload.yaml")
	apply(t, ns, "07-ingress/ingress.yaml")
	waitReady(t, ns, "deploy/shop")
	start(t, env.node, env.fairway(), "gateway", "--kubeconfig", env.data+"/kubeconfig", "--http-port", "8180", "--https-port", "8543", "--metrics-address", "")
	wantStatus(t, env.outside, 200, "-H", "Host: shop.example.com", "http://"+nodeAddr+":8180/")
}

func TestSection09Routing(t *testing.T) {
	ns := namespace(t, "s09")
	apply(t, ns, "09-ingress-routing/workload.yaml")
	waitReady(t, ns, "deploy/service-v1", "deploy/service-v2", "deploy/my-app", "deploy/mysql-db", "deploy/service-a", "deploy/service-b")
	answers := func(pod string, args ...string) {
		t.Helper()
		if a := wantStatus(t, env.outside, 200, args...); !strings.HasPrefix(a.Pod, pod+"-") {
			t.Errorf("%v is answered by %s, want %s", args, a.Pod, pod)
		}
	}
	t.Run("path", func(t *testing.T) {
		if said := apply(t, ns, "09-ingress-routing/10-ingress-path.yaml"); !strings.Contains(said, "networking.k8s.io/v1beta1") {
			t.Errorf("stderr does not say what was changed: %q", said)
		}
		answers("service-v1", at("example.com", "/v1")...)
		answers("service-v1", at("example.com", "/v1/users")...)
		answers("service-v2", at("example.com", "/v2")...)
		wantStatus(t, env.outside, 404, at("example.com", "/v3")...)
		wantStatus(t, env.outside, 404, at("example.com", "/v10")...)
		wantStatus(t, env.outside, 404, at("example.org", "/v1")...)
	})
	t.Run("canary", func(t *testing.T) { testCanary(t, ns) })
	t.Run("host", func(t *testing.T) {
		apply(t, ns, "09-ingress-routing/11-ingress-host.yaml")
		answers("my-app", at("foo.bar.com", "/path/to/service")...)
		wantStatus(t, env.outside, 404, at("foo.bar.com", "/")...)
		wantStatus(t, env.outside, 404, at("bar.com", "/path/to/service")...)
	})
	t.Run("TCP", func(t *testing.T) {
		if said := apply(t, ns, "09-ingress-routing/12-tcp-routing.yaml"); !strings.Contains(said, "3306") {
			t.Errorf("stderr does not say what was changed: %q", said)
		}
		eventually(t, 15*time.Second, func() error {
			r := env.run(env.outside, "mariadb", "--protocol=tcp", "-h", nodeAddr, "-P", "3306", "-u", "app", "--skip-ssl", "-N", "-e", "SELECT @@hostname")
			if r.err != nil || !strings.Contains(r.stdout, "mysql-db-") {
				return fmt.Errorf("%w: %s", r.err, r.all())
			}
			return nil
		})
	})
	t.Run("UDP", func(t *testing.T) {
		applyText(t, ns, udpEcho)
		waitReady(t, ns, "deploy/udp-echo")
		applyText(t, "kube-system", fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: udp-services}\ndata: {\"5300\": \"%s/udp-echo:53\"}\n", ns))
		deleteAfter(t, "kube-system", "cm/udp-services")
		eventually(t, 15*time.Second, func() error {
			r := env.run(env.outside, "bash", "-c", fmt.Sprintf("exec 3<>/dev/udp/%s/5300; echo marco >&3; timeout 2 head -n 1 <&3", nodeAddr))
			if strings.TrimSpace(r.stdout) != "marco" {
				return fmt.Errorf("got %q", r.all())
			}
			return nil
		})
	})
	t.Run("fanout", func(t *testing.T) {
		apply(t, ns, "09-ingress-routing/13-ingress-fanout.yaml")
		answers("service-a", at("example.com", "/serviceA/x/y")...)
		answers("service-a", at("example.com", "/serviceA")...)
		answers("service-b", at("example.com", "/serviceB/")...)
		wantStatus(t, env.outside, 404, at("example.com", "/serviceAB")...)
	})
}

const udpEcho = `apiVersion: apps/v1
kind: Deployment
metadata: {name: udp-echo}
spec:
  selector: {matchLabels: {app: udp-echo}}
  template:
    metadata: {labels: {app: udp-echo}}
    spec:
      containers:
        - {name: echo, image: fairway.dev/echo, args: ["--udp", ":5353"]}
---
apiVersion: v1
kind: Service
metadata: {name: udp-echo}
spec:
  selector: {app: udp-echo}
  ports: [{name: udp, port: 53, targetPort: 5353, protocol: UDP}]
`

func testCanary(t *testing.T, ns string) {
	apply(t, ns, "09-ingress-routing/canary.yaml")
	served := func(extra ...string) string {
		status, a, err := curl(env.outside, at("example.com", "/v1", extra...)...)
		if err != nil || status != 200 {
			t.Fatalf("status %d, %v", status, err)
		}
		return a.Pod[:len("service-v1")]
	}
	eventually(t, 15*time.Second, func() error {
		if got := served("-H", "X-Canary: always"); got != "service-v2" {
			return fmt.Errorf("X-Canary: always is answered by %s", got)
		}
		return nil
	})
	for range 20 {
		if got := served("-H", "X-Canary: never"); got != "service-v1" {
			t.Fatalf("X-Canary: never is answered by %s", got)
		}
		if got := served("-H", "Cookie: canary=always"); got != "service-v2" {
			t.Fatalf("cookie canary=always is answered by %s", got)
		}
	}
	r := env.run(env.outside, "bash", "-c", fmt.Sprintf(`curl -sS -H 'Host: example.com' 'http://%s/v1?[1-1000]' | grep -o '"pod": *"service-v2' | wc -l`, nodeAddr))
	var canaries int
	if _, err := fmt.Sscan(r.stdout, &canaries); err != nil || canaries < 50 || canaries > 160 {
		t.Errorf("%d of 1000 requests went to the canary with weight 10 (%v)", canaries, r.stderr)
	}
	kubectl(t, "-n", ns, "delete", "ingress/example-canary")
}
