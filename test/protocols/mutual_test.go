package protocols

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/interop"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/orca"
	"google.golang.org/grpc/status"

	"fairway.dev/fairway/internal/gateway/gatewaytest"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// TestGRPCMutualTLS: gRPC's server asks the gateway for a certificate, as the
// gateway does the server. Either lets nobody through whom it does not trust.
func TestGRPCMutualTLS(t *testing.T) {
	server, ours, stranger := gatewaytest.Secret(t, "server", "app.test"), gatewaytest.Secret(t, "ours", "gateway"), gatewaytest.Secret(t, "stranger", "gateway")
	pair, err := tls.X509KeyPair(server.Chain, server.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(ours.Chain)
	s := grpc.NewServer(orca.CallMetricsServerOption(nil), grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients,
	})))
	testpb.RegisterTestServiceServer(s, interop.NewTestServer())
	l := listen(t)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)

	w := newWorld(t, backend{"grpc.test", "grpcs", l.Addr().String()})
	service := testpb.NewTestServiceClient(w.grpc(t))
	ours.CA, stranger.CA = server.Chain, server.Chain
	w.store.Update(func(tx *state.Tx) {
		tx.PutCertificate(ours)
		tx.PutCertificate(stranger)
		tx.PutCertificate(&model.Certificate{Key: gatewaytest.Key("alone"), CA: server.Chain})
	})
	for _, tt := range []struct {
		secret, name string
		want         codes.Code
	}{
		{"ours", "app.test", codes.OK},
		{"alone", "app.test", codes.Unavailable}, // nothing to show
		{"ours", "app.test", codes.OK},
		{"stranger", "app.test", codes.Unavailable},
		{"ours", "app.test", codes.OK},
		{"ours", "other.test", codes.Unavailable},
	} {
		secret := gatewaytest.Key(tt.secret)
		w.store.Update(func(tx *state.Tx) {
			route, _ := w.store.Snapshot().Routes.Get(gatewaytest.Ingress("main").Ref)
			changed := *route
			changed.Rules = []model.RouteRule{gatewaytest.Rule("grpc.test", "/", "grpc.test", func(r *model.RouteRule) {
				r.Backends[0].TLS = &model.BackendTLS{Verify: true, CA: []model.Key{secret}, Certificate: secret, Depth: 1, Name: tt.name}
			})}
			tx.PutRoute(&changed)
		})
		ctx, cancel := context.WithTimeout(context.Background(), grpcLimit)
		call := func() codes.Code {
			_, err := service.EmptyCall(ctx, &testpb.Empty{})
			return status.Code(err)
		}
		for call() != tt.want { // until the gateway has taken it in
			if ctx.Err() != nil {
				t.Fatalf("%+v: that is not what calls get", tt)
			}
			time.Sleep(5 * time.Millisecond)
		}
		if tt.want == codes.OK {
			interop.DoLargeUnaryCall(ctx, service)
			interop.DoPingPong(ctx, service)
		}
		cancel()
	}
}
