package up

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"fairway.dev/fairway/internal/up/supervise"
)

const (
	// readyTimeout is long: a start that took a few seconds on a quiet machine may take a minute on a busy one.
	readyTimeout = 3 * time.Minute
	// exitsToFail is how often a process may end before it is first ready.
	exitsToFail = 3
	// usageExit is the exit status for a command line that is wrong; trying again would not help.
	usageExit = "exit status 2"
)

// startAndWait starts a child and shows the step until check returns nil.
func (c *Cluster) startAndWait(ctx context.Context, g *group, ch child, what string, check func(context.Context) error) error {
	done := c.o.Progress.Step("starting " + what)
	p, err := c.launch(g, ch)
	if err != nil {
		done("")
		return err
	}
	if err := untilReady(ctx, p, check); err != nil {
		done("")
		if ch.role == roleControl && damagedStore(p.Excerpt(12)) {
			d := dir(c.o.DataDir)
			return fmt.Errorf("%w\nthe cluster's data in %s is damaged: restore that directory from a copy, or remove it and lose all objects of the cluster", err, d.etcd())
		}
		return err
	}
	done("%s ready", what)
	return nil
}

// damagedStore recognizes what etcd and its parts say of files that they cannot use. A full disk is not meant.
func damagedStore(lines []string) bool {
	text := strings.Join(lines, "\n")
	if strings.Contains(text, "no space left on device") {
		return false
	}
	return slices.ContainsFunc([]string{
		"walpb: ", "crc mismatch", "wal: ", "snap: ", // the log and the snapshots
		"invalid database", "invalid page type", "checksum error", "freepages: ", // bbolt
		"failed to recover v3 backend", "tocommit(", "failed to read WAL", // the server
	}, func(sign string) bool { return strings.Contains(text, sign) })
}

// untilReady asks check again and again until it returns nil, the process keeps ending, or time is up.
func untilReady(ctx context.Context, p *supervise.Process, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("not ready after %s", readyTimeout))
	defer cancel()
	exits := 0
	var last error
	for {
		status := p.Status()
		if status.State == supervise.Running {
			if last = check(ctx); last == nil {
				return nil
			}
		}
		if status.State == supervise.Restarting && status.LastExit != "" {
			exits = status.Restarts + 1
		}
		if exits >= exitsToFail || status.LastExit == usageExit {
			return startError(p, fmt.Errorf("ended with %s", status.LastExit))
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return startError(p, fmt.Errorf("%w: %w", context.Cause(ctx), last))
			}
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// startError adds the part of the log that mostly tells the reason.
func startError(p *supervise.Process, why error) error {
	status := p.Status()
	lines := p.Excerpt(12)
	text := "its log " + status.Log + " is empty"
	if len(lines) > 0 {
		text = "from its log " + status.Log + ":\n    " + strings.Join(lines, "\n    ")
	}
	return fmt.Errorf("%s did not start: %w; %s", p.Name(), why, text)
}

// apiReady checks that the API server answers.
func (c *Cluster) apiReady(kubeconfig string) func(context.Context) error {
	return func(ctx context.Context) error {
		api, err := openKubeAPI(kubeconfig, c.nodes[0])
		if err != nil {
			return err
		}
		defer api.close()
		return api.ready(ctx)
	}
}

// nodeReady checks that the Node is Ready and said so since it was started: the object may be from an earlier run.
func (c *Cluster) nodeReady(kubeconfig, name string, since time.Time) func(context.Context) error {
	since = since.Truncate(time.Second) // as precise as times are in the API
	return func(ctx context.Context) error {
		api, err := openKubeAPI(kubeconfig, c.nodes[0])
		if err != nil {
			return err
		}
		defer api.close()
		condition, err := api.node(ctx, name)
		if err != nil {
			return err
		}
		if condition.Heartbeat.Before(since) {
			return errors.New("the kubelet has not reported yet")
		}
		if !condition.Ready {
			return fmt.Errorf("%s: %s", condition.Reason, condition.Message)
		}
		return nil
	}
}

// fileExists checks for a ready file.
func fileExists(path string) func(context.Context) error {
	return func(context.Context) error {
		_, err := os.Stat(path)
		return err
	}
}
