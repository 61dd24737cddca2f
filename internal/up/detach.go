package up

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"fairway.dev/fairway/internal/up/machine"
)

// ProgressFD is the file descriptor that a detached fairway up writes its progress to.
const ProgressFD = 3

// readyMark ends the progress of a detached fairway up that became ready.
const readyMark = "\x00"

// Detached is the side of fairway up --detach that stays.
type Detached struct{ pipe *os.File }

// OpenDetached returns the pipe to the side that was started on the terminal.
func OpenDetached() *Detached {
	syscall.CloseOnExec(ProgressFD) // children must not hold it open
	return &Detached{pipe: os.NewFile(ProgressFD, "progress")}
}

// Write shows text to the other side until it is ready. Afterwards, or when the other side is gone, it is dropped.
func (d *Detached) Write(text []byte) (int, error) {
	_, _ = d.pipe.Write(text)
	return len(text), nil
}

// Ready lets the other side end.
func (d *Detached) Ready() {
	_, _ = io.WriteString(d.pipe, readyMark)
	d.pipe.Close()
}

// Detach starts the executable with args in a session of its own and copies its progress to w until it is ready. If it
// ends before, its exit status is returned as an ExitError. interrupt, when it becomes readable, stops it.
func Detach(executable string, args []string, dataDir string, w io.Writer, interrupt <-chan struct{}) error {
	if err := machine.Check(); err != nil {
		return err // before a directory is made that nothing can come to be in
	}
	d := dir(dataDir)
	if err := d.make(); err != nil {
		return err
	}
	log, err := os.OpenFile(d.log(roleSupervisor, ""), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	cmd := exec.Command(executable, args...)
	cmd.Dir = "/" // do not keep a mount busy
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{write} // becomes ProgressFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	write.Close()
	if err != nil {
		return fmt.Errorf("starting %s: %w", filepath.Base(executable), err)
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-interrupt:
			_ = cmd.Process.Signal(syscall.SIGTERM) // an error means that it has ended
		case <-ended:
		}
	}()
	if relay(w, read) {
		return cmd.Process.Release()
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &ExitError{Code: max(exit.ExitCode(), 1)}
	}
	if err != nil {
		return err
	}
	return errors.New("fairway up ended without becoming ready; its log is " + log.Name())
}

// ExitError is a failure that was already reported; only the exit status is left to be passed on.
type ExitError struct{ Code int }

func (e *ExitError) Error() string { return "exit status " + strconv.Itoa(e.Code) }

// relay copies until the ready mark (true) or the end (false).
func relay(w io.Writer, r io.Reader) bool {
	buffer := make([]byte, 4096)
	for {
		n, err := r.Read(buffer)
		text := buffer[:n]
		if i := bytes.IndexByte(text, readyMark[0]); i >= 0 {
			_, _ = w.Write(text[:i])
			return true
		}
		_, _ = w.Write(text)
		if err != nil {
			return false
		}
	}
}
