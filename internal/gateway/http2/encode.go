package http2

import (
	"strconv"

	"golang.org/x/net/http2/hpack"
)

// Header blocks of answers are encoded by HPACK's static table alone, as nginx
// and HAProxy do: a table of the connection's own would have to keep its
// fields, and streams would wait for each other to find what is in it.

// staticNames are the entries of the static table (RFC 7541, A) whose names
// occur in answers.
var staticNames = map[string]byte{
	"accept-ranges": 18, "access-control-allow-origin": 20, "age": 21, "allow": 22, "cache-control": 24,
	"content-disposition": 25, "content-encoding": 26, "content-language": 27, "content-length": 28,
	"content-location": 29, "content-range": 30, "content-type": 31, "date": 33, "etag": 34, "expires": 36,
	"last-modified": 44, "link": 45, "location": 46, "proxy-authenticate": 48, "refresh": 52, "retry-after": 53,
	"server": 54, "set-cookie": 55, "strict-transport-security": 56, "transfer-encoding": 57, "vary": 59, "via": 60,
	"www-authenticate": 61,
}

const statusName = 8

func appendStatus(out []byte, status int) []byte {
	switch status {
	case 200:
		return append(out, 0x80|8)
	case 204:
		return append(out, 0x80|9)
	case 206:
		return append(out, 0x80|10)
	case 304:
		return append(out, 0x80|11)
	case 400:
		return append(out, 0x80|12)
	case 404:
		return append(out, 0x80|13)
	case 500:
		return append(out, 0x80|14)
	}
	out = append(out, statusName, 3)
	return strconv.AppendInt(out, int64(status), 10)
}

// appendField appends a field as a literal that enters no table; its name may
// have capitals.
func appendField(out []byte, name, value string) []byte {
	var space [64]byte
	lower := space[:0]
	for i := range len(name) {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		lower = append(lower, c)
	}
	if i := staticNames[string(lower)]; i > 0 {
		out = appendInt(out, 0, 4, uint64(i))
	} else {
		out = append(out, 0)
		out = appendInt(out, 0, 7, uint64(len(lower)))
		out = append(out, lower...)
	}
	if n := hpack.HuffmanEncodeLength(value); n < uint64(len(value)) {
		return hpack.AppendHuffmanString(appendInt(out, 0x80, 7, n), value)
	}
	return append(appendInt(out, 0, 7, uint64(len(value))), value...)
}

// appendInt appends an integer with a prefix of n bits (RFC 7541, 5.1).
func appendInt(out []byte, first byte, n uint, v uint64) []byte {
	most := uint64(1)<<n - 1
	if v < most {
		return append(out, first|byte(v))
	}
	out = append(out, first|byte(most))
	for v -= most; v >= 0x80; v >>= 7 {
		out = append(out, byte(v)|0x80)
	}
	return append(out, byte(v))
}
