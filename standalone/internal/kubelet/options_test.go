package kubelet

import (
	"net/netip"
	"strings"
	"testing"
)

func TestOptions(t *testing.T) {
	valid := func() Options {
		return Options{
			DataDir: "/var/lib/fairway", NodeName: "node-1", Kubeconfig: "f", Port: 10250, MaxPods: 250, Zone: "z",
			NodeIPs:  []netip.Addr{netip.MustParseAddr("10.245.0.1"), netip.MustParseAddr("fd00:10:245::1")},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("fd00:10:244::/64")},
		}
	}
	tests := []struct {
		name   string
		change func(*Options)
		want   string // in the error; empty for none
	}{
		{name: "valid", change: func(*Options) {}},
		{name: "one family", change: func(o *Options) { o.NodeIPs, o.PodCIDRs = o.NodeIPs[:1], o.PodCIDRs[1:] }},
		{name: "node name", change: func(o *Options) { o.NodeName = "Node_1" }, want: "--node-name"},
		{name: "no address", change: func(o *Options) { o.NodeIPs = nil }, want: "--node-ip"},
		{name: "two addresses of a family", change: func(o *Options) { o.NodeIPs[1] = netip.MustParseAddr("10.0.0.1") }, want: "--node-ip"},
		{name: "no range", change: func(o *Options) { o.PodCIDRs = nil }, want: "--pod-cidr"},
		{name: "host bits", change: func(o *Options) { o.PodCIDRs[0] = netip.MustParsePrefix("10.244.0.7/24") }, want: "10.244.0.0/24"},
		{name: "zone", change: func(o *Options) { o.Zone = "a b" }, want: "--zone"},
		{name: "port", change: func(o *Options) { o.Port = 70000 }, want: "--kubelet-port"},
		{name: "no Pods", change: func(o *Options) { o.MaxPods = 0 }, want: "--max-pods"},
		{name: "deep directory", change: func(o *Options) { o.DataDir = "/" + strings.Repeat("d", 100) }, want: "bytes too long"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			o := valid()
			test.change(&o)
			_, err := New(o)
			switch {
			case test.want == "" && err != nil:
				t.Errorf("error = %v, want none", err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("error = %v, want one with %q", err, test.want)
			}
		})
	}
}
