package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// serveMetrics answers /metrics, /healthz, /readyz and /debug/pprof at addr
// until ctx ends, and what more adds. What is below /debug/ is for this machine.
func serveMetrics(ctx context.Context, logger *slog.Logger, addr string, registry *prometheus.Registry, g gates, more ...func(*http.ServeMux)) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if waiting := g.waiting(); len(waiting) > 0 {
			http.Error(w, "waiting for "+strings.Join(waiting, ", "), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	for _, add := range more {
		add(mux)
	}
	return serveHTTP(ctx, logger, "--metrics-address", addr, localDebug(mux))
}

// localDebug keeps what is below /debug/ for who asks from this machine, or
// from within the Pod, also where metrics are for others: it tells of every
// route, and profiles take time. A browser here that a page elsewhere has asking
// names another host (DNS rebinding).
func localDebug(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/debug/") || isLoopback(r.RemoteAddr) && (isLoopback(r.Host) || isLocalhost(r.Host)) {
			next.ServeHTTP(w, r)
			return
		}
		http.Error(w, "this is for the machine itself: ask http://127.0.0.1 there, or through kubectl port-forward", http.StatusForbidden)
	})
}

func isLoopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

func isLocalhost(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	return host == "localhost" || err != nil && hostport == "localhost"
}

// serveHTTP serves at the address that flag gives until ctx ends. An empty addr
// serves nothing. An address in use is logged and tried again: it must not
// keep a role from its work.
func serveHTTP(ctx context.Context, logger *slog.Logger, flag, addr string, handler http.Handler) error {
	if addr == "" {
		return nil
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	for {
		listener, err := net.Listen("tcp", addr)
		if err != nil {
			logger.Warn("cannot listen; it is tried again", "flag", flag, "address", addr, "error", err, "cure", "give another "+flag)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(10 * time.Second):
				continue
			}
		}
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}
}
