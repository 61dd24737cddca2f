package main

import (
	"strings"
	"testing"

	"fairway.dev/fairway/internal/agent"
	"fairway.dev/fairway/internal/dataplane/ebpf"
)

// TestMapSizes refuses sizes that no map has, by the flag's name.
func TestMapSizes(t *testing.T) {
	for _, test := range []struct {
		frontends, backends uint32
		want                string
	}{
		{ebpf.DefaultMaxFrontends, ebpf.DefaultMaxBackends, ""}, {1, ebpf.Largest, ""},
		{0, 1, "--bpf-max-frontends 0"}, {1, 0, "--bpf-max-backends 0"}, {1, 1<<32 - 1, "--bpf-max-backends 4294967295"},
	} {
		err := checkMapSizes(agent.BPFOptions{MaxFrontends: test.frontends, MaxBackends: test.backends})
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%d and %d: %v, want %q", test.frontends, test.backends, err, test.want)
		}
	}
}
