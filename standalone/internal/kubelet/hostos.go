package kubelet

import (
	"os"
	"strings"

	"k8s.io/kubernetes/pkg/kubelet"
	"k8s.io/kubernetes/pkg/kubelet/container"
)

// hostOS is the operating system as kubelet sees it, except for the directory of links to log files that log collectors
// of old expect outside the data directory: several nodes would share it, and the links would outlive the cluster.
type hostOS struct {
	container.RealOS
}

func (o hostOS) MkdirAll(path string, mode os.FileMode) error {
	if legacyLog(path) {
		return nil
	}
	return o.RealOS.MkdirAll(path, mode)
}

func (o hostOS) Symlink(target, path string) error {
	if legacyLog(path) {
		return nil
	}
	return o.RealOS.Symlink(target, path)
}

func (o hostOS) Remove(path string) error {
	if legacyLog(path) {
		return nil
	}
	return o.RealOS.Remove(path)
}

func (o hostOS) Glob(pattern string) ([]string, error) {
	if legacyLog(pattern) {
		return nil, nil
	}
	return o.RealOS.Glob(pattern)
}

func legacyLog(path string) bool {
	return path == kubelet.ContainerLogsDir || strings.HasPrefix(path, kubelet.ContainerLogsDir+"/")
}
