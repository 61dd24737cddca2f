package runtime

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// maxLine is how much of a line one entry of the log takes, as in other
// runtimes; longer lines become several entries.
const maxLine = 16 << 10

// logFile is a container's log in the format that kubelet reads: per line the
// time, the stream, F for a full or P for a partial line, and the text
// (k8s.io/kubernetes/pkg/kubelet/kuberuntime/logs).
type logFile struct {
	path string // empty: nobody wants it

	mu   sync.Mutex
	file *os.File
}

func openLog(path string) (*logFile, error) {
	l := &logFile{path: path}
	if path == "" {
		return l, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("container log: %w", err)
	}
	return l, l.reopen()
}

// reopen lets go of a file that kubelet has renamed.
func (l *logFile) reopen() error {
	if l.path == "" {
		return nil
	}
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("container log: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.file.Close()
	}
	l.file = f
	return nil
}

func (l *logFile) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

// write adds one entry.
func (l *logFile) write(stream string, text []byte, full bool) error {
	tag := byte('P')
	if full {
		tag = 'F'
	}
	line := make([]byte, 0, len(text)+64)
	line = time.Now().AppendFormat(line, time.RFC3339Nano)
	line = append(line, ' ')
	line = append(line, stream...)
	line = append(line, ' ', tag, ' ')
	line = append(line, text...)
	line = append(line, '\n')
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	_, err := l.file.Write(line)
	return err
}

// copyFrom logs a stream until it ends. It always reads to the end: a full disk
// must not stop the container.
func (l *logFile) copyFrom(stream string, r io.Reader) error {
	reader := bufio.NewReaderSize(r, maxLine)
	var failed error
	for {
		text, err := reader.ReadSlice('\n')
		full := err == nil
		if full {
			text = text[:len(text)-1]
		}
		if full || len(text) > 0 {
			if werr := l.write(stream, text, full); werr != nil && failed == nil {
				failed = fmt.Errorf("container log: %w", werr)
			}
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return failed
		}
	}
}
