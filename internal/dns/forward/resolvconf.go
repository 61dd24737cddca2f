package forward

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// systemdResolvConf has the servers behind systemd-resolved's stub at 127.0.0.53.
const systemdResolvConf = "/run/systemd/resolve/resolv.conf"

// readResolvConf returns the name servers in a file of resolv.conf(5). Where
// they are only a local stub's, those in the file behind it, if there is one.
func readResolvConf(path, behind string) ([]netip.AddrPort, error) {
	servers, err := parseResolvConf(path)
	if err != nil {
		return nil, err
	}
	loopback := func(a netip.AddrPort) bool { return a.Addr().IsLoopback() }
	if len(servers) == 0 || slices.IndexFunc(servers, func(a netip.AddrPort) bool { return !loopback(a) }) >= 0 {
		return servers, nil
	}
	if real, err := parseResolvConf(behind); err == nil && len(real) > 0 {
		return real, nil
	}
	return servers, nil
}

// readSearch returns the search domains in a file of resolv.conf(5), fully
// qualified and in lower case.
func readSearch(path string) ([]string, error) {
	conf, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil, err
	}
	var list []string
	for _, s := range conf.Search {
		s = strings.ToLower(dns.Fqdn(s))
		if _, ok := dns.IsDomainName(s); ok && s != "." && !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list, nil
}

func parseResolvConf(path string) ([]netip.AddrPort, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	conf, err := dns.ClientConfigFromReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var servers []netip.AddrPort
	for _, s := range conf.Servers {
		a, err := netip.ParseAddr(s)
		if err != nil {
			continue // resolv.conf(5): what is not understood is passed over
		}
		if ap := netip.AddrPortFrom(a.Unmap(), 53); !slices.Contains(servers, ap) {
			servers = append(servers, ap)
		}
	}
	return servers, nil
}
