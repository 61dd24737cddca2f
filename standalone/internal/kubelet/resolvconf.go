package kubelet

import (
	"bufio"
	"bytes"
	"net/netip"
	"os"
	"strings"
)

const (
	systemResolvConf  = "/etc/resolv.conf"
	systemdResolvConf = "/run/systemd/resolve/resolv.conf"
)

// resolvConf is the file with the resolvers for Pods that do not use the cluster's DNS, or empty if there is none. A
// resolver on the machine's loopback, such as systemd-resolved's 127.0.0.53, cannot be reached from a Pod;
// systemd keeps a second file with the resolvers behind its own.
func resolvConf(read func(path string) ([]byte, error)) string {
	data, err := read(systemResolvConf)
	if err != nil {
		return ""
	}
	if !onlyLoopback(data) {
		return systemResolvConf
	}
	if data, err := read(systemdResolvConf); err == nil && !onlyLoopback(data) {
		return systemdResolvConf
	}
	return systemResolvConf
}

// onlyLoopback reports whether a resolv.conf names no resolver except on the loopback.
func onlyLoopback(data []byte) bool {
	for scanner := bufio.NewScanner(bytes.NewReader(data)); scanner.Scan(); {
		fields := strings.Fields(scanner.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if addr, err := netip.ParseAddr(fields[1]); err == nil && !addr.IsLoopback() {
			return false
		}
	}
	return true
}

func readFile(path string) ([]byte, error) { return os.ReadFile(path) }
