package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/standalone/internal/runtime/initspec"
)

// supervisor starts commands, forwards signals to them and reaps. All of it
// happens in one goroutine, so that a command's end is never seen before its
// beginning.
type supervisor struct {
	conn *initspec.Conn
	// template has the rights and surroundings of the container's own
	// command, which all others share.
	template initspec.Process
	signals  chan os.Signal
	// commands are the started ones by process id.
	commands map[int]uint64
}

func newSupervisor(conn *initspec.Conn, template initspec.Process) *supervisor {
	s := &supervisor{conn: conn, template: template, signals: make(chan os.Signal, 64), commands: map[int]uint64{}}
	// As the first process of a PID namespace init gets only those signals
	// that it asked for.
	signal.Notify(s.signals)
	// Where init is not the first process, orphans come to it all the same.
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	return s
}

// loop serves until the container's own command ends and returns its exit code.
func (s *supervisor) loop() int {
	requests := make(chan received)
	go receive(s.conn, requests)
	for {
		select {
		case r, ok := <-requests:
			if !ok { // the runtime is gone
				s.killAll()
				return 128 + int(unix.SIGKILL)
			}
			s.handle(r)
		case sig := <-s.signals:
			if sig == unix.SIGCHLD {
				if code, ended := s.reap(); ended {
					return code
				}
				continue
			}
			s.forward(sig.(unix.Signal))
		}
	}
}

type received struct {
	request initspec.Request
	files   []*os.File
}

func receive(conn *initspec.Conn, to chan<- received) {
	defer close(to)
	for {
		var r received
		var err error
		if r.files, err = conn.Receive(&r.request); err != nil {
			return
		}
		to <- r
	}
}

func (s *supervisor) handle(r received) {
	switch {
	case r.request.Exec != nil:
		p := s.template
		p.Args, p.Terminal = r.request.Exec.Args, r.request.Exec.Terminal
		if p.Terminal && !slices.ContainsFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, "TERM=") }) {
			p.Env = append(slices.Clip(p.Env), "TERM=xterm")
		}
		if f := s.start(r.request.Exec.ID, p, r.files); f != nil {
			_ = s.conn.Send(initspec.Reply{ID: r.request.Exec.ID, Failure: f})
		}
	case r.request.Signal != nil:
		for pid, id := range s.commands {
			if id != r.request.Signal.ID {
				continue
			}
			if id != 0 {
				pid = -pid // every command leads a session and so a group
			}
			_ = unix.Kill(pid, unix.Signal(r.request.Signal.Number))
		}
	}
}

// forward passes a signal that init was sent on to the container's command, as
// people send signals to process 1.
func (s *supervisor) forward(sig unix.Signal) {
	switch sig {
	case unix.SIGURG, unix.SIGPIPE, unix.SIGCHLD: // the Go runtime's and init's own
		return
	}
	for pid, id := range s.commands {
		if id == 0 {
			_ = unix.Kill(pid, sig)
		}
	}
}

// reap collects every ended child. ended tells that the container's own
// command was among them.
func (s *supervisor) reap() (code int, ended bool) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return code, ended
		}
		id, ours := s.commands[pid]
		if !ours {
			continue
		}
		delete(s.commands, pid)
		exit := exitCode(status)
		if id == 0 {
			code, ended = exit, true
			continue
		}
		_ = s.conn.Send(initspec.Reply{ID: id, Exited: true, Code: exit})
	}
}

func exitCode(status unix.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// killAll ends all descendants. In a PID namespace of the container's own the
// kernel does so when init exits; where the namespace is shared, init does.
func (s *supervisor) killAll() {
	if os.Getpid() == 1 {
		return
	}
	for range 100 {
		pids := children()
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		// Their children come to init, the subreaper, once they are reaped.
		_, _ = unix.Wait4(-1, nil, 0, nil)
	}
}

func children() []int {
	var pids []int
	tasks, _ := os.ReadDir("/proc/self/task")
	for _, task := range tasks {
		data, _ := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		for _, field := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// start runs a command and tells the runtime. It takes over the files.
func (s *supervisor) start(id uint64, p initspec.Process, files []*os.File) *initspec.Failure {
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	setupFailed := func(what string, err error) *initspec.Failure {
		return &initspec.Failure{Code: initspec.CodeSetup, Message: what + ": " + err.Error()}
	}
	var master *os.File
	if p.Terminal {
		var slave *os.File
		var err error
		if master, slave, err = openTerminal(&p, id == 0); err != nil {
			return setupFailed("terminal", err)
		}
		defer master.Close()
		files = []*os.File{slave, slave, slave}
	}
	if len(files) != 3 {
		return setupFailed("command", fmt.Errorf("%d file descriptors for stdin, stdout, stderr", len(files)))
	}
	pid, failure := spawn(&p, files)
	if failure != nil {
		return failure
	}
	s.commands[pid] = id
	reply := initspec.Reply{ID: id, Started: true}
	var err error
	if master != nil {
		err = s.conn.Send(reply, master)
	} else {
		err = s.conn.Send(reply)
	}
	if err != nil {
		return setupFailed("answer", err)
	}
	return nil
}

// openTerminal makes a terminal in the container's own devpts, where the
// command finds it by name.
func openTerminal(p *initspec.Process, console bool) (master, slave *os.File, err error) {
	if master, slave, err = pty.Open(); err != nil {
		return nil, nil, err
	}
	const ttyGroup = 5
	_ = slave.Chown(int(p.UID), ttyGroup)
	if console {
		if f, err := os.OpenFile("/dev/console", os.O_CREATE|unix.O_NOCTTY, 0o620); err == nil {
			f.Close()
			_ = unix.Mount(slave.Name(), "/dev/console", "", unix.MS_BIND, "")
		}
	}
	return master, slave, nil
}

// spawn starts the exec stage, which drops privileges and becomes the command.
func spawn(p *initspec.Process, stdio []*os.File) (int, *initspec.Failure) {
	fail := func(what string, err error) (int, *initspec.Failure) {
		return 0, &initspec.Failure{Code: initspec.CodeSetup, Message: what + ": " + err.Error()}
	}
	data, err := json.Marshal(p)
	if err != nil {
		return fail("process", err)
	}
	spec, err := memfile(data)
	if err != nil {
		return fail("process", err)
	}
	defer spec.Close()
	statusR, statusW, err := os.Pipe()
	if err != nil {
		return fail("process", err)
	}
	defer statusR.Close()
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"fairway-init", "exec"}, &syscall.ProcAttr{
		Env:   []string{"GOMAXPROCS=1"},
		Files: []uintptr{stdio[0].Fd(), stdio[1].Fd(), stdio[2].Fd(), spec.Fd(), statusW.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: p.Terminal, Ctty: 0},
	})
	statusW.Close()
	if err != nil {
		return fail("exec stage", err)
	}
	// The pipe closes on exec: nothing in it means that the command runs.
	status, err := io.ReadAll(statusR)
	if err != nil || len(status) > 0 {
		_, _ = unix.Wait4(pid, nil, 0, nil)
		failure := &initspec.Failure{}
		if err := json.Unmarshal(status, failure); err != nil {
			return fail("exec stage", fmt.Errorf("%s", status))
		}
		return 0, failure
	}
	return pid, nil
}

// memfile is an anonymous file with data, to be read from its start.
func memfile(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("process", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "process")
	if _, err := f.Write(data); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
