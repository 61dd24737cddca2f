package machine

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Oldest kernel that has all we use (nftables NAT in family inet, cgroup v2 with CLONE_INTO_CGROUP, pidfds).
const (
	minMajor = 5
	minMinor = 10
)

// Check says in one sentence why this machine cannot run a cluster, or nil.
func Check() error {
	if os.Geteuid() != 0 {
		return errors.New("fairway up needs root, for it makes network namespaces, routes and mounts; try: sudo fairway up")
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("reading the kernel's version: %w", err)
	}
	if err := checkKernel(unix.ByteSliceToString(uts.Release[:])); err != nil {
		return err
	}
	if CgroupRoot() == "" {
		return errors.New("no cgroup v2 is mounted; mount it with: mkdir -p /run/cgroup2 && mount -t cgroup2 none /run/cgroup2")
	}
	return nil
}

func checkKernel(release string) error {
	parts := strings.FieldsFunc(release, func(r rune) bool { return r < '0' || r > '9' })
	if len(parts) < 2 {
		return nil // an unusual version string is no reason to refuse
	}
	major, errMajor := strconv.Atoi(parts[0])
	minor, errMinor := strconv.Atoi(parts[1])
	if errMajor != nil || errMinor != nil {
		return nil
	}
	if major < minMajor || major == minMajor && minor < minMinor {
		return fmt.Errorf("linux %s is too old: fairway needs %d.%d or newer", release, minMajor, minMinor)
	}
	return nil
}

// CgroupRoot is where the cgroup v2 hierarchy is mounted, or "" when it is not.
func CgroupRoot() string {
	root := ""
	// Not being able to read the list of mounts means not seeing the hierarchy either.
	_ = eachMount(func(point, fsType string) {
		if fsType == "cgroup2" && root == "" {
			root = point
		}
	})
	return root
}

// HasIPv6 says whether the namespace can carry IPv6.
func (n *Namespace) HasIPv6() bool {
	has := false
	_ = n.Do(func() error {
		disabled, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
		has = err == nil && strings.TrimSpace(string(disabled)) == "0"
		return nil
	})
	return has
}
