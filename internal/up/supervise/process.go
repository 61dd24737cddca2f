package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// State is what a process is doing.
type State string

const (
	// Running processes have a pid. Whether they are ready to serve is not known here.
	Running State = "running"
	// Restarting processes ended by themselves and are started again after a pause.
	Restarting State = "restarting"
	// Exited processes were ended on purpose.
	Exited State = "exited"
	// Stopped processes are alive and do nothing; see Identity.Halted. A Process does not notice: whoever asks has to look.
	Stopped State = "stopped"
)

// Status is what is known of a process at one moment.
type Status struct {
	Role string `json:"role"`
	Node string `json:"node,omitempty"`
	Identity
	State State     `json:"state"`
	Since time.Time `json:"since"`
	// Restarts counts how often it was started again.
	Restarts int `json:"restarts"`
	// LastExit says how it last ended ("exit status 1"), or why it could not start. Empty if it never did.
	LastExit string `json:"lastExit,omitempty"`
	// Log is the path of the file with its output.
	Log string `json:"log"`
}

// Options configures a Process.
type Options struct {
	// Role and Node name the process for people. Role is required.
	Role, Node string
	// Path is the executable, Args what follows its name. Path is required.
	Path string
	Args []string
	// Env is the whole environment. Required.
	Env []string
	// Log is the file that gets standard output and error, which are dropped where it is on a file system that has become
	// read-only. What it held goes to Log.1 in New. Required.
	Log string
	// LogLimit in bytes is where Log goes over to Log.1. Optional, 16 MiB by default.
	LogLimit int64
	// Cgroup is made for the process, and everything left in it is killed when the process ends. Optional.
	Cgroup Cgroup
	// Launch calls its argument, which starts the child, in the right namespaces and on a thread that lives as long as
	// this program (see machine.Namespace.Do): the child gets SIGTERM when that thread ends. Required.
	Launch func(func() error) error
	// Grace is how long the process may take to end after SIGTERM before it is killed. Optional, 5 s by default.
	Grace time.Duration
	// Heartbeat is a file that the process touches while it is well, from when it first makes it. When it stops doing so
	// for as long as Silence though the file can be written, it hangs, and is killed and started again. It must be absent at
	// the start, unless it cannot be removed. Optional.
	Heartbeat string
	// Silence is optional, 15 s by default.
	Silence time.Duration
	// Force, when closed, cuts Grace short. Optional.
	Force <-chan struct{}
	// MinBackoff and MaxBackoff limit the pause before starting it again, which doubles each time. Optional, 200 ms and
	// 10 s by default. After having run for three times MaxBackoff it starts from MinBackoff again.
	MinBackoff, MaxBackoff time.Duration
	// OnChange is called, never twice at the same time, with every new status. Optional.
	OnChange func(Status)
	// Logger is required.
	Logger *slog.Logger
}

// Process is one supervised child.
type Process struct {
	o Options

	mu     sync.Mutex
	status Status
	// logStart is where in its log the last start was, logBefore where the one before that was.
	logStart, logBefore int64
}

// New checks the options and rotates the log. Nothing is started before Run.
func New(o Options) (*Process, error) {
	if o.Role == "" || o.Path == "" || o.Log == "" || o.Launch == nil || o.Logger == nil {
		return nil, errors.New("supervise: role, path, log, launch and logger are required")
	}
	if o.LogLimit == 0 {
		o.LogLimit = 16 << 20
	}
	if o.Grace == 0 {
		o.Grace = 5 * time.Second
	}
	if o.Silence == 0 {
		o.Silence = 15 * time.Second
	}
	if o.MinBackoff == 0 {
		o.MinBackoff = 200 * time.Millisecond
	}
	if o.MaxBackoff == 0 {
		o.MaxBackoff = 10 * time.Second
	}
	if err := rotateLog(o.Log); err != nil {
		return nil, fmt.Errorf("rotating log: %w", err)
	}
	return &Process{o: o, status: Status{Role: o.Role, Node: o.Node, Log: o.Log, Since: time.Now(), State: Restarting}}, nil
}

// Name is the role, with the node's name if it has one.
func (p *Process) Name() string {
	if p.o.Node == "" {
		return p.o.Role
	}
	return p.o.Role + " of " + p.o.Node
}

// Status returns what is known now.
func (p *Process) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

func (p *Process) change(f func(*Status)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.status)
	p.status.Since = time.Now()
	if p.o.OnChange != nil {
		p.o.OnChange(p.status)
	}
}

// Run keeps the process running until ctx is done, then ends it and all it started, and returns. An error says what could
// not be ended.
func (p *Process) Run(ctx context.Context) error {
	backoff := p.o.MinBackoff
	for restarts := 0; ; restarts++ {
		started := time.Now()
		exit, err := p.runOnce(ctx, restarts)
		if ctx.Err() != nil {
			p.change(func(s *Status) { s.State, s.PID, s.LastExit = Exited, 0, exit })
			return err
		}
		if time.Since(started) > 3*p.o.MaxBackoff {
			backoff = p.o.MinBackoff
		}
		p.change(func(s *Status) { s.State, s.PID, s.LastExit, s.Restarts = Restarting, 0, exit, restarts })
		p.o.Logger.Warn("process ended, starting it again", "role", p.o.Role, "node", p.o.Node, "exit", exit, "pause", backoff)
		select {
		case <-ctx.Done():
			p.change(func(s *Status) { s.State = Exited })
			return err
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, p.o.MaxBackoff)
	}
}

// runOnce starts the process, which was started again restarts times with this one, and returns how it ended; when ctx is
// done it ends it. The count changes together with the state: who sees a process restarting can take its next exit for a new one.
func (p *Process) runOnce(ctx context.Context, restarts int) (exit string, err error) {
	cmd, err := p.start()
	if err != nil {
		return err.Error(), nil
	}
	identity := Identity{PID: cmd.Process.Pid}
	if started, err := Identify(cmd.Process.Pid); err == nil { // else it ended already; Wait below says how
		identity = started
	}
	p.change(func(s *Status) { s.State, s.Identity, s.Restarts = Running, identity, restarts })

	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // the exit status is read from ProcessState; there is no pipe that could fail
		close(ended)
	}()
	hangs := p.attend(ctx, ended)
	if ctx.Err() != nil {
		p.end(cmd.Process, ended)
	}
	if hangs {
		_ = cmd.Process.Kill() // an error means that it has ended
	}
	<-ended
	if p.o.Cgroup != "" {
		// What it started must not go on beside its successor, nor after this program.
		err = p.o.Cgroup.Remove()
	}
	exit = cmd.ProcessState.String()
	if hangs {
		exit += fmt.Sprintf(" for giving no sign of life for %s", p.o.Silence)
	}
	return exit, err
}

func (p *Process) start() (*exec.Cmd, error) {
	log, err := os.OpenFile(p.o.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if errors.Is(err, unix.EROFS) {
		p.o.Logger.Warn("what the process prints is lost", "role", p.o.Role, "node", p.o.Node, "error", err)
		log, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	}
	if err != nil {
		return nil, err
	}
	defer log.Close()
	if info, err := log.Stat(); err == nil {
		p.mu.Lock()
		p.logBefore, p.logStart = p.logStart, info.Size()
		p.mu.Unlock()
	}
	cmd := exec.Command(p.o.Path, p.o.Args...)
	cmd.Env = p.o.Env
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:    true, // Ctrl-C on the terminal is for us; we end children in order
		Pdeathsig: syscall.SIGTERM,
	}
	if p.o.Cgroup != "" {
		if err := p.o.Cgroup.Make(); err != nil {
			return nil, fmt.Errorf("making cgroup: %w", err)
		}
		fd, err := unix.Open(string(p.o.Cgroup), unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("opening cgroup %s: %w", p.o.Cgroup, err)
		}
		defer unix.Close(fd)
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, fd
	}
	if err := p.o.Launch(cmd.Start); err != nil {
		return nil, err
	}
	return cmd, nil
}

// attend waits for the process to end or ctx to be done, and keeps the log small meanwhile. It returns early when the
// process hangs.
func (p *Process) attend(ctx context.Context, ended <-chan struct{}) (hangs bool) {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	pulse := time.NewTicker(max(p.o.Silence/20, time.Millisecond))
	defer pulse.Stop()
	var sign time.Time // what the file said last
	heard := time.Now()
	deaf := "" // why no sign could be given when last looked
	for {
		select {
		case <-ctx.Done():
			return false
		case <-ended:
			return false
		case <-tick.C:
			if err := boundLog(p.o.Log, p.o.LogLimit); err != nil {
				p.o.Logger.Warn("log not rotated", "role", p.o.Role, "node", p.o.Node, "error", err)
			}
		case now := <-pulse.C:
			// Times of the file are only compared with each other, and the pause is measured on the monotonic clock: neither
			// a clock that is set nor a machine that slept looks like silence.
			latest := p.sign()
			if latest.IsZero() && sign.IsZero() {
				heard = now // not serving yet
			}
			if !latest.IsZero() && !latest.Equal(sign) {
				sign, heard = latest, now
			}
			if now.Sub(heard) <= p.o.Silence {
				continue
			}
			if err := writable(p.o.Heartbeat); err != nil {
				// A disk that is full or has become read-only silences those that are well, too.
				if deaf != err.Error() {
					p.o.Logger.Warn("cannot tell whether the process lives, and leaves it alone", "role", p.o.Role, "node", p.o.Node, "error", err)
				}
				deaf, heard = err.Error(), now
				continue
			}
			return true
		}
	}
}

// sign is when the process last touched its heartbeat file, or zero when there is none.
func (p *Process) sign() time.Time {
	if p.o.Heartbeat == "" {
		return time.Time{}
	}
	info, err := os.Stat(p.o.Heartbeat)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// writable returns why a file cannot be touched, or made where it is missing; nil where it can. It changes nothing.
func writable(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		probe, err := os.CreateTemp(filepath.Dir(path), ".probe-*")
		if err == nil {
			err = errors.Join(probe.Close(), os.Remove(probe.Name()))
		}
		return err
	}
	if err == nil {
		err = os.Chtimes(path, time.Time{}, info.ModTime())
	}
	return err
}

// end asks the process to end, and after a while kills it.
func (p *Process) end(process *os.Process, ended <-chan struct{}) {
	_ = process.Signal(syscall.SIGTERM) // an error means that it has ended
	_ = process.Signal(syscall.SIGCONT) // one that is stopped would never see the other
	select {
	case <-ended:
		return
	case <-p.o.Force:
	case <-time.After(p.o.Grace):
		p.o.Logger.Warn("process does not end, killing it", "role", p.o.Role, "node", p.o.Node, "grace", p.o.Grace)
	}
	_ = process.Kill()
}
