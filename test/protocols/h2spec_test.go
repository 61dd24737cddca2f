package protocols

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
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

// TestH2spec runs all of h2spec, strict cases too, with and without TLS, in
// front of a backend that speaks HTTP/1.1 and of one that speaks HTTP/2.
func TestH2spec(t *testing.T) {
	for _, appProtocol := range []string{"", "kubernetes.io/h2c"} {
		var served atomic.Int64
		server := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			served.Add(1)
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, "hello")
		})}
		server.Protocols.SetHTTP1(true)
		server.Protocols.SetUnencryptedHTTP2(true)
		l := listen(t)
		go func() { _ = server.Serve(l) }()
		t.Cleanup(func() { _ = server.Close() })
		w := newWorld(t, backend{"localhost", appProtocol, l.Addr().String()})
		for _, secure := range []bool{false, true} {
			t.Run(fmt.Sprintf("tls=%v,backend=%s", secure, appProtocol), func(t *testing.T) {
				served.Store(0)
				h2spec(t, w.port(secure), secure)
				if n := served.Load(); n < proxied {
					t.Errorf("the backend got %d requests, want %d at least", n, proxied)
				} else {
					t.Logf("the backend got %d requests", n)
				}
			})
		}
	}
}

// proxied is how many requests of h2spec's the standard obliges a server to answer.
const proxied = 20

func h2spec(t *testing.T, port int, secure bool) {
	c := &config.Config{
		Host: "localhost", Port: port, Path: "/", Timeout: 20 * time.Second, MaxHeaderLen: 4000,
		Strict: true, TLS: secure, Insecure: true,
	}
	var cases sync.WaitGroup
	defer cases.Wait()
	n := 0
	var run func(*spec.TestGroup)
	run = func(group *spec.TestGroup) {
		for i, tc := range append(group.Tests, group.StrictTests...) {
			n++
			// Cases wait for the gateway more than they work. t.Parallel would
			// have as many at a time as there are processors.
			cases.Go(func() {
				name := fmt.Sprintf("%s/%d", group.ID(), i+1)
				if !secure && group.ID() == "http2/3.5" && i == 1 {
					refusedAsHTTP1(t, c.Port)
					return
				}
				conn, err := spec.Dial(c)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				defer conn.Close()
				if err := tc.Run(c, conn); err != nil && !errors.Is(err, spec.ErrSkipped) {
					t.Errorf("%s: %s: %s\n%v", name, tc.Desc, tc.Requirement, err)
				} else if err != nil {
					t.Logf("skipped %s: %s", name, tc.Desc)
				}
			})
		}
		for _, g := range group.Groups {
			run(g)
		}
	}
	for _, group := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		run(group)
	}
	if n != h2specCases {
		t.Errorf("%d cases, want %d", n, h2specCases)
	}
}

// refusedAsHTTP1 stands in for h2spec's case of an invalid preface where the
// port speaks HTTP/1.1 as well: what is no preface is refused by that protocol
// before the connection ends, and h2spec takes any answer for a failure.
func refusedAsHTTP1(t *testing.T, port int) {
	c, err := net.Dial("tcp", fmt.Sprintf("localhost:%d", port))
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(c, "INVALID CONNECTION PREFACE\r\n\r\n")
	answer, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") {
		t.Errorf("got %q, %v", answer, err)
	}
}
