package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-client/pkg"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"fairway.dev/fairway/standalone/internal/podnet"
)

// maxExecOutput bounds what ExecSync keeps of each stream, as in other runtimes.
const maxExecOutput = 16 << 20

// lingering is how long the output of an ended command is read on, for
// children that keep its pipes.
const lingering = 250 * time.Millisecond

// execSync runs a command and collects its output.
func (r *Runtime) execSync(ctx context.Context, c *container, args []string, timeout time.Duration) (stdout, stderr []byte, err error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	var out, errOut limitedBuffer
	code, err := r.exec(ctx, c, args, nil, &out, &errOut, false, nil)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, nil, fmt.Errorf("%w: %q timed out after %s", cri.ErrCommandTimedOut, strings.Join(args, " "), timeout)
	}
	if err != nil {
		return nil, nil, err
	}
	if code != 0 {
		err = utilexec.CodeExitError{Err: fmt.Errorf("command '%s' exited with %d: %s", strings.Join(args, " "), code, errOut.kept), Code: code}
	}
	return out.kept, errOut.kept, err
}

// limitedBuffer drops what is too much.
type limitedBuffer struct{ kept []byte }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.kept = append(b.kept, p[:min(len(p), maxExecOutput-len(b.kept))]...)
	return len(p), nil
}

// exec runs a command in a container and returns its exit code. When ctx ends
// the command is killed.
func (r *Runtime) exec(ctx context.Context, c *container, args []string, in io.Reader, out, errOut io.Writer, tty bool, sizes <-chan remotecommand.TerminalSize) (int, error) {
	init, err := c.running()
	if err != nil {
		return 0, err
	}
	var ours, theirs []*os.File
	if !tty {
		if ours, theirs, err = stdioPipes(in != nil); err != nil {
			return 0, err
		}
	}
	e, terminal, err := init.exec(ctx, args, tty, theirs)
	closeFiles(theirs...)
	if err != nil {
		closeFiles(ours...)
		var failed *startError
		if errors.As(err, &failed) && failed.Code != 0 {
			// As a shell would say it, and kubectl passes the code on.
			return 0, utilexec.CodeExitError{Err: err, Code: failed.Code}
		}
		return 0, err
	}
	if tty {
		terminal = pollable(terminal)
		ours = []*os.File{terminal, terminal, nil}
		go follow(terminal, sizes)
	}
	defer closeFiles(ours...)
	var outputs sync.WaitGroup
	copyOutput := func(to io.Writer, from *os.File) {
		if from == nil {
			return
		}
		if to == nil {
			to = io.Discard
		}
		outputs.Go(func() {
			// A client that is gone ends the session by ctx; until then the
			// command must be able to write.
			if _, err := io.Copy(to, from); err != nil {
				if tty {
					e.signal(unix.SIGHUP) // as when a terminal line drops
				}
				_, _ = io.Copy(io.Discard, from)
			}
		})
	}
	copyOutput(out, ours[1])
	copyOutput(errOut, ours[2])
	if in != nil {
		go func() {
			_, _ = io.Copy(ours[0], in)
			if !tty {
				ours[0].Close()
			}
		}()
	}
	code, err := e.wait(ctx)
	if err != nil {
		e.signal(unix.SIGKILL)
		_, _ = e.wait(context.Background())
		return 0, err
	}
	done := make(chan struct{})
	go func() {
		outputs.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(lingering):
		closeFiles(ours...)
		<-done
	}
	return code, nil
}

// follow applies the sizes that a client's window takes.
func follow(terminal *os.File, sizes <-chan remotecommand.TerminalSize) {
	for size := range sizes {
		if resize(terminal, size.Width, size.Height) != nil {
			return
		}
	}
}

// streams serves the streaming server.
type streams struct{ r *Runtime }

// Exec implements streaming.Runtime.
func (s *streams) Exec(ctx context.Context, containerID string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, sizes <-chan remotecommand.TerminalSize) error {
	c, err := s.r.container(containerID)
	if err != nil {
		return err
	}
	code, err := s.r.exec(ctx, c, cmd, in, writer(out), writer(errOut), tty, sizes)
	if err != nil {
		return err
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return nil
}

// Attach implements streaming.Runtime.
func (s *streams) Attach(ctx context.Context, containerID string, in io.Reader, out, errOut io.WriteCloser, tty bool, sizes <-chan remotecommand.TerminalSize) error {
	c, err := s.r.container(containerID)
	if err != nil {
		return err
	}
	if _, err := c.running(); err != nil {
		return err
	}
	if c.streams.tty {
		go follow(c.streams.stdin, sizes)
	}
	return c.streams.attach(in, writer(out), writer(errOut), ctx.Done())
}

// writer keeps a missing stream a nil interface.
func writer(w io.WriteCloser) io.Writer {
	if w == nil {
		return nil
	}
	return w
}

// PortForward implements streaming.Runtime: it connects the stream to a port of
// the Pod's loopback.
func (s *streams) PortForward(ctx context.Context, sandboxID string, port int32, stream io.ReadWriteCloser) error {
	sandbox, err := s.r.sandbox(sandboxID)
	if err != nil {
		return err
	}
	defer stream.Close()
	conn, err := sandbox.dial(ctx, port)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = io.Copy(conn, stream)
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.CloseWrite()
		}
	}()
	_, err = io.Copy(stream, conn)
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("port %d of Pod %s: %w", port, sandbox.name(), err)
	}
	return nil
}

// dial connects to a port on the Pod's loopback, IPv4 first.
func (s *sandbox) dial(ctx context.Context, port int32) (net.Conn, error) {
	network, err := s.networkNamespace()
	if err != nil {
		return nil, err
	}
	defer network.Close()
	var conn net.Conn
	err = podnet.InNamespace(network, func() error {
		// A socket belongs to the namespace of the thread that makes it: no
		// goroutines of the dialer's own, as for a name with two addresses.
		var errs []error
		for _, host := range []string{"127.0.0.1", "::1"} {
			d := net.Dialer{Timeout: 5 * time.Second}
			c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, fmt.Sprint(port)))
			if err == nil {
				conn = c
				return nil
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return nil, fmt.Errorf("port %d of Pod %s: %w", port, s.name(), err)
	}
	return conn, nil
}

// networkNamespace returns a descriptor of its own, so that the Pod can stop
// meanwhile.
func (s *sandbox) networkNamespace() (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ns == nil {
		return nil, fmt.Errorf("pod %s has stopped", s.name())
	}
	fd, err := unix.FcntlInt(s.ns.network.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), s.ns.network.Name()), nil
}
