package up

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	bin := t.TempDir()
	for _, name := range []string{"fairway", "fairway-standalone"} {
		if err := os.WriteFile(filepath.Join(bin, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name, error string
		change      func(*Options)
	}{
		{"good", "", func(*Options) {}},
		{"data directory", "--data-dir /srv/a:b: must not contain", func(o *Options) { o.DataDir = "/srv/a:b" }},
		{"nodes", "--nodes 0", func(o *Options) { o.Nodes = 0 }},
		{"port", "--http-port 70000", func(o *Options) { o.HTTPPort = 70000 }},
		{"same port", "--http-port and --https-port are both 80", func(o *Options) { o.HTTPSPort = 80 }},
		{"dataplane", `--dataplane "ipvs"`, func(o *Options) { o.Dataplane = "ipvs" }},
		{"image files", `--image-files "app=there"`, func(o *Options) { o.ImageFiles = []string{"app=" + bin, "app=there"} }},
		{"image", `--image "nginx"`, func(o *Options) { o.Images = []string{"a=b", "nginx"} }},
		{"zone", "--zones", func(o *Options) { o.Zones = []string{"a", "not one"} }},
		{"executables", "make build", func(o *Options) { o.BinDir = "/nowhere" }},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := Options{
				DataDir: "/data", BinDir: bin, Nodes: 1, HTTPPort: 80, HTTPSPort: 443, APIPort: 6443, Dataplane: "auto",
				Images: []string{"nginx:*=/usr/sbin/nginx -g 'daemon off;'"}, Zones: []string{"eu-1a"},
				Progress: NewProgress(&bytes.Buffer{}, false), Logger: slog.New(slog.DiscardHandler),
			}
			test.change(&o)
			_, err := New(o)
			if (err == nil) != (test.error == "") || err != nil && !strings.Contains(err.Error(), test.error) {
				t.Errorf("got %v, want %q", err, test.error)
			}
		})
	}
}

func TestShellWord(t *testing.T) {
	for text, want := range map[string]string{
		"/var/lib/fairway-2,b": "/var/lib/fairway-2,b", "/srv/my data": "'/srv/my data'", "/srv/it's": `'/srv/it'\''s'`, "": "''", "/a$b": "'/a$b'",
	} {
		if got := shellWord(text); got != want {
			t.Errorf("%q is %s, want %s", text, got, want)
		}
	}
	text := summary(Options{DataDir: "/srv/my data"}, Addresses{}, 0)
	for _, want := range []string{"fairway apply --data-dir '/srv/my data' -f", "fairway down --data-dir '/srv/my data'\n", "export KUBECONFIG='/srv/my data/kubeconfig'\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("summary lacks %q:\n%s", want, text)
		}
	}
}

func TestProgress(t *testing.T) {
	var plain bytes.Buffer
	p := NewProgress(&plain, false)
	one, two := p.Step("starting one"), p.Step("starting two")
	two("two %s", "ready")
	one("")
	p.Note("watch out")
	if got, want := plain.String(), "two ready                               0.0 s\nwatch out\n"; got != want {
		t.Errorf("plain: %q, want %q", got, want)
	}
	var terminal bytes.Buffer
	p = NewProgress(&terminal, true)
	one, two = p.Step("starting one"), p.Step("starting two")
	one("one ready")
	two("two ready")
	lines := strings.Split(terminal.String(), "\r\x1b[K")
	want := []string{"", "  starting one ...", "  starting one, starting two ...", "✓ one ready", "✓ two ready"}
	for i, w := range want {
		if i >= len(lines) || !strings.HasPrefix(lines[i], w) {
			t.Fatalf("terminal: %q, want line %d to be %q", lines, i, w)
		}
	}
	if !strings.HasSuffix(lines[3], "\n  starting two ...") || !strings.HasSuffix(lines[4], "s\n") {
		t.Errorf("terminal: %q", lines)
	}
}

func TestGatewayPort(t *testing.T) {
	for _, test := range []struct {
		gateway     []string
		http, https uint16
	}{
		{[]string{"http://192.0.2.2", "https://192.0.2.2"}, 80, 443},
		{[]string{"http://[fd00:10:245::1]:8080", "https://[fd00:10:245::1]"}, 8080, 443},
		{[]string{"http://192.0.2.2:8080", "https://192.0.2.2:8443", "http://[fd00::1]:8080", "https://[fd00::1]:8443"}, 8080, 8443},
	} {
		n := &Nodes{&State{Addresses: Addresses{Gateway: test.gateway}}}
		http, err1 := n.GatewayPort("http")
		https, err2 := n.GatewayPort("https")
		if http != test.http || https != test.https || err1 != nil || err2 != nil {
			t.Errorf("%q: %d and %d, %v, %v", test.gateway, http, https, err1, err2)
		}
	}
	if _, err := (&Nodes{&State{}}).GatewayPort("http"); err == nil {
		t.Error("no addresses is no error")
	}
}
