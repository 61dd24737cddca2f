package ebpf

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Attaching takes some 50 ms, nearly all of it waiting until no processor uses any
// more what there was: once for each interface. Where an earlier process has left
// nothing, that time passes while Services are still being read and written: with
// empty maps programs pass everything on, and with maps that are not complete yet
// they do so for what does not stand there. Where something was left, what it is
// has first to be brought in line.

// Fresh reports whether nothing was there of an earlier process: no program is
// attached, and no map leads anywhere.
func (d *Dataplane) Fresh() bool { return d.fresh }

// findsNothing is Fresh, to be asked before there is anything of this process.
func (d *Dataplane) findsNothing() (bool, error) {
	pinned, err := os.ReadDir(filepath.Join(string(d.pins), linksDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return len(pinned) == 0 && len(d.have.frontends) == 0 && len(d.have.addresses) == 0, nil
}

// attachEarly begins to attach programs, if nothing was there. It must be called
// once at most, with the node's settings known, which tell what interfaces are.
func (d *Dataplane) attachEarly() {
	if !d.fresh {
		return
	}
	done := make(chan struct{})
	d.attaching = done
	go func() {
		defer close(done)
		// With Prune it is tried again.
		if err := d.attachPrograms(nil); err != nil {
			d.log.Debug("eBPF: attaching programs early", "error", err)
		}
	}()
}

// awaitEarly returns when nothing is being attached any more.
func (d *Dataplane) awaitEarly() {
	if d.attaching != nil {
		<-d.attaching
	}
}

// settings are those of the node. Before Prune, what no Service has in the range of
// cluster IPs is refused only where it was already: it may be that it is not written
// yet, and whoever has served it goes on until then.
func (d *Dataplane) settings() nodeSettings {
	out := compileNode(d.node, d.nodeAddrs)
	if d.pruned {
		return out
	}
	for k := range out.ranges {
		if d.have.ranges[k]&rangeServices == 0 {
			out.ranges[k] &^= rangeServices
		}
	}
	return out
}
