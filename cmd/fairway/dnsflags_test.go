package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"fairway.dev/fairway/internal/agent"
)

// What fairway up is told of DNS the node role is told as well, word for word, and
// understands it the same way. What the role would end for is refused at once.
func TestDNSFlagsAreHandedOn(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("Corefile", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		given string
		want  []string // nil where it is refused
		error string
	}{
		{"", []string{}, ""},
		{"--http-port=1 --dns-autopath --dns-notrack", []string{"--dns-autopath=true", "--dns-notrack=true"}, ""},
		{"--dns-upstream=192.0.2.1,tls://192.0.2.2#a.example --dns-upstream=192.0.2.3", []string{"--dns-upstream=192.0.2.1", "--dns-upstream=tls://192.0.2.2#a.example", "--dns-upstream=192.0.2.3"}, ""},
		{"--dns-stub=a.example=192.0.2.1,192.0.2.2 --dns-stub=b.example=192.0.2.3", []string{"--dns-stub=a.example=192.0.2.1,192.0.2.2", "--dns-stub=b.example=192.0.2.3"}, ""},
		{"--dns-log=1% --dns-ttl=30s --dns-policy=random --dns-client-rate=9 --dns-clients=192.0.2.0/24",
			[]string{"--dns-client-rate=9", "--dns-clients=192.0.2.0/24", "--dns-log=1%", "--dns-policy=random", "--dns-ttl=30s"}, ""},
		{"--dns-corefile=Corefile", []string{"--dns-corefile=" + filepath.Join(here, "Corefile")}, ""},
		{"--dns-corefile=gone", nil, "--dns-corefile: "},
		{"--dns-upstream=dns.example", nil, "--dns-upstream: "},
		{"--dns-stub=192.0.2.1", nil, "--dns-stub: "},
		{"--dns-ttl=10ms", nil, "--dns-ttl 10ms"},
		{"--dns-log=some", nil, "--dns-log: "},
		{"--dns-policy=first", nil, `--dns-policy "first"`},
		{"--dns-client-rate=-1", nil, "--dns-client-rate -1"},
		{"--dns-clients=everybody", nil, "--dns-clients "},
	} {
		parse := func(args []string) ([]string, error) {
			f := pflag.NewFlagSet("up", pflag.ContinueOnError)
			var o agent.NodeOptions
			var clients []string
			f.Int("http-port", 80, "")
			dnsFlags(f, &o, &clients)
			if err := f.Parse(args); err != nil {
				t.Fatal(err)
			}
			return givenDNSFlags(f, o, clients)
		}
		got, err := parse(strings.Fields(test.given))
		if test.want == nil {
			if err == nil || !strings.Contains(err.Error(), test.error) {
				t.Errorf("%s: %v, want %q", test.given, err, test.error)
			}
			continue
		}
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, %v, want %q", test.given, got, err, test.want)
			continue
		}
		if again, err := parse(got); err != nil || !slices.Equal(again, got) {
			t.Errorf("%s: the role understands %q, %v", test.given, again, err)
		}
	}
}
