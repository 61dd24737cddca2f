package nft

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// limit is a reason for which the kernel refuses rules, in words.
type limit struct {
	errno unix.Errno
	// says is what the limit is and what helps. A %s in it is the value of the
	// kernel parameter, if there is one.
	says, parameter string
}

// limits are those that can be met: sets have no size of their own but the ones
// that packets write, which forget in place of failing.
var limits = []limit{
	{unix.EMSGSIZE, "it is larger than the buffer of a socket may be, net.core.wmem_max = %s bytes where CAP_NET_ADMIN is not over the whole machine, as in a user namespace: set it to 67108864 on the machine, or have fewer endpoints in a Service", "net/core/wmem_max"},
	{unix.ENOBUFS, "the kernel's answers are larger than the buffer of a socket may be, net.core.rmem_max = %s bytes where CAP_NET_ADMIN is not over the whole machine, as in a user namespace: set it to 67108864 on the machine", "net/core/rmem_max"},
	{unix.EMLINK, "rules of this network namespace lead to more chains, those of others counted, than net.netfilter.nf_tables_jumps_max_netns = %s allows: raise it, or remove rules", "net/netfilter/nf_tables_jumps_max_netns"},
	{unix.ENOMEM, "the kernel has no memory for it; packet rules count for the memory limit of the cgroup of fairway node (its container's): raise that, or free memory", ""},
	{unix.EPERM, "it takes CAP_NET_ADMIN over the network namespace: give it to fairway node", ""},
	{unix.EBUSY, "another program keeps a chain or a set of these tables in use: remove its rules that lead there", ""},
	{unix.EEXIST, "another program has written to these tables: what it added is removed with the next check, within a minute", ""},
}

// missing is what an error means while tables are made.
var missing = []limit{
	{unix.ENOENT, missingSays, ""},
	{unix.EOPNOTSUPP, missingSays, ""},
	{unix.EAFNOSUPPORT, missingSays, ""},
}

const missingSays = "this kernel has not all that the rules are made of: load or build the modules nf_tables, nft_chain_nat, nft_ct, nft_fib_ipv4, nft_fib_ipv6, nft_masq, nft_nat, nft_numgen, nft_reject_ipv4 and nft_reject_ipv6"

// explain names the limit that an error of the kernel is about, and its cure.
func explain(err error, creating bool) error {
	known := limits
	if creating {
		known = append(missing[:len(missing):len(missing)], limits...)
	}
	for _, l := range known {
		if !errors.Is(err, l.errno) {
			continue
		}
		says := l.says
		if l.parameter != "" {
			value, err := os.ReadFile("/proc/sys/" + l.parameter)
			if err != nil {
				value = []byte("?") // of another kernel, or another mount of /proc
			}
			says = fmt.Sprintf(says, strings.TrimSpace(string(value)))
		}
		return fmt.Errorf("%w: %s", l.errno, says)
	}
	return err
}
