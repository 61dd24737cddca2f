package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"fairway.dev/fairway/internal/testenv/kubeapi"
)

// trial is a gateway under load to which things happen.
type trial struct {
	options
	log      *slog.Logger
	scratch  string
	config   string
	api      *kubeapi.Server
	gateway  *gateway
	started  int // gateways so far
	backends []*backend
	clients  []*client
	paths    int // that were added, to see when changes count
	errs     []error
	rows     [][]string
}

// phase is something that happens.
type phase struct {
	name string
	do   func(context.Context) error
	// may tells which requests may fail; nil for none.
	may *mercy
	// at is what the sick endpoint was asked meanwhile.
	at *patients
}

// try does everything and returns a table of what was counted, with an error if
// a request failed that must not.
func try(ctx context.Context, log *slog.Logger, o options, scratch string) (table string, err error) {
	t := &trial{options: o, log: log, scratch: scratch, config: filepath.Join(scratch, "kubeconfig"), clients: clients()}
	t.rows = [][]string{{"what happens", "client", "requests", "failed", "longest, ms", "first error", "why nobody could save them"}}
	err = t.run(ctx)
	return t.table(), errors.Join(append([]error{err}, t.errs...)...)
}

func (t *trial) run(ctx context.Context) (err error) {
	for i := range 4 {
		b := backendAt(i)
		if err := b.start(); err != nil {
			return err
		}
		t.backends = append(t.backends, b)
	}
	t.api = kubeapi.New()
	list, err := objects(t.routes, t.backends)
	if err != nil {
		return err
	}
	t.api.Put(list...)
	listener, err := t.api.Listen("127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Stop()
	if err := listener.WriteKubeconfig(t.config); err != nil {
		return err
	}
	if t.gateway, err = t.next(ctx, t.fairway); err != nil {
		return err
	}
	defer func() { t.gateway.kill() }()

	loading, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	for _, c := range t.clients {
		running.Go(func() { c.run(loading) })
	}
	defer running.Wait()
	defer stop()
	if t.soak > 0 {
		return t.goOn(ctx)
	}
	phases := []phase{
		{name: "nothing", do: t.wait},
		{name: "endpoints roll, three times", do: func(ctx context.Context) error { return t.repeat(ctx, 3, t.roll) }},
		{name: fmt.Sprintf("one of %d paths changes, twenty times", t.routes), do: func(ctx context.Context) error { return t.repeat(ctx, 20, t.reroute) }},
		{name: "the certificate is renewed, ten times", do: func(ctx context.Context) error { return t.repeat(ctx, 10, t.renew) }},
		{name: "the gateway is replaced, three times", do: func(ctx context.Context) error { return t.repeat(ctx, 3, t.replace) }},
	}
	for _, s := range sicknesses {
		at := &patients{}
		phases = append(phases, phase{name: "one of four endpoints " + s.name, may: &s.may, at: at, do: func(ctx context.Context) error { return t.sicken(ctx, s.do, at) }})
	}
	for _, p := range append(phases, phase{name: "after that", do: t.wait}) {
		if err := p.do(ctx); err != nil {
			return fmt.Errorf("%s: %w\n%s", p.name, err, t.gateway.lastWords())
		}
		t.count(p)
	}
	return nil
}

func (t *trial) repeat(ctx context.Context, times int, do func(context.Context) error) error {
	for range times {
		if err := do(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (t *trial) wait(ctx context.Context) error { return sleep(ctx, t.pause) }

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// count adds rows for what was counted since the last one.
func (t *trial) count(p phase) {
	forgiven := int64(0)
	for _, c := range t.clients {
		o := c.take()
		why := ""
		switch {
		case o.sent == 0:
			t.errs = append(t.errs, fmt.Errorf("%s, %s: no request was answered", p.name, c.name))
		case o.failed > 0 && (p.may == nil || !p.may.has(c)):
			t.errs = append(t.errs, fmt.Errorf("%s, %s: %d of %d requests failed: %s", p.name, c.name, o.failed, o.sent, o.first))
		case o.failed > 0:
			forgiven += o.failed
			why = p.may.why
		}
		t.rows = append(t.rows, []string{p.name, c.name, fmt.Sprint(o.sent), fmt.Sprint(o.failed), fmt.Sprint(o.longest.Milliseconds()), o.first, why})
	}
	if p.at != nil && forgiven > p.most(t.clients) {
		t.errs = append(t.errs, fmt.Errorf("%s: %d requests failed, but the sick endpoint got %d, of these %d by POST", p.name, forgiven, p.at.all.Load(), p.at.posts.Load()))
	}
	t.log.Info("counted", "what", p.name)
}

// most is how many requests may have failed: those that the sick endpoint has
// got, and one of each client that was at the endpoint when it fell sick, whose
// connection ended by that.
func (p *phase) most(clients []*client) (n int64) {
	for _, c := range clients {
		if p.may.has(c) {
			n++
		}
	}
	if p.may.has(&client{repeatable: true}) {
		return n + p.at.all.Load()
	}
	return n + p.at.posts.Load()
}

func (t *trial) table() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, r := range t.rows {
		_, _ = fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	_ = w.Flush()
	return b.String()
}

// next starts another gateway.
func (t *trial) next(ctx context.Context, program string) (*gateway, error) {
	t.started++
	return startGateway(ctx, program, t.config, t.scratch, t.started)
}

// eventually waits until a change counts.
func (t *trial) eventually(ctx context.Context, what string, ok func() bool) error {
	for deadline := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within 30 s", what)
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// roll replaces every endpoint as a rolling update does: a new one becomes
// ready, an old one is to leave, stops, and is gone.
func (t *trial) roll(ctx context.Context) error {
	for range t.backends {
		old := t.backends[0]
		fresh := &backend{addr: t.free()}
		if err := fresh.start(); err != nil {
			return err
		}
		t.backends = append(t.backends[1:], fresh)
		t.api.Put(slice(t.backends, []*backend{old}))
		// Pods go on for a while after they were told to stop, so that all
		// proxies may know; a second would be usual.
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return err
		}
		if err := old.stop(); err != nil {
			return err
		}
		t.api.Put(slice(t.backends, nil))
	}
	return nil
}

// free returns an address that no backend has.
func (t *trial) free() string {
	for i := 0; ; i++ {
		addr := backendAt(i).addr
		taken := false
		for _, b := range t.backends {
			taken = taken || b.addr == addr
		}
		if !taken {
			return addr
		}
	}
}

// reroute adds a path to an Ingress, so that all routes are compiled anew, and
// waits until it counts.
func (t *trial) reroute(ctx context.Context) error {
	t.paths++
	path := fmt.Sprintf("/new-%d", t.paths)
	t.api.Put(rules(1+t.paths%max(1, t.options.routes/perIngress-1), path))
	return t.eventually(ctx, path, func() bool {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", httpPort, path), nil)
		if err != nil {
			return false
		}
		req.Host = host
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return false
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// renew changes the certificate and waits until clients get it.
func (t *trial) renew(ctx context.Context) error {
	secret, serial, err := certificate()
	if err != nil {
		return err
	}
	t.api.Put(secret)
	return t.eventually(ctx, "the new certificate", func() bool {
		d := tls.Dialer{NetDialer: &net.Dialer{Timeout: time.Second}, Config: insecure()}
		c, err := d.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", httpsPort))
		if err != nil {
			return false
		}
		defer c.Close()
		return c.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String() == serial
	})
}

// replace starts another executable beside the gateway, and ends that.
func (t *trial) replace(ctx context.Context) error {
	program := filepath.Join(t.scratch, fmt.Sprintf("fairway-%d", t.started))
	if err := copyFile(t.fairway, program); err != nil {
		return err
	}
	next, err := t.next(ctx, program)
	if err != nil {
		return err
	}
	old := t.gateway
	t.gateway = next
	return old.stop()
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// sicken lets one endpoint be sick for a while.
func (t *trial) sicken(ctx context.Context, do func(net.Conn), at *patients) error {
	b := t.backends[0]
	if err := b.sicken(do, at); err != nil {
		return err
	}
	if err := t.wait(ctx); err != nil {
		return err
	}
	// It may still be left out for what it had before.
	if err := t.eventually(ctx, "a request to the sick endpoint", func() bool { return at.all.Load() > 0 }); err != nil {
		return err
	}
	if err := b.stop(); err != nil {
		return err
	}
	if err := b.start(); err != nil {
		return err
	}
	before := b.served.Load()
	if err := t.eventually(ctx, "requests for the endpoint that is well again", func() bool { return b.served.Load() > before+10 }); err != nil {
		return err
	}
	// Those that hung have ended by then as well.
	return sleep(ctx, 2*time.Second)
}
