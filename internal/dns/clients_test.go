package dns

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// lookups are what every resolver has to make of these names with a Pod's resolv.conf.
var lookups = []struct{ name, want string }{
	{"web", "10.96.0.20"},
	{"web", "fd00:96:"},
	{"web.default", "10.96.0.20"},
	{"web.default.svc.cluster.local", "10.96.0.20"},
	{"db-0.db", "10.244.9.1"},
	{"10-244-0-5.default.pod.cluster.local", "10.244.0.5"},
	{"www.example.com", "192.0.2.1"}, // three names of the search path first
	{"out", "192.0.2.1"},
	{"gone", "none"},
	{"gone.example.org", "none"},
}

// checkLookups reads lines of "NAME: ADDRESS ..." or "NAME: none".
func checkLookups(t *testing.T, out string) {
	t.Helper()
	said := map[string]string{}
	for line := range strings.Lines(out) {
		if name, rest, ok := strings.Cut(line, ":"); ok {
			said[name] = strings.TrimSpace(rest)
		}
	}
	for _, l := range lookups {
		if !strings.Contains(said[l.name], l.want) {
			t.Errorf("%s: %q, want %s", l.name, said[l.name], l.want)
		}
	}
}

func lookupNames() []string {
	var names []string
	for _, l := range lookups {
		names = append(names, l.name)
	}
	return names
}

// musl asks for both families at once from one socket, knows no EDNS, and ends
// its search at any answer but NXDOMAIN.
func musl(t *testing.T) {
	program := filepath.Join(t.TempDir(), "lookup")
	if out, err := exec.Command("musl-gcc", "-static", "-o", program, "testdata/lookup.c").CombinedOutput(); err != nil {
		t.Fatalf("musl-gcc (test/install-deps.sh installs it): %v\n%s", err, out)
	}
	out, err := exec.Command(program, lookupNames()...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	checkLookups(t, string(out))
	// Before 1.2.4 musl never comes again by TCP: it must find addresses in what is cut.
	if out, _ := exec.Command(program, "crowd").Output(); strings.Count(string(out), " ") < 10 {
		t.Errorf("crowd: %s", out)
	}
}

// java has a resolver of its own only above glibc's, but its own cache and
// order of families.
func java(t *testing.T) {
	if _, err := exec.LookPath("java"); err != nil {
		t.Skip("no Java here")
	}
	if out, _ := exec.Command("java", "--list-modules").Output(); !strings.Contains(string(out), "jdk.compiler") {
		t.Skip("this Java cannot run from source")
	}
	out, err := exec.Command("java", append([]string{"-Xshare:auto", "-XX:TieredStopAtLevel=1", "testdata/Lookup.java"}, lookupNames()...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// It prints IPv6 addresses in full.
	checkLookups(t, strings.ReplaceAll(string(out), "fd00:96:0:0:0:0:0:20", "fd00:96::20"))
}

// kdig sends what other clients do not: cookies, padding, client subnets.
func kdig(t *testing.T) {
	const web = "web.default.svc.cluster.local"
	for _, tt := range []struct{ args, want string }{
		{"+short " + web, "10.96.0.20"},
		{"+short +tcp +keepopen " + web + " A " + web + " AAAA", "fd00:96::20"},
		{"+short +cookie +badcookie " + web, "10.96.0.20"},
		{"+short +padding=128 +nsid +subnet=192.0.2.0/24 " + web, "10.96.0.20"},
		{"+short +bufsize=512 " + web, "10.96.0.20"},
		{"+short +bufsize=65535 +dnssec www.example.com", "192.0.2.1"},
		{"+short +nordflag " + web, "10.96.0.20"},
		{"+short -t ANY " + web, "RFC8482"},
		{"+noall +header +ednsopt=65001:00 " + web, "status: NOERROR"},
	} {
		if got := command(t, "kdig", strings.Fields(tt.args)...); !strings.Contains(got, tt.want) {
			t.Errorf("kdig %s: want %q in\n%s", tt.args, tt.want, got)
		}
	}
}

// digDNSSEC is a client that validates: the DO bit comes back, and nothing
// that is not signed claims to be.
func digDNSSEC(t *testing.T) {
	for _, name := range []string{"web.default.svc.cluster.local", "www.example.com"} {
		got := command(t, "dig", "+dnssec", "+adflag", name)
		for _, want := range []string{"flags: do;", "status: NOERROR"} {
			if !strings.Contains(got, want) {
				t.Errorf("dig +dnssec %s: want %q in\n%s", name, want, got)
			}
		}
		if strings.Contains(got, " ad;") || strings.Contains(got, " ad ") {
			t.Errorf("dig +dnssec %s: claims to be signed\n%s", name, got)
		}
	}
}
