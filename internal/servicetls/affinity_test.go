package servicetls

import (
	"net/netip"
	"testing"
	"time"
)

func TestAffinityExpires(t *testing.T) {
	now := time.Unix(1e9, 0)
	a := newAffinity(func() time.Time { return now })
	who := stuck{service: secretKey("web"), port: 443, client: pods[0]}
	to := netip.AddrPortFrom(pods[1], 80)
	if _, ok := a.get(who); ok {
		t.Error("knows a client that never came")
	}
	a.set(who, to, time.Minute)
	now = now.Add(59 * time.Second)
	if got, ok := a.get(who); !ok || got != to {
		t.Errorf("within the timeout: %v, %v", got, ok)
	}
	a.set(who, to, time.Minute)
	now = now.Add(59 * time.Second)
	if _, ok := a.get(who); !ok {
		t.Error("a new connection does not renew it")
	}
	now = now.Add(time.Second)
	if _, ok := a.get(who); ok {
		t.Error("holds beyond its timeout")
	}
	other := who
	other.port = 444
	if _, ok := a.get(other); ok {
		t.Error("holds for another port")
	}
}

func TestAffinityIsBounded(t *testing.T) {
	now := time.Unix(1e9, 0)
	a := newAffinity(func() time.Time { return now })
	client := func(i int) stuck {
		return stuck{client: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}
	}
	for i := range maxStuck {
		a.set(client(i), netip.AddrPort{}, time.Minute)
	}
	now = now.Add(time.Hour)
	a.set(client(maxStuck), netip.AddrPort{}, time.Minute)
	if n := len(a.clients); n != 1 {
		t.Errorf("%d clients, all but one expired", n)
	}
	for i := range 2 * maxStuck {
		a.set(client(i), netip.AddrPort{}, time.Minute)
	}
	if n := len(a.clients); n > maxStuck || n < maxStuck/2 {
		t.Errorf("%d clients, bound %d", n, maxStuck)
	}
}
