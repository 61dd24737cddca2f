package kubelet

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/kubelet/cm"
)

// kubelet reads the configuration of every Pod that ran before it was started, as here, and panics on a nil in it.
func TestPodsHaveNoLimitsAsAWhole(t *testing.T) {
	pods := newContainerManager(machine{}).NewPodContainerManager()
	config, err := pods.GetPodCgroupConfig(&v1.Pod{}, v1.ResourceMemory)
	if err != nil {
		t.Fatal(err)
	}
	if m, r, l := cm.MemoryLimitsFromConfig(config), cm.CPURequestsFromConfig(config), cm.CPULimitsFromConfig(config); m != nil || r != nil || l != nil {
		t.Errorf("limits %v %v %v, want none", m, r, l)
	}
}
