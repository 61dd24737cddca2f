package control

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDataDirSettings(t *testing.T) {
	old := settings{ServiceCIDRs: "10.96.0.0/16,fd00:10:96::/112"}
	tests := []struct {
		name    string
		hasData bool
		file    string // instead of what was written, if not empty
		change  settings
		want    string // in the error; empty for none
	}{
		{name: "same", hasData: true, change: old},
		{name: "changed before there is data", change: settings{ServiceCIDRs: "10.97.0.0/16"}},
		{name: "changed", hasData: true, change: settings{ServiceCIDRs: "10.97.0.0/16"}, want: "--service-cidr 10.96.0.0/16,fd00:10:96::/112"},
		{name: "damaged", hasData: true, file: "{", change: old, want: "control.json is damaged"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d, err := openDataDir(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer d.close()
			if err := d.checkSettings(old); err != nil {
				t.Fatal(err)
			}
			if test.hasData {
				if err := os.MkdirAll(filepath.Join(d.etcd(), "member"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if test.file != "" {
				if err := os.WriteFile(d.join("control.json"), []byte(test.file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err = d.checkSettings(test.change)
			switch {
			case test.want == "" && err != nil:
				t.Errorf("error = %v, want none", err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("error = %v, want one with %q", err, test.want)
			}
		})
	}
}

func TestDataDirLock(t *testing.T) {
	path := t.TempDir()
	first, err := openDataDir(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openDataDir(path); err == nil || !strings.Contains(err.Error(), "in use by another control plane") {
		t.Errorf("second: error = %v, want one that says that it is in use", err)
	}
	first.close()
	again, err := openDataDir(path)
	if err != nil {
		t.Fatalf("after the first was closed: %v", err)
	}
	again.close()
}
