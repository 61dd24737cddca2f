package main

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestNode walks through the life of a node with a Pod on it; its parts depend on each other.
func TestNode(t *testing.T) {
	t.Parallel()
	l := newLab(t, "data")
	whole := t
	bin := buildInit(t)
	cgroup := filepath.Join("/sys/fs/cgroup", l.namespace)
	t.Cleanup(func() { os.Remove(cgroup) })

	if _, err := l.run("", l.nodeArgs(bin)...); err == nil || !strings.Contains(err.Error(), "start the control plane") {
		t.Errorf("node without a control plane: error = %v, want one that says to start it", err)
	}
	l.startControl(t)
	node := l.startNode(t, bin)

	t.Run("object", func(t *testing.T) {
		for path, want := range map[string]string{
			"{.spec.podCIDRs}": `["10.244.0.0/24","fd00:10:244::/64"]`,
			`{.status.addresses[?(@.type=="InternalIP")].address}`: labAddress4 + " " + labAddress6,
			`{.metadata.labels.topology\.kubernetes\.io/zone}`:     "harbour",
			`{.metadata.labels.kubernetes\.io/hostname}`:           "node-1",
			"{.status.capacity.pods}":                              "250",
		} {
			if got := l.kubectl(t, "get", "node", "node-1", "-o", "jsonpath="+path); got != want {
				t.Errorf("%s = %q, want %q", path, got, want)
			}
		}
		if got := l.kubectl(t, "get", "node", "node-1", "-o", "jsonpath={.status.allocatable.ephemeral-storage}"); got == "" || got == "0" {
			t.Errorf("allocatable storage = %q: no Pod that asks for some could be scheduled", got)
		}
	})

	l.eventually(t, l.want("default", "get", "serviceaccount", "default", "-o", "jsonpath={.metadata.name}"))
	l.apply(t, fmt.Sprintf(podManifest, executable()))
	t.Run("pod", func(t *testing.T) {
		l.kubectl(t, "wait", "--for=condition=Ready", "pod/web", "--timeout=25s")
		for command, want := range map[string]string{
			"echo $PASSWORD":       "open sesame",
			"cat /config/greeting": "ahoy",
			"cat /info/name":       "web",
			"cat /scratch/before":  "prepared",
			"hostname":             "web",
			"cat /etc/resolv.conf": "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5",
			"echo $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT": "10.96.0.1:443",
			// The cluster's keys are in the data directory.
			"cat " + filepath.Join(l.dataDir, "pki", "ca.key") + " 2>/dev/null || echo hidden": "hidden",
		} {
			if got := l.kubectl(t, "exec", "web", "--", "sh", "-c", command); got != want {
				t.Errorf("%s printed %q, want %q", command, got, want)
			}
		}
		if got := l.kubectl(t, "logs", "web"); got != "serving" {
			t.Errorf("log = %q, want %q", got, "serving")
		}
	})

	t.Run("service account", func(t *testing.T) {
		// As a client inside the cluster does, with what the Pod finds in its own files.
		const dir = "/var/run/secrets/kubernetes.io/serviceaccount"
		got := l.kubectl(t, "exec", "web", "--", "sh", "-c", "env "+asServer+"= "+asProgram+"=1 "+executable()+
			" kubectl --server=https://"+labAddress4+":6443 --certificate-authority="+dir+"/ca.crt --token=$(cat "+dir+"/token) auth whoami -o jsonpath={.status.userInfo.username}")
		if want := "system:serviceaccount:default:default"; got != want {
			t.Errorf("the API server sees %q, want %q", got, want)
		}
	})

	t.Run("port-forward", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		forward := l.command(ctx, "kubectl", "--kubeconfig", filepath.Join(l.dataDir, "kubeconfig"), "port-forward", "pod/web", ":80", "--address", "127.0.0.1")
		out, err := forward.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := forward.Start(); err != nil {
			t.Fatal(err)
		}
		defer forward.Wait()
		defer cancel()
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		var port int
		if _, err := fmt.Sscanf(line, "Forwarding from 127.0.0.1:%d", &port); err != nil {
			t.Fatalf("kubectl printed %q: %v", line, err)
		}
		got, err := exec.Command("nsenter", "--net=/run/netns/"+l.namespace, "curl", "-sS", "--max-time", "10", fmt.Sprintf("http://127.0.0.1:%d/config/greeting", port)).CombinedOutput()
		if err != nil || string(got) != "ahoy" {
			t.Errorf("through the port: %q, %v; want %q", got, err, "ahoy")
		}
	})

	t.Run("statistics", func(t *testing.T) {
		if got := l.kubectl(t, "get", "--raw", "/api/v1/nodes/node-1/proxy/stats/summary"); !strings.Contains(got, `"name": "web"`) {
			t.Errorf("summary does not name the Pod:\n%s", got)
		}
	})

	t.Run("probes", func(t *testing.T) {
		l.kubectl(t, "exec", "web", "--", "rm", "/scratch/before")
		l.kubectl(t, "wait", "--for=condition=Ready=false", "pod/web", "--timeout=25s")
		l.kubectl(t, "exec", "web", "--", "sh", "-c", "echo prepared > /scratch/before")
		l.kubectl(t, "wait", "--for=condition=Ready", "pod/web", "--timeout=25s")
	})

	t.Run("errors name the cure", func(t *testing.T) {
		args := l.nodeArgs(bin)
		if _, err := l.run("", args...); err == nil || !strings.Contains(err.Error(), "port 10250") || !strings.Contains(err.Error(), "--kubelet-port") {
			t.Errorf("port in use: error = %v", err)
		}
		other := append(args, "--kubelet-port", "10350")
		for i, arg := range other {
			if arg == "10.244.0.0/24,fd00:10:244::/64" {
				other[i] = "10.250.0.0/24"
			}
		}
		if _, err := l.run("", other...); err == nil || !strings.Contains(err.Error(), "kubectl delete node node-1") {
			t.Errorf("other Pod range: error = %v, want one that says what to do", err)
		}
	})

	t.Run("kill -9 leaves no mount, and the Pod comes back", func(t *testing.T) {
		node.kill(t, syscall.SIGKILL)
		noMounts(t, l.dataDir)
		node = l.startNode(whole, bin)
		l.eventually(t, func() error {
			return l.want("1 true", "get", "pod", "web", "-o", "jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}")()
		})
	})

	t.Run("stops when asked to and leaves nothing", func(t *testing.T) {
		node.kill(t, syscall.SIGTERM)
		if node.err != nil {
			t.Errorf("ended with %v, want success", node.err)
		}
		noMounts(t, l.dataDir)
		err := filepath.WalkDir(cgroup, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.Name() == "cgroup.procs" {
				if pids, _ := os.ReadFile(path); len(pids) > 0 {
					t.Errorf("processes left in %s: %s", path, pids)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		out, err := exec.Command("nsenter", "--net=/run/netns/"+l.namespace, "ip", "-o", "link").Output()
		if err != nil {
			t.Fatal(err)
		}
		if links := strings.Count(string(out), "\n"); links != 3 {
			t.Errorf("links left:\n%s", out)
		}
	})
}

// noMounts checks that nothing is mounted below a directory in the machine's own mount namespace.
func noMounts(t *testing.T, dir string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) {
			t.Errorf("still mounted: %s", line)
		}
	}
}

// podManifest is a Pod that uses what kubelet gives to Pods. %s is the test binary.
const podManifest = `
apiVersion: v1
kind: ConfigMap
metadata: {name: greeting}
data: {greeting: ahoy}
---
apiVersion: v1
kind: Secret
metadata: {name: cave}
stringData: {password: open sesame}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - name: prepare
    image: busybox
    command: [sh, -c, printf prepared > /scratch/before]
    volumeMounts: [{name: scratch, mountPath: /scratch}]
  containers:
  - name: web
    image: none
    command: [%q]
    env:
    - {name: FAIRWAY_STANDALONE_TEST_SERVER, value: "1"}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: cave, key: password}}}
    ports: [{containerPort: 80}]
    readinessProbe: {httpGet: {path: /scratch/before, port: 80}, periodSeconds: 1, failureThreshold: 1}
    resources: {requests: {cpu: 10m, memory: 16Mi, ephemeral-storage: 1Mi}, limits: {memory: 512Mi}}
    volumeMounts:
    - {name: config, mountPath: /config}
    - {name: info, mountPath: /info}
    - {name: scratch, mountPath: /scratch}
  volumes:
  - {name: config, configMap: {name: greeting}}
  - {name: info, downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}
  - {name: scratch, emptyDir: {medium: Memory}}
`
