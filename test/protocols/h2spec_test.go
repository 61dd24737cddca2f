package protocols

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
)

// h2specCases is how many cases h2spec has in strict mode.
const h2specCases = 146

// TestH2spec runs all of h2spec, strict cases too, with and without TLS.
func TestH2spec(t *testing.T) {
	l, addr := listen(t)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "hello")
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	w := newWorld(t, backend{host: "localhost", addr: addr})
	for _, secure := range []bool{false, true} {
		t.Run(map[bool]string{false: "h2c", true: "tls"}[secure], func(t *testing.T) {
			c := &config.Config{
				Host: "localhost", Port: w.port(secure), Path: "/", Timeout: 5 * time.Second, MaxHeaderLen: 4000,
				Strict: true, TLS: secure, Insecure: true,
			}
			cases := 0
			var run func(*testing.T, *spec.TestGroup)
			run = func(t *testing.T, group *spec.TestGroup) {
				for i, tc := range append(group.Tests, group.StrictTests...) {
					cases++
					t.Run(fmt.Sprintf("%s/%d", group.ID(), i+1), func(t *testing.T) {
						t.Parallel()
						if !secure && group.ID() == "http2/3.5" && i == 1 {
							refusedAsHTTP1(t, c.Port)
							return
						}
						conn, err := spec.Dial(c)
						if err != nil {
							t.Fatal(err)
						}
						defer conn.Close()
						if err := tc.Run(c, conn); err != nil && !errors.Is(err, spec.ErrSkipped) {
							t.Errorf("%s: %s\n%v", tc.Desc, tc.Requirement, err)
						} else if err != nil {
							t.Skip(tc.Desc)
						}
					})
				}
				for _, g := range group.Groups {
					run(t, g)
				}
			}
			for _, group := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
				run(t, group)
			}
			if cases != h2specCases {
				t.Errorf("%d cases, want %d", cases, h2specCases)
			}
		})
	}
}

// refusedAsHTTP1 stands in for h2spec's case of an invalid preface where the
// port speaks HTTP/1.1 as well: what is no preface is refused by that protocol
// before the connection ends, and h2spec takes any answer for a failure.
func refusedAsHTTP1(t *testing.T, port int) {
	c, err := net.Dial("tcp", fmt.Sprintf("localhost:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = io.WriteString(c, "INVALID CONNECTION PREFACE\r\n\r\n")
	answer, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") {
		t.Errorf("got %q, %v", answer, err)
	}
}
