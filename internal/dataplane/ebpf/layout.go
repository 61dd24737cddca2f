package ebpf

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
)

// The structures of bpf/maps.h; TestLayout compares them. Every byte belongs to
// a field, for the kernel compares keys byte by byte.

// address is an IPv6 address, or an IPv4 one mapped into it.
type address [16]byte

func addressOf(a netip.Addr) address { return a.As16() }

// addr is the inverse of addressOf.
func (a address) addr() netip.Addr { return netip.AddrFrom16(a).Unmap() }

// port is a port in network order.
type port [2]byte

func portOf(n uint16) (p port) {
	binary.BigEndian.PutUint16(p[:], n)
	return p
}

func (p port) number() uint16 { return binary.BigEndian.Uint16(p[:]) }

type frontendKey struct {
	Addr     address
	Port     port
	Protocol uint8
	Zero     uint8
}

// protocolStandby is PROTOCOL_STANDBY of bpf/maps.h.
const protocolStandby = 0x80

// standby is where those stand that serve while the node's own server does not answer.
func (k frontendKey) standby() frontendKey {
	k.Protocol |= protocolStandby
	return k
}

func frontendKeyOf(f *plan.Frontend) frontendKey {
	return frontendKey{Addr: addressOf(f.Addr), Port: portOf(f.Port), Protocol: protocolNumber(f.Protocol)}
}

// compare orders keys by what is written in them.
func (k frontendKey) compare(o frontendKey) int {
	return cmp.Or(bytes.Compare(k.Addr[:], o.Addr[:]), bytes.Compare(k.Port[:], o.Port[:]), cmp.Compare(k.Protocol, o.Protocol))
}

// String names what clients dial, for people. A key without a port stands for
// the address alone, an unspecified address for all of the node's.
func (k frontendKey) String() string {
	addr := k.Addr.addr()
	switch {
	case k.Port == port{}:
		return addr.String()
	case addr.IsUnspecified() && addr.Is4():
		return fmt.Sprintf("NodePort %d (IPv4)", k.Port.number())
	case addr.IsUnspecified():
		return fmt.Sprintf("NodePort %d (IPv6)", k.Port.number())
	}
	return fmt.Sprintf("%s port %d", addr, k.Port.number())
}

func protocolNumber(p model.Protocol) uint8 {
	switch p {
	case model.TCP:
		return unix.IPPROTO_TCP
	case model.UDP:
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_SCTP
}

// The values of enum action.
const (
	actionForward uint8 = iota
	actionRedirect
	actionReject
	actionDrop
)

func actionOf(a plan.Action) uint8 {
	return [...]uint8{plan.Forward: actionForward, plan.Redirect: actionRedirect, plan.Reject: actionReject, plan.Drop: actionDrop}[a]
}

// The values of enum class.
const (
	inside = iota
	outside
)

// pool is a row of backends.
type pool struct {
	Base, Count uint32
}

type frontend struct {
	Pools    [2]pool
	ID       uint32
	Guard    uint32
	Affinity uint32
	Actions  [2]uint8
	Kind     uint8
	Standby  uint8
}

// The bits of frontend.Standby.
const (
	serverStandby = 1 << iota // SERVER_STANDBY
	serverOwn                 // SERVER_OWN
)

const backendLocal = 1

type backend struct {
	Addr  address
	Port  port
	Flags uint8
	Zero  uint8
	Zero4 uint32
}

func backendOf(b plan.Backend) backend {
	out := backend{Addr: addressOf(b.Addr()), Port: portOf(b.Port())}
	if b.Local {
		out.Flags = backendLocal
	}
	return out
}

func (b backend) addrPort() netip.AddrPort { return netip.AddrPortFrom(b.Addr.addr(), b.Port.number()) }

// Flags of addresses and ranges.
const (
	addressNodePorts uint32 = 1 << iota
	addressCluster
	addressNode
	addressFrontend
)

const (
	rangeServices uint32 = 1 << iota
	rangeCluster
	rangeLocalPods
)

type rangeKey struct {
	Prefix uint32
	Addr   address
}

func rangeKeyOf(p netip.Prefix) rangeKey {
	p = p.Masked()
	return rangeKey{Prefix: mappedBits(p), Addr: addressOf(p.Addr())}
}

// mappedBits is the length of a prefix of mapped addresses.
func mappedBits(p netip.Prefix) uint32 {
	if p.Addr().Is4() {
		return uint32(p.Bits()) + 96
	}
	return uint32(p.Bits())
}

type sourceKey struct {
	Prefix uint32
	Guard  uint32
	Addr   address
}

func sourceKeyOf(guard uint32, p netip.Prefix) sourceKey {
	p = p.Masked()
	return sourceKey{Prefix: 32 + mappedBits(p), Guard: guard, Addr: addressOf(p.Addr())}
}

// prefix is the range of a sourceKey.
func (k sourceKey) prefix() netip.Prefix {
	a := k.Addr.addr()
	bits := int(k.Prefix) - 32
	if a.Is4() {
		bits -= 96
	}
	return netip.PrefixFrom(a, bits)
}
