package echo

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"fairway.dev/fairway/internal/echo/mysql"
)

// Options say where to listen and how to answer. Addresses are HOST:PORT with
// an empty host for every address of both families.
type Options struct {
	// Identity is what answers carry; required (see Identify).
	Identity Identity
	// HTTP addresses speak HTTP/1.1 and, with prior knowledge, HTTP/2 in plain.
	HTTP []string
	// HTTPS addresses speak HTTP/1.1 and HTTP/2 over TLS.
	HTTPS []string
	// TCP and TLS addresses send back every byte.
	TCP, TLS []string
	// UDP addresses send back every datagram, from the address it was sent to.
	UDP []string
	// MySQL addresses speak the MySQL protocol; clients may ask for TLS.
	MySQL []string
	// CertFile and KeyFile are the PEM pair for TLS; by default a certificate
	// is made at the start, signed by itself. Both or neither.
	CertFile, KeyFile string
	// Banner starts each TCP connection, and each UDP answer, with a line that
	// holds the name.
	Banner bool
	// Delay is waited before each HTTP answer.
	Delay time.Duration
	// Status is the status of ordinary HTTP answers; 0 means 200.
	Status int
	// Drain is how long to go on serving in full after the context has ended,
	// as a Pod does that is terminating but still has clients.
	Drain time.Duration
	// Logger is required.
	Logger *slog.Logger
}

// Server holds open sockets. Make one with New.
type Server struct {
	opts      Options
	tls       *tls.Config
	http      *http.Server
	mysql     *mysql.Server
	ready     atomic.Bool
	health    healthSwitch
	listeners []listener
	packets   []net.PacketConn
	// ctx ends with the last moment of serving, so that long answers end too.
	ctx    context.Context
	cancel context.CancelFunc
	conns  connSet
}

// listener is a stream socket with what serves it.
type listener struct {
	net.Listener
	flag  string
	serve func(net.Listener) error
}

// New opens all sockets, so that an address in use is an error here. Run
// serves and closes them.
func New(o Options) (*Server, error) {
	if o.Status == 0 {
		o.Status = http.StatusOK
	}
	if o.Status < 200 || o.Status > 599 {
		return nil, fmt.Errorf("status %d: want 200 to 599", o.Status)
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		return nil, errors.New("a certificate needs its key: give both files or neither")
	}
	cert, err := loadCertificate(o)
	if err != nil {
		return nil, err
	}
	s := &Server{opts: o, tls: serverTLS(cert)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.setReady(true)
	s.http = s.newHTTPServer()
	s.mysql = &mysql.Server{Hostname: o.Identity.Name, TLS: s.tls}
	if err := s.listen(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *Server) listen() error {
	for _, kind := range []struct {
		flag  string
		addrs []string
		serve func(net.Listener) error
	}{
		{"http", s.opts.HTTP, s.http.Serve},
		{"https", s.opts.HTTPS, func(l net.Listener) error { return s.http.ServeTLS(l, "", "") }},
		{"tcp", s.opts.TCP, s.serveTCP},
		{"tls", s.opts.TLS, func(l net.Listener) error { return s.serveTCP(tls.NewListener(l, s.tls)) }},
		{"mysql", s.opts.MySQL, s.serveMySQL},
	} {
		for _, addr := range kind.addrs {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				return fmt.Errorf("--%s %s: %w", kind.flag, addr, err)
			}
			s.listeners = append(s.listeners, listener{l, kind.flag, kind.serve})
		}
	}
	for _, addr := range s.opts.UDP {
		p, err := net.ListenPacket("udp", addr)
		if err != nil {
			return fmt.Errorf("--udp %s: %w", addr, err)
		}
		s.packets = append(s.packets, p)
	}
	if len(s.listeners)+len(s.packets) == 0 {
		return errors.New("nothing to listen on")
	}
	return nil
}

// Addr returns the address of the first socket of a kind, which is the name of
// its flag: "http", "https", "tcp", "tls", "udp" or "mysql". It is empty where
// there is none.
func (s *Server) Addr(kind string) string {
	if kind == "udp" && len(s.packets) > 0 {
		return s.packets[0].LocalAddr().String()
	}
	for _, l := range s.listeners {
		if l.flag == kind {
			return l.Addr().String()
		}
	}
	return ""
}

// Run serves until ctx ends, then drains, closes everything and returns nil.
// It returns early with the error of a socket that fails.
func (s *Server) Run(ctx context.Context) error {
	failed := make(chan error, len(s.listeners)+len(s.packets))
	var wg sync.WaitGroup
	for _, l := range s.listeners {
		s.opts.Logger.Info("listening", "protocol", l.flag, "address", l.Addr().String())
		wg.Go(func() { failed <- l.serve(l.Listener) })
	}
	for _, p := range s.packets {
		s.opts.Logger.Info("listening", "protocol", "udp", "address", p.LocalAddr().String())
		wg.Go(func() { failed <- s.serveUDP(p) })
	}
	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
		s.drain(failed)
	}
	s.shutdown()
	wg.Wait()
	return err
}

// drain serves on as not ready for the time asked for, or until a socket fails.
func (s *Server) drain(failed <-chan error) {
	if s.opts.Drain <= 0 {
		return
	}
	s.setReady(false)
	select {
	case <-failed:
	case <-time.After(s.opts.Drain):
	}
}

// shutdown lets HTTP answers that are being written finish, for a moment, and
// closes the rest.
func (s *Server) shutdown() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	s.cancel()
	_ = s.http.Shutdown(ctx)
	s.close()
}

func (s *Server) close() {
	s.cancel()
	_ = s.http.Close()
	for _, l := range s.listeners {
		_ = l.Close()
	}
	for _, p := range s.packets {
		_ = p.Close()
	}
	s.conns.closeAll()
}
