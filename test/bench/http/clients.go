package main

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// The load that wrk cannot make comes from this program: it uses more CPU time
// than wrk, which is not counted, and so rates are lower.

// samples collects how long requests took.
type samples struct {
	mu     sync.Mutex
	all    []time.Duration
	failed int64
	first  error
}

func (s *samples) add(d time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.all = append(s.all, d)
		return
	}
	if s.failed++; s.first == nil {
		s.first = err
	}
}

// repeat lets workers do something over and over for some seconds. Worker gets
// its number, and returns what it does each time and how it ends.
func repeat(seconds, workers int, worker func(i int) (do func() error, end func(), err error)) (result, error) {
	var s samples
	var running sync.WaitGroup
	deadline := time.Now().Add(time.Duration(seconds) * time.Second)
	for i := range workers {
		do, end, err := worker(i)
		if err != nil {
			return result{}, err
		}
		running.Go(func() {
			defer end()
			for time.Now().Before(deadline) {
				began := time.Now()
				err := do()
				s.add(time.Since(began), err)
				if err != nil {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	running.Wait()
	if len(s.all) == 0 {
		return result{}, errors.Join(errors.New("no request was answered"), s.first)
	}
	slices.Sort(s.all)
	at := func(share float64) float64 {
		return s.all[min(len(s.all)-1, int(share*float64(len(s.all))))].Seconds() * 1000
	}
	return result{Requests: int64(len(s.all)), Rate: float64(len(s.all)) / float64(seconds), P50: at(0.5), P99: at(0.99), P999: at(0.999), Failed: s.failed}, nil
}

// tlsConfig agrees on keys by X25519, which all peers can do: OpenSSL 3.0 knows
// no key exchange that is safe from quantum computers, and theirs costs more.
func tlsConfig(name string, protocols ...string) *tls.Config {
	return &tls.Config{ServerName: name, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: protocols, CurvePreferences: []tls.CurveID{tls.X25519}}
}

// handshakes opens connections, each with a full handshake or a resumed one,
// for one request each.
func handshakes(name string, resume bool, key tls.CurveID) func(p *peer, seconds int) (result, error) {
	return func(p *peer, seconds int) (result, error) {
		request := fmt.Appendf(nil, "GET /small HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", name)
		return repeat(seconds, 8, func(int) (func() error, func(), error) {
			config := tlsConfig(name, "http/1.1")
			config.CurvePreferences = []tls.CurveID{key}
			if resume {
				config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			}
			first := true
			return func() error {
				c, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p.tlsPort), config)
				if err != nil {
					return err
				}
				defer c.Close()
				if resume && !first && !c.ConnectionState().DidResume {
					return errors.New("the session was not resumed")
				}
				first = false
				if _, err := c.Write(request); err != nil {
					return err
				}
				// Tickets come with the answer.
				answer, err := io.ReadAll(c)
				if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 200")) {
					return fmt.Errorf("%.80q, %w", answer, err)
				}
				return nil
			}, func() {}, nil
		})
	}
}

// Connections by HTTP/2, and streams on each.
const (
	connections = 4
	streams     = 10
)

// streamed has ten requests under way on each of four connections.
func streamed(p *peer, seconds int, name string, request func(url string) (*http.Request, error), check func(*http.Response, []byte) error) (result, error) {
	url := fmt.Sprintf("https://127.0.0.1:%d", p.tlsPort)
	clients := make([]*http.Client, connections)
	for i := range clients {
		t := &http.Transport{TLSClientConfig: tlsConfig(name), Protocols: new(http.Protocols)}
		t.Protocols.SetHTTP2(true)
		defer t.CloseIdleConnections()
		clients[i] = &http.Client{Transport: t, Timeout: 10 * time.Second}
	}
	ask := func(c *http.Client) error {
		r, err := request(url)
		if err != nil {
			return err
		}
		r.Host = name
		resp, err := c.Do(r)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK || resp.ProtoMajor != 2 {
			return fmt.Errorf("%s, %s", resp.Proto, resp.Status)
		}
		return check(resp, body)
	}
	for _, c := range clients { // one connection each
		if err := ask(c); err != nil {
			return result{}, err
		}
	}
	return repeat(seconds, connections*streams, func(i int) (func() error, func(), error) {
		c := clients[i%connections]
		return func() error { return ask(c) }, func() {}, nil
	})
}

func http2Streams(p *peer, seconds int) (result, error) {
	return streamed(p, seconds, host, func(url string) (*http.Request, error) {
		return http.NewRequest(http.MethodGet, url+"/small", nil)
	}, func(_ *http.Response, body []byte) error {
		if len(body) != 100 {
			return fmt.Errorf("%d bytes", len(body))
		}
		return nil
	})
}

func grpcUnary(p *peer, seconds int) (result, error) {
	message := append([]byte{0, 0, 0, 0, 64}, make([]byte, 64)...)
	return streamed(p, seconds, grpcHost, func(url string) (*http.Request, error) {
		r, err := http.NewRequest(http.MethodPost, url+"/bench.Echo/Unary", bytes.NewReader(message))
		if err == nil {
			r.Header.Set("Content-Type", "application/grpc")
			r.Header.Set("Te", "trailers")
		}
		return r, err
	}, func(resp *http.Response, body []byte) error {
		if status := resp.Trailer.Get("Grpc-Status"); status != "0" || !bytes.Equal(body, message) {
			return fmt.Errorf("grpc-status %q, %d bytes", status, len(body))
		}
		return nil
	})
}

// webSocket sends messages on 32 connections, and waits for each to come back.
func webSocket(p *peer, seconds int) (result, error) {
	frame := append([]byte{0x82, 0x80 | 64, 0, 0, 0, 0}, make([]byte, 64)...)
	return repeat(seconds, 32, func(int) (func() error, func(), error) {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p.port))
		if err != nil {
			return nil, nil, err
		}
		_ = c.SetDeadline(time.Now().Add(time.Duration(seconds)*time.Second + 10*time.Second))
		r := bufio.NewReader(c)
		_, err = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n", socketPath, host, socketKey)
		if err != nil {
			return nil, nil, err
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return nil, nil, err
		}
		if resp.StatusCode != http.StatusSwitchingProtocols {
			return nil, nil, fmt.Errorf("WebSocket: %s", resp.Status)
		}
		got := make([]byte, len(frame))
		return func() error {
			if _, err := c.Write(frame); err != nil {
				return err
			}
			_, err := io.ReadFull(r, got)
			return err
		}, func() { _ = c.Close() }, nil
	})
}

// messages sends messages of 64 bytes on 32 connections, and waits for each to
// come back.
func messages(seconds int, open func() (net.Conn, error)) (result, error) {
	return repeat(seconds, 32, func(int) (func() error, func(), error) {
		c, err := open()
		if err != nil {
			return nil, nil, err
		}
		_ = c.SetDeadline(time.Now().Add(time.Duration(seconds)*time.Second + 10*time.Second))
		message, got := make([]byte, 64), make([]byte, 64)
		return func() error {
			if _, err := c.Write(message); err != nil {
				return err
			}
			_, err := io.ReadFull(c, got)
			return err
		}, func() { _ = c.Close() }, nil
	})
}

func tcpMessages(p *peer, seconds int) (result, error) {
	return messages(seconds, func() (net.Conn, error) {
		return net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p.streams+messagePort))
	})
}

// passedMessages are by TLS, which the proxy only looks at to find the backend.
func passedMessages(p *peer, seconds int) (result, error) {
	return messages(seconds, func() (net.Conn, error) {
		return tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p.streams+passedPort), tlsConfig(passedHost))
	})
}

// How many connections are idle, each after one request.
const idlePlain, idleTLS = 10000, 2000

// idleConnections finds out what memory idle connections take at each peer.
func idleConnections(o options) ([]idle, error) {
	o.profile = ""
	all := map[string]*idle{}
	var order []string
	for _, kind := range []struct {
		count int
		of    func(*idle) *float64
		dial  func(*peer) (net.Conn, error)
	}{
		{idlePlain, func(i *idle) *float64 { return &i.Plain }, func(p *peer) (net.Conn, error) {
			return net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p.port))
		}},
		{idleTLS, func(i *idle) *float64 { return &i.TLS }, func(p *peer) (net.Conn, error) {
			return tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p.tlsPort), tlsConfig(host, "http/1.1"))
		}},
	} {
		// Processes that have served nothing yet: what they keep for the next
		// connections would make these look cheap.
		err := with(oneHost, o, func(peers []*peer) error {
			for _, p := range peers {
				if p.port == 0 {
					continue
				}
				if all[p.name] == nil {
					all[p.name] = &idle{Peer: p.name}
					order = append(order, p.name)
				}
				each, err := idleAt(p, kind.count, kind.dial)
				if err != nil {
					return fmt.Errorf("%s: %w", p.name, err)
				}
				*kind.of(all[p.name]) = each / 1024
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	var list []idle
	for _, name := range order {
		list = append(list, *all[name])
	}
	return list, nil
}

// idleAt opens connections to a peer, each for one request, and returns the
// bytes that each of them takes there.
func idleAt(p *peer, count int, dial func(*peer) (net.Conn, error)) (float64, error) {
	time.Sleep(500 * time.Millisecond)
	before := p.memory()
	var mu sync.Mutex
	var open []net.Conn
	var failed error
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			for range count / 8 {
				c, err := dial(p)
				mu.Lock()
				if err == nil {
					open = append(open, c)
				}
				failed = cmp.Or(failed, err)
				mu.Unlock()
				if err == nil {
					err = askOnce(c)
				}
				if err != nil {
					mu.Lock()
					failed = cmp.Or(failed, err)
					mu.Unlock()
					return
				}
			}
		})
	}
	workers.Wait()
	if failed != nil {
		return 0, failed
	}
	time.Sleep(3 * time.Second) // what is idle is put away by some after a second or two
	return float64(p.memory()-before) / float64(len(open)), nil
}

func askOnce(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := fmt.Fprintf(c, "GET /small HTTP/1.1\r\nHost: %s\r\n\r\n", host); err != nil {
		return err
	}
	var got []byte
	buf := make([]byte, 2048)
	for !strings.HasSuffix(string(got), strings.Repeat("x", 100)) {
		n, err := c.Read(buf)
		if err != nil {
			return err
		}
		got = append(got, buf[:n]...)
	}
	return nil
}
