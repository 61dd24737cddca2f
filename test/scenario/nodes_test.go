package scenario

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// client is a place to ask from: a Pod of a node, a node, or the outside.
type client struct {
	name string
	node string // empty for the outside
	ns   string // network namespace, or
	pod  string // Pod, if it is one
	ips  []string
}

func (c client) run(args ...string) result { return c.runInput("", args...) }

func (c client) runInput(input string, args ...string) result {
	if c.pod == "" {
		return env.runInput(c.ns, input, args...)
	}
	return env.runInput(env.node, input, append([]string{env.fairway(), "kubectl", "exec", "-i", c.pod, "--"}, args...)...)
}

// ask asks each URL some times and returns the answers; what is not an answer stops the test.
func (c client) ask(t *testing.T, times int, urls ...string) map[string][]answer {
	t.Helper()
	script := fmt.Sprintf(`for u; do for i in {1..%d}; do curl -gskS --noproxy '*' --max-time 5 "$u" 2>&1 | tr -d '\n'; echo; done; done`, times)
	r := c.run(append([]string{"bash", "-c", script, "ask"}, urls...)...)
	lines := bufio.NewScanner(strings.NewReader(r.stdout))
	answers := map[string][]answer{}
	for _, u := range urls {
		for range times {
			var a answer
			if !lines.Scan() || json.Unmarshal(lines.Bytes(), &a) != nil || a.Pod == "" {
				t.Fatalf("%s asks %s: %q %v %s", c.name, u, lines.Text(), r.err, r.stderr)
			}
			answers[u] = append(answers[u], a)
		}
	}
	return answers
}

// cluster is what TestNodes knows of its cluster.
type cluster struct {
	pods, nodes, host []client // one of each node
	outside           client
	nodeOf            map[string]string // by Pod
}

func (c *cluster) inside() []client { return slices.Concat(c.pods, c.nodes, c.host) }

// nodesIn returns the nodes of the Pods that have answered, and the addresses that they saw.
func (c *cluster) nodesIn(answers []answer) (nodes, clients []string) {
	for _, a := range answers {
		nodes = append(nodes, c.nodeOf[a.Pod])
		if ap, err := netip.ParseAddrPort(a.Remote); err == nil {
			clients = append(clients, ap.Addr().String())
		}
	}
	slices.Sort(nodes)
	slices.Sort(clients)
	return slices.Compact(nodes), slices.Compact(clients)
}

func findCluster(t *testing.T, nodes int) *cluster {
	t.Helper()
	c := &cluster{outside: client{name: "the outside", ns: env.outside}, nodeOf: map[string]string{}}
	for line := range strings.Lines(kubectl(t, "get", "pods", "-o", `jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName} {.metadata.labels.app} {.status.podIPs[*].ip}{"\n"}{end}`)) {
		f := strings.Fields(line)
		pod := client{name: "a Pod of " + f[1], node: f[1], pod: f[0], ips: f[3:]}
		c.nodeOf[f[0]] = f[1]
		switch f[2] {
		case "echo":
			c.pods = append(c.pods, pod)
		case "host":
			pod.name = "a Pod on the network of " + f[1]
			c.nodeOf[f[1]] = f[1] // its host name is the node's
			c.host = append(c.host, pod)
		}
	}
	byNode := func(a, b client) int { return strings.Compare(a.node, b.node) }
	slices.SortFunc(c.pods, byNode)
	slices.SortFunc(c.host, byNode)
	for i := range nodes {
		name := fmt.Sprintf("node-%d", i+1)
		c.nodes = append(c.nodes, client{name: name, node: name, ns: nodeNamespace(i + 1), ips: strings.Fields(field(t, "default", "node/"+name, "{.status.addresses[?(@.type=='InternalIP')].address}"))})
	}
	if len(c.pods) != nodes || len(c.host) != nodes {
		t.Fatalf("%d and %d Pods on %d nodes", len(c.pods), len(c.host), nodes)
	}
	return c
}

func nodeNamespace(i int) string {
	if i == 1 {
		return env.node
	}
	return fmt.Sprintf("fairway-%s-node-%d", env.id, i)
}

func hostOf(ip string) string {
	if strings.Contains(ip, ":") {
		return "[" + ip + "]"
	}
	return ip
}

const nodesManifest = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: echo}
spec:
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: echo
          image: fairway.dev/echo
          args: ["--http", ":8080", "--tcp", ":9000", "--udp", ":9001"]
          readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: host}
spec:
  selector: {matchLabels: {app: host}}
  template:
    metadata: {labels: {app: host}}
    spec:
      hostNetwork: true
      dnsPolicy: ClusterFirstWithHostNet
      terminationGracePeriodSeconds: 1
      containers: [{name: echo, image: fairway.dev/echo, args: ["--http", ":18080"]}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 3
  serviceName: db
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
        - {maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: db}}}
      containers: [{name: echo, image: fairway.dev/echo, args: ["--http", ":8080"]}]
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  ipFamilyPolicy: PreferDualStack
  selector: {app: echo}
  ports:
    - {name: http, port: 80, targetPort: 8080, nodePort: 30080}
    - {name: tcp, port: 9000, nodePort: 30090}
    - {name: udp, port: 9001, protocol: UDP, nodePort: 30091}
---
apiVersion: v1
kind: Service
metadata: {name: on-host}
spec: {selector: {app: host}, ports: [{port: 80, targetPort: 18080}]}
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  internalTrafficPolicy: Local
  selector: {app: echo}
  ports: [{port: 80, targetPort: 8080, nodePort: 30081}]
---
apiVersion: v1
kind: Service
metadata: {name: same-node}
spec: {trafficDistribution: PreferSameNode, selector: {app: echo}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: same-zone}
spec: {trafficDistribution: PreferSameZone, selector: {app: echo}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: secure, annotations: {fairway.dev/tls-secret: secure}}
spec: {type: NodePort, selector: {app: echo}, ports: [{port: 443, targetPort: 8080, nodePort: 30443}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  rules: [{host: nodes.example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]
`

// TestNodes has a cluster of its own, with three nodes in three zones, which then becomes one of two.
func TestNodes(t *testing.T) {
	useLab(t, "three")
	said, err := env.up("--nodes", "3", "--zones", "a,b,c")
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	crt, key := certificate(t, "secure.default.svc.cluster.local")
	kubectl(t, "create", "secret", "tls", "secure", "--cert", crt, "--key", key)
	applyText(t, "default", nodesManifest)
	waitReady(t, "default", "ds/echo", "ds/host", "sts/db")
	c := findCluster(t, 3)

	t.Run("a Pod sees the address of another node's Pod", func(t *testing.T) { testPodToPod(t, c) })
	t.Run("every address of a Service leads to every node", func(t *testing.T) { testEveryAddress(t, c) })
	t.Run("what is to stay near stays near", func(t *testing.T) { testNear(t, c) })
	t.Run("what is near is explained", func(t *testing.T) { testExplain(t, c) })
	t.Run("load balancers are told how nodes do", func(t *testing.T) { testHealth(t, c) })
	t.Run("TLS ends on the client's node", func(t *testing.T) { testNodesTLS(t, c) })
	t.Run("names", func(t *testing.T) { testNodesNames(t, c) })
	t.Run("size", func(t *testing.T) { testSizes(t, c) })
	t.Run("logs, exec and port-forward", func(t *testing.T) { testKubectlOnNode(t, c.pods[2]) })
	t.Run("a role that hangs is started again", func(t *testing.T) { testHangingRole(t, c) })
	t.Run("a kubelet that is killed comes back", testKilledKubelet)
	t.Run("fewer nodes", testFewerNodes)
}

func testPodToPod(t *testing.T, c *cluster) {
	for _, from := range c.pods {
		var urls []string
		for _, to := range c.pods {
			for _, ip := range to.ips {
				urls = append(urls, "http://"+hostOf(ip)+":8080/")
			}
		}
		for u, answers := range from.ask(t, 1, urls...) {
			if _, seen := c.nodesIn(answers); len(seen) != 1 || !slices.Contains(from.ips, seen[0]) {
				t.Errorf("%s asks %s, which sees %v, want one of %v", from.name, u, seen, from.ips)
			}
		}
	}
}

func testEveryAddress(t *testing.T, c *cluster) {
	urls := []string{"http://" + field(t, "default", "svc/on-host", "{.spec.clusterIP}")}
	for _, ip := range strings.Fields(field(t, "default", "svc/web", "{.spec.clusterIPs[*]} {.status.loadBalancer.ingress[*].ip}")) {
		urls = append(urls, "http://"+hostOf(ip))
	}
	for _, node := range c.nodes {
		for _, ip := range node.ips {
			urls = append(urls, "http://"+hostOf(ip)+":30080")
		}
	}
	all := map[string][]answer{}
	for _, from := range c.inside() {
		for u, answers := range from.ask(t, 4, urls...) {
			all[u] = append(all[u], answers...)
		}
	}
	// Of 36 answers one of three nodes has none once in 700,000 times.
	lb := "http://" + field(t, "default", "svc/web", "{.status.loadBalancer.ingress[0].ip}")
	wantStatus(t, env.outside, 200, lb) // its announcement may take a moment
	for u, answers := range c.outside.ask(t, 36, "http://"+nodeAddr+":30080", lb) {
		all["from outside "+u] = answers
	}
	gateway := []string{"-H", "Host: nodes.example.com", "http://" + nodeAddr}
	wantStatus(t, env.outside, 200, gateway...)
	for range 36 {
		_, a, err := curl(env.outside, gateway...)
		if err != nil {
			t.Fatal(err)
		}
		all["the gateway"] = append(all["the gateway"], a)
	}
	for u, answers := range all {
		if nodes, _ := c.nodesIn(answers); !slices.Equal(nodes, []string{"node-1", "node-2", "node-3"}) {
			t.Errorf("%s: answers only from %q", u, nodes)
		}
	}
}

// testExplain asks on behalf of each node's Pod: only its own endpoint is in.
func testExplain(t *testing.T, c *cluster) {
	for _, pod := range c.pods {
		out := must(t, env.node, env.fairway(), "explain", "--data-dir", env.data, "svc/same-node", "-n", "default", "--from", pod.pod, "-o", "json")
		var report struct {
			Node  string
			Ports []struct {
				Endpoints []struct {
					Node, Pod string
					Cluster   struct {
						In  bool
						Why string
					}
				}
			}
			Kernel struct {
				Mode, Unread string
				Differs      bool
			}
		}
		if err := json.Unmarshal([]byte(out), &report); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		if report.Node != pod.node || report.Kernel.Differs || len(report.Ports) != 1 || len(report.Ports[0].Endpoints) != len(c.pods) {
			t.Fatalf("Pod %s on %s: %s", pod.pod, pod.node, out)
		}
		at := slices.IndexFunc(c.nodes, func(n client) bool { return n.name == report.Node })
		if mode := must(t, c.nodes[at].ns, "curl", "-sS", "http://127.0.0.1:10249/proxyMode"); report.Kernel.Unread != "" || !strings.HasPrefix(report.Kernel.Mode, mode) {
			t.Errorf("on %s, which serves by %s, explain has read %+v", report.Node, mode, report.Kernel)
		}
		for _, e := range report.Ports[0].Endpoints {
			if want := e.Node == report.Node; e.Cluster.In != want || e.Cluster.Why == "" {
				t.Errorf("on %s: endpoint %s on %s is in: %v (%s)", report.Node, e.Pod, e.Node, e.Cluster.In, e.Cluster.Why)
			}
		}
	}
	if r := env.run(env.node, env.fairway(), "explain", "--data-dir", env.data, "svc/nobody", "-n", "default"); r.err == nil || !strings.Contains(r.stderr, "there is no Service default/nobody") {
		t.Errorf("a Service that does not exist: %v %s", r.err, r.all())
	}
}

// testHealth asks every node as load balancers do.
func testHealth(t *testing.T, c *cluster) {
	port := field(t, "default", "svc/local", "{.spec.healthCheckNodePort}")
	for _, node := range c.nodes {
		for _, ip := range node.ips {
			wanted := map[string]string{
				"http://" + hostOf(ip) + ":10256/healthz": `"lastUpdated"`,
				"http://" + hostOf(ip) + ":10256/livez":   `"healthy": true`,
			}
			if !strings.Contains(ip, ":") { // the Service is of IPv4 alone
				wanted["http://"+hostOf(ip)+":"+port+"/"] = `"localEndpoints": 1`
			}
			for url, want := range wanted {
				out := must(t, env.node, "curl", "-sS", "--max-time", "10", "-w", "%{http_code}", url)
				if !strings.Contains(out, want) || !strings.HasSuffix(out, "200") {
					t.Errorf("%s: %s", url, out)
				}
			}
		}
		if mode := must(t, node.ns, "curl", "-sS", "http://127.0.0.1:10249/proxyMode"); mode != "ebpf" && mode != "nftables" {
			t.Errorf("%s: proxyMode %q", node.name, mode)
		}
	}
}

func testNear(t *testing.T, c *cluster) {
	local := field(t, "default", "svc/local", "{.status.loadBalancer.ingress[0].ip}")
	var urls []string
	for _, name := range []string{"local", "same-node", "same-zone"} {
		urls = append(urls, "http://"+field(t, "default", "svc/"+name, "{.spec.clusterIP}"))
	}
	for _, from := range c.inside() {
		for u, answers := range from.ask(t, 6, urls...) {
			if nodes, _ := c.nodesIn(answers); !slices.Equal(nodes, []string{from.node}) {
				t.Errorf("%s asks %s: answers from %v", from.name, u, nodes)
			}
		}
	}
	// From another machine: only Pods of the node that was asked, and they see who asks.
	for _, test := range []struct {
		from client
		to   string
		node string
		seen string
	}{
		{c.outside, "http://" + nodeAddr + ":30081", "node-1", outsideAddr},
		{c.outside, "http://" + local, "node-1", outsideAddr},
		{c.nodes[2], "http://" + c.nodes[1].ips[0] + ":30081", "node-2", c.nodes[2].ips[0]},
		{c.nodes[1], "http://" + nodeAddr + ":30081", "node-1", c.nodes[1].ips[0]},
	} {
		wantStatus(t, test.from.ns, 200, test.to)
		nodes, seen := c.nodesIn(test.from.ask(t, 6, test.to)[test.to])
		if !slices.Equal(nodes, []string{test.node}) || !slices.Equal(seen, []string{test.seen}) {
			t.Errorf("%s asks %s: answers from %v, which see %v; want %s and %s", test.from.name, test.to, nodes, seen, test.node, test.seen)
		}
	}
}

func testNodesTLS(t *testing.T, c *cluster) {
	u := "https://" + field(t, "default", "svc/secure", "{.spec.clusterIP}")
	wantStatus(t, env.node, 200, "-k", u)
	own := map[string]string{} // the nodes' addresses, which their Pods see of proxied connections
	for i, node := range c.nodes {
		own[node.ips[0]] = node.node
		own[fmt.Sprintf("10.245.0.%d", i+1)] = node.node
	}
	for _, from := range c.pods {
		_, seen := c.nodesIn(from.ask(t, 6, u)[u])
		for _, ip := range seen {
			if own[ip] != from.node {
				t.Errorf("%s: the connection goes on from %s (%s)", from.name, ip, own[ip])
			}
		}
	}
	for _, node := range c.nodes {
		c.pods[0].ask(t, 2, "https://"+node.ips[0]+":30443")
	}
}

var dnsRequests = regexp.MustCompile(`(?m)^coredns_dns_requests_total\{.*\} (\d+)`)

// answered is how many questions the DNS server of a node has answered.
func answered(t *testing.T, node client) int {
	t.Helper()
	sum := 0
	for _, m := range dnsRequests.FindAllStringSubmatch(must(t, node.ns, "curl", "-sS", "http://127.0.0.1:10249/metrics"), -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

func testNodesNames(t *testing.T, c *cluster) {
	for i := range 3 {
		pod := fmt.Sprintf("db-%d", i)
		want := field(t, "default", "pod/"+pod, "{.status.podIP}")
		for _, from := range slices.Concat(c.pods, c.host) {
			if r := from.run("getent", "ahostsv4", pod+".db"); !strings.HasPrefix(r.stdout, want+" ") {
				t.Errorf("%s: %s.db is %q, want %s", from.name, pod, r.all(), want)
			}
		}
	}
	for i, from := range c.pods {
		var before []int
		for _, node := range c.nodes {
			before = append(before, answered(t, node))
		}
		const questions = 20
		from.run("bash", "-c", fmt.Sprintf("for i in {1..%d}; do dig +short web.default.svc.cluster.local; done", questions))
		for j, node := range c.nodes {
			// Somebody else may ask meanwhile, but not as often.
			if n := answered(t, node) - before[j]; (n >= questions) != (i == j) {
				t.Errorf("%s asks %d times; the server of %s was asked %d times", from.name, questions, node.name, n)
			}
		}
	}
	// Any node's server may be asked by any node and Pod, and by nobody else.
	question := []string{"dig", "+short", "+time=1", "+tries=1", "-p", "10053", "web.default.svc.cluster.local"}
	for _, node := range c.nodes {
		for _, from := range []client{c.nodes[0], c.nodes[1], c.pods[2]} {
			if r := from.run(append(question, "@"+node.ips[0])...); strings.TrimSpace(r.stdout) == "" {
				t.Errorf("%s asks the server of %s: %s", from.name, node.name, r.all())
			}
		}
	}
	if r := c.outside.run(append(question, "@"+nodeAddr)...); r.stdout != "" && !strings.HasPrefix(r.stdout, ";;") {
		t.Errorf("the outside is answered: %s", r.all())
	}
}

const transfer = `import os, socket, sys, threading
host = sys.argv[1]
for size in (1, 1400, 1472, 1473, 9000, 60000):
    for _ in range(3):
        s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        s.settimeout(5)
        s.connect((host, 9001))
        d = os.urandom(size)
        s.send(d)
        assert s.recv(70000) == d, size
for _ in range(6):
    s = socket.create_connection((host, 9000), 5)
    d = os.urandom(4 << 20)
    t = threading.Thread(target=lambda: (s.sendall(d), s.shutdown(socket.SHUT_WR)))
    t.start()
    got = bytearray()
    while b := s.recv(1 << 20):
        got += b
    t.join()
    assert got == d, len(got)
print("all came back")`

func testSizes(t *testing.T, c *cluster) {
	for _, from := range []client{c.pods[0], c.pods[2], c.nodes[1]} {
		for _, ip := range strings.Fields(field(t, "default", "svc/web", "{.spec.clusterIPs[*]}")) {
			if r := from.runInput(transfer, "/usr/bin/python3", "-", ip); !strings.Contains(r.stdout, "all came back") {
				t.Errorf("%s to %s: %s", from.name, ip, r.all())
			}
		}
	}
}

func testKubectlOnNode(t *testing.T, pod client) {
	if out := kubectl(t, "logs", pod.pod); !strings.Contains(out, "listening") {
		t.Errorf("logs: %q", out)
	}
	if r := pod.runInput("through and back", "cat"); r.stdout != "through and back" {
		t.Errorf("exec: %q", r.all())
	}
	start(t, env.node, env.fairway(), "kubectl", "port-forward", pod.pod, "18088:8080")
	if a := wantStatus(t, env.node, 200, "http://127.0.0.1:18088/"); a.Pod != pod.pod {
		t.Errorf("port-forward leads to %s", a.Pod)
	}
}

// processOf returns the pid of a process of a node, and how often it was started again.
func processOf(t *testing.T, role, node string) (pid, restarts int) {
	t.Helper()
	for _, p := range fairwayStatus(t).Processes {
		if p.Role == role && p.Node == node {
			return p.PID, p.Restarts
		}
	}
	t.Fatalf("no %s of %s", role, node)
	return 0, 0
}

func testHangingRole(t *testing.T, c *cluster) {
	pid, _ := processOf(t, "node", "node-2")
	must(t, env.node, "kill", "-STOP", fmt.Sprint(pid))
	defer func() { _ = exec.Command("kill", "-CONT", fmt.Sprint(pid)).Run() }()
	eventually(t, 15*time.Second, func() error {
		if problems := fmt.Sprint(fairwayStatus(t).Problems); !strings.Contains(problems, "node of node-2") || !strings.Contains(problems, "is stopped (signal)") {
			return fmt.Errorf("status says %s", problems)
		}
		return nil
	})
	u := "http://" + field(t, "default", "svc/web", "{.spec.clusterIP}")
	c.pods[1].ask(t, 12, u)                      // the packet rules are the kernel's
	eventually(t, 40*time.Second, func() error { // by another node, or by this one's next process
		if r := c.pods[1].run("dig", "+short", "+time=1", "+tries=1", "web.default.svc.cluster.local"); r.err != nil {
			return fmt.Errorf("%s", r.all())
		}
		return nil
	})
	eventually(t, 60*time.Second, func() error {
		if now, restarts := processOf(t, "node", "node-2"); now == 0 || now == pid || restarts != 1 {
			return fmt.Errorf("pid %d, was %d; %d restarts", now, pid, restarts)
		}
		return nil
	})
	c.pods[1].ask(t, 6, u)
	allIsWell(t)
}

func allIsWell(t *testing.T) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		if r := env.run(env.node, env.fairway(), "status"); r.err != nil {
			return fmt.Errorf("%s", r.all())
		}
		return nil
	})
}

func testKilledKubelet(t *testing.T) {
	pid, _ := processOf(t, "kubelet", "node-2")
	must(t, env.node, "kill", "-9", fmt.Sprint(pid))
	eventually(t, 40*time.Second, func() error {
		if now, restarts := processOf(t, "kubelet", "node-2"); now == 0 || now == pid || restarts != 1 {
			return fmt.Errorf("pid %d, was %d; %d restarts", now, pid, restarts)
		}
		if r := env.run(env.node, env.fairway(), "kubectl", "wait", "pod", "--all", "--for=condition=Ready", "--timeout=1s"); r.err != nil {
			return fmt.Errorf("%s", r.all())
		}
		c := findCluster(t, 3)
		if len(c.pods[1].ips) == 0 {
			return fmt.Errorf("%s has no address", c.pods[1].name)
		}
		if r := c.nodes[0].run("curl", "-sS", "--max-time", "1", "http://"+c.pods[1].ips[0]+":8080"); r.err != nil {
			return fmt.Errorf("%s", r.all())
		}
		return nil
	})
	c := findCluster(t, 3)
	for _, from := range c.pods {
		from.ask(t, 3, "http://"+c.pods[1].ips[0]+":8080", "http://web")
	}
	allIsWell(t)
}

func testFewerNodes(t *testing.T) {
	if err := env.down(); err != nil {
		t.Fatal(err)
	}
	said, err := env.up("--nodes", "2", "--zones", "x,y")
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	if got := field(t, "default", "nodes", "{.items[*].metadata.name}"); got != "node-1 node-2" {
		t.Errorf("nodes are %s", got)
	}
	if !strings.Contains(said, "node-3") {
		t.Errorf("up does not say that a node is gone: %s", said)
	}
	waitReady(t, "default", "sts/db", "ds/echo", "ds/host")
	eventually(t, 20*time.Second, func() error {
		if got := field(t, "default", "pods", "{.items[*].spec.nodeName}"); strings.Contains(got, "node-3") || len(strings.Fields(got)) != 7 {
			return fmt.Errorf("Pods are on %s", got)
		}
		return nil
	})
	eventually(t, 20*time.Second, func() error {
		r := env.run(env.node, env.fairway(), "kubectl", "-n", "kube-system", "get", "endpointslices", "-l", "kubernetes.io/service-name=kube-dns",
			"-o", `jsonpath={range .items[*].endpoints[*]}{.nodeName} {.zone}{"\n"}{end}`)
		if got := slices.Compact(strings.Split(strings.TrimSpace(r.stdout), "\n")); !slices.Equal(got, []string{"node-1 x", "node-2 y"}) {
			return fmt.Errorf("DNS servers are %s", r.all())
		}
		return nil
	})
	allIsWell(t)
	c := findCluster(t, 2)
	u := "http://" + field(t, "default", "svc/web", "{.spec.clusterIP}")
	for _, from := range c.inside() {
		if nodes, _ := c.nodesIn(from.ask(t, 12, u)[u]); slices.Contains(nodes, "") {
			t.Errorf("%s: answers from Pods that are gone: %v", from.name, nodes)
		}
	}
}
