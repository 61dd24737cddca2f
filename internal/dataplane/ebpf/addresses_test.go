package ebpf

import (
	"fmt"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"

	"fairway.dev/fairway/internal/testenv"
)

// TestAddressesWhileTheyChange checks that the node's addresses can be listed
// while they change, as they do when many Pods start: the kernel then says that a
// list may not be whole, which must not keep the data path from starting.
func TestAddressesWhileTheyChange(t *testing.T) {
	ns := testenv.NewLab(t).Netns("node")
	for i := range 1500 { // more than one answer has room for
		ns.Address("lo", fmt.Sprintf("192.0.%d.%d/32", i/250, i%250))
	}
	h, err := netlinkAt(int(ns.Handle))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	other, err := netlinkAt(int(ns.Handle))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	lo, err := other.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var changes sync.WaitGroup
	changes.Go(func() {
		a, _ := netlink.ParseAddr("198.51.100.1/32")
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := other.AddrAdd(lo, a); err != nil {
				t.Error(err)
				return
			}
			if err := other.AddrDel(lo, a); err != nil {
				t.Error(err)
				return
			}
		}
	})
	failed := 0
	for range 30 {
		list, err := listAddresses(h)
		if err != nil {
			failed++
			t.Log(err)
			continue
		}
		if len(list) < 1500 {
			t.Errorf("%d addresses", len(list))
		}
	}
	close(stop)
	changes.Wait()
	if failed > 0 {
		t.Errorf("%d of 30 lists failed", failed)
	}
}
