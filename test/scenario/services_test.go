package scenario

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSection01Service(t *testing.T) {
	ns := namespace(t, "s01")
	apply(t, ns, "01-service/workload.yaml")
	apply(t, ns, "01-service/01-service-basic.yaml")
	waitReady(t, ns, "deploy/my-app")
	url := "http://" + field(t, ns, "svc/my-service", "{.spec.clusterIP}")
	pods := podsOf(t, ns, "app=my-app")
	wantStatus(t, env.node, 200, url)
	if got := podsAnswering(t, env.node, 30, url); !slices.Equal(got, pods) {
		t.Errorf("from the node: %v answer, want %v", got, pods)
	}
	for _, name := range []string{"my-service", "my-service." + ns, "my-service." + ns + ".svc.cluster.local"} {
		if r := inPod(ns, "deploy/my-app", "curl", "-sS", "--max-time", "5", "http://"+name+"/hello"); r.err != nil || !strings.Contains(r.stdout, `"/hello"`) {
			t.Errorf("from a Pod by %s: %v %s", name, r.err, r.all())
		}
	}
	refused(t, env.node, url+":81")

	t.Run("an unready Pod gets nothing", func(t *testing.T) {
		ip := field(t, ns, "pod/"+pods[0], "{.status.podIP}")
		must(t, env.node, "curl", "-sS", "-X", "POST", "http://"+ip+":9376/ready?ok=false")
		eventually(t, 15*time.Second, func() error {
			if got := podsAnswering(t, env.node, 10, url); !slices.Equal(got, pods[1:]) {
				return fmt.Errorf("%v answer, want %v", got, pods[1:])
			}
			return nil
		})
		must(t, env.node, "curl", "-sS", "-X", "POST", "http://"+ip+":9376/ready?ok=true")
		eventually(t, 15*time.Second, func() error {
			if got := podsAnswering(t, env.node, 20, url); !slices.Equal(got, pods) {
				return fmt.Errorf("%v answer, want %v", got, pods)
			}
			return nil
		})
	})

	t.Run("a Pod reaches itself through its Service", func(t *testing.T) {
		kubectl(t, "-n", ns, "scale", "deploy/my-app", "--replicas=1")
		eventually(t, 20*time.Second, func() error {
			if n := len(podsOf(t, ns, "app=my-app")); n != 1 {
				return fmt.Errorf("%d Pods", n)
			}
			r := inPod(ns, "deploy/my-app", "curl", "-sS", "--max-time", "2", "http://my-service/")
			if r.err != nil {
				return fmt.Errorf("%w: %s", r.err, r.all())
			}
			return nil
		})
	})

	t.Run("no endpoints: refused", func(t *testing.T) {
		kubectl(t, "-n", ns, "scale", "deploy/my-app", "--replicas=0")
		refused(t, env.node, url)
	})
}

func TestSection02Types(t *testing.T) {
	ns := namespace(t, "s02")
	apply(t, ns, "02-service-types/workload.yaml")
	waitReady(t, ns, "deploy/my-app")

	t.Run("ClusterIP", func(t *testing.T) {
		apply(t, ns, "02-service-types/02-service-clusterip.yaml")
		wantStatus(t, env.node, 200, "http://"+field(t, ns, "svc/my-service-clusterip", "{.spec.clusterIP}"))
	})
	t.Run("NodePort", func(t *testing.T) {
		apply(t, ns, "02-service-types/03-service-nodeport.yaml")
		wantStatus(t, env.outside, 200, "http://"+nodeAddr+":30001")
		wantStatus(t, env.node, 200, "http://"+nodeAddr+":30001")
	})
	t.Run("nodePort without type", func(t *testing.T) {
		file := "02-service-types/03b-service-nodeport-verbatim.yaml"
		if r := env.run(env.node, env.fairway(), "kubectl", "-n", ns, "apply", "-f", env.root+"/examples/"+file); r.err == nil {
			t.Error("the API took what it should refuse, so this proves nothing")
		}
		if said := apply(t, ns, file); !strings.Contains(said, "spec.type") {
			t.Errorf("stderr does not say what was changed: %q", said)
		}
		wantStatus(t, env.outside, 200, "http://"+nodeAddr+":30002")
	})
	t.Run("nodePort out of range", func(t *testing.T) {
		r := env.runInput(env.node, strings.ReplaceAll(nodePortManifest, "PORT", "8080"), env.fairway(), "apply", "-n", ns, "-f", "-")
		if r.err == nil || !strings.Contains(r.stderr, "nodePort") || !strings.Contains(r.stderr, "30000-32767") {
			t.Errorf("error %v, said %q; want the field and the range", r.err, r.all())
		}
	})
	t.Run("LoadBalancer", func(t *testing.T) { testLoadBalancer(t, ns) })
	t.Run("ExternalName", func(t *testing.T) {
		if said := apply(t, ns, "02-service-types/05-service-externalname.yaml"); !strings.Contains(said, "ExternalName") {
			t.Errorf("stderr does not say what was changed: %q", said)
		}
		eventually(t, 10*time.Second, func() error {
			r := inPod(ns, "deploy/my-app", "dig", "+noall", "+answer", "my-service-externalname."+ns+".svc.cluster.local", "CNAME")
			if f := strings.Fields(r.stdout); len(f) != 5 || f[3] != "CNAME" || f[4] != "some.api.com." {
				return fmt.Errorf("dig says %q", r.all())
			}
			return nil
		})
	})
}

const nodePortManifest = `apiVersion: v1
kind: Service
metadata: {name: out-of-range}
spec:
  type: NodePort
  selector: {app: my-app}
  ports: [{port: 80, nodePort: PORT}]
`

func testLoadBalancer(t *testing.T, ns string) {
	apply(t, ns, "02-service-types/04-service-loadbalancer.yaml")
	ingress := func() string {
		return field(t, ns, "svc/my-service-loadbalancer", "{.status.loadBalancer.ingress[0].ip}")
	}
	eventually(t, 15*time.Second, func() error {
		if ingress() == "" {
			return fmt.Errorf("no address in status")
		}
		return nil
	})
	ip := ingress()
	if a, err := netip.ParseAddr(ip); err != nil || !netip.MustParsePrefix(lbPool).Contains(a) {
		t.Fatalf("address %q is not of the pool %s", ip, lbPool)
	}
	for _, from := range []string{env.node, env.outside} {
		wantStatus(t, from, 200, "http://"+ip)
	}
	if r := inPod(ns, "deploy/my-app", "curl", "-sS", "--max-time", "5", "http://"+ip); r.err != nil {
		t.Errorf("from a Pod: %s", r.all())
	}
	pid := processes(t)["controller"]
	must(t, env.node, "kill", "-9", fmt.Sprint(pid))
	eventually(t, 30*time.Second, func() error {
		if p := processes(t)["controller"]; p == 0 || p == pid {
			return fmt.Errorf("the controller has not come back (pid %d)", p)
		}
		return nil
	})
	time.Sleep(2 * time.Second)
	if now := ingress(); now != ip {
		t.Errorf("the address changed from %s to %s by a restart of the controller", ip, now)
	}
	kubectl(t, "-n", ns, "delete", "svc/my-service-loadbalancer")
	eventually(t, 15*time.Second, func() error {
		if status, _, err := curl(env.outside, "--connect-timeout", "1", "http://"+ip); err == nil {
			return fmt.Errorf("the address still answers after delete: %d", status)
		}
		return nil
	})
}

func TestSection03Selectorless(t *testing.T) {
	ns := namespace(t, "s03")
	apply(t, ns, "03-selectorless/workload.yaml")
	apply(t, ns, "03-selectorless/06-service-selectorless.yaml")
	waitReady(t, ns, "deploy/outside-db")
	startOutside(t, env.fairway(), "echo", "--mysql", databaseIP+":3306", "--name", "the-database")
	query := []string{"mariadb", "--protocol=tcp", "-h", "external-db", "-P", "3306", "-u", "app", "--skip-ssl", "-N", "-e", "SELECT @@hostname"}
	eventually(t, 15*time.Second, func() error {
		r := inPod(ns, "deploy/outside-db", query...)
		if r.err != nil || !strings.Contains(r.stdout, "the-database") {
			return fmt.Errorf("%w: %s", r.err, r.all())
		}
		return nil
	})
	t.Run("NodePort", func(t *testing.T) {
		kubectl(t, "-n", ns, "patch", "svc/external-db", "-p", `{"spec":{"type":"NodePort"}}`)
		port := field(t, ns, "svc/external-db", "{.spec.ports[0].nodePort}")
		eventually(t, 15*time.Second, func() error {
			r := env.run(env.outside, "mariadb", "--protocol=tcp", "-h", nodeAddr, "-P", port, "-u", "app", "--skip-ssl", "-N", "-e", "SELECT 1")
			if r.err != nil {
				return fmt.Errorf("%w: %s", r.err, r.all())
			}
			return nil
		})
	})
}

func TestSection04Headless(t *testing.T) {
	apply(t, "default", "04-headless/client.yaml")
	apply(t, "default", "04-headless/07-service-headless-statefulset.yaml")
	deleteAfter(t, "default", "sts/db", "svc/db", "deploy/client")
	waitReady(t, "default", "deploy/client", "sts/db")
	ips := strings.Fields(field(t, "default", "pods -l app=db", "{.items[*].status.podIP}"))
	slices.Sort(ips)
	dig := func(name string) []string {
		r := inPod("default", "deploy/client", "dig", "+short", name, "A")
		got := strings.Fields(r.stdout)
		slices.Sort(got)
		return got
	}
	eventually(t, 10*time.Second, func() error {
		if got := dig("db.default.svc.cluster.local"); !slices.Equal(got, ips) || len(got) != 3 {
			return fmt.Errorf("db resolves to %v, want %v", got, ips)
		}
		return nil
	})
	for i := range 3 {
		name := fmt.Sprintf("db-%d.db.default.svc.cluster.local", i)
		want := field(t, "default", fmt.Sprintf("pod/db-%d", i), "{.status.podIP}")
		if got := dig(name); !slices.Equal(got, []string{want}) {
			t.Errorf("%s resolves to %v, want %s", name, got, want)
		}
		r := inPod("default", "deploy/client", "bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/%s/5432; head -n 1 <&3", name))
		if !strings.Contains(r.stdout, fmt.Sprintf("db-%d", i)) {
			t.Errorf("%s:5432 says %q", name, r.all())
		}
	}
	if r := inPod("default", "deploy/client", "dig", "db-7.db.default.svc.cluster.local"); !strings.Contains(r.stdout, "NXDOMAIN") {
		t.Errorf("a Pod that is not there: %s", r.stdout)
	}
	if got := strings.Fields(must(t, env.node, env.fairway(), "kubectl", "exec", "deploy/client", "--", "dig", "+short", "_tcp._tcp.db.default.svc.cluster.local", "SRV")); len(got) != 12 {
		t.Errorf("SRV has %d fields, want 3 records of 4: %v", len(got), got)
	}
}

func TestSection05Discovery(t *testing.T) {
	apply(t, "default", "05-discovery/08-otherservice.yaml")
	apply(t, "default", "05-discovery/workload.yaml")
	deleteAfter(t, "default", "svc/otherservice", "deploy/other", "deploy/client")
	waitReady(t, "default", "deploy/other", "deploy/client")
	vars := inPod("default", "deploy/client", "env").stdout
	ip := field(t, "default", "svc/otherservice", "{.spec.clusterIP}")
	for _, want := range []string{"OTHERSERVICE_SERVICE_HOST=" + ip, "OTHERSERVICE_SERVICE_PORT=8080", "KUBERNETES_SERVICE_HOST=10.96.0.1"} {
		if !strings.Contains(vars, want+"\n") {
			t.Errorf("the environment lacks %s", want)
		}
	}
	python := `import requests
url = "http://otherservice.default.svc.cluster.local:8080/api/v1/getdata"
response = requests.get(url)
print(response.status_code)`
	eventually(t, 15*time.Second, func() error {
		r := inPod("default", "deploy/client", "/usr/bin/python3", "-c", python)
		if strings.TrimSpace(r.stdout) != "200" {
			return fmt.Errorf("the article's Python says %s", r.all())
		}
		return nil
	})
	t.Run("names", func(t *testing.T) {
		for query, want := range map[string]string{
			"otherservice.default.svc.cluster.local A":                       ip,
			"_http._tcp.otherservice.default.svc.cluster.local SRV":          "8080 otherservice.default.svc.cluster.local.",
			"dns-version.cluster.local TXT":                                  `"1.1.0"`,
			netip.MustParseAddr("10.96.0.1").String() + " PTR":               "kubernetes.default.svc.cluster.local.",
			strings.ToUpper("otherservice.default.svc.cluster.local") + " A": ip,
		} {
			name, kind, _ := strings.Cut(query, " ")
			args := []string{"dig", "+short", name, kind}
			if kind == "PTR" {
				args = []string{"dig", "+short", "-x", name}
			}
			if r := inPod("default", "deploy/client", args...); !strings.Contains(r.stdout, want) {
				t.Errorf("%v: %q, want %q", args, r.all(), want)
			}
		}
		if r := inPod("default", "deploy/client", "dig", "nobody.default.svc.cluster.local"); !strings.Contains(r.stdout, "NXDOMAIN") || !strings.Contains(r.stdout, "SOA") {
			t.Errorf("a Service that is not there: %s", r.stdout)
		}
		if r := inPod("default", "deploy/client", "getent", "hosts", "otherservice"); !strings.Contains(r.stdout, ip) {
			t.Errorf("the C library by the search path: %q", r.all())
		}
	})
}

// TestAddressPool takes addresses from one of MetalLB's pool objects, which
// every machine on the network reaches.
func TestAddressPool(t *testing.T) {
	ns := namespace(t, "metallb")
	apply(t, ns, "02-service-types/workload.yaml")
	applyText(t, ns, `apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: lan}
spec: {addresses: [198.51.100.200-198.51.100.201], autoAssign: false}
---
apiVersion: v1
kind: Service
metadata: {name: from-pool, annotations: {metallb.io/address-pool: lan}}
spec: {type: LoadBalancer, selector: {app: my-app}, sessionAffinity: ClientIP, ports: [{name: http, port: 80, targetPort: 9376}]}
`)
	waitReady(t, ns, "deploy/my-app")
	var ip string
	eventually(t, 15*time.Second, func() error {
		ip = field(t, ns, "svc/from-pool", "{.status.loadBalancer.ingress[0].ip}")
		if ip != "198.51.100.200" && ip != "198.51.100.201" {
			return fmt.Errorf("address %q", ip)
		}
		return nil
	})
	wantStatus(t, env.outside, 200, "http://"+ip)
	if pods := podsAnswering(t, env.outside, 10, "http://"+ip); len(pods) != 1 {
		t.Errorf("with session affinity %v answer one client", pods)
	}
}
