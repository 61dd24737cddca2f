package translate

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"fairway.dev/fairway/internal/model"
)

var update = flag.Bool("update", false, "write what came out into testdata/*.txtar")

// TestGolden translates the objects in in.yaml of each file in testdata and
// compares what comes out with want.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test data: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := translateAll(t, string(archive.Files[0].Data))
			if *update {
				archive.Files = append(archive.Files[:1], txtar.File{Name: "want", Data: []byte(got)})
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if len(archive.Files) != 2 {
				t.Fatal("no want in the file; run with -update and read what it says")
			}
			if diff := cmp.Diff(string(archive.Files[1].Data), got); diff != "" {
				t.Errorf("want-, got+:\n%s", diff)
			}
		})
	}
}

// translateAll translates a stream of YAML documents and renders the results.
func translateAll(t *testing.T, docs string) string {
	t.Helper()
	var b strings.Builder
	for doc := range strings.SplitSeq(docs, "\n---\n") {
		var object map[string]any
		if err := yaml.Unmarshal([]byte(doc), &object); err != nil {
			t.Fatalf("%v in:\n%s", err, doc)
		}
		u := &unstructured.Unstructured{Object: object}
		fmt.Fprintf(&b, "== %s %s\n", u.GetKind(), keyOf(u))
		value, problems := translateDoc(t, u.GetKind(), []byte(doc))
		render(&b, "", reflect.ValueOf(value))
		for _, p := range problems {
			fmt.Fprintf(&b, "! %s %s\n", p.Reason, p)
		}
	}
	return b.String()
}

func translateDoc(t *testing.T, kind string, doc []byte) (any, model.Problems) {
	t.Helper()
	decode := func(o any) {
		if err := yaml.UnmarshalStrict(doc, o); err != nil {
			t.Fatalf("%v in:\n%s", err, doc)
		}
	}
	switch kind {
	case "Service":
		var o corev1.Service
		decode(&o)
		return Service(&o)
	case "EndpointSlice":
		var o discoveryv1.EndpointSlice
		decode(&o)
		return EndpointSlice(&o)
	case "Node":
		var o corev1.Node
		decode(&o)
		return Node(&o)
	case "Namespace":
		var o corev1.Namespace
		decode(&o)
		return Namespace(&o), nil
	case "Ingress":
		var o networkingv1.Ingress
		decode(&o)
		return Ingress(&o)
	case "Secret":
		var o corev1.Secret
		decode(&o)
		return Secret(&o), nil
	case "ConfigMap":
		var o corev1.ConfigMap
		decode(&o)
		if strings.HasPrefix(o.Name, "udp") {
			return StreamServices(&o, model.UDP)
		}
		return StreamServices(&o, model.TCP)
	case "IPAddressPool":
		j, err := yaml.YAMLToJSON(doc)
		if err != nil {
			t.Fatal(err)
		}
		var o unstructured.Unstructured
		if err := o.UnmarshalJSON(j); err != nil {
			t.Fatal(err)
		}
		return Pool(&o)
	}
	t.Fatalf("kind %q is not translated", kind)
	return nil, nil
}

// render prints a value, one line for each field that is not zero.
func render(b *strings.Builder, path string, v reflect.Value) {
	if v.IsValid() && v.CanInterface() {
		switch x := v.Interface().(type) {
		case model.Secret:
			fmt.Fprintf(b, "%s: %d bytes\n", path, len(x))
			return
		case []byte:
			fmt.Fprintf(b, "%s: %s\n", path, bytes.ReplaceAll(x, []byte("\n"), []byte(" ")))
			return
		case time.Duration, time.Time, netip.Addr, netip.Prefix, model.Key:
			fmt.Fprintf(b, "%s: %s\n", path, x)
			return
		}
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			fmt.Fprintf(b, "%s: nothing\n", path)
			return
		}
		render(b, path, v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Field(i); !f.IsZero() {
				render(b, strings.TrimPrefix(path+"."+v.Type().Field(i).Name, "."), f)
			}
		}
		if v.IsZero() {
			fmt.Fprintf(b, "%s: zero\n", path)
		}
	case reflect.Slice:
		for i := range v.Len() {
			render(b, fmt.Sprintf("%s[%d]", path, i), v.Index(i))
		}
	default:
		fmt.Fprintf(b, "%s: %v\n", path, v.Interface())
	}
}
