package kubelog

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"k8s.io/klog/v2"
)

func TestSetup(t *testing.T) {
	tests := []struct {
		name      string
		verbosity int
		want      []string
		wantNot   []string
	}{
		{name: "quiet", want: []string{"a warning", "an error", "a structured error"}, wantNot: []string{"an info", "detail", "always so"}},
		{name: "verbose", verbosity: 2, want: []string{"an info", "detail 2", "a warning"}, wantNot: []string{"detail 3", "always so"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			opts := Options{Output: &out, Verbosity: test.verbosity, Drop: []string{"always so"}}
			if err := Setup(opts); err != nil {
				t.Fatal(err)
			}
			klog.Info("an info")
			klog.V(2).Info("detail 2")
			klog.V(3).Info("detail 3")
			klog.Warning("a warning")
			klog.Error("an error")
			klog.ErrorS(errors.New("cause"), "a structured error", "key", "value")
			klog.Warning("this is always so")
			klog.Flush()
			for _, text := range test.want {
				if strings.Count(out.String(), text) != 1 {
					t.Errorf("%q is not once in the log:\n%s", text, out.String())
				}
			}
			for _, text := range test.wantNot {
				if strings.Contains(out.String(), text) {
					t.Errorf("%q is in the log:\n%s", text, out.String())
				}
			}
		})
	}
}

func TestZap(t *testing.T) {
	var out bytes.Buffer
	logger := Zap(Options{Output: &out})
	logger.Warn("slow request")
	logger.Error("disk full")
	if got := out.String(); strings.Contains(got, "slow") || !strings.Contains(got, "disk full") {
		t.Errorf("log = %q, want the error only", got)
	}
}
