package upstream

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"sync/atomic"
	"testing"
	"time"

	"fairway.dev/fairway/internal/gateway/http1"
)

// TestInterimsWithoutEnd: a backend that sends nothing but interim answers has
// failed, also where somebody wants to see them.
func TestInterimsWithoutEnd(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		// What comes before there is a request is no answer to it.
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			return
		}
		for {
			if _, err := io.WriteString(c, "HTTP/1.1 103 Early Hints\r\n\r\n"); err != nil {
				return
			}
		}
	}()
	e := newEndpoint(l.Addr().String(), (&net.Dialer{}).DialContext, mark{})
	var seen atomic.Int64
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error {
		seen.Add(1)
		return nil
	}})
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://a/", nil)
	if _, err := bare().attempt(e, req, nil, Call{}, time.Now()); !errors.Is(err, http1.ErrInterims) {
		t.Errorf("got %v", err)
	}
	<-ended
	if seen.Load() < http1.MaxInterims || e.inflight.Load() != 0 {
		t.Errorf("%d interim answers were seen; %d under way", seen.Load(), e.inflight.Load())
	}
}
