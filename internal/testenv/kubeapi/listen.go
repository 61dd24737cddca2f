package kubeapi

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

// Listener is a server at an address, which can go away and come back.
type Listener struct {
	// Addr is where it listens, also while it is away.
	Addr string

	api  *Server
	http *http.Server
}

// Listen serves s at a TCP address; port 0 takes a free one. Stop ends it.
func (s *Server) Listen(addr string) (*Listener, error) {
	l := &Listener{Addr: addr, api: s}
	return l, l.Start()
}

// Start serves again at the same address.
func (l *Listener) Start() error {
	listener, err := net.Listen("tcp", l.Addr)
	if err != nil {
		return fmt.Errorf("kubeapi: %w", err)
	}
	l.Addr = listener.Addr().String()
	l.http = &http.Server{Handler: l.api, ReadHeaderTimeout: 10 * time.Second}
	server := l.http
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			panic(fmt.Sprintf("kubeapi: %v", err))
		}
	}()
	return nil
}

// Stop refuses connections from now on and cuts those that are open.
func (l *Listener) Stop() { _ = l.http.Close() }

// WriteKubeconfig writes a file for clients.
func (l *Listener) WriteKubeconfig(path string) error {
	return os.WriteFile(path, []byte(fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "http://%s"}}]
users: [{name: test, user: {}}]
contexts: [{name: test, context: {cluster: test, user: test}}]
current-context: test
`, l.Addr)), 0o600)
}
