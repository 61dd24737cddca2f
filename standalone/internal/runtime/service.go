package runtime

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Name and version that Node objects show.
const (
	runtimeName    = "fairway"
	runtimeVersion = "1.0.0"
	apiVersion     = "v1"
)

// runtimeService is the Runtime in the words of the CRI.
type runtimeService struct{ *Runtime }

var _ internalapi.RuntimeService = (*runtimeService)(nil)

// Close implements RuntimeService. Kubelet does not own the Runtime.
func (s *runtimeService) Close(context.Context) error { return nil }

// Version implements RuntimeService.
func (s *runtimeService) Version(context.Context, string) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: runtimeName, RuntimeVersion: runtimeVersion, RuntimeApiVersion: apiVersion}, nil
}

// Status implements RuntimeService.
func (s *runtimeService) Status(context.Context, bool) (*runtimeapi.StatusResponse, error) {
	ready := func(kind string) *runtimeapi.RuntimeCondition {
		return &runtimeapi.RuntimeCondition{Type: kind, Status: true}
	}
	return &runtimeapi.StatusResponse{
		Status:          &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{ready("RuntimeReady"), ready("NetworkReady")}},
		RuntimeHandlers: []*runtimeapi.RuntimeHandler{{Features: &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: recursiveReadOnly()}}},
		Features:        &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
	}, nil
}

// RuntimeConfig implements RuntimeService.
func (s *runtimeService) RuntimeConfig(context.Context) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS}}, nil
}

// UpdateRuntimeConfig implements RuntimeService. The Pod CIDRs are Options.
func (s *runtimeService) UpdateRuntimeConfig(context.Context, *runtimeapi.RuntimeConfig) error {
	return nil
}

// RunPodSandbox implements RuntimeService.
func (s *runtimeService) RunPodSandbox(ctx context.Context, config *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	return s.runSandbox(config, handler)
}

// StopPodSandbox implements RuntimeService. It may be called again, also for a
// sandbox that is gone.
func (s *runtimeService) StopPodSandbox(_ context.Context, id string) error {
	sandbox, err := s.sandbox(id)
	if err != nil {
		return nil
	}
	return s.stopSandbox(sandbox)
}

// RemovePodSandbox implements RuntimeService. It may be called again.
func (s *runtimeService) RemovePodSandbox(ctx context.Context, id string) error {
	sandbox, err := s.sandbox(id)
	if err != nil {
		return nil
	}
	return s.removeSandbox(sandbox)
}

// PodSandboxStatus implements RuntimeService.
func (s *runtimeService) PodSandboxStatus(_ context.Context, id string, _ bool) (*runtimeapi.PodSandboxStatusResponse, error) {
	sandbox, err := s.sandbox(id)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatusResponse{Status: sandbox.status(), Timestamp: time.Now().UnixNano()}, nil
}

// ListPodSandbox implements RuntimeService.
func (s *runtimeService) ListPodSandbox(_ context.Context, filter *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	var out []*runtimeapi.PodSandbox
	for _, sandbox := range s.allSandboxes() {
		listed := sandbox.listed()
		if filter.GetId() != "" && filter.GetId() != listed.Id ||
			filter.GetState() != nil && filter.GetState().GetState() != listed.State ||
			!matchLabels(filter.GetLabelSelector(), listed.Labels) {
			continue
		}
		out = append(out, listed)
	}
	return out, nil
}

func (r *Runtime) allSandboxes() []*sandbox {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []*sandbox
	for _, s := range r.sandboxes {
		out = append(out, s)
	}
	return out
}

func (r *Runtime) allContainers() []*container {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []*container
	for _, c := range r.containers {
		out = append(out, c)
	}
	return out
}

func matchLabels(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// CreateContainer implements RuntimeService.
func (s *runtimeService) CreateContainer(_ context.Context, sandboxID string, config *runtimeapi.ContainerConfig, podConfig *runtimeapi.PodSandboxConfig) (string, error) {
	return s.createContainer(sandboxID, config)
}

// StartContainer implements RuntimeService.
func (s *runtimeService) StartContainer(_ context.Context, id string) error {
	c, err := s.container(id)
	if err != nil {
		return err
	}
	return s.startContainer(c)
}

// StopContainer implements RuntimeService; timeout is in seconds.
func (s *runtimeService) StopContainer(ctx context.Context, id string, timeout int64) error {
	c, err := s.container(id)
	if err != nil {
		return nil
	}
	return s.stopContainer(ctx, c, time.Duration(timeout)*time.Second)
}

// RemoveContainer implements RuntimeService. It may be called again.
func (s *runtimeService) RemoveContainer(ctx context.Context, id string) error {
	c, err := s.container(id)
	if err != nil {
		return nil
	}
	return s.removeContainer(c)
}

// ListContainers implements RuntimeService.
func (s *runtimeService) ListContainers(_ context.Context, filter *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	var out []*runtimeapi.Container
	for _, c := range s.allContainers() {
		listed := c.listed()
		if filter.GetId() != "" && filter.GetId() != listed.Id ||
			filter.GetPodSandboxId() != "" && filter.GetPodSandboxId() != listed.PodSandboxId ||
			filter.GetState() != nil && filter.GetState().GetState() != listed.State ||
			!matchLabels(filter.GetLabelSelector(), listed.Labels) {
			continue
		}
		out = append(out, listed)
	}
	return out, nil
}

// ContainerStatus implements RuntimeService.
func (s *runtimeService) ContainerStatus(_ context.Context, id string, verbose bool) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, err
	}
	out := &runtimeapi.ContainerStatusResponse{Status: c.status()}
	if verbose {
		out.Info = c.info()
	}
	return out, nil
}

// UpdateContainerResources implements RuntimeService.
func (s *runtimeService) UpdateContainerResources(_ context.Context, id string, resources *runtimeapi.ContainerResources) error {
	c, err := s.container(id)
	if err != nil {
		return err
	}
	return s.updateResources(c, resources.GetLinux())
}

// UpdatePodSandboxResources implements RuntimeService. Limits are containers'.
func (s *runtimeService) UpdatePodSandboxResources(context.Context, *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

// ExecSync implements RuntimeService.
func (s *runtimeService) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) ([]byte, []byte, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, nil, err
	}
	return s.execSync(ctx, c, cmd, timeout)
}

// Exec implements RuntimeService.
func (s *runtimeService) Exec(_ context.Context, request *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	c, err := s.container(request.GetContainerId())
	if err != nil {
		return nil, err
	}
	if _, err := c.running(); err != nil {
		return nil, err
	}
	return s.stream.GetExec(request)
}

// Attach implements RuntimeService.
func (s *runtimeService) Attach(_ context.Context, request *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	c, err := s.container(request.GetContainerId())
	if err != nil {
		return nil, err
	}
	if _, err := c.running(); err != nil {
		return nil, err
	}
	return s.stream.GetAttach(request)
}

// PortForward implements RuntimeService.
func (s *runtimeService) PortForward(_ context.Context, request *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if _, err := s.sandbox(request.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return s.stream.GetPortForward(request)
}

// ReopenContainerLog implements RuntimeService.
func (s *runtimeService) ReopenContainerLog(_ context.Context, id string) error {
	c, err := s.container(id)
	if err != nil {
		return err
	}
	if _, err := c.running(); err != nil {
		return err
	}
	return c.streams.log.reopen()
}

// The CRI has more than standalone nodes offer.

func unsupported(what string) error {
	return status.Errorf(codes.Unimplemented, "%s is not supported by standalone nodes", what)
}

// CheckpointContainer implements RuntimeService.
func (s *runtimeService) CheckpointContainer(context.Context, *runtimeapi.CheckpointContainerRequest) error {
	return unsupported("checkpointing a container")
}

// CheckpointPod implements RuntimeService.
func (s *runtimeService) CheckpointPod(context.Context, *runtimeapi.CheckpointPodRequest) error {
	return unsupported("checkpointing a Pod")
}

// RestorePod implements RuntimeService.
func (s *runtimeService) RestorePod(context.Context, *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return nil, unsupported("restoring a Pod")
}

// GetContainerEvents implements RuntimeService. Kubelet lists containers once a
// second instead.
func (s *runtimeService) GetContainerEvents(context.Context, chan *runtimeapi.ContainerEventResponse, func(runtimeapi.RuntimeService_GetContainerEventsClient)) error {
	return unsupported("the stream of container events")
}
