package proxyproto

import (
	"encoding/hex"
	"net/netip"
	"testing"
)

func TestHeaders(t *testing.T) {
	at := netip.MustParseAddrPort
	const sig = "0d0a0d0a000d0a515549540a"
	for _, tt := range []struct {
		client, local netip.AddrPort
		v1, v2, udp   string
	}{
		{at("192.0.2.1:1000"), at("198.51.100.2:443"), "PROXY TCP4 192.0.2.1 198.51.100.2 1000 443\r\n",
			"2111000cc0000201c633640203e801bb", "2112000cc0000201c633640203e801bb"},
		{at("[::ffff:192.0.2.1]:0"), at("198.51.100.2:443"), "PROXY TCP4 192.0.2.1 198.51.100.2 0 443\r\n",
			"2111000cc0000201c6336402000001bb", "2112000cc0000201c6336402000001bb"},
		{at("[fe80::1%eth0]:1"), at("[2001:db8::2]:2"), "PROXY TCP6 fe80::1 2001:db8::2 1 2\r\n",
			"21210024fe800000000000000000000000000001" + "20010db8000000000000000000000002" + "00010002",
			"21220024fe800000000000000000000000000001" + "20010db8000000000000000000000002" + "00010002"},
		{at("192.0.2.1:1"), at("[2001:db8::2]:2"), "PROXY UNKNOWN\r\n", "21000000", "21000000"},
		{netip.AddrPort{}, at("192.0.2.1:2"), "PROXY UNKNOWN\r\n", "21000000", "21000000"},
	} {
		if got := string(V1.Append(nil, tt.client, tt.local)); got != tt.v1 {
			t.Errorf("version 1: %q, want %q", got, tt.v1)
		}
		if got := hex.EncodeToString(V2.Append(nil, tt.client, tt.local)); got != sig+tt.v2 {
			t.Errorf("version 2: %s, want %s", got, sig+tt.v2)
		}
		if got := hex.EncodeToString(AppendDatagram(nil, tt.client, tt.local)); got != sig+tt.udp {
			t.Errorf("UDP: %s, want %s", got, sig+tt.udp)
		}
	}
	if got := hex.EncodeToString(V2.Own(nil, at("192.0.2.1:1"), at("192.0.2.2:2"))); got != sig+"20000000" {
		t.Errorf("own, version 2: %s", got)
	}
	if got := string(V1.Own(nil, at("192.0.2.1:1"), at("192.0.2.2:2"))); got != "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" {
		t.Errorf("own, version 1: %s", got)
	}
}
