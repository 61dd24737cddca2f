package runtime

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// imageService answers for images as if all of them were there: whether one is
// mapped to a command matters only to containers without a command of their own.
type imageService struct{ *Runtime }

var _ internalapi.ImageManagerService = (*imageService)(nil)

// Close implements ImageManagerService. Kubelet does not own the Runtime.
func (s *imageService) Close(context.Context) error { return nil }

// ListImages implements ImageManagerService: those mapped and those asked for.
func (s *imageService) ListImages(_ context.Context, filter *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	want := filter.GetImage().GetImage()
	var out []*runtimeapi.Image
	for _, img := range s.images.list() {
		if want == "" || want == img.ref || imageID(want) == img.id || want == img.id {
			out = append(out, img.listed())
		}
	}
	return out, nil
}

// ImageStatus implements ImageManagerService.
func (s *imageService) ImageStatus(_ context.Context, spec *runtimeapi.ImageSpec, _ bool) (*runtimeapi.ImageStatusResponse, error) {
	return &runtimeapi.ImageStatusResponse{Image: s.images.note(spec.GetImage()).listed()}, nil
}

// PullImage implements ImageManagerService.
func (s *imageService) PullImage(_ context.Context, spec *runtimeapi.ImageSpec, _ *runtimeapi.AuthConfig, _ *runtimeapi.PodSandboxConfig) (string, error) {
	return s.images.note(spec.GetImage()).id, nil
}

// RemoveImage implements ImageManagerService.
func (s *imageService) RemoveImage(_ context.Context, spec *runtimeapi.ImageSpec) error {
	s.images.forget(spec.GetImage())
	return nil
}

// ImageFsInfo implements ImageManagerService: the file system of the node's
// state stands for both kinds.
func (s *imageService) ImageFsInfo(context.Context) (*runtimeapi.ImageFsInfoResponse, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.opts.Dir, &st); err != nil {
		return nil, err
	}
	usage := &runtimeapi.FilesystemUsage{
		Timestamp: time.Now().UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: s.opts.Dir},
		UsedBytes: &runtimeapi.UInt64Value{Value: 0}, InodesUsed: &runtimeapi.UInt64Value{Value: 0},
	}
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{usage}, ContainerFilesystems: []*runtimeapi.FilesystemUsage{usage}}, nil
}

func (img image) listed() *runtimeapi.Image {
	tagged := img.ref
	if _, tag, digest := splitRef(tagged); tag == "" && digest == "" {
		tagged += ":latest"
	}
	// The size is not known, and none at all is not believed.
	return &runtimeapi.Image{Id: img.id, RepoTags: []string{tagged}, Size: 1, Spec: &runtimeapi.ImageSpec{Image: img.ref}}
}
