package protocols

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	_ "google.golang.org/grpc/encoding/gzip" // registers the compressor that the compressed cases name
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/interop"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/orca"
	"google.golang.org/grpc/status"
)

// grpcLimit bounds what must end at once.
const grpcLimit = 20 * time.Second

// interopServer starts gRPC's test server.
func interopServer(t *testing.T, l net.Listener) *grpc.Server {
	t.Helper()
	s := grpc.NewServer(orca.CallMetricsServerOption(nil))
	testpb.RegisterTestServiceServer(s, interop.NewTestServer())
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return s
}

func (w *world) grpc(t *testing.T, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+w.addr(true), append(options, grpc.WithTransportCredentials(credentials.NewTLS(w.tls("grpc.test"))))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TestGRPCInterop runs gRPC's interoperability cases: the client speaks HTTP/2
// over TLS to the gateway, which speaks h2c to the server. Left out are those
// that need credentials of Google's, and of the others cacheable_unary and
// pick_first_unary, which gRPC's Go server does not answer, and orca_oob, which
// is between a client and its balancer and takes half a minute.
func TestGRPCInterop(t *testing.T) {
	grpclog.SetLoggerV2(fatal{grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard)})
	l := listen(t)
	interopServer(t, l)
	w := newWorld(t, backend{"grpc.test", "kubernetes.io/h2c", l.Addr().String()})
	conn := w.grpc(t)
	service := testpb.NewTestServiceClient(conn)
	type do = func(context.Context, testpb.TestServiceClient, ...grpc.CallOption)
	with := func(f do, options ...grpc.CallOption) func(context.Context) {
		return func(ctx context.Context) { f(ctx, service, options...) }
	}
	gzip := grpc.UseCompressor("gzip")
	soak := func(channel func() (*grpc.ClientConn, func())) func(context.Context) {
		return func(ctx context.Context) {
			interop.DoSoakTest(ctx, interop.SoakTestConfig{
				RequestSize: 271828, ResponseSize: 314159, PerIterationMaxAcceptableLatency: grpcLimit, OverallTimeout: 2 * grpcLimit,
				ServerAddr: w.addr(true), NumWorkers: 2, Iterations: 20, ChannelForTest: channel,
			})
		}
	}
	for _, tt := range []struct {
		name string
		do   func(context.Context)
	}{
		{"empty_unary", with(interop.DoEmptyUnaryCall)},
		{"large_unary", with(interop.DoLargeUnaryCall)},
		{"client_streaming", with(interop.DoClientStreaming)},
		{"server_streaming", with(interop.DoServerStreaming)},
		{"ping_pong", with(interop.DoPingPong)},
		{"empty_stream", with(interop.DoEmptyStream)},
		{"compressed_unary", with(interop.DoLargeUnaryCall, gzip)},
		{"compressed_client_streaming", with(interop.DoClientStreaming, gzip)},
		{"compressed_server_streaming", with(interop.DoServerStreaming, gzip)},
		{"compressed_ping_pong", with(interop.DoPingPong, gzip)},
		{"timeout_on_sleeping_server", with(interop.DoTimeoutOnSleepingServer)},
		{"cancel_after_begin", with(interop.DoCancelAfterBegin)},
		{"cancel_after_first_response", with(interop.DoCancelAfterFirstResponse)},
		{"custom_metadata", with(interop.DoCustomMetadata)},
		{"status_code_and_message", with(interop.DoStatusCodeAndMessage)},
		{"special_status_message", with(interop.DoSpecialStatusMessage)},
		{"unimplemented_method", func(ctx context.Context) { interop.DoUnimplementedMethod(ctx, conn) }},
		{"unimplemented_service", func(ctx context.Context) {
			interop.DoUnimplementedService(ctx, testpb.NewUnimplementedServiceClient(conn))
		}},
		{"orca_per_rpc", func(ctx context.Context) {
			balanced := w.grpc(t, grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"test_backend_metrics_load_balancer":{}}]}`))
			interop.DoORCAPerRPCTest(ctx, testpb.NewTestServiceClient(balanced))
		}},
		{"rpc_soak", soak(func() (*grpc.ClientConn, func()) { return conn, func() {} })},
		{"channel_soak", soak(func() (*grpc.ClientConn, func()) {
			own := w.grpc(t)
			return own, func() { _ = own.Close() }
		})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			defer func() {
				if failed := recover(); failed != nil {
					t.Error(failed)
				}
			}()
			ctx, cancel := context.WithTimeout(context.Background(), 2*grpcLimit)
			defer cancel()
			tt.do(ctx)
		})
	}
}

// fatal panics where gRPC's cases would end the process: that is how they fail.
type fatal struct{ grpclog.LoggerV2 }

// Fatal implements grpclog.LoggerV2.
func (fatal) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

// Fatalln implements grpclog.LoggerV2.
func (fatal) Fatalln(args ...any) { panic(fmt.Sprintln(args...)) }

// Fatalf implements grpclog.LoggerV2.
func (fatal) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// cutListener remembers its connections, to end them all.
type cutListener struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

// Accept implements net.Listener.
func (l *cutListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.mu.Lock()
		l.conns = append(l.conns, c)
		l.mu.Unlock()
	}
	return c, err
}

// cut ends the listener and its connections as when a process dies (FIN) or a
// machine forgets them (RST).
func (l *cutListener) cut(reset bool) {
	_ = l.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		if reset {
			_ = c.(*net.TCPConn).SetLinger(0)
		}
		_ = c.Close()
	}
}

// TestGRPCBackendDies ends a backend in the middle of a stream. The client
// gets a status that tells it to try elsewhere, and does not wait for it.
func TestGRPCBackendDies(t *testing.T) {
	for _, reset := range []bool{false, true} {
		for _, begun := range []bool{false, true} {
			t.Run(fmt.Sprintf("reset=%v,answer begun=%v", reset, begun), func(t *testing.T) {
				l := &cutListener{Listener: listen(t)}
				interopServer(t, l)
				w := newWorld(t, backend{"grpc.test", "kubernetes.io/h2c", l.Addr().String()})
				ctx, cancel := context.WithTimeout(context.Background(), grpcLimit)
				defer cancel()
				service := testpb.NewTestServiceClient(w.grpc(t))
				// The connection is there and carries other calls.
				if _, err := service.EmptyCall(ctx, &testpb.Empty{}); err != nil {
					t.Fatal(err)
				}
				stream, err := service.FullDuplexCall(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if begun {
					if err := stream.Send(&testpb.StreamingOutputCallRequest{ResponseParameters: []*testpb.ResponseParameters{{Size: 10}}}); err != nil {
						t.Fatal(err)
					}
					if _, err := stream.Recv(); err != nil {
						t.Fatal(err)
					}
				}
				l.cut(reset)
				_, err = stream.Recv()
				if status.Code(err) != codes.Unavailable {
					t.Errorf("mid-stream: %v, want UNAVAILABLE", err)
				}
				if _, err := service.EmptyCall(ctx, &testpb.Empty{}); status.Code(err) != codes.Unavailable {
					t.Errorf("the next call: %v, want UNAVAILABLE", err)
				}
			})
		}
	}
}
