package kubeapi

import (
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

// streamTo begins the answer to a watch and returns what sends an event: as
// protobuf where the client likes that best, else as JSON.
func streamTo(w http.ResponseWriter, r *http.Request) func(kind watch.EventType, o *object) error {
	if !strings.HasPrefix(r.Header.Get("Accept"), protobufType) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusOK)
		out := json.NewEncoder(w)
		return func(kind watch.EventType, o *object) error {
			return out.Encode(struct {
				Type   watch.EventType `json:"type"`
				Object json.RawMessage `json:"object"`
			}{kind, o.raw})
		}
	}
	w.Header().Set("Content-Type", protobufType+";stream=watch")
	w.WriteHeader(http.StatusOK)
	return func(kind watch.EventType, o *object) error {
		e := metav1.WatchEvent{Type: string(kind), Object: runtime.RawExtension{Raw: o.protobuf()}}
		frame := make([]byte, 4, 4+e.Size())
		binary.BigEndian.PutUint32(frame, uint32(e.Size()))
		data, err := e.Marshal()
		if err != nil {
			return err
		}
		_, err = w.Write(append(frame, data...))
		return err
	}
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
				o.protobuf()
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
