package main

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"

	"fairway.dev/fairway/internal/agent"
	"fairway.dev/fairway/internal/up"
)

func newDNSCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dns",
		Short: "Ask the cluster's DNS, and tell what the answers are made of",
		// Without these a word that is no command is taken for a wish for help.
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newDNSQueryCommand())
	return cmd
}

func newDNSQueryCommand() *cobra.Command {
	var c dnsQueryCommand
	cmd := &cobra.Command{
		Use:   "query NAME",
		Short: "Ask for a name as a Pod's resolver would, and explain the answers",
		Long: `Query asks the DNS server that a Pod's questions reach for each name along the Pod's search path, until one has an answer, and
explains every answer: which object it stands for, or which is missing; whether it is from the zone, the cache, or an upstream name server, and
which; and how long clients may keep it. A name that ends in a dot is asked for as it is. The exit status is 1 when nothing is found.

` + inspectionLong,
		Example: `  fairway dns query web
  fairway dns query www.example.com --from shop/cart-5d9c7b9f4-x2x8z
  fairway dns query _http._tcp.web.shop.svc.cluster.local. --type SRV --server 192.0.2.2:10053 -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return c.run(cmd, args[0]) },
	}
	c.flags(cmd, "`namespace` of the Pod (default: the context's)",
		"`name` of the node whose server is asked (default: that of the Pod in --from, else the first one of fairway up, else this machine)")
	f := cmd.Flags()
	f.StringSliceVarP(&c.types, "type", "t", []string{"A", "AAAA"}, "`types` of records")
	f.StringVar(&c.from, "from", "", "`Pod` whose search path and name servers count, as NAME or NAMESPACE/NAME (default: those that Pods have)")
	f.StringVar(&c.server, "server", "", "`address` of the server to ask, with a port if it is not 53 (default: the one that the Pod's questions reach)")
	f.StringVar(&c.domain, "cluster-domain", "", "`domain` of the cluster's names (default: that of fairway up, else "+up.DefaultClusterDomain+")")
	return cmd
}

type dnsQueryCommand struct {
	inspection
	from, server, domain string
	types                []string
}

func (c *dnsQueryCommand) run(cmd *cobra.Command, name string) error {
	types, err := parseTypes(c.types)
	if err != nil {
		return err
	}
	in, err := c.find()
	if err != nil {
		return err
	}
	report, err := agent.QueryDNS(cmd.Context(), agent.QueryDNSOptions{
		Config: in.Config, Name: name, Types: types, Namespace: in.namespace, From: c.from, Server: c.server, Domain: cmp.Or(c.domain, in.domain, up.DefaultClusterDomain),
		Node: c.node, DefaultNode: in.firstNode, Enter: in.enter, Slow: c.slow(cmd, in), ResolvConf: "/etc/resolv.conf",
	})
	if err != nil {
		return err
	}
	return c.tell(cmd, report, report.Found)
}

func parseTypes(list []string) ([]uint16, error) {
	var out []uint16
	for _, s := range list {
		s := strings.ToUpper(strings.TrimSpace(s))
		t, ok := dns.StringToType[s]
		if number, is := strings.CutPrefix(s, "TYPE"); is && !ok { // RFC 3597 section 5
			n, err := strconv.ParseUint(number, 10, 16)
			t, ok = uint16(n), err == nil && n > 0
		}
		if !ok || t == dns.TypeNone || t == dns.TypeOPT || t == dns.TypeAXFR || t == dns.TypeIXFR {
			return nil, fmt.Errorf("--type %q: want types of records such as A, AAAA, SRV, PTR, TXT or TYPE65", s)
		}
		out = append(out, t)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("--type: want types of records such as A, AAAA, SRV, PTR, TXT or TYPE65")
	}
	return out, nil
}
