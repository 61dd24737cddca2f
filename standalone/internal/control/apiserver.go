package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/client-go/rest"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
)

// apiServerFlags are the flags of kube-apiserver, by name.
func apiServerFlags(o *Options, c *credentials, etcdEndpoint string) map[string]string {
	issuer := "https://kubernetes.default.svc." + o.ClusterDomain
	return map[string]string{
		"advertise-address":        o.AdvertiseAddresses[0].String(),
		"secure-port":              strconv.Itoa(o.SecurePort),
		"service-cluster-ip-range": join(o.ServiceCIDRs),
		"service-node-port-range":  o.NodePortRange,
		"etcd-servers":             etcdEndpoint,
		"allow-privileged":         "true",
		"authorization-mode":       "RBAC",

		"client-ca-file":       c.pki.CAFile(),
		"tls-cert-file":        c.apiServer.CertFile,
		"tls-private-key-file": c.apiServer.KeyFile,

		"kubelet-certificate-authority":   c.pki.CAFile(),
		"kubelet-client-certificate":      c.kubeletClient.CertFile,
		"kubelet-client-key":              c.kubeletClient.KeyFile,
		"kubelet-preferred-address-types": "InternalIP",

		"service-account-issuer":           issuer,
		"service-account-key-file":         c.pki.ServiceAccountPublicKeyFile(),
		"service-account-signing-key-file": c.pki.ServiceAccountKeyFile(),

		// The aggregation layer, so that APIServices work. Requests go to endpoints and not to ClusterIPs: they then
		// work while no dataplane does.
		"requestheader-client-ca-file":       c.pki.FrontProxyCAFile(),
		"requestheader-allowed-names":        frontProxyName,
		"requestheader-username-headers":     "X-Remote-User",
		"requestheader-group-headers":        "X-Remote-Group",
		"requestheader-extra-headers-prefix": "X-Remote-Extra-",
		"proxy-client-cert-file":             c.frontProxy.CertFile,
		"proxy-client-key-file":              c.frontProxy.KeyFile,
		"enable-aggregator-routing":          "true",

		"profiling":           "false",
		"enable-logs-handler": "false",
	}
}

// runAPIServer runs kube-apiserver on the listener until the context ends.
func runAPIServer(ctx context.Context, listener net.Listener, flags map[string]string) error {
	opts := options.NewServerRunOptions()
	opts.SecureServing.Listener = listener
	if err := parseFlags(opts.Flags(), flags); err != nil {
		return fmt.Errorf("kube-apiserver: %w", err)
	}
	// Feature gates are global to the process and must be set before any component starts.
	if err := opts.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return fmt.Errorf("kube-apiserver: set feature gates: %w", err)
	}
	// The components list and watch deprecated APIs on purpose; their clients need no warning about it.
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	completed, err := opts.Complete(ctx)
	if err != nil {
		return fmt.Errorf("kube-apiserver: %w", err)
	}
	if errs := completed.Validate(); len(errs) > 0 {
		return fmt.Errorf("kube-apiserver: %w", utilerrors.NewAggregate(errs))
	}
	if err := app.Run(ctx, completed); err != nil && ctx.Err() == nil {
		return fmt.Errorf("kube-apiserver: %w", err)
	}
	return nil
}

// parseFlags sets the flags of a component.
func parseFlags(sets cliflag.NamedFlagSets, values map[string]string) error {
	all := pflag.NewFlagSet("component", pflag.ContinueOnError)
	for _, set := range sets.FlagSets {
		all.AddFlagSet(set)
	}
	var errs []error
	for name, value := range values {
		if err := all.Set(name, value); err != nil {
			errs = append(errs, fmt.Errorf("--%s=%s: %w", name, value, err))
		}
	}
	return errors.Join(errs...)
}

// listen opens the API server's port, before anything else is started, on every address of the network namespace.
func listen(ctx context.Context, port int) (net.Listener, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", ":"+strconv.Itoa(port))
	if err == nil {
		return listener, nil
	}
	if strings.Contains(err.Error(), "address already in use") {
		return nil, fmt.Errorf("port %d is used by another program in this network namespace: stop it, or give another port with "+
			"--secure-port", port)
	}
	return nil, fmt.Errorf("open port %d (choose another with --secure-port): %w", port, err)
}
