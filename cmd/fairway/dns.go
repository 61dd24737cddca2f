package main

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"

	"fairway.dev/fairway/internal/agent"
	"fairway.dev/fairway/internal/apply"
	"fairway.dev/fairway/internal/up"
)

func newDNSCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dns",
		Short: "Ask the cluster's DNS, and tell what the answers are made of",
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

The cluster is that of --kubeconfig, else of KUBECONFIG, else the one that ` + "`fairway up`" + ` started, else that of ~/.kube/config.`,
		Example: `  fairway dns query web
  fairway dns query www.example.com --from shop/cart-5d9c7b9f4-x2x8z
  fairway dns query _http._tcp.web.shop.svc.cluster.local. --type SRV --server 192.0.2.2:10053 -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return c.run(cmd, args[0]) },
	}
	f := cmd.Flags()
	f.StringSliceVarP(&c.types, "type", "t", []string{"A", "AAAA"}, "`types` of records")
	f.StringVar(&c.options.From, "from", "", "`Pod` whose search path and name servers count, as NAME or NAMESPACE/NAME (default: those that Pods have)")
	f.StringVar(&c.options.Server, "server", "", "`address` of the server to ask, with a port if it is not 53 (default: the one that the Pod's questions reach)")
	f.StringVarP(&c.options.Namespace, "namespace", "n", "", "`namespace` of the Pod (default: the context's)")
	f.StringVar(&c.options.Node, "node", "", "`name` of the node whose server is asked (default: that of the Pod in --from, else the first one of fairway up, else this machine)")
	f.StringVar(&c.options.Domain, "cluster-domain", "cluster.local", "`domain` of the cluster's names")
	f.StringVarP(&c.output, "output", "o", "", "json: the same for programs")
	f.StringVar(&c.cluster.Kubeconfig, "kubeconfig", "", "`file` that says how to reach the cluster")
	f.StringVar(&c.cluster.Context, "context", "", "`context` in the kubeconfig")
	dataDirFlag(cmd, &c.cluster.DataDir)
	return cmd
}

type dnsQueryCommand struct {
	cluster apply.ClusterOptions
	options agent.QueryDNSOptions
	types   []string
	output  string
}

func (c *dnsQueryCommand) run(cmd *cobra.Command, name string) error {
	if c.output != "" && c.output != "json" {
		return fmt.Errorf("--output %q: must be json", c.output)
	}
	o := c.options
	var err error
	if o.Types, err = parseTypes(c.types); err != nil {
		return err
	}
	if c.cluster.DataDir, err = filepath.Abs(c.cluster.DataDir); err != nil {
		return err
	}
	cluster, err := apply.FindCluster(c.cluster)
	if err != nil {
		return err
	}
	o.Config, o.Name, o.ResolvConf = cluster.Config, name, "/etc/resolv.conf"
	if o.Namespace == "" {
		o.Namespace = cluster.Namespace
	}
	if cluster.Origin == filepath.Join(c.cluster.DataDir, "kubeconfig") {
		nodes, err := up.OpenNodes(c.cluster.DataDir)
		if err != nil {
			return err
		}
		if nodes != nil {
			o.DefaultNode, o.Enter = nodes.First(), nodes.Do
		}
	}
	report, err := agent.QueryDNS(cmd.Context(), o)
	if err != nil {
		return err
	}
	if c.output == "json" {
		encoder := json.NewEncoder(cmd.OutOrStdout())
		encoder.SetIndent("", "  ")
		err = encoder.Encode(report)
	} else {
		_, err = io.WriteString(cmd.OutOrStdout(), report.Text())
	}
	if err == nil && !report.Found {
		err = reported()
	}
	return err
}

func parseTypes(list []string) ([]uint16, error) {
	var out []uint16
	for _, s := range list {
		t, ok := dns.StringToType[strings.ToUpper(strings.TrimSpace(s))]
		if !ok || t == dns.TypeNone || t == dns.TypeOPT || t == dns.TypeAXFR || t == dns.TypeIXFR {
			return nil, fmt.Errorf("--type %q: want types of records such as A, AAAA, SRV, PTR or TXT", s)
		}
		out = append(out, t)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("--type: want types of records such as A, AAAA, SRV, PTR or TXT")
	}
	return out, nil
}
