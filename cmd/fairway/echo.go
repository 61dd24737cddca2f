package main

import (
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"fairway.dev/fairway/internal/echo"
	"github.com/spf13/cobra"
)

// newEchoCommand is hidden: it is the workload of the image fairway.dev/echo
// and no tool for people.
func newEchoCommand() *cobra.Command {
	var o echo.Options
	var name string
	var debug bool
	cmd := &cobra.Command{
		Use:    "echo",
		Short:  "Answer HTTP, TCP, UDP and MySQL clients with what they sent and who answers",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			level := slog.LevelInfo
			if debug {
				level = slog.LevelDebug
			}
			o.Logger = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
			o.Identity = echo.Identify(name)
			if len(o.HTTP)+len(o.HTTPS)+len(o.TCP)+len(o.TLS)+len(o.UDP)+len(o.MySQL) == 0 {
				o.HTTP = []string{":8080"}
			}
			s, err := echo.New(o)
			if err != nil {
				return err
			}
			return s.Run(ctx)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.HTTP, "http", nil, "`address` for HTTP/1.1, h2c, WebSocket and gRPC (repeatable; :8080 where nothing else is asked for)")
	f.StringArrayVar(&o.HTTPS, "https", nil, "`address` for the same over TLS (repeatable)")
	f.StringArrayVar(&o.TCP, "tcp", nil, "`address` that sends back every byte (repeatable)")
	f.StringArrayVar(&o.TLS, "tls", nil, "`address` that sends back every byte over TLS (repeatable)")
	f.StringArrayVar(&o.UDP, "udp", nil, "`address` that sends back every datagram (repeatable)")
	f.StringArrayVar(&o.MySQL, "mysql", nil, "`address` that speaks the MySQL protocol (repeatable)")
	f.StringVar(&o.CertFile, "cert", "", "PEM `file` with the certificate for TLS (default: one signed by itself)")
	f.StringVar(&o.KeyFile, "key", "", "PEM `file` with its key")
	f.StringVar(&name, "name", "", "`name` to answer with (default: the Pod's)")
	f.BoolVar(&o.Banner, "banner", false, "start TCP connections and UDP answers with a line that holds the name")
	f.DurationVar(&o.Delay, "delay", 0, "wait this long before each HTTP answer except /healthz and /ready")
	f.IntVar(&o.Status, "status", 200, "status of ordinary HTTP answers")
	f.DurationVar(&o.Drain, "drain", 0, "serve on, not ready, for this long after SIGTERM")
	f.BoolVar(&debug, "debug", false, "log why connections end")
	return cmd
}
