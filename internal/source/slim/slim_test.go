package slim

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
	"k8s.io/apimachinery/pkg/util/framer"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	restwatch "k8s.io/client-go/rest/watch"
	"sigs.k8s.io/randfill"

	"fairway.dev/fairway/internal/source/translate"
)

func base() runtime.NegotiatedSerializer {
	return rest.CodecFactoryForGeneratedClient(scheme.Scheme, scheme.Codecs).WithoutConversion()
}

func info(t testing.TB, s runtime.NegotiatedSerializer, mediaType string) runtime.SerializerInfo {
	t.Helper()
	i, ok := runtime.SerializerInfoForMediaType(s.SupportedMediaTypes(), mediaType)
	if !ok {
		t.Fatalf("no serializer for %s", mediaType)
	}
	return i
}

// encode writes an object as an API server does.
func encode(t testing.TB, o runtime.Object) []byte {
	t.Helper()
	kinds, _, err := scheme.Scheme.ObjectKinds(o)
	if err != nil {
		t.Fatal(err)
	}
	o = o.DeepCopyObject()
	o.GetObjectKind().SetGroupVersionKind(kinds[0])
	var out bytes.Buffer
	if err := info(t, base(), runtime.ContentTypeProtobuf).Serializer.Encode(o, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func decoderOf(t testing.TB, s runtime.NegotiatedSerializer) runtime.Decoder {
	t.Helper()
	return s.DecoderToVersion(info(t, s, runtime.ContentTypeProtobuf).Serializer, schema.GroupVersion{})
}

// decode reads an object, and has the data written over then.
func decode(t testing.TB, d runtime.Decoder, data []byte, into runtime.Object) runtime.Object {
	t.Helper()
	data = bytes.Clone(data)
	o, _, err := d.Decode(data, nil, into)
	if err != nil {
		t.Fatal(err)
	}
	for i := range data {
		data[i] = 0xff
	}
	return o
}

// filler makes objects with everything in them.
func filler(seed uint64) *randfill.Filler {
	source := rand.New(rand.NewPCG(seed, 1))
	names := []string{
		discoveryv1.LabelServiceName, "service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless", "fairway.dev/tls-secret",
		corev1.EndpointsLastChangeTriggerTime, metav1.InitialEventsAnnotationKey, corev1.AnnotationLoadBalancerSourceRangesKey,
		"metallb.io/loadBalancerIPs", "fairway.dev/typo", "example.com/other", corev1.LastAppliedConfigAnnotation, "plain",
	}
	address := func() string { return fmt.Sprintf("10.0.%d.%d", source.IntN(256), source.IntN(256)) }
	return randfill.NewWithSeed(int64(seed)).NilChance(0.3).NumElements(0, 4).Funcs(
		func(t *metav1.Time, _ randfill.Continue) { *t = metav1.Unix(source.Int64N(2e9), 0) },
		func(m *map[string]string, c randfill.Continue) {
			*m = nil
			for range source.IntN(5) {
				if *m == nil {
					*m = map[string]string{}
				}
				(*m)[names[source.IntN(len(names))]] = c.String(10)
			}
		},
		func(p *intstr.IntOrString, c randfill.Continue) { *p = intstr.FromInt32(c.Int31()) },
		func(m *metav1.ManagedFieldsEntry, c randfill.Continue) {
			*m = metav1.ManagedFieldsEntry{Manager: c.String(0), FieldsV1: &metav1.FieldsV1{}}
		},
		func(e *discoveryv1.Endpoint, c randfill.Continue) {
			c.FillNoCustom(e)
			e.Addresses = nil
			for range source.IntN(3) {
				e.Addresses = append(e.Addresses, address())
			}
		},
		func(t *discoveryv1.AddressType, _ randfill.Continue) { *t = discoveryv1.AddressTypeIPv4 },
		func(s *corev1.ServiceSpec, c randfill.Continue) {
			c.FillNoCustom(s)
			s.ClusterIPs, s.Type = []string{address()}, corev1.ServiceTypeLoadBalancer
			for i := range s.Ports {
				s.Ports[i].Protocol, s.Ports[i].Port = corev1.ProtocolTCP, 1+source.Int32N(65535)
			}
		},
	)
}

// bare are the metadata of which nothing is left but what is read.
func bare(o metav1.ObjectMeta, wanted func([]byte) bool) metav1.ObjectMeta {
	only := func(m map[string]string) (out map[string]string) {
		for k, v := range m {
			if k != corev1.LastAppliedConfigAnnotation && (wanted == nil || wanted([]byte(k))) {
				if out == nil {
					out = map[string]string{}
				}
				out[k] = v
			}
		}
		return out
	}
	return metav1.ObjectMeta{
		Namespace: o.Namespace, Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion, CreationTimestamp: o.CreationTimestamp,
		Labels: only(o.Labels), Annotations: only(o.Annotations),
	}
}

// TestEqualsGenerated reads random objects as the generated code does, but for
// what is left out, and has them mean the same.
func TestEqualsGenerated(t *testing.T) {
	full, short, about := decoderOf(t, base()), decoderOf(t, NewSerializer(Options{Base: base()})), decoderOf(t, NewSerializer(Options{Base: base(), About: true}))
	for seed := range uint64(300) {
		f := filler(seed)
		var service corev1.Service
		f.Fill(&service)
		data := encode(t, &service)
		want := decode(t, full, data, nil).(*corev1.Service)
		got := decode(t, short, data, nil).(*corev1.Service)
		wantModel, wantProblems := translate.Service(want)
		gotModel, gotProblems := translate.Service(got)
		if diff := cmp.Diff(wantModel, gotModel, addrs) + cmp.Diff(wantProblems, gotProblems); diff != "" {
			t.Fatalf("seed %d: another Service (-generated +slim):\n%s", seed, diff)
		}
		want.ObjectMeta, want.Status.Conditions = bare(want.ObjectMeta, nil), nil
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("seed %d: Service (-generated +slim):\n%s", seed, diff)
		}

		var slice discoveryv1.EndpointSlice
		f.Fill(&slice)
		if slice.Labels == nil {
			slice.Labels = map[string]string{}
		}
		slice.Labels[discoveryv1.LabelServiceName] = "web"
		data = encode(t, &slice)
		wantSlice := decode(t, full, data, nil).(*discoveryv1.EndpointSlice)
		gotSlice := decode(t, about, data, nil).(*discoveryv1.EndpointSlice)
		wantEndpoints, wantProblems := translate.EndpointSlice(wantSlice)
		gotEndpoints, gotProblems := translate.EndpointSlice(gotSlice)
		if diff := cmp.Diff(wantEndpoints, gotEndpoints, addrs) + cmp.Diff(wantProblems, gotProblems); diff != "" {
			t.Fatalf("seed %d: other endpoints (-generated +slim):\n%s", seed, diff)
		}
		wantSlice.ObjectMeta = bare(wantSlice.ObjectMeta, ofSlices)
		for i := range wantSlice.Endpoints {
			wantSlice.Endpoints[i].DeprecatedTopology = nil
		}
		if diff := cmp.Diff(wantSlice, gotSlice); diff != "" {
			t.Fatalf("seed %d: EndpointSlice (-generated +slim):\n%s", seed, diff)
		}
		gotSlice = decode(t, short, data, nil).(*discoveryv1.EndpointSlice)
		for i := range wantSlice.Endpoints {
			wantSlice.Endpoints[i].TargetRef, wantSlice.Endpoints[i].Zone = nil, nil
		}
		if diff := cmp.Diff(wantSlice, gotSlice); diff != "" {
			t.Fatalf("seed %d: EndpointSlice without what only people are told (-generated +slim):\n%s", seed, diff)
		}
	}
}

// addrs has addresses compared as values.
var addrs = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func TestLists(t *testing.T) {
	d := decoderOf(t, NewSerializer(Options{Base: base()}))
	meta := metav1.ListMeta{ResourceVersion: "7", Continue: "more"}
	services := &corev1.ServiceList{ListMeta: meta, Items: []corev1.Service{{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, {ObjectMeta: metav1.ObjectMeta{Name: "b"}}}}
	into := &corev1.ServiceList{Items: []corev1.Service{{ObjectMeta: metav1.ObjectMeta{Name: "of before"}}}}
	if got := decode(t, d, encode(t, services), into); got != runtime.Object(into) {
		t.Errorf("%T, and not what was given", got)
	}
	if diff := cmp.Diff(services, into); diff != "" {
		t.Errorf("Services (-want +got):\n%s", diff)
	}
	slices := &discoveryv1.EndpointSliceList{ListMeta: meta, Items: []discoveryv1.EndpointSlice{{Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}}}}, {}}}
	if diff := cmp.Diff(runtime.Object(slices), decode(t, d, encode(t, slices), nil)); diff != "" {
		t.Errorf("EndpointSlices (-want +got):\n%s", diff)
	}
}

// TestOthers are read as client-go does: other kinds, other types for them, other encodings.
func TestOthers(t *testing.T) {
	s := NewSerializer(Options{Base: base()})
	d := decoderOf(t, s)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"a": "b"}}}
	if diff := cmp.Diff(runtime.Object(node), decode(t, d, encode(t, node), nil)); diff != "" {
		t.Errorf("Node (-want +got):\n%s", diff)
	}
	unknown := &runtime.Unknown{}
	if got := decode(t, d, encode(t, &corev1.Service{}), unknown); got != runtime.Object(unknown) || len(unknown.Raw) == 0 {
		t.Errorf("into Unknown: %T %+v", got, unknown)
	}
	j := s.DecoderToVersion(info(t, s, runtime.ContentTypeJSON).Serializer, schema.GroupVersion{})
	service, _, err := j.Decode([]byte(`{"apiVersion":"v1","kind":"Service","metadata":{"name":"web","finalizers":["x"]}}`), nil, nil)
	if err != nil || len(service.(*corev1.Service).Finalizers) != 1 {
		t.Errorf("JSON: %v %v", service, err)
	}
}

// TestDamaged never panics, whatever is cut off or changed.
func TestDamaged(t *testing.T) {
	d := decoderOf(t, NewSerializer(Options{Base: base(), About: true}))
	f, source := filler(5), rand.New(rand.NewPCG(5, 5))
	var service corev1.Service
	var slice discoveryv1.EndpointSlice
	f.Fill(&service)
	f.Fill(&slice)
	slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{"10.0.0.1"}})
	for _, o := range []runtime.Object{&service, &slice} {
		data := encode(t, o)
		failed := 0
		for n := range data {
			if _, _, err := d.Decode(data[:n], nil, nil); err != nil {
				failed++
			}
		}
		if failed < len(data)*9/10 {
			t.Errorf("%T: of %d that were cut off %d are refused", o, len(data), failed)
		}
		for range 20000 {
			bad := bytes.Clone(data)
			for range 1 + source.IntN(3) {
				bad[source.IntN(len(bad))] = byte(source.IntN(256))
			}
			_, _, _ = d.Decode(bad, nil, nil)
		}
	}
}

// TestWatch reads a stream of events by client-go's own decoder.
func TestWatch(t *testing.T) {
	var stream bytes.Buffer
	frames := framer.NewLengthDelimitedFrameWriter(&stream)
	send := func(kind watch.EventType, o runtime.Object) {
		t.Helper()
		e := metav1.WatchEvent{Type: string(kind), Object: runtime.RawExtension{Raw: encode(t, o)}}
		data, err := e.Marshal()
		if err == nil {
			_, err = frames.Write(data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	kinds := []watch.EventType{watch.Added, watch.Modified, watch.Deleted}
	want := []*discoveryv1.EndpointSlice{}
	for i := range 200 {
		s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: strings.Repeat("x", i), ResourceVersion: fmt.Sprint(i)}}
		for j := range i % 7 {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.0.%d.%d", i, j)}})
		}
		send(kinds[i%3], s)
		want = append(want, s)
	}
	last := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "9", Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}}}
	send(watch.Bookmark, last)
	send(watch.Error, &metav1.Status{Reason: metav1.StatusReasonExpired})

	s := NewSerializer(Options{Base: base()})
	i := info(t, s, runtime.ContentTypeProtobuf)
	d := restwatch.NewDecoder(streaming.NewDecoder(i.StreamSerializer.Framer.NewFrameReader(io.NopCloser(&stream)), i.StreamSerializer.Serializer), decoderOf(t, s))
	var got []*discoveryv1.EndpointSlice
	for range want {
		kind, o, err := d.Decode()
		if err != nil {
			t.Fatal(err)
		}
		if kind != kinds[len(got)%3] {
			t.Fatalf("event %d is %s", len(got), kind)
		}
		got = append(got, o.(*discoveryv1.EndpointSlice))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("objects once all have been read (-want +got):\n%s", diff)
	}
	if kind, o, err := d.Decode(); err != nil || kind != watch.Bookmark || cmp.Diff(runtime.Object(last), o) != "" {
		t.Errorf("bookmark: %s %v %v", kind, o, err)
	}
	if kind, o, err := d.Decode(); err != nil || kind != watch.Error || o.(*metav1.Status).Reason != metav1.StatusReasonExpired {
		t.Errorf("error: %s %v %v", kind, o, err)
	}
	if _, _, err := d.Decode(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

// TestOften forgets strings when there are too many.
func TestOften(t *testing.T) {
	d := &decoder{seen: map[string]*string{}}
	for i := range 3 * most {
		if s := *d.often(fmt.Append(nil, i)); s != fmt.Sprint(i) {
			t.Fatalf("%s for %d", s, i)
		}
	}
	if len(d.seen) > most {
		t.Errorf("%d strings are kept", len(d.seen))
	}
	if first := d.often([]byte("a")); d.often([]byte("a")) != first {
		t.Error("two copies of one string")
	}
}

func BenchmarkEndpointSlice(b *testing.B) {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "service-00001-abcde", UID: "8f3c2a50-0000-4000-8000-000000000000", ResourceVersion: "12345", CreationTimestamp: metav1.NewTime(time.Unix(1700000000, 0)),
			Labels: map[string]string{discoveryv1.LabelServiceName: "service-00001", discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io", "app.kubernetes.io/name": "service-00001"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	t, zone := true, "zone-a"
	for i := range 10 {
		node := fmt.Sprintf("node-%d", i)
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{fmt.Sprintf("10.128.0.%d", i)}, NodeName: &node, Zone: &zone,
			Conditions: discoveryv1.EndpointConditions{Ready: &t, Serving: &t},
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: fmt.Sprintf("service-00001-%d", i), UID: "8f3c2a50-0000-4000-8000-000000000001"},
		})
	}
	data := encode(b, s)
	for _, c := range []struct {
		name string
		d    runtime.Decoder
	}{{"generated", decoderOf(b, base())}, {"slim", decoderOf(b, NewSerializer(Options{Base: base()}))}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := c.d.Decode(data, nil, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
