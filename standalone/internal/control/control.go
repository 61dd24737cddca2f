package control

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"fairway.dev/fairway/standalone/internal/kubelog"
)

const (
	// readyLimit bounds the API server's start; a slow disk or a large cluster's data may take its time.
	readyLimit = 2 * time.Minute
	// stopLimit bounds how long each part may take to end. Data is safe without: etcd writes ahead of everything it
	// confirms.
	stopLimit = 3 * time.Second
)

// noise are messages that components log as warnings or errors although all is well with a control plane of one
// process that starts and stops as a whole.
var noise = []string{
	// Every API version that is off by default, one line each.
	"because it has no resources",
	// No admission configuration is given.
	"The manifest file is empty, ignoring",
	// The namespace is made in the same moment; both are tried again.
	`namespaces \"kube-system\" not found`,
	// The only API server starts and stops: there was, or will be, no address behind default/kubernetes.
	"no API server IP addresses were listed in storage",
	`Resetting endpoints for master service`,
	// A controller's cache is behind its own write and it tries again; informational in all but the severity.
	"is not as new as written version",
	// etcd, before its first snapshot; and when it is told to stop.
	"cannot detect storage schema version: missing term information",
	"setting up serving from embedded etcd failed",
}

// Control is a control plane.
type Control struct {
	opts Options
}

// New checks the options. Nothing is opened before Run.
func New(opts Options) (*Control, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	return &Control{opts: opts}, nil
}

// Run starts the control plane and blocks until the context ends, then stops it in order and returns nil. It returns
// an error when a part cannot start or ends by itself. A process can run it once.
func (c *Control) Run(ctx context.Context) error {
	started := time.Now()
	logs := kubelog.Options{Output: c.opts.LogOutput, Verbosity: c.opts.Verbosity, Drop: noise}
	if err := kubelog.Setup(logs); err != nil {
		return err
	}
	dir, err := openDataDir(c.opts.DataDir)
	if err != nil {
		return err
	}
	defer dir.close()
	if err := dir.checkSettings(settings{ServiceCIDRs: join(c.opts.ServiceCIDRs)}); err != nil {
		return err
	}
	creds, err := makeCredentials(&c.opts, dir)
	if err != nil {
		return err
	}
	listener, err := listen(ctx, c.opts.SecurePort)
	if err != nil {
		return err
	}
	store, err := startEtcd(ctx, dir.etcd(), kubelog.Zap(logs))
	if err != nil {
		listener.Close()
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	c.opts.Logger.Debug("etcd is ready", "elapsed", time.Since(started))

	api := start(ctx, func(ctx context.Context) error {
		return runAPIServer(ctx, listener, apiServerFlags(&c.opts, creds, store.endpoint()))
	})
	// Until it is ready nothing is stopped in order: nobody has been told anything yet, etcd's data is always safe, and a
	// half-started API server takes an orderly stop for a fatal failure.
	client := localClient(creds.pki.CA())
	defer client.CloseIdleConnections()
	if err := c.waitReady(ctx, client, api.ended); err != nil || ctx.Err() != nil {
		return err
	}
	defer c.bounded("etcd", store.stop)
	defer c.stop("kube-apiserver", api)
	c.opts.Logger.Info("API server is ready", "port", c.opts.SecurePort, "elapsed", time.Since(started).Round(time.Millisecond))
	away := newAbsence(time.Now)
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	go away.watch(watching, func(ctx context.Context) error { return c.ask(ctx, client, "livez") })
	return c.runControllers(ctx, creds, away, store.failed(), api.ended)
}

// runControllers runs the clients of the API server until the context ends, and returns the error of whatever ends
// before, of theirs or of what they depend on.
func (c *Control) runControllers(ctx context.Context, creds *credentials, away *absence, storeFailed, apiEnded <-chan error) error {
	manager := start(ctx, func(ctx context.Context) error {
		return runControllerManager(ctx, controllerManagerFlags(creds, creds.controllerManager), away)
	})
	defer c.stop("kube-controller-manager", manager)
	scheduler := start(ctx, func(ctx context.Context) error {
		return runScheduler(ctx, schedulerFlags(creds.scheduler))
	})
	defer c.stop("kube-scheduler", scheduler)

	// Once all caches are filled memory matters more than a little time.
	settle := time.AfterFunc(10*time.Second, func() {
		debug.SetGCPercent(50)
		debug.FreeOSMemory()
	})
	defer settle.Stop()

	var err error
	select {
	case <-ctx.Done():
	case err = <-storeFailed:
	case err = <-apiEnded:
	case err = <-manager.ended:
	case err = <-scheduler.ended:
	}
	if ctx.Err() != nil {
		return nil
	}
	if err == nil {
		err = errors.New("a component ended without an error")
	}
	return fmt.Errorf("control plane: %w", err)
}

// component is a running part of the control plane.
type component struct {
	cancel context.CancelFunc
	// ended delivers the component's result once.
	ended chan error
	// done is closed after that.
	done chan struct{}
}

// start runs a component that lives longer than the context: parts end one after the other, each before those it
// depends on.
func start(ctx context.Context, run func(context.Context) error) *component {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := &component{cancel: cancel, ended: make(chan error, 1), done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.ended <- run(ctx)
	}()
	return c
}

// stop ends a component and waits for it.
func (c *Control) stop(name string, part *component) {
	c.bounded(name, func() {
		part.cancel()
		<-part.done
	})
}

// bounded waits for a part to stop, but not forever: the process is about to end.
func (c *Control) bounded(name string, stop func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		stop()
	}()
	select {
	case <-done:
	case <-time.After(stopLimit):
		c.opts.Logger.Warn("component did not stop in time", "component", name, "limit", stopLimit)
	}
}

// waitReady waits until the API server says that it is ready, it has ended, or the context has. The last is no error.
func (c *Control) waitReady(ctx context.Context, client *http.Client, ended <-chan error) error {
	limit := time.After(readyLimit)
	for {
		err := c.ask(ctx, client, "readyz")
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			if err == nil {
				err = errors.New("kube-apiserver ended without an error")
			}
			return err
		case <-limit:
			return fmt.Errorf("kube-apiserver is not ready after %s: %w", readyLimit, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// localClient returns a client for questions about the API server's health, which need no credentials.
func localClient(ca []byte) *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}},
	}
}

// ask asks the API server one question about its health, "readyz" or "livez". The error of one that is not well holds
// what it says.
func (c *Control) ask(ctx context.Context, client *http.Client, question string) error {
	url := "https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(c.opts.SecurePort)) + "/" + question
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("ask kube-apiserver: %w", err)
	}
	resp, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("ask kube-apiserver: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096)) // to its end, for the connection to be used again
	if err != nil {
		return fmt.Errorf("ask kube-apiserver: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("kube-apiserver says of itself: %s", body)
	}
	return nil
}
