package runtime

import (
	"context"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// BenchmarkPod measures a Pod's life: sandbox, one container, and their end.
func BenchmarkPod(b *testing.B) {
	n := newNode(b)
	ctx := context.Background()
	for b.Loop() {
		pod := n.pod(func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "" })
		n.run(pod, "sleep 1000")
		b.StopTimer()
		if err := n.service.RemovePodSandbox(ctx, pod); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkExec measures a command in a running container, as probes run them.
func BenchmarkExec(b *testing.B) {
	n := newNode(b)
	id := n.run(n.pod(), "sleep 1000")
	for b.Loop() {
		if _, err := n.exec(id, "true"); err != nil {
			b.Fatal(err)
		}
	}
}
