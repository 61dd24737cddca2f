package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLeadingDataDir(t *testing.T) {
	t.Setenv(dataDirEnv, "/from/env")
	for _, test := range []struct {
		name string
		args []string
		dir  string
		rest []string
	}{
		{"none", []string{"get", "pods"}, "/from/env", []string{"get", "pods"}},
		{"apart", []string{"--data-dir", "/x", "get", "pods"}, "/x", []string{"get", "pods"}},
		{"joined", []string{"--data-dir=/x", "get"}, "/x", []string{"get"}},
		{"later is kubectl's", []string{"get", "--data-dir=/x"}, "/from/env", []string{"get", "--data-dir=/x"}},
		{"empty", nil, "/from/env", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, rest, err := leadingDataDir(test.args)
			if err != nil || dir != test.dir || !cmp.Equal(rest, test.rest) {
				t.Errorf("%q %q %v, want %q %q", dir, rest, err, test.dir, test.rest)
			}
		})
	}
	if _, _, err := leadingDataDir([]string{"--data-dir"}); err == nil || !strings.Contains(err.Error(), "--data-dir") {
		t.Errorf("without a value: %v", err)
	}
}

func TestKubectlWithoutCluster(t *testing.T) {
	dir := t.TempDir()
	if err := execKubectl(dir, nil); err == nil || !strings.Contains(err.Error(), "no cluster in "+dir) || !strings.Contains(err.Error(), "fairway up") {
		t.Errorf("got %v", err)
	}
}
