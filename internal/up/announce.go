package up

import (
	"fmt"
	"strings"
	"time"
)

// announce records that everything is ready, and says where things are and what to do next.
func (c *Cluster) announce(took time.Duration) {
	if err := c.state.update(func(s *State) { s.Phase = Ready }); err != nil {
		c.o.Logger.Error("state not recorded", "error", err)
	}
	c.o.Progress.Print(summary(c.o, c.plan.addresses(), took))
	if c.o.OnReady != nil {
		c.o.OnReady()
	}
}

func summary(o Options, a Addresses, took time.Duration) string {
	flag := DataDirFlag(o.DataDir)
	var b strings.Builder
	fmt.Fprintf(&b, "\nready in %.1f s\n\n", took.Seconds())
	writeAddresses(&b, a)
	fmt.Fprintf(&b, "  %-12s %s\n", "kubeconfig", dir(o.DataDir).kubeconfig())
	fmt.Fprintf(&b, "\nnext:\n")
	fmt.Fprintf(&b, "  fairway kubectl%s get nodes\n", flag)
	fmt.Fprintf(&b, "  export KUBECONFIG=%s\n", shellWord(dir(o.DataDir).kubeconfig()))
	fmt.Fprintf(&b, "  fairway apply%s -f examples/01-service\n", flag)
	fmt.Fprintf(&b, "  fairway status%s\n", flag)
	fmt.Fprintf(&b, "  fairway down%s\n", flag)
	return b.String()
}

func writeAddresses(b *strings.Builder, a Addresses) {
	fmt.Fprintf(b, "  %-12s %s\n", "API", strings.Join(a.API, "  "))
	dns := make([]string, len(a.DNS))
	for i, addr := range a.DNS {
		dns[i] = addr.String()
	}
	fmt.Fprintf(b, "  %-12s %s\n", "DNS", strings.Join(dns, "  "))
	fmt.Fprintf(b, "  %-12s %s\n", "gateway", strings.Join(a.Gateway, "  "))
	fmt.Fprintf(b, "  %-12s %s\n", "pool", strings.Join(a.Pool, "  "))
}
