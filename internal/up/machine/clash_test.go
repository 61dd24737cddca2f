package machine

import (
	"net/netip"
	"strings"
	"testing"
)

func TestCheckFree(t *testing.T) {
	p := netip.MustParsePrefix
	lan := Occupant{Prefix: p("192.0.2.0/24"), Text: "route 192.0.2.0/24 dev eth0", OnLink: true}
	own := Occupant{Prefix: p("192.0.2.2/32"), Text: "the machine's own address 192.0.2.2 on eth0"}
	vpn := Occupant{Prefix: p("10.0.0.0/8"), Text: "route 10.0.0.0/8 via 192.0.2.9 dev eth0"}
	all := []Occupant{lan, own, vpn}
	for _, test := range []struct {
		name  string
		wants Range
		error string
	}{
		{"free", Range{Prefix: p("172.30.0.0/16")}, ""},
		{"covered by a route", Range{Prefix: p("10.96.0.0/16"), What: "service range", Flag: "--service-cidr", Instead: p("172.29.0.0/16")},
			"the service range 10.96.0.0/16 overlaps route 10.0.0.0/8 via 192.0.2.9 dev eth0: choose another with --service-cidr 172.29.0.0/16 (free on this machine)"},
		{"covers a route", Range{Prefix: p("192.0.0.0/16"), What: "Pod range", Flag: "--pod-cidr"},
			"the Pod range 192.0.0.0/16 overlaps route 192.0.2.0/24 dev eth0: choose another with --pod-cidr"},
		{"pool in the local network", Range{Prefix: p("192.0.2.240/28"), MayBeOnLink: true}, ""},
		{"service range in the local network", Range{Prefix: p("192.0.2.240/28")}, "overlaps route 192.0.2.0/24"},
		{"pool with the machine's address", Range{Prefix: p("192.0.2.0/28"), MayBeOnLink: true}, "overlaps the machine's own address 192.0.2.2"},
		{"pool that is the local network", Range{Prefix: p("192.0.2.0/24"), MayBeOnLink: true}, "overlaps route 192.0.2.0/24"},
		{"pool behind a gateway", Range{Prefix: p("10.1.2.0/24"), MayBeOnLink: true}, "overlaps route 10.0.0.0/8"},
		{"other family", Range{Prefix: p("fd00::/64")}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := CheckFree([]Range{test.wants}, all)
			if (err == nil) != (test.error == "") || err != nil && !strings.Contains(err.Error(), test.error) {
				t.Errorf("got %v, want %q", err, test.error)
			}
		})
	}
	if got := FirstFree([]netip.Prefix{p("10.1.0.0/16"), p("172.30.0.0/16"), p("172.29.0.0/16")}, all); got != p("172.30.0.0/16") {
		t.Errorf("first free is %s", got)
	}
	if got := FirstFree([]netip.Prefix{p("10.1.0.0/16")}, all); got.IsValid() {
		t.Errorf("first free is %s, but none is", got)
	}
}

func TestCheckKernel(t *testing.T) {
	for release, ok := range map[string]bool{
		"6.18.44-fc": true, "5.10.0": true, "5.9.16-generic": false, "4.19": false, "10.0": true, "strange": true,
	} {
		if err := checkKernel(release); (err == nil) != ok {
			t.Errorf("%s: %v", release, err)
		}
	}
}
