package main

import (
	"strings"
	"testing"
)

func TestWhatToExplain(t *testing.T) {
	for arg, want := range map[string]string{
		"svc/web": "web", "service/web": "web", "services/web": "web", "web": "web",
		"http://a/b": "URL", "HTTPS://a": "URL", "ftp://a/": "URL", // the scheme is judged where the URL is read
		"svc/":          "! as svc/NAME",
		"svc/a/b":       "! as svc/NAME",
		"pod/web":       "! give a Service as svc/NAME",
		"www.x.test":    "! as http://www.x.test/ or https://www.x.test/",
		"localhost:80":  "! as http://localhost:80/ or",
		"www.x.test/a":  "! as http://www.x.test/a or https://www.x.test/a",
		"/a":            "! as http://HOST/a or https://HOST/a",
		"svc/web.shop":  "! is no name of a Service",
		"[2001:db8::1]": "! as http://[2001:db8::1]/",
	} {
		got, err := parseExplained(arg)
		text := got.service
		if got.url != "" {
			text = "URL"
			if got.url != arg {
				t.Errorf("%s: URL %s", arg, got.url)
			}
		}
		if part, wrong := strings.CutPrefix(want, "! "); wrong {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %+v, %v; want an error that says %q", arg, got, err, part)
			}
		} else if err != nil || text != want {
			t.Errorf("%s: %+v, %v", arg, got, err)
		}
	}
}
