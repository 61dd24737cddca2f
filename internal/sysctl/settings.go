package sysctl

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Options say what the parameters shall be. The names, defaults and meanings
// are those of kube-proxy's flags (KubeProxyConntrackConfiguration).
type Options struct {
	// MaxPerCore and Min bound how many connections the kernel can remember; it
	// is never lowered. With MaxPerCore 0 it is left alone.
	MaxPerCore, Min int
	// Established and CloseWait are how long connections in these states are
	// remembered without a packet; 0 leaves the kernel's.
	Established, CloseWait time.Duration
	// NodePorts is the range of ports that the kernel shall not give to
	// connections by itself, as FIRST-LAST; empty for none.
	NodePorts string
}

// maxLimit bounds the number of connections on machines with very many cores.
const maxLimit = 1 << 20

// check returns what is wrong with the options, naming the flag.
func (o Options) check() error {
	if o.MaxPerCore < 0 || o.Min < 0 {
		return fmt.Errorf("--conntrack-max-per-core %d, --conntrack-min %d: must not be negative", o.MaxPerCore, o.Min)
	}
	if o.Established < 0 || o.CloseWait < 0 {
		return fmt.Errorf("--conntrack-tcp-timeout-established %s, --conntrack-tcp-timeout-close-wait %s: must not be negative", o.Established, o.CloseWait)
	}
	if o.NodePorts == "" {
		return nil
	}
	from, to, ok := strings.Cut(o.NodePorts, "-")
	first, err1 := strconv.ParseUint(from, 10, 16)
	last, err2 := strconv.ParseUint(to, 10, 16)
	if !ok || err1 != nil || err2 != nil || first == 0 || last < first {
		return fmt.Errorf("--service-node-port-range %q: want FIRST-LAST, such as 30000-32767", o.NodePorts)
	}
	return nil
}

// setting is one parameter.
type setting struct {
	// path is below /proc/sys.
	path string
	// want returns what shall be written for what is there; false to leave it.
	want func(now string) (string, bool)
	// shared is true for what only the machine's first network namespace may set.
	shared bool
}

// settings are the parameters, in the order in which they are set.
func (o Options) settings(cpus int) []setting {
	const conntrack = "net/netfilter/nf_conntrack_"
	var out []setting
	if o.MaxPerCore > 0 {
		most := min(max(o.MaxPerCore*cpus, o.Min), maxLimit)
		out = append(out,
			// A chain of the hash table shall be four entries long at most.
			setting{path: conntrack + "buckets", want: atLeast(most / 4), shared: true},
			setting{path: conntrack + "max", want: atLeast(most), shared: true})
	}
	if o.Established > 0 {
		out = append(out, setting{path: conntrack + "tcp_timeout_established", want: exactly(o.Established)})
	}
	// A socket in CLOSE_WAIT may still have to send a lot: the kernel's 60 s are
	// too short for a program that takes its time (kubernetes/kubernetes#32551).
	if o.CloseWait > 0 {
		out = append(out, setting{path: conntrack + "tcp_timeout_close_wait", want: exactly(o.CloseWait)})
	}
	if o.NodePorts != "" {
		// Else a connection of this machine's may have the number of a NodePort,
		// and answers to it be taken for requests.
		out = append(out, setting{path: "net/ipv4/ip_local_reserved_ports", want: func(now string) (string, bool) {
			switch {
			case now == "":
				return o.NodePorts, true
			case strings.Contains(","+now+",", ","+o.NodePorts+","):
				return "", false
			}
			return now + "," + o.NodePorts, true
		}})
	}
	return out
}

func exactly(d time.Duration) func(string) (string, bool) {
	value := strconv.Itoa(int(d / time.Second))
	return func(now string) (string, bool) { return value, now != value }
}

func atLeast(n int) func(string) (string, bool) {
	return func(now string) (string, bool) {
		have, err := strconv.Atoi(now)
		return strconv.Itoa(n), err == nil && have < n
	}
}

// onlineCPUs is the number of the machine's processors, of which this process
// may have only some.
func onlineCPUs() (int, error) {
	text, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return 0, err
	}
	return countCPUs(strings.TrimSpace(string(text)))
}

// countCPUs reads a list such as 0-3,8.
func countCPUs(list string) (int, error) {
	n := 0
	for part := range strings.SplitSeq(list, ",") {
		from, to, ok := strings.Cut(part, "-")
		if !ok {
			to = from
		}
		first, err1 := strconv.Atoi(from)
		last, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil || last < first {
			return 0, fmt.Errorf("list of processors %q cannot be read", list)
		}
		n += last - first + 1
	}
	return n, nil
}
