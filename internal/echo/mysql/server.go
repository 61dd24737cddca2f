package mysql

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"
)

// Server answers MySQL clients. The zero value serves without TLS.
type Server struct {
	// Hostname is the answer to SELECT @@hostname.
	Hostname string
	// TLS lets clients upgrade the connection; nil does not offer it.
	TLS *tls.Config

	lastID atomic.Uint32
}

// version is what the greeting says. Clients choose features by the leading
// number only.
const version = "8.0.40-fairway-echo"

// Capability flags of the handshake.
const (
	clientLongPassword     = 1 << 0
	clientFoundRows        = 1 << 1
	clientLongFlag         = 1 << 2
	clientConnectWithDB    = 1 << 3
	clientProtocol41       = 1 << 9
	clientSSL              = 1 << 11
	clientTransactions     = 1 << 13
	clientSecureConnection = 1 << 15
	clientPluginAuth       = 1 << 19
	clientConnectAttrs     = 1 << 20
	clientPluginAuthLenEnc = 1 << 21

	serverCapabilities = clientLongPassword | clientFoundRows | clientLongFlag | clientConnectWithDB |
		clientProtocol41 | clientTransactions | clientSecureConnection | clientPluginAuth |
		clientConnectAttrs | clientPluginAuthLenEnc
)

// Other numbers of the protocol.
const (
	charsetUTF8MB4   = 45
	statusAutocommit = 2
	nativePassword   = "mysql_native_password"
	// sslRequestLen is the length of a handshake response that stops after the
	// fixed part, which asks for TLS.
	sslRequestLen = 32
	// maxPacket is more than any question that this server understands.
	maxPacket = 1 << 20
	// loginTimeout is MySQL's connect_timeout.
	loginTimeout = 10 * time.Second
)

// Commands of a client after its login.
const (
	comQuit            = 0x01
	comInitDB          = 0x02
	comQuery           = 0x03
	comFieldList       = 0x04
	comStatistics      = 0x09
	comPing            = 0x0e
	comSetOption       = 0x1b
	comResetConnection = 0x1f
)

// errTooLong ends a connection that sends more than maxPacket at once.
var errTooLong = errors.New("packet is too long")

// session is one connection after or during its login.
type session struct {
	server *Server
	conn   net.Conn
	r      *bufio.Reader
	// seq numbers the packets of one exchange, of both sides.
	seq  byte
	id   uint32
	tls  *tls.ConnectionState
	user string
	db   string
	// caps are the flags that both sides have.
	caps uint32
}

// Serve talks with one client until it quits or the connection ends. It does
// not close c.
func (s *Server) Serve(c net.Conn) error {
	ss := &session{server: s, conn: c, r: bufio.NewReader(c), id: s.lastID.Add(1)}
	if err := c.SetDeadline(time.Now().Add(loginTimeout)); err != nil {
		return err
	}
	if err := ss.login(); err != nil {
		return fmt.Errorf("login: %w", err)
	}
	if err := ss.conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	for {
		ss.seq = 0
		p, err := ss.read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(p) == 0 || p[0] == comQuit {
			return nil
		}
		if err := ss.command(p[0], p[1:]); err != nil {
			return err
		}
	}
}

func (ss *session) command(command byte, arg []byte) error {
	switch command {
	case comPing, comResetConnection:
		return ss.ok()
	case comInitDB:
		ss.db = string(arg)
		return ss.ok()
	case comSetOption, comFieldList:
		return ss.eof()
	case comStatistics:
		return ss.write([]byte("Uptime: 1  Threads: 1  Questions: 1"))
	case comQuery:
		return ss.query(string(arg))
	}
	return ss.fail(1047, "08S01", fmt.Sprintf("this server does not know command 0x%02x; it answers queries and pings", command))
}

func (ss *session) login() error {
	salt, err := newSalt()
	if err != nil {
		return err
	}
	if err := ss.write(ss.greeting(salt)); err != nil {
		return err
	}
	p, err := ss.read()
	if err != nil {
		return err
	}
	if len(p) == sslRequestLen && binary.LittleEndian.Uint32(p)&clientSSL != 0 {
		if p, err = ss.startTLS(); err != nil {
			return err
		}
	}
	plugin, err := ss.parseResponse(p)
	if err != nil {
		_ = ss.fail(1043, "08S01", err.Error())
		return err
	}
	if plugin != "" && plugin != nativePassword {
		if err := ss.switchPlugin(salt); err != nil {
			return err
		}
	}
	return ss.ok()
}

// newSalt makes the 20 bytes of challenge, of which none may be zero.
func newSalt() ([]byte, error) {
	salt := make([]byte, 20)
	if _, err := rand.Read(salt); err != nil {
		return nil, err
	}
	for i := range salt {
		salt[i] = salt[i]&0x7f | 1
	}
	return salt, nil
}

// greeting is a HandshakeV10 packet.
func (ss *session) greeting(salt []byte) []byte {
	caps := uint32(serverCapabilities)
	if ss.server.TLS != nil {
		caps |= clientSSL
	}
	ss.caps = caps
	b := append([]byte{10}, version...)
	b = append(b, 0)
	b = binary.LittleEndian.AppendUint32(b, ss.id)
	b = append(append(b, salt[:8]...), 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(caps))
	b = append(b, charsetUTF8MB4)
	b = binary.LittleEndian.AppendUint16(b, statusAutocommit)
	b = binary.LittleEndian.AppendUint16(b, uint16(caps>>16))
	b = append(b, byte(len(salt)+1))
	b = append(b, make([]byte, 10)...)
	b = append(append(b, salt[8:]...), 0)
	return append(append(b, nativePassword...), 0)
}

// startTLS upgrades the connection and reads the real handshake response.
func (ss *session) startTLS() ([]byte, error) {
	if ss.server.TLS == nil {
		return nil, errors.New("client asks for TLS, which was not offered")
	}
	// The client's hello may already be in the buffer.
	tc := tls.Server(bufferedConn{ss.conn, ss.r}, ss.server.TLS)
	if err := tc.Handshake(); err != nil {
		return nil, err
	}
	state := tc.ConnectionState()
	ss.conn, ss.r, ss.tls = tc, bufio.NewReader(tc), &state
	return ss.read()
}

// bufferedConn reads through a buffer that was filled before.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

// Read implements net.Conn.
func (c bufferedConn) Read(b []byte) (int, error) { return c.r.Read(b) }

// parseResponse reads a HandshakeResponse41 and returns the name of the
// client's authentication plugin, or "" where it does not say.
func (ss *session) parseResponse(p []byte) (plugin string, err error) {
	if len(p) < sslRequestLen {
		return "", errors.New("handshake response is too short")
	}
	client := binary.LittleEndian.Uint32(p)
	if client&clientProtocol41 == 0 {
		return "", errors.New("client is older than MySQL 4.1")
	}
	ss.caps &= client
	rest := p[sslRequestLen:]
	bad := errors.New("handshake response is malformed")
	user, rest, ok := bytes.Cut(rest, []byte{0})
	if !ok {
		return "", bad
	}
	ss.user = string(user)
	if rest, ok = skipAuth(rest, client); !ok {
		return "", bad
	}
	if client&clientConnectWithDB != 0 {
		db, after, _ := bytes.Cut(rest, []byte{0})
		ss.db, rest = string(db), after
	}
	if client&clientPluginAuth != 0 {
		name, _, _ := bytes.Cut(rest, []byte{0})
		plugin = string(name)
	}
	return plugin, nil
}

// skipAuth passes over the client's answer to the challenge: any will do.
func skipAuth(b []byte, client uint32) (rest []byte, ok bool) {
	switch {
	case client&(clientPluginAuthLenEnc|clientSecureConnection) == 0:
		_, rest, ok = bytes.Cut(b, []byte{0})
		return rest, ok
	case len(b) == 0 || b[0] > 250 || len(b) < 1+int(b[0]):
		// An answer that needs a longer length than one byte is none that a
		// plugin of today makes.
		return nil, false
	}
	return b[1+int(b[0]):], true
}

// switchPlugin asks for the answer of the plugin that every client has, and
// accepts it whatever it is.
func (ss *session) switchPlugin(salt []byte) error {
	b := append([]byte{0xfe}, nativePassword...)
	b = append(append(append(b, 0), salt...), 0)
	if err := ss.write(b); err != nil {
		return err
	}
	_, err := ss.read()
	return err
}

// read returns one packet. Packets of 16 MiB and more come in parts, which
// maxPacket rules out.
func (ss *session) read() ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(ss.r, head[:]); err != nil {
		return nil, err
	}
	n := int(head[0]) | int(head[1])<<8 | int(head[2])<<16
	if n > maxPacket {
		return nil, errTooLong
	}
	ss.seq = head[3] + 1
	p := make([]byte, n)
	_, err := io.ReadFull(ss.r, p)
	return p, err
}

// write sends packets, in one write.
func (ss *session) write(packets ...[]byte) error {
	var b []byte
	for _, p := range packets {
		n := len(p)
		b = append(b, byte(n), byte(n>>8), byte(n>>16), ss.seq)
		b = append(b, p...)
		ss.seq++
	}
	_, err := ss.conn.Write(b)
	return err
}

func (ss *session) ok() error {
	return ss.write([]byte{0, 0, 0, statusAutocommit, 0, 0, 0})
}

func eofPacket() []byte { return []byte{0xfe, 0, 0, statusAutocommit, 0} }

func (ss *session) eof() error { return ss.write(eofPacket()) }

func (ss *session) fail(code uint16, state, message string) error {
	b := binary.LittleEndian.AppendUint16([]byte{0xff}, code)
	return ss.write(append(append(append(b, '#'), state...), message...))
}

// result sends one row, or none when row is nil.
func (ss *session) result(columns []string, row []value) error {
	packets := [][]byte{appendLength(nil, len(columns))}
	for i, name := range columns {
		number := row != nil && row[i].number
		packets = append(packets, column(name, number))
	}
	packets = append(packets, eofPacket())
	if row != nil {
		var b []byte
		for _, v := range row {
			if v.null {
				b = append(b, 0xfb)
				continue
			}
			b = appendString(b, v.text)
		}
		packets = append(packets, b)
	}
	return ss.write(append(packets, eofPacket())...)
}

// column is a ColumnDefinition41 packet.
func column(name string, number bool) []byte {
	const typeLongLong, typeVarString, notNull, binaryFlag, charsetBinary = 0x08, 0xfd, 1, 128, 63
	b := appendString(nil, "def")
	for range 3 { // schema, table, original table
		b = appendString(b, "")
	}
	b = appendString(appendString(b, name), "")
	b = append(b, 0x0c)
	charset, kind, flags := uint16(charsetUTF8MB4), byte(typeVarString), uint16(0)
	if number {
		charset, kind, flags = charsetBinary, typeLongLong, notNull|binaryFlag
	}
	b = binary.LittleEndian.AppendUint16(b, charset)
	b = binary.LittleEndian.AppendUint32(b, 1024)
	b = append(b, kind)
	b = binary.LittleEndian.AppendUint16(b, flags)
	return append(b, 0, 0, 0)
}

// appendLength appends a length-encoded integer.
func appendLength(b []byte, n int) []byte {
	switch {
	case n < 251:
		return append(b, byte(n))
	case n < 1<<16:
		return binary.LittleEndian.AppendUint16(append(b, 0xfc), uint16(n))
	}
	return append(b, 0xfd, byte(n), byte(n>>8), byte(n>>16))
}

func appendString(b []byte, s string) []byte { return append(appendLength(b, len(s)), s...) }

// clientHost is the address of the client, as in CURRENT_USER().
func (ss *session) clientHost() string {
	host, _, err := net.SplitHostPort(ss.conn.RemoteAddr().String())
	if err != nil {
		return ss.conn.RemoteAddr().String()
	}
	return strings.TrimPrefix(host, "::ffff:")
}
