package http2

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/net/http2"
)

const (
	frameHeader = 9
	// maxFrame is the largest frame that clients may send: the least that RFC
	// 9113 allows.
	maxFrame = 16 << 10
	// maxWindow is what no window may exceed (RFC 9113, 6.9.1).
	maxWindow = 1<<31 - 1
	// firstWindow is a window before anybody has said anything.
	firstWindow = 65535
)

// frame is a frame whose payload has come.
type frame struct {
	kind    http2.FrameType
	flags   http2.Flags
	stream  uint32
	payload []byte
}

// connError ends a connection.
type connError struct {
	code   http2.ErrCode
	reason string
}

// Error implements error.
func (e *connError) Error() string { return fmt.Sprintf("%v: %s", e.code, e.reason) }

func broken(code http2.ErrCode, format string, args ...any) *connError {
	return &connError{code, fmt.Sprintf(format, args...)}
}

func protocolError(format string, args ...any) *connError {
	return broken(http2.ErrCodeProtocol, format, args...)
}

func appendHeader(out []byte, length int, kind http2.FrameType, flags http2.Flags, stream uint32) []byte {
	return append(out, byte(length>>16), byte(length>>8), byte(length), byte(kind), byte(flags),
		byte(stream>>24), byte(stream>>16), byte(stream>>8), byte(stream))
}

func appendWindowUpdate(out []byte, stream uint32, n int) []byte {
	return binary.BigEndian.AppendUint32(appendHeader(out, 4, http2.FrameWindowUpdate, 0, stream), uint32(n))
}

func appendReset(out []byte, stream uint32, code http2.ErrCode) []byte {
	return binary.BigEndian.AppendUint32(appendHeader(out, 4, http2.FrameRSTStream, 0, stream), uint32(code))
}

func appendGoAway(out []byte, last uint32, code http2.ErrCode, text string) []byte {
	out = appendHeader(out, 8+len(text), http2.FrameGoAway, 0, 0)
	out = binary.BigEndian.AppendUint32(out, last)
	return append(binary.BigEndian.AppendUint32(out, uint32(code)), text...)
}

func appendPing(out []byte, flags http2.Flags, payload []byte) []byte {
	return append(appendHeader(out, 8, http2.FramePing, flags, 0), payload...)
}

func appendSettings(out []byte, list ...http2.Setting) []byte {
	out = appendHeader(out, 6*len(list), http2.FrameSettings, 0, 0)
	for _, s := range list {
		out = binary.BigEndian.AppendUint16(out, uint16(s.ID))
		out = binary.BigEndian.AppendUint32(out, s.Val)
	}
	return out
}

// unpad takes padding off the payload of DATA and HEADERS.
func (f *frame) unpad() bool {
	if !f.flags.Has(http2.FlagDataPadded) { // the same bit in both
		return true
	}
	if len(f.payload) == 0 || int(f.payload[0]) >= len(f.payload) {
		return false
	}
	f.payload = f.payload[1 : len(f.payload)-int(f.payload[0])]
	return true
}
