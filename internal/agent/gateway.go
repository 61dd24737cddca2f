package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"fairway.dev/fairway/internal/dns"
	"fairway.dev/fairway/internal/gateway"
	"fairway.dev/fairway/internal/gateway/garbage"
	"fairway.dev/fairway/internal/gateway/shed"
	"fairway.dev/fairway/internal/gateway/tracing"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/source/kube"
	"fairway.dev/fairway/internal/state"
	status "fairway.dev/fairway/internal/status/kube"
)

// GatewayOptions configure the gateway role.
type GatewayOptions struct {
	Common
	// NodeName is the node it runs on; optional.
	NodeName string
	// HTTPPort and HTTPSPort are 0 for none.
	HTTPPort, HTTPSPort int
	// HTTP3 serves HTTP/3 as well, at the UDP port of the number HTTPSPort; not
	// with ProxyProtocol.
	HTTP3 bool
	// TLSMinVersion is the oldest version of TLS for clients, 1.2 or 1.3, and
	// TLSCipherSuites are the suites of TLS 1.2 by their names of the IANA; none for
	// all that are safe.
	TLSMinVersion   string
	TLSCipherSuites []string
	// DefaultCertificate names a Secret whose certificate is shown where no other
	// is known; optional.
	DefaultCertificate model.Key
	// PublishAddresses go into the status of Ingresses; none writes no status.
	PublishAddresses []netip.Addr
	// TCPServices and UDPServices name ConfigMaps in ingress-nginx's form; optional.
	TCPServices, UDPServices model.Key
	// ServeNginx serves Ingresses of ingress-nginx's class as well.
	ServeNginx bool
	// TrustedProxies are peers whose X-Forwarded-* headers are believed. Optional.
	TrustedProxies []netip.Prefix
	// ProxyProtocol expects a PROXY header on every HTTP and HTTPS connection.
	ProxyProtocol bool
	// MaxConnectionsPerClient limits the open connections of one client; 0 for no limit.
	MaxConnectionsPerClient int
	// ShedMemory is the share of the memory limit from which on new requests are
	// turned away; 0 for never.
	ShedMemory float64
	// MaxBodyBytes limits request bodies where a route sets no limit; 0 for none.
	MaxBodyBytes int64
	// AccessLog is a file, "-" for standard output, or empty for none, and
	// AccessLogFormat "json" or "combined".
	AccessLog, AccessLogFormat string
	// AccessLogSample says which requests are logged, in the form of
	// NodeOptions.DNSLog: all, errors, or a share such as 1%, with all errors.
	AccessLogSample string
	// ClusterDomain is the domain of the cluster's names, which certificates of
	// backends may be made out for; default cluster.local.
	ClusterDomain string
	// StateDir is a directory of this gateway alone, for what is to outlive it;
	// empty to keep nothing.
	StateDir string
	// TraceEndpoint is the URL of an OTLP receiver; empty for no traces.
	// TraceSample is the share of those begun here that are kept, such as 1%.
	TraceEndpoint, TraceSample string
}

// RunGateway runs the gateway role until ctx ends.
func RunGateway(ctx context.Context, o GatewayOptions) error {
	config, err := o.restConfig("gateway")
	if err != nil {
		return err
	}
	sample, err := dns.ParseQueryLog(o.AccessLogSample)
	if err != nil || !sample.Errors {
		return fmt.Errorf("--access-log-sample %q: want all, errors, or a share such as 1%%", o.AccessLogSample)
	}
	store := state.New()
	source, err := kube.New(kube.Options{
		Config: config, Store: store, Logger: o.Logger, Kinds: kube.ForGateway,
		TCPServices: o.TCPServices, UDPServices: o.UDPServices, ServeNginx: o.ServeNginx,
	})
	if err != nil {
		return err
	}
	log, err := openAccessLog(o.AccessLog)
	if err != nil {
		return err
	}
	defer log.Close()
	registry := newRegistry()
	options := gateway.Options{
		Store: store, Logger: o.Logger, NodeName: o.NodeName, Version: o.Version, Registerer: registry,
		HTTPAddrs: portAddr(o.HTTPPort), HTTPSAddrs: portAddr(o.HTTPSPort), HTTP3: o.HTTP3,
		TrustedProxies: o.TrustedProxies, ProxyProtocol: o.ProxyProtocol, MaxBodyBytes: o.MaxBodyBytes,
		MaxConnectionsPerClient: o.MaxConnectionsPerClient, StateDir: o.StateDir, DefaultCertificate: o.DefaultCertificate,
		ClusterDomain: o.ClusterDomain, AccessLogSkip: 100 - sample.Percent, AccessLogFormat: o.AccessLogFormat,
	}
	if options.Shedder, options.Held, err = newShedder(o); err != nil {
		return err
	}
	if options.TLSMinVersion, options.TLSCipherSuites, err = tlsSettings(o); err != nil {
		return err
	}
	if o.AccessLog != "" {
		options.AccessLog = log
	}
	if options.Tracer, err = newTracer(o); err != nil {
		return err
	}
	g, err := gateway.New(options)
	if err != nil {
		return err
	}
	writer, err := status.New(status.Options{
		Config: config, Store: store, Logger: o.Logger, Publish: o.PublishAddresses,
		Lease: model.Key{Namespace: leaseNamespace, Name: "fairway-gateway"}, Identity: identity(o.NodeName),
	})
	if err != nil {
		return err
	}
	// Not by the writer: that is at work on the leader's machine only.
	reporter, err := status.NewReporter(status.ReporterOptions{
		Config: config, Logger: o.Logger, Changed: g.ProblemsChanged(), Settle: portSettle,
		Problems: func() model.Problems { return onlyHere(o.NodeName, g.Problems()) },
	})
	if err != nil {
		return err
	}
	ready := gates{{"the Kubernetes API", source.Synced}, {"the gateway", g.Ready}}
	return runAll(ctx, o.Logger, []part{
		{"source", source.Run},
		{"gateway", g.Run},
		{"memory", garbage.CollectRarely},
		{"status", writer.Run},
		{"Events", reporter.Run},
		{"metrics", func(ctx context.Context) error {
			return serveMetrics(ctx, o.Logger, o.MetricsAddress, registry, ready, func(mux *http.ServeMux) {
				mux.HandleFunc("GET /debug/state", g.ServeState)
				mux.HandleFunc("GET /debug/state/{part}", g.ServeState)
			})
		}},
		{"ready file", func(ctx context.Context) error { return ready.announce(ctx, o.Logger, o.ReadyFile, nil) }},
	})
}

// tlsSettings reads what clients may speak.
func tlsSettings(o GatewayOptions) (oldest uint16, suites []uint16, err error) {
	switch o.TLSMinVersion {
	case "", "1.2":
		oldest = tls.VersionTLS12
	case "1.3":
		oldest = tls.VersionTLS13
	default:
		return 0, nil, fmt.Errorf("--tls-min-version %q: want 1.2 or 1.3", o.TLSMinVersion)
	}
	if oldest == tls.VersionTLS13 && len(o.TLSCipherSuites) > 0 {
		return 0, nil, errors.New("--tls-cipher-suites are of TLS 1.2, which --tls-min-version 1.3 leaves out; give one of the two")
	}
	known := map[string]uint16{}
	for _, s := range tls.CipherSuites() {
		if slices.Contains(s.SupportedVersions, tls.VersionTLS12) {
			known[s.Name] = s.ID
		}
	}
	for _, name := range o.TLSCipherSuites {
		id, ok := known[name]
		if !ok {
			return 0, nil, fmt.Errorf("--tls-cipher-suites %q: is none of TLS 1.2 that is safe; those are %s", name, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
		suites = append(suites, id)
	}
	return oldest, suites, nil
}

// newTracer returns nil where no traces are wanted.
func newTracer(o GatewayOptions) (*tracing.Tracer, error) {
	if o.TraceEndpoint == "" {
		return nil, nil
	}
	percent, err := strconv.ParseFloat(strings.TrimSuffix(o.TraceSample, "%"), 64)
	if err != nil || !strings.HasSuffix(o.TraceSample, "%") || !(percent >= 0 && percent <= 100) {
		return nil, fmt.Errorf("--trace-sample %q: want a share from 0%% to 100%%", o.TraceSample)
	}
	return tracing.New(tracing.Options{Endpoint: o.TraceEndpoint, Share: percent / 100, Version: o.Version, Node: o.NodeName, Logger: o.Logger})
}

// newShedder returns what watches the memory: no [shed.Shedder] if it has no
// limit, and nothing if it is not to be watched.
func newShedder(o GatewayOptions) (*shed.Shedder, *shed.Held, error) {
	if o.ShedMemory == 0 {
		return nil, nil, nil
	}
	if !(o.ShedMemory >= 0.1 && o.ShedMemory <= 1) {
		return nil, nil, fmt.Errorf("--shed-memory %v: want a share of the memory limit from 0.1 to 1 such as 0.9, or 0 for never", o.ShedMemory)
	}
	memory, err := shed.NewMemory()
	if err != nil {
		o.Logger.Warn("the memory limit cannot be found, no requests are turned away when memory is short", "error", err)
	}
	var shedder *shed.Shedder
	if memory != nil {
		memory.LimitRuntime(o.ShedMemory - 0.05)
		if shedder, err = shed.New(shed.Options{Above: o.ShedMemory, Share: memory.Share, Logger: o.Logger}); err != nil {
			return nil, nil, err
		}
	}
	return shedder, shed.NewHeld(memory.Limit(), shedder.Tight), nil
}

// portSettle is how long a port is in use before there is an Event of it: a gateway
// that ends has its ports for a moment while the next one starts.
const portSettle = 3 * time.Second

// onlyHere are the problems that only this machine can see, those of ports, of
// connections to backends and of Secrets that its flags name, with its name, where
// it has one. All others follow from the objects, and the controller writes an
// Event for each of them.
func onlyHere(node string, all model.Problems) model.Problems {
	var out model.Problems
	for _, p := range all {
		if p.Reason != gateway.ReasonPortInUse && p.Reason != gateway.ReasonBackendTLS && p.Object.Kind != "Secret" {
			continue
		}
		if node != "" {
			p.Message = "Node " + node + ": " + p.Message
		}
		out = append(out, p)
	}
	return out
}

func portAddr(port int) []string {
	if port == 0 {
		return nil
	}
	return []string{fmt.Sprintf(":%d", port)}
}

func openAccessLog(path string) (io.WriteCloser, error) {
	switch path {
	case "", "-":
		return keepOpen{os.Stdout}, nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, fmt.Errorf("--access-log: %w", err)
	}
	return f, nil
}

// keepOpen leaves standard output alone.
type keepOpen struct{ io.Writer }

func (keepOpen) Close() error { return nil }
