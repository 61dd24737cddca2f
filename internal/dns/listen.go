package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"fairway.dev/fairway/internal/dns/datagram"
	"fairway.dev/fairway/internal/dns/wire"
	"fairway.dev/fairway/internal/listen"
)

const (
	// udpBatch is how many packets are taken, and answers sent, at a time.
	udpBatch = 32
	// udpReceiveBuffer holds a burst; the kernel caps it.
	udpReceiveBuffer = 4 << 20
)

// socket is one address, by UDP and TCP.
type socket struct {
	addr netip.AddrPort
	udp  []*datagram.Socket // one for each core
	tcp  *net.TCPListener
}

// openAll opens all addresses or none. Port 0 takes any that is free for both protocols.
func openAll(ctx context.Context, addrs []netip.AddrPort) (sockets []*socket, err error) {
	defer func() {
		if err != nil {
			for _, s := range sockets {
				s.close()
			}
		}
	}()
	for _, a := range addrs {
		s, err := listenOn(ctx, a)
		for retry := 0; err != nil && a.Port() == 0 && retry < 10; retry++ {
			s, err = listenOn(ctx, a)
		}
		if err != nil {
			return sockets, err
		}
		sockets = append(sockets, s)
	}
	return sockets, nil
}

func listenOn(ctx context.Context, a netip.AddrPort) (*socket, error) {
	packets, err := datagram.Listen(a, runtime.GOMAXPROCS(0), udpReceiveBuffer)
	if err != nil {
		return nil, err
	}
	a = packets[0].Addr
	config := net.ListenConfig{Control: listen.Freebind}
	listener, err := config.Listen(ctx, "tcp", a.String())
	if err != nil {
		for _, p := range packets {
			p.Close()
		}
		return nil, fmt.Errorf("listen on %s by TCP: %w", a, err)
	}
	return &socket{addr: a, udp: packets, tcp: listener.(*net.TCPListener)}, nil
}

func (l *socket) close() {
	for _, u := range l.udp {
		u.Close()
	}
	l.tcp.Close()
}

// start serves both protocols until the socket is closed.
func (l *socket) start(ctx context.Context, wg *sync.WaitGroup, s *Server, failed chan<- error) {
	report := func(err error) {
		if err != nil && !errors.Is(err, net.ErrClosed) {
			select {
			case failed <- err:
			default:
			}
		}
	}
	for i, u := range l.udp {
		wg.Go(func() { report(serveUDP(ctx, wg, s, u, uint8(i), uint8(min(len(l.udp), 255)))) })
	}
	wg.Go(func() { report(l.serveTCP(ctx, wg, s)) })
}

// serveUDP answers what one socket receives, the i-th of n at its address. What
// waits for other servers is answered from goroutines of its own.
func serveUDP(ctx context.Context, wg *sync.WaitGroup, s *Server, socket *datagram.Socket, i, n uint8) error {
	counts := s.handler.metrics.counts(socket.Addr)
	w := s.handler.newWorker(socket.Addr, false, counts)
	w.socket, w.sockets = i, n
	batch := socket.NewBatch(udpBatch, maxQuery, s.opts.MaxUDPSize+wire.Slack)
	batch.Dropped = func(err error) { s.dropped(counts, err) }
	err := batch.Serve(func(n int) {
		w.start = time.Now()
		for i := range n {
			packet, whole, client := batch.Packet(i)
			if !whole || client.Port() == 0 {
				continue // longer than any query, or nobody to answer
			}
			w.client = client
			answer, rest := s.handler.begin(w, packet, batch.Buffer())
			switch {
			case rest != nil:
				wg.Go(func() {
					if answer := rest(ctx); answer != nil {
						if err := socket.Send(answer, client); err != nil && !errors.Is(err, net.ErrClosed) {
							s.dropped(counts, err)
						}
					}
				})
			case answer != nil:
				batch.Reply(i, answer)
			}
		}
		w.settle(time.Now())
	})
	if err != nil {
		return fmt.Errorf("receive at %s by UDP: %w", socket.Addr, err)
	}
	return nil
}

// dropped counts an answer that did not leave.
func (s *Server) dropped(counts *counts, err error) {
	counts.dropped.Add(1)
	s.log.Debug("cannot send an answer by UDP", "server", counts.server, "err", err)
}
