package ebpf

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

// TestVerifierEffort bounds what the kernel goes through to verify a program,
// three times with each start. What is inlined where many ways come together
// multiplies it, see CALLED in bpf/lookup.h: it has been 31,000 instructions.
func TestVerifierEffort(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("BPF needs root")
	}
	const most = 8000
	for _, load := range []func() (*ebpf.CollectionSpec, error){loadSocket, loadIngress} {
		spec, err := load()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range spec.Maps {
			m.MaxEntries = min(m.MaxEntries, 16)
		}
		c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for name, p := range c.Programs {
			_, said, found := strings.Cut(p.VerifierLog, "processed ")
			var n int
			if _, err := fmt.Sscan(said, &n); !found || err != nil {
				t.Errorf("%s: the kernel says %q", name, p.VerifierLog)
			}
			if n > most {
				t.Errorf("%s: the kernel goes through %d instructions, more than %d", name, n, most)
			}
		}
	}
}
