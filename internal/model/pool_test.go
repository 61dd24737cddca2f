package model

import (
	"net/netip"
	"testing"
)

func TestRangeOf(t *testing.T) {
	for _, tt := range []struct{ prefix, first, last string }{
		{"192.0.2.0/24", "192.0.2.0", "192.0.2.255"},
		{"192.0.2.77/28", "192.0.2.64", "192.0.2.79"},
		{"192.0.2.7/32", "192.0.2.7", "192.0.2.7"},
		{"0.0.0.0/0", "0.0.0.0", "255.255.255.255"},
		{"2001:db8::/120", "2001:db8::", "2001:db8::ff"},
	} {
		want := AddrRange{First: netip.MustParseAddr(tt.first), Last: netip.MustParseAddr(tt.last)}
		if got := RangeOf(netip.MustParsePrefix(tt.prefix)); got != want {
			t.Errorf("RangeOf(%s) = %v, want %v", tt.prefix, got, want)
		}
	}
}
