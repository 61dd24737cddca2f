package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/standalone/internal/runtime/initspec"
)

// initProcess is the running fairway-init of a container.
type initProcess struct {
	process *os.Process
	conn    *initspec.Conn

	mu     sync.Mutex
	nextID uint64
	execs  map[uint64]*execution
	gone   bool // no reply will come any more

	done chan struct{} // closed when it ended
	code int           // valid once done
}

// execution is a command that runs in a container besides the container's own.
type execution struct {
	init *initProcess
	id   uint64
	// replies: at most one about its start and one about its end.
	replies chan reply
}

type reply struct {
	initspec.Reply
	files []*os.File
}

// startError says why a command did not start.
type startError struct{ initspec.Failure }

func (e *startError) Error() string { return e.Message }

// startTimeout is for file systems that do not answer; a start takes milliseconds.
const startTimeout = time.Minute

// launch starts init and has it start the container. With a terminal it also
// returns the terminal's master.
func launch(ns *namespaces, path string, cgroup *os.File, newPID bool, start *initspec.Start, stdio []*os.File) (*initProcess, *os.File, error) {
	conn, control, err := initspec.Pair()
	if err != nil {
		return nil, nil, err
	}
	process, err := ns.startInit(path, control, cgroup, newPID)
	control.Close()
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	p := &initProcess{process: process, conn: conn, execs: map[uint64]*execution{}, done: make(chan struct{})}
	first := p.expect()
	go p.serve()
	err = conn.Send(initspec.Request{Start: start}, stdio...)
	var answer reply
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		if answer, err = first.next(ctx); errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("the container's root or command was not ready within %s: is a file system of the machine not answering?", startTimeout)
		}
	}
	if err == nil && answer.Failure != nil {
		err = &startError{*answer.Failure}
	}
	if err != nil {
		_ = process.Kill()
		<-p.done
		return nil, nil, err
	}
	return p, firstFile(answer.files), nil
}

func firstFile(files []*os.File) *os.File {
	if len(files) == 0 {
		return nil
	}
	for _, f := range files[1:] {
		f.Close()
	}
	return files[0]
}

// expect registers a command before its request is sent.
func (p *initProcess) expect() *execution {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := &execution{init: p, id: p.nextID, replies: make(chan reply, 2)}
	p.nextID++
	if p.gone {
		close(e.replies)
	} else {
		p.execs[e.id] = e
	}
	return e
}

func (p *initProcess) forget(e *execution) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.execs, e.id)
}

// serve hands replies to those that wait for them, until init ends, and collects
// its exit code. It waits for the process last, as that takes a thread.
func (p *initProcess) serve() {
	for {
		var r reply
		var err error
		if r.files, err = p.conn.Receive(&r.Reply); err != nil {
			break
		}
		p.mu.Lock()
		e, ok := p.execs[r.ID]
		p.mu.Unlock()
		if !ok {
			closeFiles(r.files...)
			continue
		}
		e.replies <- r
	}
	p.conn.Close()
	p.code = exitCode(p.process.Wait())
	close(p.done)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = true
	for _, e := range p.execs {
		close(e.replies)
	}
	clear(p.execs)
}

func exitCode(state *os.ProcessState, err error) int {
	if err != nil {
		return initspec.CodeSetup
	}
	status := state.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// next is the next reply about a command.
func (e *execution) next(ctx context.Context) (reply, error) {
	select {
	case r, ok := <-e.replies:
		if !ok {
			return reply{}, errInitGone
		}
		return r, nil
	case <-ctx.Done():
		return reply{}, ctx.Err()
	}
}

var errInitGone = errors.New("the container ended")

// exec runs one more command. With a terminal it also returns its master.
func (p *initProcess) exec(ctx context.Context, args []string, terminal bool, stdio []*os.File) (*execution, *os.File, error) {
	select {
	case <-p.done:
		return nil, nil, errInitGone
	default:
	}
	e := p.expect()
	if err := p.conn.Send(initspec.Request{Exec: &initspec.Exec{ID: e.id, Args: args, Terminal: terminal}}, stdio...); err != nil {
		p.forget(e)
		return nil, nil, fmt.Errorf("%w: %v", errInitGone, err)
	}
	r, err := e.next(ctx)
	if err == nil && r.Failure != nil {
		err = &startError{*r.Failure}
	}
	if err != nil {
		p.forget(e)
		return nil, nil, err
	}
	return e, firstFile(r.files), nil
}

// wait returns the exit code of a command.
func (e *execution) wait(ctx context.Context) (int, error) {
	r, err := e.next(ctx)
	if errors.Is(err, errInitGone) {
		return 128 + int(unix.SIGKILL), nil
	}
	if err != nil {
		return 0, err
	}
	e.init.forget(e)
	return r.Code, nil
}

// signal sends a signal to the command and all it started in its session.
func (e *execution) signal(sig unix.Signal) { e.init.signal(e.id, sig) }

// signal sends a signal to the command with the id, 0 being the container's.
func (p *initProcess) signal(id uint64, sig unix.Signal) {
	// An error means that init is gone, and its container with it.
	_ = p.conn.Send(initspec.Request{Signal: &initspec.Signal{ID: id, Number: int(sig)}})
}

func closeFiles(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
