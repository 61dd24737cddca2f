package up

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/up/machine"
	"fairway.dev/fairway/internal/up/supervise"
)

// Phase is how far a run has come.
type Phase string

const (
	Starting Phase = "starting"
	Ready    Phase = "ready"
	Stopping Phase = "stopping"
)

// stateVersion is the version of State that is written and read.
const stateVersion = 1

// State is what a data directory says of the run in it, in run/state.json. It exists from before the first change to the
// machine until after the last has been taken back.
type State struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	DataDir string `json:"dataDir"`
	Phase   Phase  `json:"phase"`
	// Started is when the run began.
	Started time.Time `json:"started"`
	// Supervisor is the process of fairway up.
	Supervisor supervise.Identity `json:"supervisor"`
	// BootID names the boot of the machine that the run was in. Runs of older versions have none.
	BootID string `json:"bootID,omitempty"`
	// NamespaceInode identifies node 1's network namespace.
	NamespaceInode uint64 `json:"namespaceInode"`
	// Cgroup holds all children, if cgroups can be made here.
	Cgroup supervise.Cgroup `json:"cgroup,omitempty"`
	// BinDir is where the executables of this run are.
	BinDir string `json:"binDir"`
	// Things are the changes made to the machine, oldest first.
	Things    []machine.Thing    `json:"things"`
	Nodes     []Node             `json:"nodes"`
	Processes []supervise.Status `json:"processes"`
	Addresses Addresses          `json:"addresses"`
	// ClusterDomain is the domain of the cluster's names; empty in what earlier versions wrote, for the default.
	ClusterDomain string `json:"clusterDomain,omitempty"`
}

// bootID names this boot of the machine; empty where the kernel does not tell.
func bootID() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// rebooted says whether the machine was started anew since the run.
func (s *State) rebooted() bool { return s.BootID != "" && s.BootID != bootID() }

// Addresses are where a cluster can be reached.
type Addresses struct {
	// API and Gateway are URLs.
	API     []string     `json:"api"`
	DNS     []netip.Addr `json:"dns"`
	Gateway []string     `json:"gateway"`
	// Nodes maps each node's name to its addresses.
	Nodes map[string][]netip.Addr `json:"nodes"`
	// Pool is what LoadBalancers get their addresses from: CIDRs, or "node", or "none".
	Pool []string `json:"pool"`
}

// dir knows where things are in a data directory.
type dir string

func (d dir) path(parts ...string) string {
	return filepath.Join(append([]string{string(d)}, parts...)...)
}
func (d dir) state() string          { return d.path("run", "state.json") }
func (d dir) lock() string           { return d.path("run", "lock") }
func (d dir) holderFile() string     { return d.path("run", "holder.json") }
func (d dir) ranges() string         { return d.path("ranges.json") }
func (d dir) etcd() string           { return d.path("etcd") }
func (d dir) kubeconfig() string     { return d.path("kubeconfig") }
func (d dir) nodeKubeconfig() string { return d.path("node.kubeconfig") }

// file is the part of a file's name that tells a process from others.
func file(role, node string) string {
	if node == "" {
		return role
	}
	return role + "-" + node
}
func (d dir) log(role, node string) string   { return d.path("logs", file(role, node)+".log") }
func (d dir) ready(role, node string) string { return d.path("run", file(role, node)+".ready") }

// nodeState is where a node keeps what it last knew, for a start of its role while the API is away.
func (d dir) nodeState(node string) string { return d.path("state", node) }

// gatewayState is where the gateway keeps what is to outlive it. The name is none that a node can have.
func (d dir) gatewayState() string { return d.path("gateway-state") }

// id is a short name for the data directory that is the same in every run and distinct from that of others.
func (d dir) id() string {
	sum := sha256.Sum256([]byte(d))
	return hex.EncodeToString(sum[:3])
}

// make makes the directories. Pods may run as any user and reach their volumes through the data directory, so it may be
// passed by all; what is secret in it has modes of its own.
func (d dir) make() error {
	for _, sub := range []string{"", "run", "logs"} {
		if err := os.MkdirAll(d.path(sub), 0o755); err != nil {
			return fmt.Errorf("data directory: %w", err)
		}
	}
	return d.writable()
}

// writable refuses a file system that nothing can be written to, whoever asks: one that is mounted so, or has become so by
// a fault of its disk. It changes nothing.
func (d dir) writable() error {
	err := unix.Access(string(d), unix.W_OK)
	if info, statErr := os.Stat(d.lock()); err == nil && statErr == nil {
		err = os.Chtimes(d.lock(), time.Time{}, info.ModTime()) // a fault is not always known before
	}
	if !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EIO) {
		return nil
	}
	return fmt.Errorf("data directory %s: cannot be written (%w): see what the kernel says of its disk (dmesg) and make it writable again (mount -o remount,rw)", d, err)
}

// errLocked says that another process runs the cluster in this data directory.
var errLocked = errors.New("data directory is in use")

// acquire takes the lock that a running supervisor holds. The kernel gives it back when the holder ends, however it ends.
func (d dir) acquire() (release func(), err error) {
	f, err := os.OpenFile(d.lock(), os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, unix.EROFS) {
		f, err = os.Open(d.lock()) // as good for a lock
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, fmt.Errorf("locking %s: %w", d.lock(), err)
	}
	self, err := supervise.Identify(os.Getpid())
	if err == nil {
		err = writeJSON(d.holderFile(), self)
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EROFS) {
		err = nil // fairway down must work there too; fairway up has checks of its own
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() {
		_ = os.Remove(d.holderFile()) // a stale one names a process that is not alive
		f.Close()
	}, nil
}

// holder is the process that holds the lock, if it does.
func (d dir) holder() supervise.Identity {
	var identity supervise.Identity
	if text, err := os.ReadFile(d.holderFile()); err == nil {
		_ = json.Unmarshal(text, &identity) // as good as no file
	}
	return identity
}

// readState returns the state of the run in d, or nil when there is none.
func (d dir) readState() (*State, error) {
	text, err := os.ReadFile(d.state())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var s State
	err = json.Unmarshal(text, &s)
	if err == nil && s.Version != stateVersion {
		err = fmt.Errorf("version is %d, must be %d", s.Version, stateVersion)
	}
	if err != nil {
		return nil, fmt.Errorf("%s, the list of what a run changed on the machine, cannot be used: %w: "+
			"if fairway up still runs stop it with fairway down%s, which works all the same; else restore the file from a copy, or remove it "+
			"and take away by hand what that run left (its processes, the network namespaces fairway-%s-*, the interface %s)",
			d.state(), err, DataDirFlag(string(d)), d.id(), machine.OwnInterface)
	}
	return &s, nil
}

// readRanges returns what d remembers of the cluster's ranges, or nil.
func (d dir) readRanges() (*Ranges, error) {
	text, err := os.ReadFile(d.ranges())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r Ranges
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	err = decoder.Decode(&r)
	if err == nil {
		if _, more := decoder.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the JSON object")
		}
	}
	if err == nil {
		err = r.check()
	}
	if err != nil {
		return nil, fmt.Errorf("%s, the record of the cluster's address ranges, cannot be used: %w: restore it from a copy, or remove it; "+
			"then ranges are chosen as for a new cluster, and unless --service-cidr, --pod-cidr, --node-cidr and --lb-pool give those from before, "+
			"existing Services and LoadBalancers may lose their addresses", d.ranges(), err)
	}
	return &r, nil
}

func (d dir) writeRanges(r Ranges) error { return writeJSON(d.ranges(), r) }

// writeJSON replaces a file in one step, so that readers and a crash, also one of the machine, see the old or the new one:
// without Sync the new name may be on the disk before the text is.
func writeJSON(path string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	file, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = file.Write(append(text, '\n'))
	if err == nil {
		err = file.Sync()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// stateFile keeps a State and its file the same. It is the machine's journal.
type stateFile struct {
	path string

	mu    sync.Mutex
	state State
}

// update changes the state and writes it.
func (f *stateFile) update(change func(*State)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.state)
	if err := writeJSON(f.path, f.state); err != nil {
		return fmt.Errorf("writing state: %w", err)
	}
	return nil
}

// Record implements machine.Journal.
func (f *stateFile) Record(t machine.Thing) error {
	return f.update(func(s *State) { s.Things = append(s.Things, t) })
}

// snapshot returns a copy for reading.
func (f *stateFile) snapshot() State {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.state
	s.Things = append([]machine.Thing(nil), s.Things...)
	s.Processes = append([]supervise.Status(nil), s.Processes...)
	return s
}
