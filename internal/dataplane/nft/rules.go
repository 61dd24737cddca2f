package nft

import (
	"encoding/binary"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Rules are written for the kernel's register machine: sixteen registers of
// four bytes, numbered from 0 here. A key or value of several fields takes
// registers in a row, each field starting a new one. Registers do not live
// longer than a rule.
//
// What a map yields must not be part of a key again: the kernel can do that,
// but libnftables up to 1.0.6 aborts on it, and with it every program that
// lists any table of the network namespace.

// reg is the kernel's number of register n.
func reg(n uint32) uint32 { return unix.NFT_REG32_00 + n }

// rule joins expressions and lists of them.
func (f *family) rule(parts ...any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		switch p := p.(type) {
		case expr.Any:
			out = append(out, p)
		case []expr.Any:
			out = append(out, p...)
		}
	}
	return out
}

func (f *family) meta(key expr.MetaKey, to uint32) expr.Any {
	return &expr.Meta{Key: key, Register: reg(to)}
}

func (f *family) src(to uint32) expr.Any {
	return &expr.Payload{DestRegister: reg(to), Base: expr.PayloadBaseNetworkHeader, Offset: f.saddr, Len: f.bytes}
}

func (f *family) dst(to uint32) expr.Any {
	return &expr.Payload{DestRegister: reg(to), Base: expr.PayloadBaseNetworkHeader, Offset: f.daddr, Len: f.bytes}
}

// dport loads protocol and destination port.
func (f *family) dport(to uint32) []expr.Any {
	return []expr.Any{
		f.meta(expr.MetaKeyL4PROTO, to),
		&expr.Payload{DestRegister: reg(to + 1), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

// destination loads address . protocol . port as the client wrote them.
func (f *family) destination(to uint32) []expr.Any {
	return f.rule(f.dst(to), f.dport(to+f.words))
}

// nodePort loads the same with the unspecified address.
func (f *family) nodePort(to uint32) []expr.Any {
	return f.rule(f.dst(to), f.unspecify(to), f.dport(to+f.words))
}

// unspecify makes an address the unspecified one. A constant would do, but
// libnftables does not show constants within keys.
func (f *family) unspecify(register uint32) expr.Any {
	zero := make([]byte, f.bytes)
	return &expr.Bitwise{SourceRegister: reg(register), DestRegister: reg(register), Len: f.bytes, Mask: zero, Xor: zero}
}

// originalDestination loads the destination before translation.
func (f *family) originalDestination(to uint32) []expr.Any {
	return f.rule(f.dstOriginal(to), f.dportOriginal(to+f.words))
}

func (f *family) nodePortOriginal(to uint32) []expr.Any {
	return f.rule(f.dstOriginal(to), f.unspecify(to), f.dportOriginal(to+f.words))
}

func (f *family) dstOriginal(to uint32) expr.Any {
	return &expr.Ct{Register: reg(to), Key: expr.CtKeyDST, Direction: directionOriginal}
}

func (f *family) dportOriginal(to uint32) []expr.Any {
	return []expr.Any{
		f.meta(expr.MetaKeyL4PROTO, to),
		&expr.Ct{Register: reg(to + 1), Key: expr.CtKeyPROTODST, Direction: directionOriginal},
	}
}

const (
	// directionOriginal is IP_CT_DIR_ORIGINAL.
	directionOriginal = 0
	// ctDstIP and ctDstIP6 are NFT_CT_DST_IP and NFT_CT_DST_IP6 (kernel 4.17).
	// Unlike NFT_CT_DST their length is known without the family.
	ctDstIP  expr.CtKey = 20
	ctDstIP6 expr.CtKey = 22
)

// lookup reads a map into a register; a missing key ends the rule.
func lookup(set setID, key, to uint32) expr.Any {
	return &expr.Lookup{SourceRegister: reg(key), DestRegister: reg(to), IsDestRegSet: true, SetName: set.String()}
}

// contains ends the rule unless the set has the key.
func contains(set setID, key uint32) expr.Any {
	return &expr.Lookup{SourceRegister: reg(key), SetName: set.String()}
}

// lacks ends the rule if the set has the key.
func lacks(set setID, key uint32) expr.Any {
	return &expr.Lookup{SourceRegister: reg(key), SetName: set.String(), Invert: true}
}

// dispatch follows the verdict that the map has for the key in register 0.
func dispatch(set setID) expr.Any {
	return &expr.Lookup{SourceRegister: reg(0), DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: set.String()}
}

func jump(to string) expr.Any { return &expr.Verdict{Kind: expr.VerdictGoto, Chain: to} }

func verdict(kind expr.VerdictKind) expr.Any { return &expr.Verdict{Kind: kind} }

func (f *family) isTCP() []expr.Any {
	return []expr.Any{f.meta(expr.MetaKeyL4PROTO, 0), equals(0, []byte{unix.IPPROTO_TCP})}
}

func equals(register uint32, data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: reg(register), Data: data}
}

// isLocal matches packets from (or to) an address of this node.
func isLocal(source bool) []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg(0), ResultADDRTYPE: true, FlagSADDR: source, FlagDADDR: !source},
		equals(0, native(unix.RTN_LOCAL)),
	}
}

// toNode matches packets to an address that serves NodePorts.
func (f *family) toNode() []expr.Any {
	return f.rule(f.dst(0), contains(nodePortAddresses, 0), isLocal(false))
}

func native(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

// invalid matches packets that conntrack cannot place: they would pass
// untranslated, and the other side would answer them with a reset
// (kubernetes/kubernetes#74839).
func invalid() []expr.Any {
	return bitSet(expr.CtKeySTATE, expr.CtStateBitINVALID, expr.CmpOpNeq)
}

// notTranslated matches connections whose destination nobody has changed.
func notTranslated() []expr.Any {
	const statusDNAT = 1 << 5 // IPS_DST_NAT
	return bitSet(expr.CtKeySTATUS, statusDNAT, expr.CmpOpEq)
}

func bitSet(key expr.CtKey, bit uint32, versusZero expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: reg(0), Key: key},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: native(bit), Xor: native(0)},
		&expr.Cmp{Op: versusZero, Register: reg(0), Data: native(0)},
	}
}

func masquerade() expr.Any { return &expr.Masq{FullyRandom: true} }

// dnat translates to the address and port in registers.
func (f *family) dnat(from uint32) expr.Any {
	return &expr.NAT{
		Type: expr.NATTypeDestNAT, Family: uint32(f.table.Family),
		RegAddrMin: reg(from), RegProtoMin: reg(from + f.words),
	}
}

// guard drops clients outside the source ranges of a guarded frontend.
func (f *family) guard() []expr.Any {
	return f.rule(f.destination(0), contains(guarded, 0), f.src(f.words+2), lacks(sourceRanges, 0), verdict(expr.VerdictDrop))
}

// picking returns the rules of a picking chain.
func (f *family) picking(p pick) [][]expr.Any {
	frontend, candidates, known := f.destination(0), endpoints, affinity
	if p.nodePort {
		frontend = f.nodePort(0)
	}
	if p.external {
		candidates, known = endpointsExternal, affinityExternal
	}
	next := f.words + 2
	anyone := f.rule(
		frontend, &expr.Numgen{Register: reg(next), Modulus: uint32(p.n), Type: unix.NFT_NG_RANDOM},
		lookup(candidates, 0, 0), f.dnat(0))
	if !p.sticky {
		return [][]expr.Any{anyone}
	}
	again := f.rule(frontend, f.src(next), lookup(known, 0, 0), f.dnat(0))
	return [][]expr.Any{again, anyone}
}

// remembering returns the rules of a chain that remembers the endpoint that a
// connection has got. It runs where the packet has been translated: only there
// can the endpoint be checked, and stored, without reading it from a map. An
// endpoint that left is not remembered again, not even by a packet that was
// under way. If the map is full, nothing is remembered.
func (f *family) remembering(m memory) [][]expr.Any {
	frontend := f.originalDestination(0)
	if m.nodePort {
		frontend = f.nodePortOriginal(0)
	}
	next := f.words + 2
	port := func(to uint32) expr.Any {
		return &expr.Payload{DestRegister: reg(to), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
	}
	remember := func(valid, known setID) []expr.Any {
		value := next + f.words
		return f.rule(
			frontend, f.dst(next), port(value), contains(valid, 0),
			f.src(next), f.dst(value), port(value+f.words),
			&expr.Dynset{
				SrcRegKey: reg(0), SrcRegData: reg(value), SetName: known.String(),
				Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: time.Duration(m.seconds) * time.Second,
			})
	}
	return [][]expr.Any{remember(sticky, affinity), remember(stickyExternal, affinityExternal)}
}
