package kubelet

import (
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/cm"
)

// containerManager stands where kubelet would manage the cgroups of the node and its Pods: here the runtime applies a
// container's limits itself.
type containerManager struct {
	cm.ContainerManager
	machine machine
}

func newContainerManager(machine machine) cm.ContainerManager {
	return containerManager{ContainerManager: cm.NewStubContainerManager(), machine: machine}
}

// GetCapacity reports the node's storage, so that Pods that ask for some can be scheduled.
func (c containerManager) GetCapacity(logger klog.Logger, storage bool) v1.ResourceList {
	if !storage {
		return nil
	}
	info, err := c.machine.RootFsInfo()
	if err != nil {
		logger.Error(err, "The node's storage is unknown")
		return nil
	}
	return v1.ResourceList{v1.ResourceEphemeralStorage: *resource.NewQuantity(int64(info.Capacity), resource.BinarySI)}
}

func (c containerManager) NewPodContainerManager() cm.PodContainerManager {
	return podContainerManager{c.ContainerManager.NewPodContainerManager()}
}

// podContainerManager has no cgroup per Pod, which is no error.
type podContainerManager struct {
	cm.PodContainerManager
}

// GetPodCgroupConfig says that nothing is set for the Pod as a whole. kubelet asks for every running Pod, very often, and
// follows every pointer.
func (podContainerManager) GetPodCgroupConfig(*v1.Pod, v1.ResourceName) (*cm.ResourceConfig, error) {
	return &cm.ResourceConfig{Memory: new(int64), CPUShares: new(uint64), CPUPeriod: new(uint64), CPUQuota: new(int64)}, nil
}

// SetPodCgroupConfig has nothing to do: each container has its own limits.
func (podContainerManager) SetPodCgroupConfig(klog.Logger, *v1.Pod, *cm.ResourceConfig) error {
	return nil
}
