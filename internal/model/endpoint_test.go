package model

import (
	"encoding/json"
	"fmt"
	"testing"
	"unsafe"
)

func TestEndpointSize(t *testing.T) {
	// 100,000 endpoints are held at a time; each 8 bytes more are 0.8 MB.
	if got, limit := unsafe.Sizeof(Endpoint{}), uintptr(104); got > limit {
		t.Errorf("Endpoint has %d bytes, limit %d", got, limit)
	}
}

func TestSecretIsRedacted(t *testing.T) {
	c := Certificate{Key: Key{"ns", "n"}, PrivateKey: Secret("hunter2")}
	j, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprint(c), fmt.Sprintf("%+v", c), fmt.Sprintf("%#v", c.PrivateKey), c.PrivateKey.String(), string(j)} {
		if contains(s, "hunter2") || contains(s, fmt.Sprint([]byte("hunter2"))) {
			t.Errorf("secret shows in %q", s)
		}
	}
}

func contains(s, sub string) bool {
	for i := 0; i+len(sub) <= len(s); i++ {
		if s[i:i+len(sub)] == sub {
			return true
		}
	}
	return false
}
