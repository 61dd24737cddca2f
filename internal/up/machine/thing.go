package machine

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
)

// Kind says what a Thing is, and so how it is taken back.
type Kind string

const (
	// KindNamespace is a network namespace pinned at /run/netns/<Name>.
	KindNamespace Kind = "namespace"
	// KindInterface is a network interface of node 1's namespace. Value holds the alias it was made with.
	KindInterface Kind = "interface"
	// KindSysctl is a file below /proc/sys as seen from node 1's namespace. Value is what we wrote, Before what it held.
	KindSysctl Kind = "sysctl"
	// KindTable is an nftables table of family inet in node 1's namespace.
	KindTable Kind = "table"
	// KindLoopback stands for having set the interface lo of node 1's namespace up.
	KindLoopback Kind = "loopback"
)

// Thing is one change made to the machine, with what is needed to take it back.
type Thing struct {
	Kind   Kind   `json:"kind"`
	Name   string `json:"name"`
	Value  string `json:"value,omitempty"`
	Before string `json:"before,omitempty"`
}

func (t Thing) String() string { return string(t.Kind) + " " + t.Name }

// Journal remembers things. Record is called before the thing is made and must not return before the record would
// survive the death of the process, for an unrecorded thing is never cleaned up.
type Journal interface {
	Record(Thing) error
}

// Undo takes things back, newest first. It goes on after an error and returns all of them. What is no longer there, or
// was changed by somebody else since, is left alone; so Undo may be repeated and may run after a crash at any point.
// node1 is nil when that namespace is gone, and with it all that was in it.
func Undo(node1 *Namespace, things []Thing) error {
	var errs []error
	for i := len(things) - 1; i >= 0; i-- {
		if err := undo(node1, things[i]); err != nil {
			errs = append(errs, fmt.Errorf("removing %s: %w", things[i], err))
		}
	}
	return errors.Join(errs...)
}

func undo(node1 *Namespace, t Thing) error {
	if t.Kind == KindNamespace {
		return removeNamespace(t.Name)
	}
	if node1 == nil {
		return nil
	}
	switch t.Kind {
	case KindInterface:
		return undoInterface(node1, t)
	case KindSysctl:
		return node1.Do(func() error { return undoSysctl(t) })
	case KindTable:
		return removeTable(node1, t.Name)
	case KindLoopback:
		lo, err := node1.links.LinkByName(t.Name)
		if err != nil {
			return err
		}
		return node1.links.LinkSetDown(lo)
	}
	return fmt.Errorf("unknown kind %q", t.Kind)
}

func undoInterface(node1 *Namespace, t Thing) error {
	link, err := node1.links.LinkByName(t.Name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	if alias := link.Attrs().Alias; alias != t.Value && alias != "" {
		return nil // made by somebody else after ours had gone; ours is without only if we died at that very moment
	}
	err = node1.links.LinkDel(link)
	if err != nil && isGone(node1, t.Name) {
		return nil // the other end of a veth went with its namespace meanwhile
	}
	return err
}

func isGone(ns *Namespace, name string) bool {
	_, err := ns.links.LinkByName(name)
	return errors.As(err, &netlink.LinkNotFoundError{})
}

func undoSysctl(t Thing) error {
	now, err := os.ReadFile(t.Name)
	if errors.Is(err, os.ErrNotExist) {
		return nil // of an interface that is gone
	}
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(now)) != t.Value {
		return nil
	}
	return os.WriteFile(t.Name, []byte(t.Before), 0)
}

// setSysctl writes a sysctl in the namespace if it does not hold the value already.
func (n *Namespace) setSysctl(journal Journal, path, value string) error {
	return n.Do(func() error {
		before, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		old := strings.TrimSpace(string(before))
		if old == value {
			return nil
		}
		if journal != nil {
			if err := journal.Record(Thing{Kind: KindSysctl, Name: path, Value: value, Before: old}); err != nil {
				return err
			}
		}
		return os.WriteFile(path, []byte(value), 0)
	})
}
