package nft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// toSet is an element as the library wants it.
func (e *addition) toSet() nftables.SetElement {
	out := nftables.SetElement{Key: []byte(e.key), IntervalEnd: e.end}
	switch {
	case !e.set.verdicts():
		out.Val = []byte(e.value)
	case e.value == verdictDrop:
		out.VerdictData = &expr.Verdict{Kind: expr.VerdictDrop}
	case e.set == memories:
		out.VerdictData = &expr.Verdict{Kind: expr.VerdictJump, Chain: e.value}
	default:
		out.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: e.value}
	}
	return out
}

// TestEncodedAsTheLibraryDoes compares messages byte for byte.
func TestEncodedAsTheLibraryDoes(t *testing.T) {
	for i, f := range families(false) {
		for id := setID(0); id < setCount; id++ {
			set := f.set(id)
			set.ID = uint32(id) + 7
			var list []addition
			for n := range messageElements {
				a := addition{element: element{fam: fam(i), set: id, key: string(make([]byte, n%5)) + fmt.Sprint(n)}}
				switch {
				case id.verdicts() && n%3 == 0:
					a.value = verdictDrop
				case id.verdicts():
					a.value = fmt.Sprintf("chain-%d", n)
				case n%4 != 0:
					a.value = string(bytes.Repeat([]byte{byte(n)}, n%9))
				}
				a.end = id.intervals() && n%2 == 0
				list = append(list, a)
			}
			var elements []nftables.SetElement
			for j := range list {
				elements = append(elements, list[j].toSet())
			}
			conn := &nftables.Conn{}
			if err := conn.SetAddElements(set, elements); err != nil {
				t.Fatal(err)
			}
			if want, got := lastMessage(conn).Data, encodeElements(set, list); !bytes.Equal(want, got) {
				t.Errorf("set %s: %d bytes, and the library has %d:\n%x\n%x", id, len(got), len(want), got[:min(len(got), 200)], want[:min(len(want), 200)])
			}
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	set := families(false)[v4].set(endpoints)
	list := make([]addition, messageElements)
	for i := range list {
		list[i] = addition{element: element{set: endpoints, key: "0123456789ab"}, value: "01234567"}
	}
	for b.Loop() {
		encodeElements(set, list)
	}
}

// TestAnswerCutShort checks that an answer which the kernel ends with an error is
// not taken for a whole one.
func TestAnswerCutShort(t *testing.T) {
	for code, want := range map[int32]error{0: nil, -int32(unix.ENOENT): unix.ENOENT, -int32(unix.ENOMEM): unix.ENOMEM} {
		if err := ended(binary.NativeEndian.AppendUint32(nil, uint32(code))); err != want {
			t.Errorf("%d: %v, want %v", code, err, want)
		}
	}
	if err := ended(nil); err != nil {
		t.Error(err)
	}
}
