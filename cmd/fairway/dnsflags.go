package main

import (
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"fairway.dev/fairway/internal/agent"
)

// dnsFlags adds those flags of DNS that mean the same on a node of any cluster and
// with fairway up.
func dnsFlags(f *pflag.FlagSet, o *agent.NodeOptions, clients *[]string) {
	f.StringSliceVar(&o.DNSUpstreams, "dns-upstream", nil, "`servers` for names outside the cluster (default: those of the Corefile, or in /etc/resolv.conf)")
	f.DurationVar(&o.DNSTTL, "dns-ttl", 0, "`time` that clients may remember answers of the cluster domain for (default: that of the Corefile, or 5s)")
	f.StringVar(&o.DNSCorefile, "dns-corefile", "", "`file` with CoreDNS' configuration, in place of a ConfigMap")
	f.IntVar(&o.DNSClientRate, "dns-client-rate", 0, "`queries` a second that one client may ask; 0 for any number")
	f.StringVar(&o.DNSPolicy, "dns-policy", "", "order in which those servers are asked: sequential, round_robin or random (default: that of the Corefile, or sequential)")
	f.BoolVar(&o.DNSNotrack, "dns-notrack", false, "have connection tracking leave alone what this node's server answers at the cluster DNS address")
	f.BoolVar(&o.DNSAutopath, "dns-autopath", false, "answer the first step of a Pod's walk along its search path with what the walk would end at")
	f.StringVar(&o.DNSLog, "dns-log", "off", "DNS queries to log: off, errors (all answers but NOERROR and NXDOMAIN), all, or errors and a `share` of all such as 1%")
	f.StringArrayVar(&o.DNSStubs, "dns-stub", nil, "`domain=servers`: a domain whose names are asked of servers of its own")
	f.StringSliceVar(clients, "dns-clients", nil, "`ranges` that may ask DNS beside Pods and the addresses of nodes")
}

// givenDNSFlags are those of dnsFlags that were given, once for each value, for the
// node role to be started with; a file by its absolute path. It refuses what the
// role would end for.
func givenDNSFlags(f *pflag.FlagSet, o agent.NodeOptions, clients []string) (given []string, err error) {
	if o.DNSClients, err = parsePrefixes("--dns-clients", clients); err != nil {
		return nil, err
	}
	if o.DNSCorefile != "" {
		if o.DNSCorefile, err = filepath.Abs(o.DNSCorefile); err != nil {
			return nil, err
		}
	}
	if err := agent.CheckDNS(o); err != nil {
		return nil, err
	}
	f.Visit(func(flag *pflag.Flag) {
		if !strings.HasPrefix(flag.Name, "dns-") {
			return
		}
		values := []string{flag.Value.String()}
		if list, ok := flag.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		if flag.Name == "dns-corefile" {
			values = []string{o.DNSCorefile}
		}
		for _, v := range values {
			given = append(given, "--"+flag.Name+"="+v)
		}
	})
	return given, nil
}
