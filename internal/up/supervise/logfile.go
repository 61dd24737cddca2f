package supervise

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// rotateLog makes room: what path holds goes to path.1, replacing what was there.
func rotateLog(path string) error {
	err := os.Rename(path, path+".1")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// boundLog keeps a file that a child is appending to below limit bytes, by copying it to path.1 and emptying it. The child
// has the file open for appending, so it goes on at the new end; lines written between copying and emptying are lost.
// Unlike a pipe through this process, this cannot block or end the child.
func boundLog(path string, limit int64) error {
	info, err := os.Stat(path)
	if err != nil || info.Size() <= limit {
		return err
	}
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(path+".1", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	// A child may write faster than we look: of a file much too long only the end is kept.
	_, err = from.Seek(max(0, info.Size()-2*limit), io.SeekStart)
	if err == nil {
		_, err = io.Copy(to, from)
	}
	if err := errors.Join(err, to.Close()); err != nil {
		return fmt.Errorf("copying %s: %w", path, err)
	}
	return os.Truncate(path, 0)
}

// Tail returns the last n lines of a file, without the final newline; none when the file is missing.
func Tail(path string, n int) []string {
	lines := tail(path, 0)
	return lines[max(0, len(lines)-n):]
}

// tail returns the last lines of a file, of those after its first bytes. A file that is shorter was emptied in between.
func tail(path string, after int64) []string {
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil
	}
	const most = 64 << 10
	if after > info.Size() {
		after = 0
	}
	start := max(after, info.Size()-most)
	text := make([]byte, info.Size()-start)
	read, err := file.ReadAt(text, start)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	trimmed := strings.TrimRight(string(text[:read]), "\n")
	if trimmed == "" {
		return nil
	}
	return strings.Split(trimmed, "\n")
}
