package corefile

import (
	"net/netip"
	"path"
	"strings"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/model"
)

// hostsTTL is CoreDNS' default for hosts, in seconds.
const hostsTTL = 3600

// hosts reads hosts [FILE [ZONES...]] with entries in its braces.
func (c *compiler) hosts(b *model.DNSBlock, d directive) error {
	h := &model.DNSHosts{Zones: b.Zones, TTL: hostsTTL * time.Second}
	args := d.args
	text := ""
	if len(args) > 0 {
		file, found := path.Base(args[0].text), false
		for name, content := range c.files(args[0].text) {
			if path.Base(name) == file { // no pattern
				text, found = content, true
			}
		}
		if !found {
			c.add(d.name, "hosts "+args[0].text, "there is no such file beside the Corefile; put it into the same ConfigMap as a key %s", file)
		}
		args = args[1:]
	}
	if len(args) > 0 {
		zones, err := zoneList(args)
		if err != nil {
			return err
		}
		h.Zones = zones
	}
	for line := range strings.SplitSeq(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		addHosts(h, strings.Fields(line))
	}
	for _, line := range d.body {
		name, args := line[0], line[1:]
		switch name.text {
		case "ttl":
			n, err := number(name, args, 1, 65535)
			if err != nil {
				return err
			}
			h.TTL = time.Duration(n) * time.Second
		case "fallthrough":
			zones, err := zoneList(args)
			if err != nil {
				return err
			}
			if h.Fallthrough = zones; len(zones) == 0 {
				h.Fallthrough = []string{"."}
			}
		case "no_reverse":
			h.NoReverse = true
		case "reload":
		default:
			if _, err := netip.ParseAddr(name.text); err != nil && (strings.Contains(name.text, ":") || strings.Trim(name.text, "0123456789./") == "") {
				return name.errorf("hosts: %s is no IP address; correct it, or take the line away", name.text)
			} else if err != nil {
				return name.errorf("hosts %s: want ADDRESS NAME..., fallthrough, ttl, no_reverse or reload", name.text)
			}
			addHosts(h, texts(line))
		}
	}
	b.Hosts = h
	return nil
}

// addHosts adds a line of /etc/hosts: an address and its names. Lines of a file
// that are none are passed over, as CoreDNS does.
func addHosts(h *model.DNSHosts, fields []string) {
	if len(fields) == 0 {
		return
	}
	addr, err := netip.ParseAddr(fields[0])
	if err != nil {
		return
	}
	for _, f := range fields[1:] {
		name := strings.ToLower(dns.Fqdn(f))
		if _, ok := dns.IsDomainName(name); !ok {
			continue
		}
		for _, z := range h.Zones {
			if within(name, z) {
				h.Entries = append(h.Entries, model.DNSHost{Name: name, Addr: addr.Unmap().WithZone("")})
				break
			}
		}
	}
}
