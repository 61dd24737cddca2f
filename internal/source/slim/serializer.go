package slim

import (
	"bufio"
	"bytes"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
)

// Options configure a serializer.
type Options struct {
	// Base reads and writes everything else. Required.
	Base runtime.NegotiatedSerializer
	// About reads of endpoints what only people are told: zones, and the Pods behind.
	About bool
}

// NewSerializer returns what a REST client for Services or EndpointSlices reads
// answers with (rest.Config.NegotiatedSerializer).
func NewSerializer(o Options) runtime.NegotiatedSerializer {
	return serializer{o.Base, o.About}
}

type serializer struct {
	runtime.NegotiatedSerializer
	about bool
}

// SupportedMediaTypes implements runtime.NegotiatedSerializer. Protobuf is
// replaced by types that DecoderToVersion and the stream know.
func (s serializer) SupportedMediaTypes() []runtime.SerializerInfo {
	var out []runtime.SerializerInfo
	for _, info := range s.NegotiatedSerializer.SupportedMediaTypes() {
		if info.MediaType == runtime.ContentTypeProtobuf {
			info.Serializer = protobuf{info.Serializer}
			if info.StreamSerializer != nil {
				stream := *info.StreamSerializer
				stream.Serializer, stream.Framer = events{stream.Serializer}, frames{stream.Framer}
				info.StreamSerializer = &stream
			}
		}
		out = append(out, info)
	}
	return out
}

// DecoderToVersion implements runtime.NegotiatedSerializer. Each list and each
// watch asks for a decoder of its own, which is what lets one keep strings that
// come again and again.
func (s serializer) DecoderToVersion(d runtime.Decoder, v runtime.GroupVersioner) runtime.Decoder {
	if p, ok := d.(protobuf); ok {
		d = &decoder{Decoder: p.Serializer, about: s.about, seen: map[string]*string{}}
	}
	return s.NegotiatedSerializer.DecoderToVersion(d, v)
}

// protobuf marks the serializer of objects.
type protobuf struct{ runtime.Serializer }

// magic is what objects in protobuf begin with.
var magic = []byte("k8s\x00")

// decoder reads objects. It is not for concurrent use.
type decoder struct {
	runtime.Decoder // of other kinds
	about           bool
	seen            map[string]*string
	// Room for what is read of one object, used again for the next.
	text   []byte
	ends   []int
	counts []int
}

// Decode implements runtime.Decoder.
func (d *decoder) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	version, kind, raw, ok := envelope(data)
	if !ok {
		return d.Decoder.Decode(data, defaults, into)
	}
	var err error
	switch version + "/" + kind {
	case "v1/Service":
		if o, ok := target[corev1.Service](into); ok {
			into, err = o, d.service(raw, o)
			break
		}
		return d.Decoder.Decode(data, defaults, into)
	case "v1/ServiceList":
		if o, ok := target[corev1.ServiceList](into); ok {
			into, err = o, list(raw, &o.ListMeta, &o.Items, d.service)
			break
		}
		return d.Decoder.Decode(data, defaults, into)
	case "discovery.k8s.io/v1/EndpointSlice":
		if o, ok := target[discoveryv1.EndpointSlice](into); ok {
			into, err = o, d.slice(raw, o)
			break
		}
		return d.Decoder.Decode(data, defaults, into)
	case "discovery.k8s.io/v1/EndpointSliceList":
		if o, ok := target[discoveryv1.EndpointSliceList](into); ok {
			into, err = o, list(raw, &o.ListMeta, &o.Items, d.slice)
			break
		}
		return d.Decoder.Decode(data, defaults, into)
	default:
		return d.Decoder.Decode(data, defaults, into)
	}
	gvk := schema.FromAPIVersionAndKind(version, kind)
	if err != nil {
		return nil, &gvk, fmt.Errorf("%s %s: %w", version, kind, err)
	}
	return into, &gvk, nil
}

// target returns what to read into: a new T where none is given. It is false where
// another type is wanted.
func target[T any](into runtime.Object) (*T, bool) {
	if into == nil {
		return new(T), true
	}
	o, ok := into.(any).(*T)
	if ok {
		*o = *new(T)
	}
	return o, ok
}

// envelope opens the message that an object travels in (runtime.Unknown). It is
// false for what is none, or holds anything but plain protobuf.
func envelope(data []byte) (version, kind string, raw []byte, ok bool) {
	rest, ok := bytes.CutPrefix(data, magic)
	if !ok {
		return "", "", nil, false
	}
	f := fields{rest: rest}
	for f.next() {
		switch f.tag {
		case 1<<3 | lengthDelimited: // TypeMeta
			of := fields{rest: f.bytes}
			for of.next() {
				switch of.tag {
				case 1<<3 | lengthDelimited:
					version = known(of.bytes)
				case 2<<3 | lengthDelimited:
					kind = known(of.bytes)
				}
			}
			if of.err != nil {
				return "", "", nil, false
			}
		case 2<<3 | lengthDelimited:
			raw = f.bytes
		case 3<<3 | lengthDelimited, 4<<3 | lengthDelimited: // contentEncoding, contentType
			if len(f.bytes) > 0 {
				return "", "", nil, false
			}
		}
	}
	return version, kind, raw, f.err == nil
}

// known returns the text, without a copy of those that are seen most.
func known(text []byte) string {
	switch string(text) {
	case "v1":
		return "v1"
	case "Service":
		return "Service"
	case "discovery.k8s.io/v1":
		return "discovery.k8s.io/v1"
	case "EndpointSlice":
		return "EndpointSlice"
	case string(watch.Added):
		return string(watch.Added)
	case string(watch.Modified):
		return string(watch.Modified)
	}
	return string(text)
}

// events reads the events of a watch.
type events struct{ runtime.Serializer }

// Decode implements runtime.Decoder. The object of an event is not copied: it
// lies where data does until the caller reads the next event, and client-go's
// rest/watch.Decoder, the only caller, has decoded it by then.
func (s events) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	event, ok := into.(*metav1.WatchEvent)
	if !ok {
		return s.Serializer.Decode(data, defaults, into)
	}
	*event = metav1.WatchEvent{}
	f := fields{rest: data}
	for f.next() {
		switch f.tag {
		case 1<<3 | lengthDelimited:
			event.Type = known(f.bytes)
		case 2<<3 | lengthDelimited: // RawExtension
			of := fields{rest: f.bytes}
			for of.next() {
				if of.tag == 1<<3|lengthDelimited {
					event.Object.Raw = of.bytes
				}
			}
			if of.err != nil {
				return nil, nil, fmt.Errorf("watch event: %w", of.err)
			}
		}
	}
	if f.err != nil {
		return nil, nil, fmt.Errorf("watch event: %w", f.err)
	}
	gvk := metav1.SchemeGroupVersion.WithKind("WatchEvent")
	return event, &gvk, nil
}

// frames reads a stream in large pieces: frames are read in two parts each, and
// every read passes through all that HTTP is made of.
type frames struct{ runtime.Framer }

// NewFrameReader implements runtime.Framer.
func (f frames) NewFrameReader(r io.ReadCloser) io.ReadCloser {
	return f.Framer.NewFrameReader(struct {
		io.Reader
		io.Closer
	}{bufio.NewReaderSize(r, 32<<10), r})
}

// fields goes through the fields of a message.
type fields struct {
	rest []byte
	// tag is the number of the field, shifted by three, and its wire type.
	tag uint64
	// bytes is the value of a length-delimited field, number that of a varint.
	bytes  []byte
	number uint64
	err    error
}

// The wire types of fields that are read.
const (
	varint          = uint64(protowire.VarintType)
	lengthDelimited = uint64(protowire.BytesType)
)

// next reads the next field; false at the end and after an error.
func (f *fields) next() bool {
	if len(f.rest) == 0 || f.err != nil {
		return false
	}
	number, kind, n := protowire.ConsumeTag(f.rest)
	if n < 0 {
		f.err = protowire.ParseError(n)
		return false
	}
	f.tag = uint64(number)<<3 | uint64(kind)
	f.rest = f.rest[n:]
	switch kind {
	case protowire.VarintType:
		f.number, n = protowire.ConsumeVarint(f.rest)
	case protowire.BytesType:
		f.bytes, n = protowire.ConsumeBytes(f.rest)
	default:
		n = protowire.ConsumeFieldValue(number, kind, f.rest)
	}
	if n < 0 {
		f.err = protowire.ParseError(n)
		return false
	}
	f.rest = f.rest[n:]
	return true
}
