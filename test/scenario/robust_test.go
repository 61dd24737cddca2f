package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// start runs a program in a namespace until the test ends.
func start(t *testing.T, ns string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := env.command(ctx, ns, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s said:\n%s", strings.Join(args, " "), out.String())
		}
	})
}

func startOutside(t *testing.T, args ...string) { t.Helper(); start(t, env.outside, args...) }

// status is what `fairway status -o json` tells.
type status struct {
	Processes []struct {
		Role, Node, State string
		PID, Restarts     int
	}
	Problems []any
}

func fairwayStatus(t *testing.T) status {
	t.Helper()
	r := env.run(env.node, env.fairway(), "status", "-o", "json")
	var s status
	if err := json.Unmarshal([]byte(r.stdout), &s); err != nil {
		t.Fatalf("fairway status: %v\n%s", err, r.all())
	}
	return s
}

// processes returns the pid of each role.
func processes(t *testing.T) map[string]int {
	t.Helper()
	pids := map[string]int{}
	for _, p := range fairwayStatus(t).Processes {
		pids[p.Role] = p.PID
	}
	return pids
}

// load asks a URL again and again from the outside, a new connection each
// time, until the returned function is called, which gives the counts.
func load(t *testing.T, ns, url string) func() (asked, failed int64) {
	var asked, failed atomic.Int64
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			cmd := env.command(ctx, ns, "curl", "-sS", "-o", "/dev/null", "--max-time", "3", "-f", url)
			at := time.Since(began)
			out, err := cmd.CombinedOutput()
			if ctx.Err() != nil {
				return
			}
			asked.Add(1)
			if err != nil {
				if failed.Add(1) <= 3 {
					t.Logf("connection %d, begun at %v, failed after %v: %v, %s", asked.Load(), at, time.Since(began)-at, err, out)
				}
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	return func() (int64, int64) {
		cancel()
		<-done
		return asked.Load(), failed.Load()
	}
}

func TestKillNodeAgentUnderLoad(t *testing.T) {
	ns := namespace(t, "kill")
	apply(t, ns, "02-service-types/workload.yaml")
	apply(t, ns, "02-service-types/02-service-clusterip.yaml")
	waitReady(t, ns, "deploy/my-app")
	url := "http://" + field(t, ns, "svc/my-service-clusterip", "{.spec.clusterIP}")
	wantStatus(t, env.node, 200, url)
	stop := load(t, env.node, url)
	for range 3 {
		pid := processes(t)["node"]
		must(t, env.node, "kill", "-9", fmt.Sprint(pid))
		eventually(t, 30*time.Second, func() error {
			if p := processes(t)["node"]; p == 0 || p == pid {
				return fmt.Errorf("the node agent has not come back (pid %d)", p)
			}
			return nil
		})
		time.Sleep(time.Second)
	}
	asked, failed := stop()
	t.Logf("%d connections over three kills, %d failed", asked, failed)
	if failed != 0 || asked < 50 {
		t.Errorf("%d of %d connections failed", failed, asked)
	}
	kubectl(t, "-n", ns, "scale", "deploy/my-app", "--replicas=3")
	waitReady(t, ns, "deploy/my-app")
	pods := podsOf(t, ns, "app=my-app")
	eventually(t, 20*time.Second, func() error {
		if got := podsAnswering(t, env.node, 40, url); len(got) != len(pods) {
			return fmt.Errorf("after the kills the agent does not follow: %v answer, want %v", got, pods)
		}
		return nil
	})
}

func TestAPIServerAway(t *testing.T) {
	ns := namespace(t, "away")
	apply(t, ns, "07-ingress/workload.yaml")
	apply(t, ns, "07-ingress/ingress.yaml")
	waitReady(t, ns, "deploy/shop")
	wantStatus(t, env.outside, 200, at("shop.example.com", "/")...)
	ip := field(t, ns, "svc/shop", "{.spec.clusterIP}")
	control := fmt.Sprint(processes(t)["control"])
	must(t, env.node, "kill", "-STOP", control)
	stopped := true
	resume := func() {
		if stopped {
			stopped = false
			_ = exec.Command("kill", "-CONT", control).Run()
		}
	}
	defer resume()
	l4 := load(t, env.node, "http://"+ip)
	dns := 0
	node, restarted := processes(t)["node"], false
	until := time.Now().Add(60 * time.Second)
	for time.Now().Before(until) {
		if !restarted && time.Until(until) < 40*time.Second {
			restarted = true
			restartDNSWithoutAPI(t, node, "shop."+ns+".svc.cluster.local", ip)
		}
		if status, _, err := curl(env.outside, at("shop.example.com", "/")...); err != nil || status != 200 {
			t.Errorf("Ingress while the API is away: %d, %v", status, err)
		}
		r := env.run(env.node, "dig", "+short", "+time=1", "+tries=1", "@10.96.0.10", "shop."+ns+".svc.cluster.local")
		if strings.TrimSpace(r.stdout) != ip {
			t.Errorf("DNS while the API is away: %s", r.all())
		}
		dns++
		time.Sleep(500 * time.Millisecond)
	}
	resume()
	eventually(t, 60*time.Second, func() error { return dnsIsStale(0) })
	time.Sleep(5 * time.Second) // the time in which nodes' old leases may be looked at
	asked, failed := l4()
	lost := env.run(env.node, env.fairway(), "kubectl", "get", "events", "-A", "--field-selector=reason=NodeNotReady", "-o", "name", "--request-timeout=20s")
	if lost.err != nil || lost.stdout != "" {
		t.Errorf("a node that could not renew its lease counts as lost: %s (%v)", lost.all(), lost.err)
	}
	t.Logf("60 s without the API: %d connections, %d failed; %d DNS and Ingress rounds", asked, failed, dns)
	if failed != 0 {
		t.Errorf("%d of %d connections failed", failed, asked)
	}
	eventually(t, 60*time.Second, func() error {
		r := env.run(env.node, env.fairway(), "kubectl", "-n", ns, "scale", "deploy/shop", "--replicas=1", "--request-timeout=5s")
		return r.err
	})
	eventually(t, 60*time.Second, func() error {
		if n := len(podsOf(t, ns, "app=shop")); n != 1 {
			return fmt.Errorf("%d Pods", n)
		}
		return nil
	})
	wantStatus(t, env.node, 200, "http://"+ip)
}

// restartDNSWithoutAPI kills the node agent and waits for one that answers from
// what it last knew. Until then there may be silence and "I do not know yet", but
// no wrong answer.
func restartDNSWithoutAPI(t *testing.T, pid int, name, ip string) {
	t.Helper()
	must(t, env.node, "kill", "-9", fmt.Sprint(pid))
	began := time.Now()
	eventually(t, 60*time.Second, func() error {
		r := env.run(env.node, "dig", "+noall", "+comments", "+answer", "+time=1", "+tries=1", "@10.96.0.10", name)
		if strings.Contains(r.stdout, "status: NXDOMAIN") || strings.Contains(r.stdout, "status: NOERROR") && !strings.Contains(r.stdout, ip) {
			t.Errorf("a wrong answer of a server that has just started: %s", r.all())
		}
		if !strings.Contains(r.stdout, ip) {
			return fmt.Errorf("no answer yet: %s", r.all())
		}
		return nil
	})
	t.Logf("names were there %v after kill -9 without the API", time.Since(began).Round(time.Millisecond))
	eventually(t, 30*time.Second, func() error { return dnsIsStale(1) })
}

// dnsIsStale looks for the metric that tells whether the API confirms what DNS answers.
func dnsIsStale(want int) error {
	r := env.run(env.node, "curl", "-sS", "--max-time", "3", "http://127.0.0.1:10249/metrics")
	if r.err != nil || !strings.Contains(r.stdout, fmt.Sprintf("\nfairway_dns_stale %d\n", want)) {
		return fmt.Errorf("fairway_dns_stale is not %d: %v", want, r.err)
	}
	return nil
}

// TestManyServices loads 2,000 Services with 5 endpoints each.
func TestManyServices(t *testing.T) {
	ns := namespace(t, "many")
	startOutside(t, env.fairway(), "echo", "--http", outsideAddr+":8080", "--name", "outside")
	var b strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: many-%d}\nspec: {ports: [{name: http, port: 80, targetPort: 8080}]}\n", i)
		fmt.Fprintf(&b, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: many-%d, labels: {kubernetes.io/service-name: many-%d}}\naddressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints:\n", i, i)
		for j := range 4 {
			fmt.Fprintf(&b, "  - {addresses: [\"203.0.113.%d\"], conditions: {ready: false}}\n", j+1)
		}
		fmt.Fprintf(&b, "  - {addresses: [\"%s\"]}\n", outsideAddr)
	}
	begin := time.Now()
	applyFile(t, ns, file(t, "many.yaml", b.String()))
	created := time.Since(begin)
	ip := field(t, ns, "svc/many-1999", "{.spec.clusterIP}")
	wantStatus(t, env.node, 200, "http://"+ip)
	t.Logf("2000 Services x 5 endpoints: the API took them in %v, the last one answered %v after its creation", created.Round(time.Millisecond), (time.Since(begin) - created).Round(time.Millisecond))
	for _, i := range []int{0, 777, 1500} {
		wantStatus(t, env.node, 200, "http://"+field(t, ns, fmt.Sprintf("svc/many-%d", i), "{.spec.clusterIP}"))
	}
	pid := processes(t)["node"]
	must(t, env.node, "kill", "-9", fmt.Sprint(pid))
	begin = time.Now()
	eventually(t, 30*time.Second, func() error {
		for _, p := range fairwayStatus(t).Processes {
			if p.Role == "node" && p.PID != pid && p.State == "running" {
				return nil
			}
		}
		return fmt.Errorf("not back yet")
	})
	t.Logf("the node agent was back %v after kill -9 with them", time.Since(begin).Round(time.Millisecond))
	wantStatus(t, env.node, 200, "http://"+ip)
}

func TestInvalidObjects(t *testing.T) {
	ns := namespace(t, "invalid")
	apply(t, ns, "07-ingress/workload.yaml")
	apply(t, ns, "07-ingress/ingress.yaml")
	waitReady(t, ns, "deploy/shop")
	applyText(t, ns, `apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: bad-annotation
  annotations: {nginx.ingress.kubernetes.io/canary: "true", nginx.ingress.kubernetes.io/canary-weight: "a lot"}
spec:
  rules: [{host: bad.example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: shop, port: {number: 80}}}}]}}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: no-service}
spec:
  rules: [{host: none.example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: ghost, port: {number: 80}}}}]}}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: twice}
spec:
  rules: [{host: shop.example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: blog, port: {number: 80}}}}]}}]
---
apiVersion: v1
kind: Secret
metadata: {name: no-certificate}
stringData: {tls.crt: nonsense, tls.key: nonsense}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: bad-secret}
spec:
  tls: [{hosts: [secret.example.com], secretName: no-certificate}]
  rules: [{host: secret.example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: shop, port: {number: 80}}}}]}}]
---
apiVersion: v1
kind: Service
metadata: {name: no-secret, annotations: {fairway.dev/tls-secret: nowhere}}
spec: {selector: {app: shop}, ports: [{port: 443, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: bad-mode, annotations: {fairway.dev/tls-secret: nowhere, fairway.dev/tls-mode: sideways}}
spec: {selector: {app: shop}, ports: [{port: 443, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: unmapped}
spec: {containers: [{name: c, image: registry.example/nothing:1}]}
`)
	wantEvent(t, ns, "Ingress/bad-annotation", "canary-weight", "a lot")
	wantEvent(t, ns, "Ingress/no-service", "ghost")
	wantEvent(t, ns, "Ingress/twice", "shop.example.com")
	wantEvent(t, ns, "Ingress/bad-secret", "no-certificate")
	wantEvent(t, ns, "Service/no-secret", "nowhere", "kubectl create secret tls")
	wantEvent(t, ns, "Service/bad-mode", "tls-mode", "sideways")
	wantEvent(t, ns, "Pod/unmapped", "registry.example/nothing:1", "--image")
	wantStatus(t, env.outside, 503, at("none.example.com", "/")...)
	if a := wantStatus(t, env.outside, 200, at("shop.example.com", "/")...); !strings.HasPrefix(a.Pod, "shop-") {
		t.Errorf("the newer object won: %s answers", a.Pod)
	}
}

func TestPoolExhausted(t *testing.T) {
	ns := namespace(t, "pool")
	var b strings.Builder
	for i := range 70 { // the pool has 64 addresses
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: lb-%d}\nspec: {type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{port: 80}]}\n", i)
	}
	kubectl(t, "-n", ns, "create", "-f", file(t, "pool.yaml", b.String()))
	addresses := func() map[string]int {
		got := map[string]int{}
		for _, a := range strings.Fields(field(t, ns, "svc", "{.items[*].status.loadBalancer.ingress[*].ip}")) {
			got[a]++
		}
		return got
	}
	eventually(t, 20*time.Second, func() error {
		if n := len(addresses()); n < 60 {
			return fmt.Errorf("%d addresses", n)
		}
		return nil
	})
	for a, n := range addresses() {
		if n > 1 {
			t.Errorf("%s was handed out %d times", a, n)
		}
	}
	eventually(t, 30*time.Second, func() error {
		r := env.run(env.node, env.fairway(), "kubectl", "-n", ns, "get", "events", "-o", "jsonpath={.items[*].message}")
		if !strings.Contains(r.stdout, "pool") {
			return fmt.Errorf("no Event tells of the exhausted pool: %s", r.all())
		}
		return nil
	})
}

func TestSecondUpSaysSo(t *testing.T) {
	r := env.run(env.node, env.fairway(), "up", "--data-dir", env.data, "--detach")
	if r.err == nil || !strings.Contains(r.all(), env.data) {
		t.Errorf("a second up: %v %s", r.err, r.all())
	}
	if s := fairwayStatus(t); len(s.Problems) != 0 {
		t.Errorf("status has problems: %v", s.Problems)
	}
}

// TestTour runs what `make up` ends with.
func TestTour(t *testing.T) {
	out := must(t, env.node, env.fairway(), "tour", "--data-dir", env.data)
	t.Log(out)
	for _, want := range []string{"Ingress", "LoadBalancer", "certificate for shop.tour.svc", "shop.tour.svc.cluster.local", "SHOP_SERVICE_HOST=10.96."} {
		if !strings.Contains(out, want) {
			t.Errorf("the tour does not show %q", want)
		}
	}
	kubectl(t, "delete", "namespace", "tour", "--wait=false")
}
