package up

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"fairway.dev/fairway/internal/up/machine"
)

var comparePrefixes = cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})

func occupants(text ...string) []machine.Occupant {
	var all []machine.Occupant
	for _, t := range text {
		all = append(all, machine.Occupant{Prefix: netip.MustParsePrefix(t), Text: "route " + t})
	}
	return all
}

func TestChooseRanges(t *testing.T) {
	usual := Ranges{
		Service: prefixes("10.96.0.0/16", "fd00:10:96::/112"), Pod: prefixes("10.244.0.0/16", "fd00:10:244::/48"),
		Node: prefixes("10.245.0.0/24", "fd00:10:245::/112"), Pool: prefixes("172.30.253.0/24", "fd00:10:97::/112"),
	}
	kept := Ranges{
		Service: prefixes("10.1.0.0/16"), Pod: prefixes("10.2.0.0/16"), Node: prefixes("10.3.0.0/24"), Pool: prefixes("10.4.0.0/24"),
	}
	only4 := Ranges{
		Service: usual.Service[:1], Pod: usual.Pod[:1], Node: usual.Node[:1], Pool: usual.Pool[:1],
	}
	with := func(r Ranges, change func(*Ranges)) *Ranges { change(&r); return &r }
	for _, test := range []struct {
		name       string
		o          Options
		remembered *Ranges
		occupied   []machine.Occupant
		noIPv6     bool
		want       *Ranges
		error      string
	}{
		{name: "usual", want: &usual},
		{name: "without IPv6", noIPv6: true, want: &only4},
		{name: "defaults yield", occupied: occupants("10.0.0.0/8", "172.30.0.0/16"), want: &Ranges{
			Service: prefixes("172.29.0.0/16", "fd00:10:96::/112"), Pod: prefixes("172.28.0.0/16", "fd00:10:244::/48"),
			Node: prefixes("172.27.245.0/24", "fd00:10:245::/112"), Pool: prefixes("172.24.253.0/24", "fd00:10:97::/112"),
		}},
		{name: "everything is taken", occupied: occupants("10.0.0.0/8", "172.16.0.0/12"), error: "--service-cidr"},
		{name: "remembered", remembered: &kept, want: &kept},
		{name: "remembered but taken", remembered: &kept, occupied: occupants("10.4.0.0/25"),
			error: "the address pool 10.4.0.0/24 overlaps route 10.4.0.0/25: choose another with --lb-pool 172.30.253.0/24"},
		{name: "asked for", o: Options{ServiceCIDR: "10.9.0.0/16", PodCIDR: "10.8.0.0/16,fd01::/48", NodeCIDR: "10.7.0.0/24", LBPool: "10.6.0.0/28"}, want: &Ranges{
			Service: prefixes("10.9.0.0/16"), Pod: prefixes("10.8.0.0/16", "fd01::/48"), Node: prefixes("10.7.0.0/24"), Pool: prefixes("10.6.0.0/28"),
		}},
		{name: "asked for but taken", o: Options{PodCIDR: "10.8.0.0/16"}, occupied: occupants("10.8.1.0/24"),
			error: "the Pod range 10.8.0.0/16 overlaps route 10.8.1.0/24: choose another with --pod-cidr 10.244.0.0/16"},
		{name: "another service range than before", o: Options{ServiceCIDR: "10.9.0.0/16"}, remembered: &kept, error: "was made with 10.1.0.0/16"},
		{name: "the same service range as before", o: Options{ServiceCIDR: "10.1.0.0/16"}, remembered: &kept, want: &kept},
		{name: "another pool than before", o: Options{LBPool: "10.6.0.0/28"}, remembered: &kept,
			want: with(kept, func(r *Ranges) { r.Pool = prefixes("10.6.0.0/28") })},
		{name: "nodes' addresses", o: Options{LBPool: "node"}, want: with(usual, func(r *Ranges) { r.Pool, r.PoolMode = nil, "node" })},
		{name: "nodes' addresses, remembered", remembered: with(kept, func(r *Ranges) { r.Pool, r.PoolMode = nil, "node" }),
			want: with(kept, func(r *Ranges) { r.Pool, r.PoolMode = nil, "node" })},
		{name: "a pool after nodes' addresses", o: Options{LBPool: "10.6.0.0/28"}, remembered: with(kept, func(r *Ranges) { r.Pool, r.PoolMode = nil, "node" }),
			want: with(kept, func(r *Ranges) { r.Pool = prefixes("10.6.0.0/28") })},
		{name: "a domain", o: Options{ClusterDomain: "k8s.example"}, want: with(usual, func(r *Ranges) { r.Domain = "k8s.example" })},
		{name: "a domain, remembered", remembered: with(kept, func(r *Ranges) { r.Domain = "k8s.example" }), want: with(kept, func(r *Ranges) { r.Domain = "k8s.example" })},
		{name: "the usual domain", o: Options{ClusterDomain: "cluster.local"}, remembered: &kept, want: &kept},
		{name: "another domain than before", o: Options{ClusterDomain: "k8s.example"}, remembered: &kept, error: "--cluster-domain k8s.example: this data directory was made with cluster.local"},
		{name: "no CIDR", o: Options{ServiceCIDR: "10.9.0.0"}, error: `--service-cidr "10.9.0.0": must be a CIDR`},
		{name: "host bits", o: Options{PodCIDR: "10.9.0.1/16"}, error: "do you mean 10.9.0.0/16?"},
		{name: "two of a family", o: Options{PodCIDR: "10.9.0.0/16,10.10.0.0/16"}, error: "two ranges of one family"},
		{name: "too small", o: Options{ServiceCIDR: "10.9.0.0/30"}, error: "--service-cidr 10.9.0.0/30: the length of this service range must be from /12 to /28"},
		{name: "only IPv6 without IPv6", o: Options{ServiceCIDR: "fd01::/112"}, noIPv6: true, error: "give an IPv4 range as well"},
		{name: "overlap among themselves", o: Options{ServiceCIDR: "10.244.0.0/20"}, error: "--pod-cidr 10.244.0.0/16 overlaps --service-cidr 10.244.0.0/20"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := chooseRanges(test.o, test.remembered, test.occupied, !test.noIPv6)
			if test.error != "" {
				if err == nil || !strings.Contains(err.Error(), test.error) {
					t.Errorf("error %v, want %q", err, test.error)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(*test.want, got, comparePrefixes); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestSubnetAndOffset(t *testing.T) {
	p := netip.MustParsePrefix
	for _, test := range []struct {
		in   string
		bits int
		n    uint64
		want string
	}{
		{"10.244.0.0/16", 24, 0, "10.244.0.0/24"}, {"10.244.0.0/16", 24, 2, "10.244.2.0/24"}, {"10.244.0.0/16", 24, 255, "10.244.255.0/24"},
		{"10.244.0.0/16", 24, 256, ""}, {"10.244.0.0/14", 24, 257, "10.245.1.0/24"}, {"10.244.0.0/24", 24, 0, "10.244.0.0/24"}, {"10.244.0.0/24", 24, 1, ""},
		{"10.244.0.0/16", 20, 3, "10.244.48.0/20"}, {"10.244.0.0/24", 16, 0, ""},
		{"fd00:10:244::/48", 64, 2, "fd00:10:244:2::/64"}, {"fd00:10:244::/63", 64, 2, ""},
	} {
		got, err := subnet(p(test.in), test.bits, test.n)
		if (err == nil) != (test.want != "") || err == nil && got != p(test.want) {
			t.Errorf("subnet %d of %s: %v %v, want %q", test.n, test.in, got, err, test.want)
		}
	}
	for _, test := range []struct {
		in   string
		n    uint64
		want string
	}{
		{"10.96.0.0/16", 10, "10.96.0.10"}, {"10.96.0.0/16", 256, "10.96.1.0"}, {"10.96.0.0/16", 65535, "10.96.255.255"}, {"10.96.0.0/16", 65536, ""},
		{"fd00:10:96::/112", 10, "fd00:10:96::a"}, {"255.255.255.0/24", 256, ""},
	} {
		got, err := offset(p(test.in), test.n)
		if (err == nil) != (test.want != "") || err == nil && got.String() != test.want {
			t.Errorf("offset %d of %s: %v %v, want %q", test.n, test.in, got, err, test.want)
		}
	}
}

func TestLayout(t *testing.T) {
	r := Ranges{Service: prefixes("10.96.0.0/16"), Pod: prefixes("10.244.0.0/22"), Node: prefixes("10.245.0.0/24", "fd00:10:245::/112")}
	primary := []netip.Addr{netip.MustParseAddr("192.0.2.2")}
	got, err := layout(Options{Nodes: 3, Zones: []string{"a", "b"}}, r, "abc", primary)
	if err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr
	want := []Node{
		{Name: "node-1", Zone: "a", IPs: []netip.Addr{a("192.0.2.2"), a("fd00:10:245::1")}, Network: machine.Node{Index: 1, Namespace: "fairway-abc-node-1",
			Addresses: []netip.Addr{a("10.245.0.1"), a("fd00:10:245::1")}, Sources: []netip.Addr{a("192.0.2.2"), a("fd00:10:245::1")}, PodCIDRs: prefixes("10.244.0.0/24")}},
		{Name: "node-2", Zone: "b", IPs: []netip.Addr{a("10.245.0.2"), a("fd00:10:245::2")}, Network: machine.Node{Index: 2, Namespace: "fairway-abc-node-2",
			Addresses: []netip.Addr{a("10.245.0.2"), a("fd00:10:245::2")}, PodCIDRs: prefixes("10.244.1.0/24")}},
		{Name: "node-3", Zone: "a", IPs: []netip.Addr{a("10.245.0.3"), a("fd00:10:245::3")}, Network: machine.Node{Index: 3, Namespace: "fairway-abc-node-3",
			Addresses: []netip.Addr{a("10.245.0.3"), a("fd00:10:245::3")}, PodCIDRs: prefixes("10.244.2.0/24")}},
	}
	if diff := cmp.Diff(want, got, comparePrefixes); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := layout(Options{Nodes: 5}, r, "abc", nil); err == nil || !strings.Contains(err.Error(), "--pod-cidr 10.244.0.0/22: too small for 5 nodes") {
		t.Errorf("five nodes: %v", err)
	}
}
