package ebpf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

// TestLicense: all sources of the programs are under one license, which the
// programs declare, and which lets them use what the kernel keeps for its own.
func TestLicense(t *testing.T) {
	sources, err := filepath.Glob("bpf/*.[ch]")
	if err != nil || len(sources) == 0 {
		t.Fatalf("sources %v, %v", sources, err)
	}
	for _, path := range sources {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(text), "/* SPDX-License-Identifier: MIT OR GPL-2.0-only\n") {
			t.Errorf("%s does not begin with its license", path)
		}
	}
	for name, load := range map[string]func() (*ebpf.CollectionSpec, error){"socket": loadSocket, "ingress": loadIngress} {
		spec, err := load()
		if err != nil {
			t.Fatal(err)
		}
		for program, p := range spec.Programs {
			if p.License != "Dual MIT/GPL" {
				t.Errorf("program %s of %s tells the kernel license %q", program, name, p.License)
			}
		}
	}
}
