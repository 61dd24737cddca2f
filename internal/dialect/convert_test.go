package dialect

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	kyaml "sigs.k8s.io/yaml"
)

func TestSyntaxErrors(t *testing.T) {
	const good = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: good}\n"
	tests := []struct{ name, in, want string }{
		{"indentation", good + "---\na:\n  b: 1\n c: 2\n", "f: document 2: is no YAML: line 7: "},
		{"tab", good + "---\na:\n\tb: 1\n", "f: document 2: is no YAML: line 6: "},
		{"first", "a: {\n---\n" + good, "f: document 1: is no YAML: line "},
		{"sequence", good + "---\n- a\n", "f: document 2: holds no object"},
		{"cut-off JSON", "{\"a\": 1,\n", "f: document 1: is no YAML: line "},
		{"deep JSON", strings.Repeat(`{"a":`, 5000), "f: document 1: "},
		{"JSON twice", `{"apiVersion":"v1","kind":"A","kind":"B"}`, "f: document 1: field kind is there twice"},
		{"merge of text", "a: &a x\nb: {<<: *a}\n", "<< must stand before an alias of a mapping"},
		{"key that is no text", "? [a]\n: b\n", "the key of a field must be plain text"},
		{"bomb", bomb(), "too large"},
		{"items", "apiVersion: v1\nkind: List\nitems: x\n", "f: document 1: List: items: is no list"},
		{"unknown alias", "a: *b\n", "unknown anchor"},
		{"invalid UTF-8", "a: \xff\n", "f: document 1: is no YAML"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := Convert([]Input{{Name: "f", Data: []byte(tt.in)}}, Options{})
			if len(r.Problems) != 1 || !strings.Contains(r.Problems[0].Error(), tt.want) {
				t.Errorf("got %q, want %q", r.Problems, tt.want)
			}
			if want := strings.Count(tt.in, good); len(r.Objects) != want {
				t.Errorf("got %d objects, want %d", len(r.Objects), want)
			}
		})
	}
}

// bomb is 10^9 nodes in a few lines.
func bomb() string {
	b := "apiVersion: v1\nkind: X\nl0: &l0 [x]\n"
	for i, name := range []string{"l1", "l2", "l3", "l4", "l5", "l6", "l7", "l8", "l9"} {
		ref := "*l" + string(rune('0'+i))
		b += name + ": &" + name + " [" + strings.Repeat(ref+",", 10) + "]\n"
	}
	return b
}

func TestJSON(t *testing.T) {
	const in = "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Service\",\n\t\"metadata\": {\"name\": \"a\", \"labels\": {\"on\": \"yes\", \"n\": \"1\"}},\n" +
		"\t\"spec\": {\"ports\": [{\"port\": 80, \"nodePort\": 30001}], \"x\": {}, \"y\": [], \"z\": null, \"t\": true, \"f\": 1.5}\n}\n" +
		`{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}, "data": {"t": "a\n b\u0007"}}`
	r := Convert([]Input{{Name: "-", Data: []byte(in)}}, Options{})
	if len(r.Problems) > 0 {
		t.Fatal(r.Problems)
	}
	wantYAML := `apiVersion: v1
kind: Service
metadata:
  name: a
  labels:
    "on": "yes"
    "n": "1"
spec:
  type: NodePort
  ports:
    - port: 80
      nodePort: 30001
  x: {}
  "y": []
  z: null
  t: true
  f: 1.5
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: b
data:
  t: "a\n b\a"
`
	if d := cmp.Diff(wantYAML, yamlOf(t, r)); d != "" {
		t.Errorf("YAML (-want +got):\n%s", d)
	}
	got, err := JSON(r.Objects)
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		Kind  string
		Items []map[string]any
	}
	if err := json.Unmarshal(got, &list); err != nil || list.Kind != "List" || len(list.Items) != 2 {
		t.Fatalf("%v in %s", err, got)
	}
	labels := list.Items[0]["metadata"].(map[string]any)["labels"]
	if d := cmp.Diff(map[string]any{"on": "yes", "n": "1"}, labels); d != "" {
		t.Errorf("labels (-want +got):\n%s", d)
	}
	single, err := JSON(r.Objects[:1])
	if err != nil || !strings.Contains(string(single), `"kind": "Service"`) || strings.Contains(string(single), "items") {
		t.Errorf("one object: %v %s", err, single)
	}
}

// TestScalars holds that objects reach the API with the values that kubectl
// would read, whatever becomes of their text.
func TestScalars(t *testing.T) {
	want, err := kyaml.YAMLToJSON([]byte(scalars))
	if err != nil {
		t.Fatal(err)
	}
	r := Convert([]Input{{Name: "-", Data: []byte(scalars)}}, Options{})
	got, err := r.Objects[0].JSON()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

const scalars = `apiVersion: v1
kind: ConfigMap
metadata: {name: a, annotations: {"1": "0x1F", e: '1e3', o: "0o17", n: "null", t: "~"}}
data:
  yes: "on"
  plain: on
  octal: 0777
  hex: 0x1F
  float: 1.50
  big: 9007199254740993
  date: 2026-11-23
  time: 12:30:45
  folded: >-
    a
    b

    c
  literal: |+
    x

  empty:
  quoted: "a\tb\u263a"
  single: 'it''s'
  tagged: !!str 5
`

func FuzzConvert(f *testing.F) {
	for _, pattern := range []string{"testdata/article/*.yaml", "testdata/*.txtar"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			if strings.HasSuffix(file, ".txtar") {
				data = txtar.Parse(data).Files[0].Data
			}
			f.Add(data)
			for _, c := range split(data) {
				f.Add(c.text)
			}
		}
	}
	f.Add([]byte(scalars))
	f.Add([]byte(strings.Replace(scalars, "ConfigMap", "Service", 1) + "spec: {externalName: x}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		once := Convert([]Input{{Name: "once", Data: data}}, Options{})
		text, err := YAML(once.Objects)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range once.Objects {
			// What was not changed must reach the API as kubectl reads it.
			want, errWant := kyaml.YAMLToJSON(o.text)
			got, errGot := o.JSON()
			if d := cmp.Diff(string(want), string(got)); o.text != nil && errWant == nil && (d != "" || errGot != nil) {
				t.Fatalf("%s is read otherwise than by kubectl (%v):\n%s\nof\n%s", o, errGot, d, o.text)
			}
		}
		twice := Convert([]Input{{Name: "twice", Data: text}}, Options{})
		if len(twice.Problems) > 0 {
			t.Fatalf("the result of\n%s\nwhich is\n%s\nhas problems: %v", data, text, twice.Problems)
		}
		if len(twice.Objects) != len(once.Objects) {
			t.Fatalf("%d objects of\n%s\nbecame %d in\n%s", len(once.Objects), data, len(twice.Objects), text)
		}
		for i := range once.Objects {
			a, errA := once.Objects[i].JSON()
			b, errB := twice.Objects[i].JSON()
			if d := cmp.Diff(string(a), string(b)); d != "" || (errA == nil) != (errB == nil) {
				t.Fatalf("converting twice changes %s (%v, %v):\n%s\nof\n%s", once.Objects[i], errA, errB, d, data)
			}
		}
	})
}
