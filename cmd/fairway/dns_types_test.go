package main

import (
	"slices"
	"testing"

	"github.com/miekg/dns"
)

func TestTypesOfRecords(t *testing.T) {
	got, err := parseTypes([]string{"a", " Aaaa", "TYPE65", "type65280"})
	if err != nil || !slices.Equal(got, []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS, 65280}) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "TYPE", "TYPE0", "TYPE65536", "TYPE-1", "TYPE41", "TYPE252", "OPT", "AXFR", "WHAT"} {
		if got, err := parseTypes([]string{bad}); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}
