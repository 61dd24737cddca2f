package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestControl walks through the life of a control plane; its parts depend on each other.
func TestControl(t *testing.T) {
	t.Parallel()
	// Deeper than the path of a Unix socket can be.
	l := newLab(t, strings.Repeat("d", 60), strings.Repeat("e", 60))
	whole := t
	control := l.startControl(t)

	t.Run("controllers work", func(t *testing.T) {
		l.kubectl(t, "create", "deployment", "web", "--image=nginx", "--replicas=2")
		l.eventually(t, l.want("2", "get", "replicasets", "-l", "app=web", "-o", "jsonpath={.items[*].status.replicas}"))
		l.eventually(t, l.want("Pending Pending", "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].status.phase}"))
		l.eventually(t, l.want("default", "get", "serviceaccount", "default", "-o", "jsonpath={.metadata.name}"))
		l.eventually(t, func() error {
			ca, err := os.ReadFile(filepath.Join(l.dataDir, "pki", "ca.crt"))
			if err != nil {
				return err
			}
			return l.want(strings.TrimSuffix(string(ca), "\n"), "get", "configmap", "kube-root-ca.crt", "-o", `jsonpath={.data.ca\.crt}`)()
		})
	})

	t.Run("services get addresses of both families", func(t *testing.T) {
		l.apply(t, `{apiVersion: v1, kind: Service, metadata: {name: dual},
			spec: {type: NodePort, ipFamilyPolicy: RequireDualStack, selector: {app: web}, ports: [{port: 80, nodePort: 32767}]}}`)
		ips := l.kubectl(t, "get", "service", "dual", "-o", "jsonpath={.spec.clusterIPs}")
		if !strings.Contains(ips, `"10.96.`) || !strings.Contains(ips, `"fd00:10:96::`) {
			t.Errorf("clusterIPs = %s, want one of each range", ips)
		}
		err := l.try("create", "service", "nodeport", "outside", "--tcp=80", "--node-port=32768")
		if err == nil || !strings.Contains(err.Error(), "30000-32767") {
			t.Errorf("node port 32768: error = %v, want one that names the range", err)
		}
		l.eventually(t, l.want(labAddress4, "get", "endpointslice", "kubernetes", "-o", "jsonpath={.items[*].endpoints[*].addresses[*]}{.endpoints[*].addresses[*]}"))
	})

	t.Run("custom resources work", func(t *testing.T) {
		l.apply(t, `{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: boats.example.com},
			spec: {group: example.com, scope: Namespaced, names: {kind: Boat, plural: boats},
			versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]}}`)
		l.kubectl(t, "wait", "--for=condition=Established", "crd/boats.example.com", "--timeout=20s")
		l.eventually(t, func() error {
			_, err := l.run(`{apiVersion: example.com/v1, kind: Boat, metadata: {name: ferry}}`,
				"kubectl", "--kubeconfig", filepath.Join(l.dataDir, "kubeconfig"), "apply", "-f", "-")
			return err
		})
		if got := l.kubectl(t, "get", "boats", "-o", "name"); got != "boat.example.com/ferry" {
			t.Errorf("boats = %q", got)
		}
	})

	t.Run("reachable by every name", func(t *testing.T) {
		for _, server := range []string{"https://localhost:6443", "https://127.0.0.1:6443", "https://[::1]:6443",
			"https://" + labAddress4 + ":6443", "https://[" + labAddress6 + "]:6443"} {
			if err := l.try("get", "--raw", "/readyz", "--server", server); err != nil {
				t.Errorf("by %s: %v", server, err)
			}
		}
		// The way of nodes and roles.
		if out, err := l.run("", "kubectl", "--kubeconfig", filepath.Join(l.dataDir, "node.kubeconfig"), "auth", "can-i", "*", "*"); err != nil || out != "yes" {
			t.Errorf("with node.kubeconfig: %q, %v", out, err)
		}
		if server := l.kubectl(t, "config", "view", "--kubeconfig", filepath.Join(l.dataDir, "node.kubeconfig"), "-o", "jsonpath={.clusters[0].cluster.server}"); server != "https://"+labAddress4+":6443" {
			t.Errorf("node.kubeconfig names %s", server)
		}
	})

	t.Run("strangers may not", func(t *testing.T) {
		err := l.try("get", "secrets", "--as", "system:anonymous")
		if err == nil || !strings.Contains(err.Error(), "forbidden") {
			t.Errorf("anonymous reads secrets: %v", err)
		}
	})

	t.Run("secrets are private", func(t *testing.T) {
		for _, file := range []string{"kubeconfig", "node.kubeconfig", "pki/ca.key", "pki/admin.key"} {
			info, err := os.Stat(filepath.Join(l.dataDir, file))
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v, want 0600", file, info.Mode().Perm())
			}
		}
	})

	t.Run("one port only", func(t *testing.T) {
		if open := l.listening(t); len(open) != 1 || open[0] != 6443 {
			t.Errorf("open ports = %v, want 6443 only", open)
		}
	})

	t.Run("errors name the cure", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			name string
			args []string
			want []string
		}{
			{"directory in use", []string{"--data-dir", l.dataDir}, []string{"in use by another control plane", "--data-dir"}},
			{"port in use", []string{"--data-dir", t.TempDir()}, []string{"port 6443", "--secure-port"}},
			{"directory is a file", []string{"--data-dir", file}, []string{file, "--data-dir"}},
			{"two ranges of one family", []string{"--service-cidr", "10.96.0.0/16,10.97.0.0/16"}, []string{"--service-cidr"}},
			{"range with host bits", []string{"--service-cidr", "10.96.0.1/16"}, []string{"10.96.0.0/16"}},
			{"range too large", []string{"--service-cidr", "10.0.0.0/8"}, []string{"--service-cidr 10.0.0.0/8", "/12"}},
			{"not an address", []string{"--advertise-address", "here"}, []string{"--advertise-address", "here"}},
			{"loopback", []string{"--advertise-address", "127.0.0.1"}, []string{"--advertise-address 127.0.0.1"}},
		} {
			t.Run(test.name, func(t *testing.T) {
				args := append([]string{"control", "--advertise-address", labAddress4}, test.args...)
				if test.args[0] == "--advertise-address" {
					args = append([]string{"control"}, test.args...)
				}
				_, err := l.run("", args...)
				if err == nil {
					t.Fatal("no error")
				}
				for _, text := range test.want {
					if !strings.Contains(err.Error(), text) {
						t.Errorf("error %q does not contain %q", err, text)
					}
				}
			})
		}
	})

	t.Run("stops while it starts", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "data")
		early := l.start(t, "control", "--data-dir", dir, "--secure-port", "7443", "--advertise-address", labAddress4)
		l.eventually(t, func() error {
			_, err := os.Stat(filepath.Join(dir, "etcd", "member"))
			return err
		})
		early.kill(t, syscall.SIGTERM)
		if log := early.stderr.String(); early.err != nil || log != "" {
			t.Errorf("ended with %v, want success and an empty log:\n%s", early.err, log)
		}
	})

	t.Run("kill -9 loses nothing", func(t *testing.T) {
		l.kubectl(t, "create", "configmap", "just-before", "--from-literal=a=b")
		control.kill(t, syscall.SIGKILL)
		_, err := l.run("", "control", "--data-dir", l.dataDir, "--advertise-address", labAddress4, "--service-cidr", "10.97.0.0/16")
		if err == nil || !strings.Contains(err.Error(), "--service-cidr 10.96.0.0/16,fd00:10:96::/112") {
			t.Errorf("other Service addresses: error = %v, want one that says which to give", err)
		}
		control = l.startControl(whole)
		l.kubectl(t, "get", "configmap", "just-before")
		l.kubectl(t, "scale", "deployment", "web", "--replicas=3")
		l.eventually(t, l.want("3", "get", "replicasets", "-l", "app=web", "-o", "jsonpath={.items[*].status.replicas}"))
	})

	t.Run("stops when asked to", func(t *testing.T) {
		control.kill(t, syscall.SIGTERM)
		if control.err != nil {
			t.Errorf("ended with %v, want success", control.err)
		}
		if log := control.stderr.String(); strings.Contains(log, "did not stop in time") {
			t.Errorf("a part did not stop:\n%s", log)
		}
	})
}
