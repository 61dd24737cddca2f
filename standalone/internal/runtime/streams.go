package runtime

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// containerStreams connect a container's stdin, stdout and stderr with its log
// and with those who attach.
type containerStreams struct {
	log    *logFile
	stdin  *os.File // our ends; of a terminal stdin and stdout are its master
	stdout *os.File
	stderr *os.File
	tty    bool
	once   bool // the first who attaches ends stdin when leaving

	pumps     sync.WaitGroup
	closeOnce sync.Once

	mu       sync.Mutex
	ended    bool
	attached map[*attachment]bool
}

// newContainerStreams makes pipes and returns the container's ends of them,
// none for a terminal.
func newContainerStreams(config *runtimeapi.ContainerConfig, log *logFile) (*containerStreams, []*os.File, error) {
	s := &containerStreams{log: log, tty: config.GetTty(), once: config.GetStdinOnce(), attached: map[*attachment]bool{}}
	if s.tty {
		return s, nil, nil
	}
	ours, theirs, err := stdioPipes(config.GetStdin())
	if err != nil {
		return nil, nil, err
	}
	s.stdin, s.stdout, s.stderr = ours[0], ours[1], ours[2]
	return s, theirs, nil
}

// stdioPipes makes the two ends of stdin, stdout and stderr. Without stdin ours
// is nil, theirs empty.
func stdioPipes(stdin bool) (ours, theirs []*os.File, err error) {
	ours, theirs = make([]*os.File, 3), make([]*os.File, 3)
	if stdin {
		theirs[0], ours[0], err = os.Pipe()
	} else {
		theirs[0], err = os.Open(os.DevNull)
	}
	for i := 1; i < 3 && err == nil; i++ {
		ours[i], theirs[i], err = os.Pipe()
	}
	if err != nil {
		closeFiles(append(ours, theirs...)...)
		return nil, nil, err
	}
	for _, f := range theirs {
		f.Fd() // makes it blocking, as programs expect
	}
	return ours, theirs, nil
}

// begin starts to read what the container writes.
func (s *containerStreams) begin(terminal *os.File) {
	if s.tty {
		terminal = pollable(terminal)
		s.stdin, s.stdout = terminal, terminal
	}
	s.pump("stdout", s.stdout)
	if s.stderr != nil {
		s.pump("stderr", s.stderr)
	}
}

// pollable makes the descriptor of a terminal one whose Close ends its reads.
func pollable(f *os.File) *os.File {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil || unix.SetNonblock(fd, true) != nil {
		return f
	}
	return os.NewFile(uintptr(fd), f.Name())
}

func (s *containerStreams) pump(name string, from *os.File) {
	s.pumps.Go(func() {
		tee := io.TeeReader(from, writerFunc(func(p []byte) (int, error) {
			s.deliver(name, p)
			return len(p), nil
		}))
		// The end of the stream ends the copy, whatever happened to the log.
		_ = s.log.copyFrom(name, tee)
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// drain waits for the rest of the output of a container whose processes are
// gone, then closes everything. Descriptors that the container passed to
// others could keep a pipe open: patience has an end.
func (s *containerStreams) drain() {
	done := make(chan struct{})
	go func() {
		s.pumps.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(2 * time.Second):
	}
	s.close()
}

func (s *containerStreams) close() {
	s.closeOnce.Do(func() {
		closeFiles(s.stdin, s.stdout, s.stderr)
		s.pumps.Wait()
		_ = s.log.close()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ended = true
		for a := range s.attached {
			a.end()
		}
		clear(s.attached)
	})
}

// attachment is somebody who sees a container's output.
type attachment struct {
	stdout, stderr io.Writer
	chunks         chan chunk
	once           sync.Once
	ended          chan struct{}
}

type chunk struct {
	to   io.Writer
	data []byte
}

// stalled is how long an attached client may take no output before it is left
// behind: it must not stop the container for good.
const stalled = 10 * time.Second

func (a *attachment) end() { a.once.Do(func() { close(a.ended) }) }

// deliver passes output to all who are attached.
func (s *containerStreams) deliver(name string, data []byte) {
	s.mu.Lock()
	var list []*attachment
	for a := range s.attached {
		list = append(list, a)
	}
	s.mu.Unlock()
	for _, a := range list {
		to := a.stdout
		if name == "stderr" {
			to = a.stderr
		}
		if to == nil {
			continue
		}
		c := chunk{to: to, data: append([]byte(nil), data...)}
		select {
		case a.chunks <- c:
			continue
		default:
		}
		select {
		case a.chunks <- c:
		case <-a.ended:
		case <-time.After(stalled):
			a.end()
		}
	}
}

// attach shows the container's output to the writers and feeds it from the
// reader, until the container or the client ends.
func (s *containerStreams) attach(stdin io.Reader, stdout, stderr io.Writer, gone <-chan struct{}) error {
	a := &attachment{stdout: stdout, stderr: stderr, chunks: make(chan chunk, 64), ended: make(chan struct{})}
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return errInitGone
	}
	s.attached[a] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.attached, a)
		a.end()
	}()
	if stdin != nil && s.stdin != nil {
		go s.feed(stdin)
	}
	for {
		select {
		case c := <-a.chunks:
			if _, err := c.to.Write(c.data); err != nil {
				return nil // the client left
			}
		case <-gone:
			return nil
		case <-a.ended:
			return a.rest()
		}
	}
}

// rest writes what came before the end.
func (a *attachment) rest() error {
	for {
		select {
		case c := <-a.chunks:
			if _, err := c.to.Write(c.data); err != nil {
				return nil
			}
		default:
			return nil
		}
	}
}

func (s *containerStreams) feed(stdin io.Reader) {
	_, err := io.Copy(s.stdin, stdin)
	if s.once && !s.tty && !errors.Is(err, os.ErrClosed) {
		s.stdin.Close()
	}
}

// resize sets the size of a terminal.
func resize(terminal *os.File, width, height uint16) error {
	raw, err := terminal.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
	})
	return errors.Join(err, failed)
}
