package nft

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/testenv"
)

func TestExplain(t *testing.T) {
	for _, c := range []struct {
		errno    unix.Errno
		creating bool
		words    []string // none: it says what it said
	}{
		{unix.EMSGSIZE, false, []string{"net.core.wmem_max", "67108864"}},
		{unix.ENOBUFS, false, []string{"net.core.rmem_max", "67108864"}},
		{unix.EMLINK, false, []string{"nf_tables_jumps_max_netns", "raise it"}},
		{unix.ENOMEM, true, []string{"memory limit of the cgroup"}},
		{unix.EPERM, true, []string{"CAP_NET_ADMIN"}},
		{unix.ENOENT, true, []string{"nft_numgen"}},
		{unix.ENOENT, false, nil},
		{unix.EIO, true, nil},
	} {
		was := fmt.Errorf("conn.Receive: %w", c.errno)
		got := explain(was, c.creating)
		if !errors.Is(got, c.errno) {
			t.Errorf("%v: %v is not that error any more", was, got)
		}
		if len(c.words) == 0 && got != was {
			t.Errorf("%v: got %v", was, got)
		}
		for _, w := range c.words {
			if !strings.Contains(got.Error(), w) || strings.Contains(got.Error(), "%!") {
				t.Errorf("%v: %q does not tell of %q", was, got, w)
			}
		}
	}
}

// TestTooLarge has the kernel refuse a Service that is larger than what a socket
// may send at once: the error names the limit, and others are served.
func TestTooLarge(t *testing.T) {
	ns := testenv.NewLab(t).Netns("node")
	d, err := New(Options{Logger: logger(t), NetNS: int(ns.Handle)})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.SetNode(t.Context(), dataplane.Node{}); err != nil {
		t.Fatal(err)
	}
	large, small := manyServices(1, 2000)[0], manyServices(2, 3)[1]
	if failed := d.Apply(t.Context(), []change{small}); len(failed) > 0 { // makes the tables
		t.Fatal(failed)
	}
	buffer := func(bytes int) {
		if err := d.kernel.close(); err != nil {
			t.Fatal(err)
		}
		d.kernel.buffer = bytes
	}
	buffer(16 << 10)
	small.New = oneService(1, 5)
	failed := d.Apply(t.Context(), []change{large, small})
	if err := failed[large.Key]; !errors.Is(err, unix.EMSGSIZE) || !strings.Contains(err.Error(), "net.core.wmem_max = ") || !strings.Contains(err.Error(), "2003 elements") {
		t.Errorf("a Service that is too large: %v", err)
	}
	if err := failed[small.Key]; err != nil {
		t.Errorf("another Service: %v", err)
	}
	buffer(bufferBytes)
	if failed := d.Apply(t.Context(), []change{large}); len(failed) > 0 {
		t.Errorf("with room for it: %v", failed)
	}
}
