package up

import (
	"os"
	"path/filepath"
	"testing"
)

// TestMain lets the test binary stand in for the executables it supervises: the tests link it under their names.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "fairway":
		os.Exit(fakeFairway(os.Args[1:]))
	case "fairway-standalone":
		os.Exit(fakeStandalone(os.Args[1:]))
	}
	os.Exit(m.Run())
}
