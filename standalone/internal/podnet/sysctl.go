package podnet

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// The files of /proc/sys/net show the network namespace of the thread that
// opens them.
const sysctlRoot = "/proc/sys"

func setSysctl(path, value string) error {
	file := filepath.Join(sysctlRoot, path)
	if current, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(current)) == value {
		return nil // also where /proc/sys is read-only
	}
	if err := os.WriteFile(file, []byte(value), 0); err != nil {
		return fmt.Errorf("sysctl %s=%s: %w", strings.ReplaceAll(path, "/", "."), value, err)
	}
	return nil
}

// hasIPv6 tells whether the kernel has IPv6 at all (ipv6.disable=1 takes it
// away); that it is switched off on links does not matter to Pods.
func hasIPv6() bool {
	_, err := os.Stat(filepath.Join(sysctlRoot, "net/ipv6/conf/all"))
	return err == nil
}

// enableForwarding makes a router of the network namespace.
func enableForwarding(ranges []netip.Prefix) error {
	if err := setSysctl("net/ipv4/ip_forward", "1"); err != nil {
		return err
	}
	for _, r := range ranges {
		if r.Addr().Is6() {
			return enableForwarding6()
		}
	}
	return nil
}

// enableForwarding6 keeps the machine's own IPv6 alive: a router ignores router
// advertisements, unless accept_ra is 2 (Documentation/networking/ip-sysctl.rst).
func enableForwarding6() error {
	const conf = "net/ipv6/conf"
	links, err := os.ReadDir(filepath.Join(sysctlRoot, conf))
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Name() == "all" || l.Name() == "lo" {
			continue // "all" is no default for links and has no effect of its own; nobody advertises on lo
		}
		path := filepath.Join(conf, l.Name(), "accept_ra")
		value, err := os.ReadFile(filepath.Join(sysctlRoot, path))
		if err != nil || strings.TrimSpace(string(value)) != "1" {
			continue
		}
		if err := setSysctl(path, "2"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return setSysctl(conf+"/all/forwarding", "1")
}

// podDefaults is called in a Pod's network namespace before its link exists.
func podDefaults(ipv6 bool) error {
	values := [][2]string{
		// As containerd does: root is not needed for low ports and for ping.
		{"net/ipv4/ip_unprivileged_port_start", "0"},
		{"net/ipv4/ping_group_range", "0 2147483647"},
	}
	if ipv6 {
		values = append(values, [][2]string{
			{"net/ipv6/conf/all/disable_ipv6", "0"},
			{"net/ipv6/conf/default/disable_ipv6", "0"},
			{"net/ipv6/conf/default/accept_ra", "0"},
			{"net/ipv6/conf/default/accept_dad", "0"},
		}...)
	}
	for _, v := range values {
		if err := setSysctl(v[0], v[1]); err != nil {
			return err
		}
	}
	return nil
}

// hostLinkSysctls sets up the node's end of a Pod's link.
func hostLinkSysctls(link string, ipv6, hostPorts bool) error {
	ipv4Conf, ipv6Conf := "net/ipv4/conf/"+link+"/", "net/ipv6/conf/"+link+"/"
	values := [][2]string{
		// Loose, whatever the machine's default is: answers of Services may
		// come from addresses that the node routes elsewhere.
		{ipv4Conf + "rp_filter", "2"},
		{ipv4Conf + "forwarding", "1"},
	}
	if hostPorts {
		// For answers to 127.0.0.1:hostPort; the table keeps Pods from
		// sending to 127.0.0.0/8 themselves.
		values = append(values, [2]string{ipv4Conf + "route_localnet", "1"})
	}
	if ipv6 {
		values = append(values, [][2]string{
			{ipv6Conf + "disable_ipv6", "0"},
			{ipv6Conf + "accept_ra", "0"},
			{ipv6Conf + "accept_dad", "0"},
			{ipv6Conf + "addr_gen_mode", "1"}, // no address but the gateway's
			{ipv6Conf + "forwarding", "1"},
		}...)
	}
	for _, v := range values {
		if err := setSysctl(v[0], v[1]); err != nil {
			return err
		}
	}
	return nil
}
