package request

import (
	"net/http"
	"strings"
	"testing"

	"fairway.dev/fairway/internal/httppath"
)

func TestParseHost(t *testing.T) {
	tests := []struct {
		in, host string
		port     uint16
		bad      bool
	}{
		{in: "", host: ""},
		{in: "foo.bar.com", host: "foo.bar.com"},
		{in: "Foo.BAR.com:8080", host: "foo.bar.com", port: 8080},
		{in: "foo.bar.com.", host: "foo.bar.com"},
		{in: "foo.bar.com.:80", host: "foo.bar.com", port: 80},
		{in: "foo:", host: "foo"},
		{in: "10.0.0.1:80", host: "10.0.0.1", port: 80},
		{in: "[2001:DB8::1]:443", host: "[2001:db8::1]", port: 443},
		{in: "[0:0::1]", host: "[::1]"},
		{in: "my_host", host: "my_host"},
		{in: "foo..bar", bad: true},
		{in: ".", bad: true},
		{in: ".foo", bad: true},
		{in: "foo:80:90", bad: true},
		{in: "foo:http", bad: true},
		{in: "foo:0", bad: true},
		{in: "foo:+80", bad: true},
		{in: "foo:65536", bad: true},
		{in: "::1", bad: true},
		{in: "[::1", bad: true},
		{in: "[::1]80", bad: true},
		{in: "[fe80::1%25eth0]", bad: true},
		{in: "[10.0.0.1]", bad: true},
		{in: "foo bar", bad: true},
		{in: "foo/bar", bad: true},
		{in: "user@foo", bad: true},
		{in: "foo%2ebar", bad: true},
		{in: "bücher.example", bad: true},
		{in: strings.Repeat("a.", 130) + "a", bad: true},
	}
	for _, tt := range tests {
		host, port, err := ParseHost(tt.in)
		if (err != nil) != tt.bad || host != tt.host || port != tt.port {
			t.Errorf("ParseHost(%q) = %q, %d, %v", tt.in, host, port, err)
		}
	}
}

func TestParsePath(t *testing.T) {
	tests := []struct {
		in, want string
		bad      bool
	}{
		{in: "/", want: "/"},
		{in: "/a//b", want: "/a/b"},
		{in: "/a/./b/../c", want: "/a/c"},
		{in: "/a/%2e%2E/b", want: "/b"},
		{in: "/%61%2fb", want: "/a%2Fb"},
		{in: "/a..b/..c/d..", want: "/a..b/..c/d.."},
		{in: "/a;x=1/b", want: "/a;x=1/b"},
		{in: "/caf\u00e9", want: "/caf%C3%A9"},
		{in: "/%zz", bad: true},
		{in: "/%2", bad: true},
		{in: "a", bad: true},
		{in: "*", bad: true},
		{in: "", bad: true},
		{in: "/public/..%2fadmin", bad: true},
		{in: "/public%2f..%2fadmin", bad: true},
		{in: "/public%2f%2e%2e", bad: true},
		{in: "/public%5c..%5cadmin", bad: true},
		{in: "/public/..;/admin", bad: true},
		{in: "/public/.;x/admin", bad: true},
		{in: "/a%00b", bad: true},
	}
	for _, tt := range tests {
		got, err := ParsePath(tt.in)
		if (err != nil) != tt.bad || got != tt.want {
			t.Errorf("ParsePath(%q) = %q, %v", tt.in, got, err)
		}
	}
}

func TestParseRewritten(t *testing.T) {
	tests := []struct {
		in, want string
		bad      bool
	}{
		{in: "", want: "/"},
		{in: "a/b", want: "/a/b"},
		{in: "//a", want: "/a"},
		{in: "/a b", want: "/a%20b"},
		{in: "/../admin", bad: true},
		{in: "/x/..", bad: true},
		{in: "/x/./y", bad: true},
		{in: "/x/%2e%2e/y", bad: true},
		{in: "/x/..%2Fy", bad: true},
		{in: "/x/%2", bad: true},
	}
	for _, tt := range tests {
		got, err := ParseRewritten(tt.in)
		if (err != nil) != tt.bad || got != tt.want {
			t.Errorf("ParseRewritten(%q) = %q, %v", tt.in, got, err)
		}
	}
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"/", "/a/../b", "/%2e%2e/x", "/a%2f..%2fb", "/..;/x", "/%5c..", "//", "/a/.", "/%c3%a9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		path, err := ParsePath(in)
		if err != nil {
			return
		}
		if again, err := ParsePath(path); err != nil || again != path {
			t.Fatalf("%q became %q, which becomes %q, %v", in, path, again, err)
		}
		if again, err := ParseRewritten(path); err != nil || again != path {
			t.Fatalf("%q became %q, which as a rewrite becomes %q, %v", in, path, again, err)
		}
		// Whatever a backend decodes once, it must not find a way up.
		decoded := strings.NewReplacer("%2F", "/", "%5C", "/", "%2E", ".").Replace(path)
		for _, segment := range strings.Split(decoded, "/") {
			if name, _, _ := strings.Cut(segment, ";"); name == ".." || name == "." {
				t.Fatalf("%q became %q, which hides a dot segment", in, path)
			}
		}
		if _, err := httppath.Normalize(path); err != nil {
			t.Fatal(err)
		}
	})
}

func TestViewLookups(t *testing.T) {
	v := &View{Query: "a=1&b=%20x&a=2&%zz=3&c", Header: http.Header{
		"X-A": {"1", "2"}, "Cookie": {"a=b; canary=always", `q="v"`},
	}}
	if got, ok := v.First("X-A"); !ok || got != "1" {
		t.Errorf("First = %q, %v", got, ok)
	}
	for name, want := range map[string]string{"a": "1", "b": " x", "c": ""} {
		if got, ok := v.QueryValue(name); !ok || got != want {
			t.Errorf("QueryValue(%q) = %q, %v", name, got, ok)
		}
	}
	if _, ok := v.QueryValue("d"); ok {
		t.Error("found a parameter that is not there")
	}
	for name, want := range map[string]string{"a": "b", "canary": "always", "q": "v"} {
		if got, ok := v.Cookie(name); !ok || got != want {
			t.Errorf("Cookie(%q) = %q, %v", name, got, ok)
		}
	}
	if _, ok := v.Cookie("ways"); ok {
		t.Error("found a cookie that is not there")
	}
}

func TestWithoutParameters(t *testing.T) {
	for in, want := range map[string]string{
		"/": "", "/a/b": "", "/a,b=1": "",
		"/a;v=1": "/a", "/a;/b": "/a/b", "/;x/a;y;z/b;": "/a/b", "/a%3Bv/b": "/a/b", "/a;x%3By/": "/a/", "/;": "/",
	} {
		if got, ok := WithoutParameters(in); got != want || ok != (want != "") {
			t.Errorf("WithoutParameters(%q) = %q, %v", in, got, ok)
		}
	}
}

func TestCheckMethod(t *testing.T) {
	for _, good := range []string{"GET", "get", "PROPFIND", "M-SEARCH", "x!#$%&'*+-.^_`|~9"} {
		if err := CheckMethod(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "GET /x HTTP/1.1", "GET\t", "GET\r\n", "G(ET", "G\x00T", "G\u00c9T", "G\xffT", "GET:"} {
		if CheckMethod(bad) == nil {
			t.Errorf("%q is taken for a method", bad)
		}
	}
}
