package scenario

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestRealAPI runs the tests of what reads from and writes to an API against a
// real API server, which nothing else uses.
func TestRealAPI(t *testing.T) {
	own, err := makeLab(env.root, "api")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(own.remove)
	start(t, own.node, filepath.Join(env.root, "bin", "fairway-standalone"), "control", "--data-dir", own.data, "--advertise-address", nodeAddr)
	kubeconfig := filepath.Join(own.data, "kubeconfig")
	eventually(t, 30*time.Second, func() error {
		if _, err := os.Stat(kubeconfig); err != nil {
			return err
		}
		r := own.run(own.node, env.fairway(), "kubectl", "--kubeconfig", kubeconfig, "get", "--raw", "/readyz")
		if r.err != nil {
			return fmt.Errorf("%w: %s", r.err, r.all())
		}
		return nil
	})
	for _, pkg := range []string{"source/kube", "status/kube"} {
		r := own.run(own.node, "env", "-C", env.root, "FAIRWAY_TEST_KUBECONFIG="+kubeconfig, "HOME="+os.Getenv("HOME"),
			"go", "test", "-count=1", "-run", "TestAPI", "./internal/"+pkg)
		if r.err != nil {
			t.Errorf("%s: %v\n%s", pkg, r.err, r.all())
		}
	}
}
