package gateway

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/gateway/gatewaytest"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// stream makes a stream route to port 80 of a Service.
func stream(name string, p model.Protocol, port uint16, service string, hosts ...string) model.StreamRoute {
	return model.StreamRoute{Ref: model.Ref{Kind: "ConfigMap", Key: key(name)}, Field: fmt.Sprintf("data[%d]", port), Created: gatewaytest.Created,
		Protocol: p, Port: port, Hosts: hosts, Backend: model.Backend{Service: key(service), Port: model.PortRef{Number: 80}}}
}

// streams replaces the stream routes of each route's object.
func (w *world) streams(routes ...model.StreamRoute) {
	w.t.Helper()
	w.update(func(tx *state.Tx) {
		byRef := map[model.Ref][]model.StreamRoute{}
		for _, r := range routes {
			byRef[r.Ref] = append(byRef[r.Ref], r)
		}
		for ref := range w.store.Snapshot().Streams.All() {
			tx.PutStreams(ref, byRef[ref])
		}
		for ref, list := range byRef {
			tx.PutStreams(ref, list)
		}
	})
}

// greeter is a TCP server that speaks first, and then echoes.
func greeter(t *testing.T, addr, greeting string) {
	t.Helper()
	serveConns(t, addr, func(c net.Conn) {
		_, _ = io.WriteString(c, greeting+"\n")
		_, _ = io.Copy(c, c)
		_, _ = io.WriteString(c, "bye\n") // after the client's half-close
	})
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c.(*net.TCPConn)
}

func readLine(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatalf("read %q: %v", line, err)
	}
	return strings.TrimSuffix(line, "\n")
}

func TestTCPStreams(t *testing.T) {
	greeter(t, "10.99.40.1:3306", "mysql-1")
	greeter(t, "10.99.40.2:3306", "mysql-2")
	w := newWorld(t, nil)
	w.service("one", "", "10.99.40.1:3306")
	w.service("two", "", "10.99.40.2:3306")
	w.streams(stream("tcp", model.TCP, 13306, "one"))
	for _, addr := range []string{"127.0.0.1:13306", "10.99.0.1:13306", "[::1]:13306", "[fd00:99::1]:13306"} {
		c := dial(t, addr)
		r := bufio.NewReader(c)
		if got := readLine(t, r); got != "mysql-1" {
			t.Fatalf("%s: greeted by %q", addr, got)
		}
		fmt.Fprintln(c, "hello")
		if got := readLine(t, r); got != "hello" {
			t.Errorf("%s: echo %q", addr, got)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got := readLine(t, r); got != "bye" {
			t.Errorf("%s: after half-close %q", addr, got)
		}
	}
	// Another port opens while the first goes on; the first one's connections
	// outlive its route.
	c := dial(t, "127.0.0.1:13306")
	r := bufio.NewReader(c)
	readLine(t, r)
	w.streams(stream("tcp", model.TCP, 13307, "two"))
	if !isClosed("127.0.0.1:13306") {
		t.Error("the port is still open")
	}
	if got := readLine(t, bufio.NewReader(dial(t, "127.0.0.1:13307"))); got != "mysql-2" {
		t.Errorf("new port: %q", got)
	}
	fmt.Fprintln(c, "still there")
	if got := readLine(t, r); got != "still there" {
		t.Errorf("old connection: %q", got)
	}
	// The same port changes its Service.
	w.streams(stream("tcp", model.TCP, 13307, "one"))
	if got := readLine(t, bufio.NewReader(dial(t, "127.0.0.1:13307"))); got != "mysql-1" {
		t.Errorf("changed port: %q", got)
	}
	// Without endpoints a connection is refused at once.
	w.endpoints("one")
	refused, err := net.Dial("tcp", "127.0.0.1:13307")
	if err == nil { // the reset may also come after Dial
		defer refused.Close()
		_ = refused.SetDeadline(time.Now().Add(5 * time.Second))
		_, err = refused.Read(make([]byte, 1))
	}
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("without endpoints: %v", err)
	}
}

// TestTCPWhole has clients send messages and bulk with the end right behind it,
// take the answers slowly, or reset their connections: what comes back is whole,
// and in the end nothing is left open.
func TestTCPWhole(t *testing.T) {
	greeter(t, "10.99.40.3:3306", "hi")
	w := newWorld(t, nil)
	w.service("whole", "", "10.99.40.3:3306")
	w.streams(stream("tcp", model.TCP, 13308, "whole"))
	visit := func(seed uint64) error {
		random := rand.New(rand.NewPCG(seed, 0))
		conn, err := net.Dial("tcp", "127.0.0.1:13308")
		if err != nil {
			return err
		}
		defer conn.Close()
		c := conn.(*net.TCPConn)
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		sent := make([]byte, random.IntN([]int{100, 20 << 10, 1 << 20}[seed%3]))
		for i := range sent {
			sent[i] = byte(random.Uint32())
		}
		resets, slow, pieces := seed%8 == 7, seed%5 == 4, 1+random.IntN(32<<10)
		go func() {
			for piece := range slices.Chunk(sent, pieces) {
				if _, err := c.Write(piece); err != nil {
					return
				}
			}
			if !resets {
				_ = c.CloseWrite()
			}
		}()
		if resets {
			_, _ = io.CopyN(io.Discard, c, int64(len(sent)/2))
			return c.SetLinger(0)
		}
		want := slices.Concat([]byte("hi\n"), sent, []byte("bye\n"))
		got := make([]byte, 0, len(want)+1)
		for err == nil && len(got) < cap(got) {
			if slow {
				time.Sleep(time.Millisecond)
			}
			var n int
			n, err = c.Read(got[len(got):min(cap(got), len(got)+16<<10)])
			got = got[:len(got)+n]
		}
		if err != io.EOF || !bytes.Equal(got, want) {
			return fmt.Errorf("%d bytes came back, want %d, equal %t: %w", len(got), len(want), bytes.Equal(got, want), err)
		}
		return nil
	}
	var clients sync.WaitGroup
	for i := range uint64(16) {
		clients.Go(func() {
			for j := range uint64(15) {
				if err := visit(i*15 + j); err != nil {
					t.Errorf("client %d, connection %d: %v", i, j, err)
				}
			}
		})
	}
	clients.Wait()
	w.eventually("all is closed", func() bool {
		state := w.g.streams.State()
		return len(state) == 1 && state[0].Connections["TCP"] == 0
	})
}

// tlsEcho sends back what comes by TLS, with a certificate of that name.
func tlsEcho(t *testing.T, addr, name string) {
	cert, err := certs.SelfSigned(name, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	serve(t, addr, func(l net.Listener) error {
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{*cert}})
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	})
}

func TestTCPBySNI(t *testing.T) {
	tlsEcho(t, "10.99.41.1:80", "db1")
	tlsEcho(t, "10.99.41.2:80", "db2")
	greeter(t, "10.99.41.3:80", "plain")
	w := newWorld(t, nil)
	w.service("db1", "", "10.99.41.1:80")
	w.service("db2", "", "10.99.41.2:80")
	w.service("plain", "", "10.99.41.3:80")
	w.streams(stream("a", model.TCP, 15432, "db1", "db1.test"), stream("b", model.TCP, 15432, "db2", "*.db2.test"), stream("c", model.TCP, 15432, "plain"))
	for serverName, want := range map[string]string{"db1.test": "db1", "DB1.test": "db1", "x.db2.test": "db2"} {
		c, err := tls.Dial("tcp", "127.0.0.1:15432", &tls.Config{ServerName: serverName, InsecureSkipVerify: true})
		if err != nil {
			t.Fatalf("%s: %v", serverName, err)
		}
		defer c.Close()
		if got := c.ConnectionState().PeerCertificates[0].Subject.CommonName; got != want {
			t.Errorf("%s reached %s, want %s", serverName, got, want)
		}
		fmt.Fprintln(c, "through")
		if got := readLine(t, bufio.NewReader(c)); got != "through" {
			t.Errorf("echo %q", got)
		}
	}
	// A client that waits for the server gets the default after a short while,
	// one that sends something else than TLS at once.
	if got := readLine(t, bufio.NewReader(dial(t, "127.0.0.1:15432"))); got != "plain" {
		t.Errorf("a silent client reached %q", got)
	}
	c := dial(t, "127.0.0.1:15432")
	fmt.Fprintln(c, "GET")
	r := bufio.NewReader(c)
	if got := readLine(t, r) + " " + readLine(t, r); got != "plain GET" {
		t.Errorf("a client that sends at once got %q", got)
	}
	// With one route its host does not matter: nobody waits for bytes.
	w.streams(stream("c", model.TCP, 15432, "plain", "db.test"))
	if got := readLine(t, bufio.NewReader(dial(t, "127.0.0.1:15432"))); got != "plain" {
		t.Errorf("the only route: %q", got)
	}
}

func TestStreamProblems(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:15999")
	if err != nil {
		t.Fatal(err)
	}
	greeter(t, "10.99.42.1:80", "hi")
	w := newWorld(t, nil)
	w.service("a", "", "10.99.42.1:80")
	younger := stream("young", model.TCP, 15001, "a")
	younger.Created = gatewaytest.Created.Add(time.Hour)
	own := stream("own", model.TCP, portOf(w.g.HTTPAddr()), "a")
	w.streams(stream("old", model.TCP, 15001, "a"), younger, stream("taken", model.TCP, 15999, "a"), own, stream("lost", model.TCP, 15002, "nothing"))
	for _, want := range []string{
		"ConfigMap default/young data[15001] StreamConflict: port 15001/TCP already belongs to ConfigMap default/old, which is older",
		"ConfigMap default/taken data[15999] PortInUse: port 15999/TCP cannot be opened: another process uses the port",
		"PortInUse: port " + fmt.Sprint(own.Port) + "/TCP cannot be opened: the gateway itself uses it",
		"ConfigMap default/lost data[15002] ServiceNotFound: Service default/nothing does not exist",
	} {
		if !strings.Contains(w.problemText(), want) {
			t.Errorf("problems do not say %q:\n%s", want, w.problemText())
		}
	}
	if got := readLine(t, bufio.NewReader(dial(t, "127.0.0.1:15001"))); got != "hi" {
		t.Errorf("the port without problem: %q", got)
	}
	// The port becomes free; the gateway takes it by itself.
	taken.Close()
	w.eventually("the port is opened", func() bool { return !strings.Contains(w.problemText(), "15999") })
	if got := readLine(t, bufio.NewReader(dial(t, "127.0.0.1:15999"))); got != "hi" {
		t.Errorf("the port that became free: %q", got)
	}
}

func TestStreamProxyProtocol(t *testing.T) {
	greeter(t, "10.99.43.1:80", "hi")
	w := newWorld(t, nil)
	w.service("a", "", "10.99.43.1:80")
	in, out, both := stream("in", model.TCP, 15101, "a"), stream("out", model.TCP, 15102, "a"), stream("both", model.TCP, 15103, "a")
	in.ProxyIn, out.ProxyOut, both.ProxyIn, both.ProxyOut = true, true, true, true
	w.streams(in, out, both)
	const header = "PROXY TCP4 198.51.100.1 203.0.113.1 1000 2000\r\n"
	tests := []struct{ name, addr, send, want string }{
		{"in", "127.0.0.1:15101", header + "data\n", "data"},
		{"out", "127.0.0.1:15102", "", "PROXY TCP4 127.0.0.1 127.0.0.1 "},
		{"both", "127.0.0.1:15103", header, strings.TrimSpace(header)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := dial(t, tt.addr)
			r := bufio.NewReader(c)
			_, _ = io.WriteString(c, tt.send)
			if got := readLine(t, r); got != "hi" {
				t.Fatalf("greeting %q", got)
			}
			if got := strings.TrimSpace(readLine(t, r)); !strings.HasPrefix(got, tt.want) {
				t.Errorf("backend got %q, want %q", got, tt.want)
			}
		})
	}
}

// udpEcho answers each datagram with its name before it.
func udpEcho(t *testing.T, addr, name string) {
	t.Helper()
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		buf := make([]byte, 65535)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(append([]byte(name+" "+from.String()+" "), buf[:n]...), from)
		}
	}()
}

// TestIdleTimeout ends connections and sessions that are silent for longer than
// their Service has it.
func TestIdleTimeout(t *testing.T) {
	greeter(t, "10.99.40.4:3306", "hi")
	udpEcho(t, "10.99.40.4:53", "dns")
	w := newWorld(t, nil)
	w.service("idle", "", "10.99.40.4:3306")
	w.update(func(tx *state.Tx) {
		u := &model.ServiceUpstream{Idle: 2 * time.Second}
		tx.PutService(&model.Service{Key: key("idle"), Upstream: u, Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}})
		tx.PutService(&model.Service{Key: key("sessions"), Upstream: u, Ports: []model.ServicePort{{Name: "udp", Protocol: model.UDP, Port: 80}}})
		putEndpoints(tx, "sessions", "udp", model.UDP, []string{"10.99.40.4:53"})
	})
	w.streams(stream("tcp", model.TCP, 13309, "idle"), stream("udp", model.UDP, 15054, "sessions"))
	c := dial(t, "127.0.0.1:13309")
	r := bufio.NewReader(c)
	readLine(t, r)
	if rest, err := r.ReadString('\n'); err != io.EOF {
		t.Errorf("%q, %v in place of the end", rest, err)
	}
	session, err := net.Dial("udp", "127.0.0.1:15054")
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	sessions := func() int64 {
		for _, l := range w.g.streams.State() {
			if l.Address == "15054/UDP" {
				return l.Connections["UDP"]
			}
		}
		return -1
	}
	_ = session.SetDeadline(time.Now().Add(30 * time.Second))
	_, _ = io.WriteString(session, "x")
	if _, err := session.Read(make([]byte, 100)); err != nil || sessions() != 1 {
		t.Fatalf("%v, %d sessions", err, sessions())
	}
	w.eventually("the session has ended", func() bool { return sessions() == 0 })
}

func TestUDPStreams(t *testing.T) {
	udpEcho(t, "10.99.44.1:53", "dns-1")
	udpEcho(t, "10.99.44.2:53", "dns-2")
	w := newWorld(t, func(o *Options) { o.UDPIdle = 300 * time.Millisecond })
	w.update(func(tx *state.Tx) {
		tx.PutService(&model.Service{Key: key("dns"), Ports: []model.ServicePort{
			{Name: "tcp", Protocol: model.TCP, Port: 80}, {Name: "udp", Protocol: model.UDP, Port: 80}}})
		putEndpoints(tx, "dns", "udp", model.UDP, []string{"10.99.44.1:53"})
	})
	w.streams(stream("udp", model.UDP, 15053, "dns"))
	dialUDP := func(addr string) net.Conn {
		c, err := net.Dial("udp", addr) // connected: answers from another address would be dropped
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	ask := func(c net.Conn, text string) []string {
		t.Helper()
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 65535)
		n, err := c.Read(buf)
		if err != nil {
			t.Fatalf("%s: %v", c.RemoteAddr(), err)
		}
		return strings.SplitN(string(buf[:n]), " ", 3)
	}
	for _, addr := range []string{"127.0.0.1:15053", "10.99.7.7:15053", "[::1]:15053", "[fd00:99::2]:15053"} {
		if got := ask(dialUDP(addr), "hello"); got[0] != "dns-1" || got[2] != "hello" {
			t.Errorf("%s: got %q", addr, got)
		}
	}
	c := dialUDP("127.0.0.1:15053")
	first, second := ask(c, "1"), ask(c, strings.Repeat("x", 8000))
	if first[1] != second[1] || len(second[2]) != 8000 {
		t.Errorf("one client got two sessions: %s, %s", first[1], second[1])
	}
	if other := ask(dialUDP("127.0.0.1:15053"), "1"); other[1] == first[1] {
		t.Errorf("two clients share a session: %s", other[1])
	}
	// The endpoint goes: the session goes to the one that is left.
	w.update(func(tx *state.Tx) { putEndpoints(tx, "dns", "udp", model.UDP, []string{"10.99.44.2:53"}) })
	if got := ask(c, "after"); got[0] != "dns-2" {
		t.Errorf("after the endpoint went: %q", got)
	}
	// After silence the session is over and a new one begins.
	before := ask(c, "1")
	time.Sleep(600 * time.Millisecond)
	if after := ask(c, "2"); after[1] == before[1] {
		t.Errorf("the session outlived its idle time: %s", after[1])
	}
	w.streams()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	_, _ = io.WriteString(c, "x")
	if n, err := c.Read(make([]byte, 10)); err == nil {
		t.Errorf("a closed port answered %d bytes", n)
	}
}

// TestUDPSessionsAreSmall: a session that waits has no room for a datagram of its
// own, or a flood of clients' ports would take a gigabyte.
func TestUDPSessionsAreSmall(t *testing.T) {
	udpEcho(t, "10.99.44.3:53", "dns")
	w := newWorld(t, nil)
	w.update(func(tx *state.Tx) {
		tx.PutService(&model.Service{Key: key("dns"), Ports: []model.ServicePort{{Name: "udp", Protocol: model.UDP, Port: 80}}})
		putEndpoints(tx, "dns", "udp", model.UDP, []string{"10.99.44.3:53"})
	})
	w.streams(stream("udp", model.UDP, 15055, "dns"))
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	const n = 500
	before := heap()
	for range n {
		c, err := net.Dial("udp", "127.0.0.1:15055")
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(c, "x")
		if _, err := c.Read(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	if each := (heap() - before) / n; each > 16<<10 {
		t.Errorf("a session takes %d bytes", each)
	}
}

func isClosed(addr string) bool {
	c, err := net.Dial("tcp", addr)
	if err == nil {
		_ = c.Close()
	}
	return err != nil
}

func TestDrain(t *testing.T) {
	release := make(chan struct{})
	started := make(chan struct{}, 1)
	backendServer(t, "10.99.45.1:80", slow(started, release))
	greeter(t, "10.99.45.2:80", "hi")
	w := newWorld(t, nil)
	w.service("a", "", "10.99.45.1:80")
	w.service("tcp", "", "10.99.45.2:80")
	w.route(ingress("main", rule("", "/", "a")))
	w.streams(stream("tcp", model.TCP, 15201, "tcp"))
	got := make(chan string, 1)
	go func() {
		resp, err := plainClient.Get(w.url("/"))
		if err != nil {
			got <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		got <- fmt.Sprint(resp.StatusCode, string(body), err)
	}()
	<-started
	c := dial(t, "127.0.0.1:15201")
	r := bufio.NewReader(c)
	readLine(t, r)
	w.stop()
	w.eventually("the ports are closed", func() bool {
		return isClosed(w.g.HTTPAddr().String()) && isClosed("127.0.0.1:15201")
	})
	select {
	case err := <-w.done:
		t.Fatalf("Run ended with work under way: %v", err)
	default:
	}
	fmt.Fprintln(c, "still there")
	if line := readLine(t, r); line != "still there" {
		t.Errorf("TCP connection: %q", line)
	}
	_ = c.Close()
	close(release)
	if g := <-got; g != "200done<nil>" {
		t.Errorf("the request under way got %q", g)
	}
	select {
	case err := <-w.done:
		w.done <- err
	case <-time.After(5 * time.Second):
		t.Error("Run did not end once all was done")
	}
}

// TestTakeOver starts one gateway after the other on the same port, each time
// stopping the one before, while clients open connections.
func TestTakeOver(t *testing.T) {
	backendServer(t, "10.99.46.1:80", nil)
	setup := func(addr string) *world {
		return newWorld(t, func(o *Options) {
			o.HTTPAddrs = []string{addr}
			o.Store.Update(func(tx *state.Tx) {
				tx.PutService(&model.Service{Key: key("a"), Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}})
				putEndpoints(tx, "a", "http", model.TCP, []string{"10.99.46.1:80"})
				tx.PutRoute(ingress("main", rule("", "/", "a")))
			})
		})
	}
	old := setup("127.0.0.1:0")
	addr := old.g.HTTPAddr().String()
	var sent, failed atomic.Int64
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for i := range 4 {
		clients.Go(func() {
			c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: i%2 == 0}}
			defer c.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				default:
				}
				sent.Add(1)
				resp, err := c.Get("http://" + addr + "/")
				if err != nil || resp.StatusCode != 200 {
					failed.Add(1)
					t.Logf("%v %v", resp, err)
				}
				if err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			}
		})
	}
	for range 5 {
		next := setup(addr)
		old.stop()
		if err := <-old.done; err != nil {
			t.Error(err)
		}
		old.done <- nil
		old = next
	}
	close(stop)
	clients.Wait()
	if failed.Load() > 0 || sent.Load() < 10 {
		t.Errorf("%d of %d requests failed", failed.Load(), sent.Load())
	}
}

func TestPortInUseIsSaid(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = New(Options{Store: state.New(), Logger: discardLogger(), HTTPAddrs: []string{l.Addr().String()}})
	if err == nil || !strings.Contains(err.Error(), "another process uses the port") {
		t.Errorf("got %v", err)
	}
	_, err = New(Options{Store: state.New(), Logger: discardLogger(), HTTPAddrs: []string{"127.0.0.1:0"}, HTTPSAddrs: []string{l.Addr().String()}})
	if err == nil || !strings.Contains(err.Error(), "https port") {
		t.Errorf("got %v", err)
	}
}
