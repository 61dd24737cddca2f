package echo

import (
	"errors"
	"io"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/emptypb"
)

// message is a WebSocket message with its kind, text or binary.
type message struct {
	kind byte
	data []byte
}

// sameKind sends and receives messages without changing their kind.
func sameKind() websocket.Codec {
	return websocket.Codec{
		Marshal: func(v any) ([]byte, byte, error) {
			m, ok := v.(*message)
			if !ok {
				return nil, 0, websocket.ErrNotSupported
			}
			return m.data, m.kind, nil
		},
		Unmarshal: func(data []byte, kind byte, v any) error {
			m, ok := v.(*message)
			if !ok {
				return websocket.ErrNotSupported
			}
			m.data, m.kind = data, kind
			return nil
		},
	}
}

func (s *Server) serveWebSocket(ws *websocket.Conn) {
	if !s.conns.add(ws) {
		return
	}
	defer s.conns.remove(ws)
	codec := sameKind()
	for {
		var m message
		if codec.Receive(ws, &m) != nil || codec.Send(ws, &m) != nil {
			return
		}
	}
}

// healthSwitch is the gRPC health service, which follows readiness.
type healthSwitch struct{ server *health.Server }

func (h *healthSwitch) set(ok bool) {
	if h.server == nil {
		h.server = health.NewServer()
	}
	status := healthpb.HealthCheckResponse_SERVING
	if !ok {
		status = healthpb.HealthCheckResponse_NOT_SERVING
	}
	h.server.SetServingStatus("", status)
}

// newGRPCServer answers grpc.health.v1.Health, and every other method with the
// messages that it was sent.
func (s *Server) newGRPCServer() *grpc.Server {
	g := grpc.NewServer(grpc.UnknownServiceHandler(echoMessages))
	healthpb.RegisterHealthServer(g, s.health.server)
	return g
}

// echoMessages knows no message type: as an Empty a message is all unknown
// fields, which are kept and sent back as they came.
func echoMessages(_ any, stream grpc.ServerStream) error {
	for {
		m := new(emptypb.Empty)
		if err := stream.RecvMsg(m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(m); err != nil {
			return err
		}
	}
}
