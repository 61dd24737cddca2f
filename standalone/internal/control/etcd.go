package control

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// etcdStartLimit bounds the wait for etcd; reading a large log after a crash takes seconds.
const etcdStartLimit = 60 * time.Second

// etcd is the embedded store, reached through a Unix socket in its directory only.
type etcd struct {
	server *embed.Etcd
	// dir is the open directory. The sockets are named through it because the path of a Unix socket is limited to 107
	// bytes, and a data directory may lie deep.
	dir *os.File
}

// startEtcd starts the store in the directory and waits until it answers.
func startEtcd(ctx context.Context, path string, logger *zap.Logger) (_ *etcd, err error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make etcd's directory: %w", err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open etcd's directory: %w", err)
	}
	e := &etcd{dir: dir}
	defer func() {
		if err != nil {
			e.stop()
		}
	}()
	cfg := embed.NewConfig()
	cfg.Name = "fairway"
	cfg.Dir = path
	// A socket's path goes into Host: etcd looks there for peers, and in Host+Path for clients.
	cfg.ListenPeerUrls = []url.URL{{Scheme: "unix", Host: e.socket("peer.sock")}}
	cfg.ListenClientUrls = []url.URL{{Scheme: "unix", Host: e.socket("client.sock")}}
	cfg.AdvertiseClientUrls = []url.URL{{Scheme: "unix", Path: e.socket("client.sock")}}
	// Names the only member; nothing listens there. Part of the data: it must never change.
	cfg.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2380"}}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger)
	cfg.EnableGRPCGateway = false
	// A single member elects itself after one tick.
	cfg.TickMs, cfg.ElectionMs = 50, 500
	// No follower ever catches up from the log, so that little of it needs to stay in memory.
	cfg.SnapshotCount, cfg.SnapshotCatchUpEntries = 5000, 500
	cfg.BootstrapDefragThresholdMegabytes = 64
	cfg.WarningUnaryRequestDuration = time.Second
	if e.server, err = embed.StartEtcd(cfg); err != nil {
		return nil, fmt.Errorf("start etcd in %s: %w", path, err)
	}
	select {
	case <-e.server.Server.ReadyNotify():
		return e, nil
	case err := <-e.server.Err():
		return nil, fmt.Errorf("start etcd in %s: %w", path, err)
	case <-e.server.Server.StopNotify():
		return nil, fmt.Errorf("start etcd in %s: it stopped", path)
	case <-time.After(etcdStartLimit):
		return nil, fmt.Errorf("start etcd in %s: not ready after %s", path, etcdStartLimit)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (e *etcd) socket(name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", e.dir.Fd(), name)
}

// endpoint is the URL for clients in the same process.
func (e *etcd) endpoint() string { return "unix://" + e.socket("client.sock") }

// failed delivers the error that made etcd stop by itself.
func (e *etcd) failed() <-chan error {
	out := make(chan error, 1)
	go func() {
		select {
		case err := <-e.server.Err():
			out <- fmt.Errorf("etcd: %w", err)
		case <-e.server.Server.StopNotify():
			out <- errors.New("etcd stopped")
		}
	}()
	return out
}

// stop ends etcd. Its clients must have ended before.
func (e *etcd) stop() {
	if e.server != nil {
		e.server.Close()
	}
	e.dir.Close()
}
