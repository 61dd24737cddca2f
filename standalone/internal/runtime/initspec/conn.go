package initspec

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxMessage bounds a message: an environment may be large, as every Service of
// a namespace adds variables, but exec(2) takes no more than a few MiB.
const maxMessage = 16 << 20

// maxFiles is the most file descriptors a message carries.
const maxFiles = 3

// Conn sends and receives messages. One goroutine may receive while others
// send.
type Conn struct {
	file   *os.File
	sendMu sync.Mutex
}

// NewConn takes over a connected Unix stream socket.
func NewConn(file *os.File) *Conn { return &Conn{file: file} }

// Pair makes two connected sockets, both closed on exec: one for the runtime,
// one to hand to init.
func Pair() (local *Conn, remote *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	// Only the runtime's end is non-blocking: Close must wake its reader.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return NewConn(os.NewFile(uintptr(fds[0]), "init")), os.NewFile(uintptr(fds[1]), "runtime"), nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.file.Close() }

// Send sends a message with file descriptors. The caller keeps its files.
func (c *Conn) Send(message any, files ...*os.File) error {
	body, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if len(body) > maxMessage {
		return fmt.Errorf("message of %d bytes is too long", len(body))
	}
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	if err := c.sendHeader(len(body), files); err != nil {
		return err
	}
	_, err = c.file.Write(body)
	return err
}

// sendHeader sends the length of the message; the file descriptors travel with
// it.
func (c *Conn) sendHeader(size int, files []*os.File) error {
	header := binary.BigEndian.AppendUint32(nil, uint32(size))
	if len(files) == 0 {
		_, err := c.file.Write(header)
		return err
	}
	fds := make([]int, len(files))
	for i, f := range files {
		// Through SyscallConn rather than Fd, which would make them blocking.
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
			return err
		}
	}
	raw, err := c.file.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = raw.Write(func(fd uintptr) bool {
		for {
			sendErr = unix.Sendmsg(int(fd), header, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
			if sendErr != unix.EINTR {
				return sendErr != unix.EAGAIN
			}
		}
	})
	return errors.Join(err, sendErr)
}

// Receive waits for the next message and its file descriptors. It returns
// io.EOF once the other side is gone.
func (c *Conn) Receive(message any) ([]*os.File, error) {
	header := make([]byte, 4)
	files, n, err := c.receiveHeader(header)
	if err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(c.file, header[n:]); err != nil {
		closeAll(files)
		return nil, err
	}
	size := binary.BigEndian.Uint32(header)
	if size > maxMessage {
		closeAll(files)
		return nil, fmt.Errorf("message of %d bytes is too long", size)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c.file, body); err != nil {
		closeAll(files)
		return nil, err
	}
	if err := json.Unmarshal(body, message); err != nil {
		closeAll(files)
		return nil, err
	}
	return files, nil
}

func (c *Conn) receiveHeader(header []byte) ([]*os.File, int, error) {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return nil, 0, err
	}
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	var n, oobn int
	var recvErr error
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, oobn, _, _, recvErr = unix.Recvmsg(int(fd), header, oob, unix.MSG_CMSG_CLOEXEC)
			if recvErr != unix.EINTR {
				return recvErr != unix.EAGAIN
			}
		}
	})
	if err := errors.Join(err, recvErr); err != nil {
		return nil, 0, err
	}
	if n == 0 {
		return nil, 0, io.EOF
	}
	var files []*os.File
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, 0, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			closeAll(files)
			return nil, 0, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, n, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
