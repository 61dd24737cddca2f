package main

import "testing"

func TestServiceName(t *testing.T) {
	for arg, want := range map[string]string{"svc/web": "web", "service/web": "web", "services/web": "web", "web": "web", "pod/web": "", "svc/": "", "svc/a/b": ""} {
		if got, err := serviceName(arg); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", arg, got, err)
		}
	}
}
