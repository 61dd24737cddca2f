package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"fairway.dev/fairway/internal/agent"
	"fairway.dev/fairway/internal/explain"
	"fairway.dev/fairway/internal/model"
)

func newExplainCommand() *cobra.Command {
	var c explainCommand
	cmd := &cobra.Command{
		Use:   "explain svc/NAME | URL",
		Short: "Tell where connections to a Service or an HTTP request go, and why",
		Long: `Explain tells of one Service, on one node: which addresses it has, which endpoints are in and which are out and why,
what each class of clients gets, and whether the kernel holds just that now. The exit status is 1 when the kernel differs.

Of one HTTP request, given as a URL with its scheme, it tells what the gateway makes of it: how host and path are read, which rule of which
Ingress takes it and why the others do not, certificate and redirects, filters, what the backend is sent, and which endpoints there are. Nothing
is sent but a question to the gateway of this machine, what it knows of the endpoints' health. The exit status is 1 when some or all such requests would not reach a backend.

` + inspectionLong + `
Reading the kernel needs root, and in a cluster of several machines has to be done on the node.`,
		Example: `  fairway explain svc/web
  fairway explain svc/web -n shop --from cart-5d9c7b9f4-x2x8z --port http
  fairway explain svc/web --from outside --node node-2 -o json
  fairway explain https://shop.example.com/cart
  fairway explain http://shop.example.com/cart -X POST -H 'X-Canary: always' --from 198.51.100.7`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return c.run(cmd, args[0]) },
	}
	c.flags(cmd, "`namespace` of the Service, or of the Pod in --from (default: the context's)",
		"`name` of the node that serves (default: that of the Pod in --from for a Service, else the first one of fairway up, else this machine)")
	f := cmd.Flags()
	f.StringVar(&c.from, "from", "", "`client` to explain for: a Pod (NAME or NAMESPACE/NAME); for a Service also node or outside, for a URL an address (default: all)")
	f.StringVar(&c.port, "port", "", "`port` of the Service, by name or number (default: all)")
	f.BoolVar(&c.all, "all", false, "for a Service: list all endpoints of a port; without, the first 40 and how many there are more, by reason")
	f.StringVarP(&c.method, "request", "X", "GET", "`method` of the HTTP request")
	f.StringArrayVarP(&c.header, "header", "H", nil, "header of the HTTP request, as `name: value`; may be given several times")
	f.BoolVar(&c.serveNginx, "serve-nginx-class", false, "for a URL: gateways run with this flag, and serve Ingresses of ingress-nginx's class too")
	f.StringVar(&c.metricsAddress, "metrics-address", defaultMetricsAddress, "for a URL: `address` that the gateway here has for /metrics, to ask it how the endpoints are now; empty to ask none")
	f.Uint16Var(&c.httpsPort, "https-port", 0, "for a URL: `port` for HTTPS that gateways run with, for redirects (default that of fairway up, else 443)")
	return cmd
}

type explainCommand struct {
	inspection
	from, port string
	all        bool

	method     string
	header     []string
	serveNginx bool
	httpsPort  uint16

	metricsAddress string
}

func (c *explainCommand) run(cmd *cobra.Command, arg string) error {
	asked, err := parseExplained(arg)
	if err != nil {
		return err
	}
	// Flags that are for the other of the two would be ignored in silence.
	others, why := []string{"request", "header", "serve-nginx-class", "https-port", "metrics-address"}, "is for a URL, and "+arg+" is a Service"
	if asked.url != "" {
		others, why = []string{"port", "all"}, "is for a Service"
		if cmd.Flags().Changed("port") {
			why += "; write the port into the URL, as http://host:port/path"
		}
	}
	for _, name := range others {
		if cmd.Flags().Changed(name) {
			return fmt.Errorf("--%s %s", name, why)
		}
	}
	in, err := c.find()
	if err != nil {
		return err
	}
	if asked.url != "" {
		report, err := agent.ExplainRequest(cmd.Context(), agent.ExplainRequestOptions{
			Config: in.Config, URL: asked.url, Method: c.method, Header: c.header, From: c.from, Namespace: in.namespace,
			Node: c.node, DefaultNode: in.firstNode, ServeNginx: c.serveNginx, HTTPPort: in.httpPort, HTTPSPort: cmp.Or(c.httpsPort, in.httpsPort), ClusterDomain: in.domain, Slow: c.slow(cmd, in),
		})
		if err != nil {
			return err
		}
		c.live(cmd, in, report)
		return c.tell(cmd, report, report.Reaches)
	}
	// The kernel of a node of fairway up is that of its network namespace.
	report, err := agent.Explain(cmd.Context(), agent.ExplainOptions{
		Config: in.Config, Service: model.Key{Namespace: in.namespace, Name: asked.service}, From: c.from, Port: c.port, All: c.all,
		Node: c.node, DefaultNode: in.firstNode, Enter: in.enter, Slow: c.slow(cmd, in),
	})
	if err != nil {
		return err
	}
	return c.tell(cmd, report, !report.Kernel.Differs)
}

// defaultMetricsAddress is the gateway's.
const defaultMetricsAddress = "127.0.0.1:10254"

// live adds what the gateway here knows of the endpoints now, if there is one.
func (c *explainCommand) live(cmd *cobra.Command, in *inspected, report *explain.RequestReport) {
	if c.metricsAddress == "" {
		return
	}
	services, err := agent.GatewayServices(cmd.Context(), c.metricsAddress, in.enterFirst())
	if err != nil {
		report.Notes = append(report.Notes, fmt.Sprintf("how the endpoints are now is not known here: %v (--metrics-address)", err))
		return
	}
	report.Live(services)
}

// explained is what is asked about: a Service, or a request.
type explained struct{ service, url string }

// parseExplained reads svc/NAME, as kubectl has it, or just a name, or a URL.
func parseExplained(arg string) (explained, error) {
	if strings.Contains(arg, "://") {
		return explained{url: arg}, nil
	}
	kind, name, ok := strings.Cut(arg, "/")
	if !ok {
		kind, name = "svc", arg
	}
	switch kind {
	case "svc", "service", "services":
	default:
		url := arg
		if kind == "" {
			url = "HOST" + arg
		}
		return explained{}, fmt.Errorf("%s: give a Service as svc/NAME, or a request with its scheme, as http://%s or https://%s", arg, url, url)
	}
	switch {
	case name == "" || strings.Contains(name, "/"):
		return explained{}, errors.New("name the Service, as svc/NAME")
	case strings.ContainsAny(name, ".:?[]"): // which no name of a Service has
		return explained{}, fmt.Errorf("%s is no name of a Service; give one as svc/NAME, or a request with its scheme, as http://%s/ or https://%s/", name, name, name)
	}
	return explained{service: name}, nil
}
