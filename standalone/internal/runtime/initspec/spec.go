package initspec

// Request is a message from the runtime to init. Exactly one field is set.
type Request struct {
	// Start is the first message: build the container and run its command.
	// Its file descriptors are stdin, stdout and stderr, none if the process
	// has a terminal.
	Start *Start `json:"start,omitempty"`
	// Exec runs one more command in the container. File descriptors as Start.
	Exec *Exec `json:"exec,omitempty"`
	// Signal sends a signal to a command.
	Signal *Signal `json:"signal,omitempty"`
}

// Reply is a message from init to the runtime about the command ID.
type Reply struct {
	// ID is 0 for the container's own command, else that of the Exec.
	ID uint64 `json:"id"`
	// Started says that the command runs. If it has a terminal, the message
	// carries the file descriptor of its master.
	Started bool `json:"started,omitempty"`
	// Exited says that the command, one with an ID, ended with Code.
	Exited bool `json:"exited,omitempty"`
	// Code is the exit code, 128 plus the signal's number if one ended it.
	Code int `json:"code,omitempty"`
	// Failure says why the command could not be started.
	Failure *Failure `json:"failure,omitempty"`
}

// Failure tells why a command did not start.
type Failure struct {
	// Code is the exit code a shell would give: 127 if the executable was not
	// found, 126 if it could not be run, 128 if the container failed before.
	Code int `json:"code"`
	// Message is for people.
	Message string `json:"message"`
}

// Exit codes of commands that never ran, as shells and container runtimes use
// them.
const (
	CodeSetup      = 128
	CodeNotRunable = 126
	CodeNotFound   = 127
)

// Start describes a container.
type Start struct {
	// Pause holds the namespaces and reaps; there is no command and no root.
	Pause bool `json:"pause,omitempty"`
	// Root is the file system.
	Root Root `json:"root"`
	// Process is the container's own command.
	Process Process `json:"process"`
}

// Exec is one more command in a running container.
type Exec struct {
	// ID names the command in later messages; unique in the container, not 0.
	ID uint64 `json:"id"`
	// Args is the command.
	Args []string `json:"args"`
	// Terminal asks for a terminal. Everything else is as the container's
	// own process has it.
	Terminal bool `json:"terminal,omitempty"`
}

// Signal is sent to the container's own command (ID 0) or to an Exec, there to
// its whole session.
type Signal struct {
	ID     uint64 `json:"id"`
	Number int    `json:"number"`
}

// Process is a command and the rights it runs with.
type Process struct {
	Args []string `json:"args"`
	Env  []string `json:"env"`
	// Cwd is made if it does not exist.
	Cwd      string   `json:"cwd"`
	UID      uint32   `json:"uid"`
	GID      uint32   `json:"gid"`
	Groups   []uint32 `json:"groups"`
	Terminal bool     `json:"terminal,omitempty"`
	// Capabilities is the bounding set, by number; of root also the effective
	// set.
	Capabilities []int `json:"capabilities"`
	// NoNewPrivileges forbids to gain rights by set-user-ID files.
	NoNewPrivileges bool `json:"noNewPrivileges,omitempty"`
	// OOMScoreAdj is the preference of the kernel's out-of-memory killer.
	OOMScoreAdj int `json:"oomScoreAdj,omitempty"`
}

// Root describes the file system of a container: the machine's own, with every
// change kept to the container.
type Root struct {
	// Scratch is an empty directory of the machine to mount on.
	Scratch string `json:"scratch"`
	// Lowers are the machine's file systems, parents before children; the
	// first is "/".
	Lowers []Lower `json:"lowers"`
	// NoOverlay builds the root without overlayfs, read-only.
	NoOverlay bool `json:"noOverlay,omitempty"`
	// Hide are paths of the machine that the container must not see.
	Hide []string `json:"hide,omitempty"`
	// Mounts are made in this order.
	Mounts []Mount `json:"mounts,omitempty"`
	// Devices are added to /dev.
	Devices []Device `json:"devices,omitempty"`
	// ReadOnly forbids changes outside of the mounts.
	ReadOnly bool `json:"readOnly,omitempty"`
	// Privileged shows all devices and a writable /sys.
	Privileged bool `json:"privileged,omitempty"`
	// MaskedPaths and ReadonlyPaths are parts of /proc and /sys.
	MaskedPaths   []string `json:"maskedPaths,omitempty"`
	ReadonlyPaths []string `json:"readonlyPaths,omitempty"`
	// CgroupMount shows the container's own cgroup at /sys/fs/cgroup.
	CgroupMount bool `json:"cgroupMount,omitempty"`
}

// Lower is a file system of the machine.
type Lower struct {
	Path string `json:"path"`
	// ReadOnly file systems and those that are no directory are bound as
	// they are, the others get an overlay of their own.
	ReadOnly bool `json:"readOnly,omitempty"`
}

// Mount is a path of the machine shown in the container.
type Mount struct {
	Source      string   `json:"source"`
	Target      string   `json:"target"`
	ReadOnly    bool     `json:"readOnly,omitempty"`
	Recursive   bool     `json:"recursive,omitempty"` // read-only all the way down
	Propagation string   `json:"propagation,omitempty"`
	Options     []string `json:"options,omitempty"` // noexec, nosuid, nodev
}

// Mount propagation as the Kubernetes API names it.
const (
	PropagationPrivate         = ""
	PropagationHostToContainer = "HostToContainer"
	PropagationBidirectional   = "Bidirectional"
)

// Device is a device of the machine shown in the container.
type Device struct {
	Source string `json:"source"`
	Target string `json:"target"`
}
