package machine

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// UnmountBelow takes away every mount below dir, deepest first: volumes and root file systems that a node which was killed
// could not take away itself. What is mounted at dir is left: somebody gave it a disk of its own. No dir is no error.
func UnmountBelow(dir string) error {
	dir, err := filepath.EvalSymlinks(dir) // mountinfo has no others
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	points, err := mountPoints()
	if err != nil {
		return err
	}
	var errs []error
	// mountinfo lists mounts in the order they were made, so the reverse is safe for stacked ones too.
	for _, point := range slices.Backward(points) {
		if !strings.HasPrefix(point, dir+"/") {
			continue
		}
		err := unix.Unmount(point, unix.MNT_DETACH)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmounting %s: %w", point, err))
		}
	}
	return errors.Join(errs...)
}

// mountPoints lists where something is mounted, oldest mount first.
func mountPoints() ([]string, error) {
	var points []string
	err := eachMount(func(point, _ string) { points = append(points, point) })
	return points, err
}

// eachMount calls f with the mount point and file system type of every mount this process sees.
func eachMount(f func(point, fsType string)) error {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20) // overlay mounts list all their layers
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		kinds := strings.Fields(after)
		if !ok || len(fields) < 5 || len(kinds) < 1 {
			continue
		}
		f(unescape.Replace(fields[4]), kinds[0])
	}
	return lines.Err()
}
