package servicetls

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/model"
)

// TestResumptionAcrossAgents: a client's session goes on at every agent that has
// the Service's certificate, also at one that was restarted, but at none with
// another one.
func TestResumptionAcrossAgents(t *testing.T) {
	ca := newAuthority(t)
	row, other := ca.secret(t, "tls", "web.example.com"), ca.secret(t, "tls", "web.example.com")
	cache := tls.NewLRUClientSessionCache(1)
	for i, tt := range []struct {
		row     *model.Certificate
		resumed bool
	}{{row, false}, {row, true}, {row, true}, {other, false}} {
		cert, err := certs.Parse(tt.row)
		if err != nil {
			t.Fatal(err)
		}
		index := certs.NewIndex(cert)
		index.Add("web.example.com", cert)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		agent := serverConfig(index, []string{"web.example.com"}, nil) // all that an agent has
		go func() {
			c, err := tls.NewListener(l, agent).Accept()
			if err == nil {
				_, _ = c.Write([]byte("x"))
				_ = c.Close()
			}
		}()
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{ServerName: "web.example.com", InsecureSkipVerify: true, ClientSessionCache: cache})
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = c.Read(make([]byte, 1)) // the ticket comes before it
		if resumed := c.ConnectionState().DidResume; resumed != tt.resumed {
			t.Errorf("connection %d: resumed %v", i, resumed)
		}
		_, _ = c.Close(), l.Close()
	}
}
