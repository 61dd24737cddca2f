package certs

import (
	"encoding/asn1"
	"encoding/hex"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

type nameValue struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

type nameValueSET []nameValue

// attributeNames are the short names of OpenSSL.
var attributeNames = map[string]string{
	"2.5.4.3": "CN", "2.5.4.4": "SN", "2.5.4.5": "serialNumber", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST", "2.5.4.9": "street",
	"2.5.4.10": "O", "2.5.4.11": "OU", "2.5.4.12": "title", "2.5.4.13": "description", "2.5.4.15": "businessCategory", "2.5.4.17": "postalCode",
	"2.5.4.41": "name", "2.5.4.42": "GN", "2.5.4.43": "initials", "2.5.4.44": "generationQualifier", "2.5.4.46": "dnQualifier",
	"2.5.4.65": "pseudonym", "2.5.4.97": "organizationIdentifier", "1.2.840.113549.1.9.1": "emailAddress",
	"0.9.2342.19200300.100.1.1": "UID", "0.9.2342.19200300.100.1.25": "DC",
}

// dn writes a name as OpenSSL does by RFC 2253, and so nginx: the last element
// first, all that is not plain ASCII escaped. What comes of it has no line break
// and no control character, whatever the name holds.
func dn(raw []byte) string {
	var sets []nameValueSET
	if _, err := asn1.Unmarshal(raw, &sets); err != nil {
		return "#" + hex.EncodeToString(raw)
	}
	var b strings.Builder
	for i := len(sets) - 1; i >= 0; i-- {
		for j := len(sets[i]) - 1; j >= 0; j-- {
			switch {
			case j < len(sets[i])-1:
				b.WriteByte('+')
			case b.Len() > 0:
				b.WriteByte(',')
			}
			v := &sets[i][j]
			name, known := attributeNames[v.Type.String()]
			if !known {
				name = v.Type.String()
			}
			b.WriteString(name)
			b.WriteByte('=')
			if text, ok := nameText(&v.Value); ok && known {
				escapeName(&b, text)
			} else {
				b.WriteByte('#')
				b.WriteString(strings.ToUpper(hex.EncodeToString(v.Value.FullBytes)))
			}
		}
	}
	return b.String()
}

// commonNames returns all common names that stand in a name.
func commonNames(raw []byte) []string {
	var sets []nameValueSET
	if _, err := asn1.Unmarshal(raw, &sets); err != nil {
		return nil
	}
	var out []string
	for _, set := range sets {
		for i := range set {
			if set[i].Type.String() != "2.5.4.3" {
				continue
			}
			text, _ := nameText(&set[i].Value)
			out = append(out, text)
		}
	}
	return out
}

// nameText returns a string of ASN.1 in UTF-8.
func nameText(v *asn1.RawValue) (string, bool) {
	if v.Class != asn1.ClassUniversal || v.IsCompound {
		return "", false
	}
	switch v.Tag {
	case asn1.TagUTF8String, asn1.TagPrintableString, asn1.TagIA5String, asn1.TagNumericString, 26: // VisibleString
		return string(v.Bytes), true
	case asn1.TagT61String: // taken for Latin-1, as everybody does
		runes := make([]rune, len(v.Bytes))
		for i, c := range v.Bytes {
			runes[i] = rune(c)
		}
		return string(runes), true
	case asn1.TagBMPString:
		if len(v.Bytes)%2 != 0 {
			return "", false
		}
		units := make([]uint16, len(v.Bytes)/2)
		for i := range units {
			units[i] = uint16(v.Bytes[2*i])<<8 | uint16(v.Bytes[2*i+1])
		}
		return string(utf16.Decode(units)), true
	case 28: // UniversalString
		if len(v.Bytes)%4 != 0 {
			return "", false
		}
		var out []byte
		for i := 0; i < len(v.Bytes); i += 4 {
			out = utf8.AppendRune(out, rune(v.Bytes[i])<<24|rune(v.Bytes[i+1])<<16|rune(v.Bytes[i+2])<<8|rune(v.Bytes[i+3]))
		}
		return string(out), true
	}
	return "", false
}

func escapeName(b *strings.Builder, s string) {
	for i := range len(s) {
		c := s[i]
		switch {
		case c < ' ' || c >= 0x7f:
			const digits = "0123456789ABCDEF"
			b.WriteByte('\\')
			b.WriteByte(digits[c>>4])
			b.WriteByte(digits[c&15])
			continue
		case strings.IndexByte(`,+"\<>;`, c) >= 0, i == 0 && (c == '#' || c == ' '), i == len(s)-1 && c == ' ':
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
}
