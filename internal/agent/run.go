package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// part is one thing that a role runs.
type part struct {
	name string
	run  func(ctx context.Context) error
}

// runAll runs the parts until ctx ends, or until one of them fails, which ends
// the others too: a role is whole or is started again by whoever watches it.
func runAll(ctx context.Context, logger *slog.Logger, parts []part) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, len(parts))
	var wg sync.WaitGroup
	for _, p := range parts {
		wg.Go(func() {
			err := p.run(ctx)
			switch {
			case err != nil && !errors.Is(err, context.Canceled):
				errs <- fmt.Errorf("%s: %w", p.name, err)
				cancel()
			case ctx.Err() == nil:
				logger.Debug("part is done", "part", p.name)
			}
		})
	}
	wg.Wait()
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// gate is one condition for a role to be ready.
type gate struct {
	name  string
	ready func() bool
}

// gates are all conditions for a role to be ready.
type gates []gate

// waiting returns the names of the conditions that do not hold yet.
func (g gates) waiting() []string {
	var names []string
	for _, c := range g {
		if !c.ready() {
			names = append(names, c.name)
		}
	}
	return names
}

// heartbeat is how often a role that serves shows that it is alive.
const heartbeat = time.Second

// announce writes path once every gate is open, for whoever started the role,
// and from then on sets the file's time again and again until ctx ends: a
// process that hangs shows by not doing so. Behind its first line the file has
// what troubles gives, which may be nil: one sentence a line, for people. An empty
// path announces nothing.
func (g gates) announce(ctx context.Context, logger *slog.Logger, path string, troubles func() []string) error {
	start := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	slow := time.NewTicker(10 * time.Second)
	defer slow.Stop()
	for {
		waiting := g.waiting()
		if len(waiting) == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return nil
		case <-slow.C:
			logger.Warn("not ready yet", "waitingFor", waiting)
		case <-tick.C:
		}
	}
	logger.Info("ready", "after", time.Since(start).Round(time.Millisecond))
	if path == "" {
		return nil
	}
	text := func() string {
		if troubles == nil {
			return readyLine
		}
		lines := []string{readyLine}
		for _, t := range troubles() {
			lines = append(lines, strings.ReplaceAll(t, "\n", " "))
		}
		return strings.Join(lines, "\n")
	}
	written := text()
	switch err := writeReadyFile(path, written); {
	case errors.Is(err, os.ErrNotExist):
		return err // there is no such directory
	case err != nil:
		logger.Warn("cannot show that this role serves; it does, and it is tried again", "error", err)
		written = ""
	}
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	said := "" // of a disk that stays as it is, not every second
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-beat.C:
		}
		now, latest := time.Now(), text()
		err := os.Chtimes(path, now, now)
		if latest != written || errors.Is(err, os.ErrNotExist) {
			if err = writeReadyFile(path, latest); err == nil {
				written = latest
			}
		}
		switch {
		case err == nil:
			said = ""
		case err.Error() != said:
			said = err.Error()
			logger.Warn("cannot show that this role is alive", "error", err)
		}
	}
}

// readyLine begins the ready file.
const readyLine = "ready"

// writeReadyFile replaces the file in one step. Where the disk is full it writes
// into the one that there is, which has room.
func writeReadyFile(path, text string) error {
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	err := os.WriteFile(tmp, []byte(text+"\n"), 0o644)
	if err == nil {
		return os.Rename(tmp, path)
	}
	_ = os.Remove(tmp) // it may be there, and empty
	if overwrite(path, text+"\n") == nil {
		return nil
	}
	return fmt.Errorf("write the ready file: %w", err)
}

// overwrite writes into a file without giving up the space that it has.
func overwrite(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		return err
	}
	return f.Truncate(int64(len(text)))
}
