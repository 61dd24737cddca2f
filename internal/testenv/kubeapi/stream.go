package kubeapi

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
)

const protobufType = "application/vnd.kubernetes.protobuf"

// streamTo begins the answer to a watch and returns what sends an event, as
// protobuf where the client likes that best, else as JSON, and what sees to it
// that all of them leave.
func streamTo(w http.ResponseWriter, r *http.Request) (send func(kind watch.EventType, o *object) error, flush func() error) {
	buffer := bufio.NewWriterSize(w, 64<<10)
	flush = func() error {
		if err := buffer.Flush(); err != nil {
			return err
		}
		return http.NewResponseController(w).Flush()
	}
	if !strings.HasPrefix(r.Header.Get("Accept"), protobufType) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusOK)
		out := json.NewEncoder(buffer)
		return func(kind watch.EventType, o *object) error {
			return out.Encode(struct {
				Type   watch.EventType `json:"type"`
				Object json.RawMessage `json:"object"`
			}{kind, o.raw})
		}, flush
	}
	w.Header().Set("Content-Type", protobufType+";stream=watch")
	w.WriteHeader(http.StatusOK)
	return func(kind watch.EventType, o *object) error {
		if kind == watch.Added {
			_, err := buffer.Write(o.added())
			return err
		}
		_, err := buffer.Write(frame(kind, o.protobuf()))
		return err
	}, flush
}

// frame is an event as it travels.
func frame(kind watch.EventType, object []byte) []byte {
	e := metav1.WatchEvent{Type: string(kind), Object: runtime.RawExtension{Raw: object}}
	out := make([]byte, 4+e.Size())
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	if _, err := e.MarshalTo(out[4:]); err != nil {
		panic(fmt.Sprintf("kubeapi: %v", err)) // the room is what it asked for
	}
	return out
}

// Warm makes what is else made when the first client asks for it, so that no
// client waits for that.
func (s *Server) Warm() {
	s.mu.Lock()
	var all []*object
	for _, of := range s.objects {
		for _, o := range of {
			all = append(all, o)
		}
	}
	s.mu.Unlock()
	var wg sync.WaitGroup
	for part := range slices.Chunk(all, 1000) {
		wg.Go(func() {
			for _, o := range part {
				o.added()
			}
		})
	}
	wg.Wait()
}

// toProtobuf converts an object from JSON.
func toProtobuf(raw json.RawMessage) []byte {
	o, err := runtime.Decode(scheme.Codecs.UniversalDeserializer(), raw)
	if err != nil {
		panic(fmt.Sprintf("kubeapi: %v: %s", err, raw))
	}
	var out bytes.Buffer
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(o, &out); err != nil {
		panic(fmt.Sprintf("kubeapi: %v: %s", err, raw))
	}
	return out.Bytes()
}

// fromProtobuf converts an object to JSON.
func fromProtobuf(data []byte) ([]byte, error) {
	o, err := runtime.Decode(scheme.Codecs.UniversalDeserializer(), data)
	if err != nil {
		return nil, err
	}
	return json.Marshal(o)
}
