package h2client

import (
	"encoding/binary"
	"fmt"
)

// frameHeader is the length of a frame's header (RFC 9113, 4.1).
const frameHeader = 9

// maxFrame is the largest frame that is sent and taken: what every peer takes.
const maxFrame = 16 << 10

// kind is a frame's type (RFC 9113, 6).
type kind uint8

const (
	dataFrame         kind = 0x0
	headersFrame      kind = 0x1
	priorityFrame     kind = 0x2
	resetFrame        kind = 0x3
	settingsFrame     kind = 0x4
	pushFrame         kind = 0x5
	pingFrame         kind = 0x6
	goAwayFrame       kind = 0x7
	windowFrame       kind = 0x8
	continuationFrame kind = 0x9
)

// Flags of frames. ACK has END_STREAM's value.
const (
	flagEndStream  = 0x1
	flagAck        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// Settings (RFC 9113, 6.5.2).
const (
	settingTableSize     = 0x1
	settingPush          = 0x2
	settingMaxStreams    = 0x3
	settingInitialWindow = 0x4
	settingMaxFrame      = 0x5
	settingMaxHeaderList = 0x6
)

// Code says why a stream or connection is ended (RFC 9113, 7).
type Code uint32

// Codes that this package sends or looks at.
const (
	CodeNo              Code = 0x0
	CodeProtocol        Code = 0x1
	CodeInternal        Code = 0x2
	CodeFlowControl     Code = 0x3
	CodeStreamClosed    Code = 0x5
	CodeFrameSize       Code = 0x6
	CodeRefused         Code = 0x7
	CodeCancel          Code = 0x8
	CodeCompression     Code = 0x9
	CodeEnhanceYourCalm Code = 0xb
)

var codeNames = [...]string{
	"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM",
	"CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
}

// String returns the code's name in the RFC.
func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("code %d", uint32(c))
}

func appendFrame(out []byte, length int, k kind, flags byte, stream uint32) []byte {
	return append(out, byte(length>>16), byte(length>>8), byte(length), byte(k), flags, byte(stream>>24), byte(stream>>16), byte(stream>>8), byte(stream))
}

func appendWindow(out []byte, stream uint32, more int) []byte {
	return binary.BigEndian.AppendUint32(appendFrame(out, 4, windowFrame, 0, stream), uint32(more))
}

func appendReset(out []byte, stream uint32, c Code) []byte {
	return binary.BigEndian.AppendUint32(appendFrame(out, 4, resetFrame, 0, stream), uint32(c))
}

func appendGoAway(out []byte, c Code) []byte {
	out = appendFrame(out, 8, goAwayFrame, 0, 0)
	out = append(out, 0, 0, 0, 0) // the backend opens no streams
	return binary.BigEndian.AppendUint32(out, uint32(c))
}

func appendSetting(out []byte, id uint16, value uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(out, id), value)
}
