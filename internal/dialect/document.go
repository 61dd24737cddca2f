package dialect

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Input is the text of one file.
type Input struct {
	// Name is the file's name for people; "-" is the standard input.
	Name string
	Data []byte
}

// Source says where an object stands.
type Source struct {
	File string
	// Document counts the documents of the file that are not empty, from 1.
	Document int
	// Item counts the items of a List, from 1; 0 outside of one.
	Item int
}

// String returns "FILE: document N", and the item in a List.
func (s Source) String() string {
	if s.Item > 0 {
		return fmt.Sprintf("%s: document %d, item %d", s.File, s.Document, s.Item)
	}
	return fmt.Sprintf("%s: document %d", s.File, s.Document)
}

// Object is one object of an input.
type Object struct {
	Source
	APIVersion, Kind string
	// Namespace is as written; empty where it is not.
	Namespace, Name string
	// node is the object's mapping, without aliases.
	node *yaml.Node
	// text is the document as written; nil where it is not the object alone
	// or no longer says what node does.
	text []byte
}

// String returns the object for people: "Service shop/web".
func (o *Object) String() string {
	if o.Namespace == "" {
		return o.Kind + " " + o.Name
	}
	return o.Kind + " " + o.Namespace + "/" + o.Name
}

// chunk is the text of one document.
type chunk struct {
	text []byte
	// line is the number of its first line in the file, from 1.
	line int
	// special is true for a document with directives or an end marker.
	special bool
}

// split cuts a file at its document markers, so that an error in one document
// leaves the others readable. A line that starts with --- begins a document
// wherever it stands (YAML 1.2.2, 9.1.2), also inside a block of text.
func split(data []byte) []chunk {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	var chunks []chunk
	current := chunk{line: 1}
	// directives is true until a line of content or a marker follows them.
	directives, line := false, 0
	for text := range bytes.Lines(data) {
		line++
		if isMarker(text, "...") {
			current.text, current.special = append(current.text, text...), true
			chunks = append(chunks, current)
			current = chunk{line: line + 1}
			continue
		}
		bare := bytes.TrimRight(text, " \t\r\n")
		switch {
		case isMarker(text, "---"):
			if !directives {
				chunks = append(chunks, current)
				current = chunk{line: line}
			}
			directives = false
		case len(text) > 0 && text[0] == '%' && len(bytes.TrimSpace(current.text)) == 0:
			directives, current.special = true, true
		case len(bare) > 0 && bare[0] != '#':
			directives = false
		}
		current.text = append(current.text, text...)
	}
	return append(chunks, current)
}

func isMarker(line []byte, marker string) bool {
	rest, ok := bytes.CutPrefix(line, []byte(marker))
	return ok && (len(rest) == 0 || strings.ContainsRune(" \t\r\n", rune(rest[0])))
}

// reader reads the documents of one file.
type reader struct {
	file     string
	document int
	objects  []*Object
	problems []error
}

// Read returns the objects of a file, Lists taken apart, and what is wrong
// with the documents that hold none.
func Read(in Input) ([]*Object, []error) {
	r := &reader{file: in.Name}
	if trimmed := bytes.TrimSpace(in.Data); len(trimmed) > 0 && trimmed[0] == '{' {
		if nodes, err := parseJSON(trimmed); err == nil {
			for _, n := range nodes {
				r.document++
				r.add(Source{File: r.file, Document: r.document}, n, nil)
			}
			return r.objects, r.problems
		}
		// It may still be YAML in flow style.
	}
	for _, c := range split(in.Data) {
		r.chunk(c)
	}
	return r.objects, r.problems
}

func (r *reader) chunk(c chunk) {
	nodes, err := parseYAML(c.text)
	for i, n := range nodes {
		if n == nil {
			continue
		}
		moveNodes(n, c.line-1)
		r.document++
		var text []byte
		if !c.special && len(nodes) == 1 && i == 0 && err == nil {
			text = c.text
		}
		r.add(Source{File: r.file, Document: r.document}, n, text)
	}
	if err != nil {
		r.document++
		r.problems = append(r.problems, &Problem{
			Source:  Source{File: r.file, Document: r.document},
			Message: fmt.Sprintf("is no YAML: %s; correct that line", syntaxError(c, err)),
		})
	}
}

// parseYAML returns the root of each document, nil for an empty one. With an
// error come the documents before it.
func parseYAML(text []byte) (roots []*yaml.Node, err error) {
	// The parser panics on some malformed input instead of returning an error.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the parser cannot read it: %v", p)
		}
	}()
	d := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var n yaml.Node
		err := d.Decode(&n)
		if errors.Is(err, io.EOF) {
			return roots, nil
		}
		if err != nil {
			return roots, err
		}
		root := &n
		if n.Kind == yaml.DocumentNode && len(n.Content) == 1 {
			root = n.Content[0]
		}
		if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" && root.Value == "" {
			root = nil
		}
		roots = append(roots, root)
	}
}

// maxSearch limits the lines of a document in which faultyLine looks.
const maxSearch = 1000

// faultyLine returns where in a malformed text the fault is: the line after
// the longest part that is well-formed. The parser's own line is often that of
// the block around. It returns 0 where the text is too long to look.
func faultyLine(text []byte) int {
	lines := bytes.SplitAfter(text, []byte("\n"))
	if len(lines) > maxSearch {
		return 0
	}
	end := len(text)
	for i := len(lines) - 1; i > 0; i-- {
		end -= len(lines[i])
		if _, err := parseYAML(text[:end]); err == nil {
			return i + 1
		}
	}
	return 1
}

// syntaxError is the parser's error with the line in the file.
func syntaxError(c chunk, err error) string {
	said := regexp.MustCompile(`^(yaml: )?(line \d+: )?`).ReplaceAllString(err.Error(), "")
	if line := faultyLine(c.text); line > 0 {
		return fmt.Sprintf("line %d: %s", c.line-1+line, said)
	}
	return fmt.Sprintf("from line %d on: %s", c.line, said)
}

// moveNodes makes the line numbers of a document those of the file.
func moveNodes(n *yaml.Node, by int) {
	n.Line += by
	for _, c := range n.Content {
		moveNodes(c, by)
	}
}

// add takes one document's root. A List becomes its items.
func (r *reader) add(at Source, n *yaml.Node, text []byte) {
	if n.Kind != yaml.MappingNode {
		r.problem(at, "", "", "holds no object; an object has apiVersion, kind and metadata")
		return
	}
	expanded, err := expand(n)
	if err != nil {
		r.problem(at, "", "", err.Error())
		return
	}
	o := &Object{Source: at, node: expanded, text: text}
	o.Kind, o.APIVersion = stringAt(expanded, "kind"), stringAt(expanded, "apiVersion")
	if items := lookup(expanded, "items"); strings.HasSuffix(o.Kind, "List") && items != nil {
		r.addItems(at, o, items)
		return
	}
	if metadata := lookup(expanded, "metadata"); metadata != nil {
		o.Namespace, o.Name = stringAt(metadata, "namespace"), stringAt(metadata, "name")
		if o.Name == "" {
			o.Name = stringAt(metadata, "generateName")
		}
	}
	switch {
	case o.Kind == "":
		r.problem(at, o.Name, "kind", "is missing; say what the object is, for example Service")
	case o.APIVersion == "":
		r.problem(at, o.String(), "apiVersion", "is missing; "+versionHint(o.Kind))
	case o.Name == "":
		r.problem(at, o.Kind, "metadata.name", "is missing; give the object a name")
	default:
		r.objects = append(r.objects, o)
	}
}

func (r *reader) addItems(at Source, list *Object, items *yaml.Node) {
	if items.Kind != yaml.SequenceNode {
		if !isNull(items) {
			r.problem(at, list.Kind, "items", "is no list; write the objects as its items")
		}
		return
	}
	for i, item := range items.Content {
		at.Item = i + 1
		if kind := strings.TrimSuffix(list.Kind, "List"); kind != "" && item.Kind == yaml.MappingNode && stringAt(item, "kind") == "" {
			// The items of a typed list need not repeat what it says.
			prepend(item, "kind", text(kind))
			if stringAt(item, "apiVersion") == "" {
				prepend(item, "apiVersion", text(list.APIVersion))
			}
		}
		r.add(at, item, nil)
	}
}

func (r *reader) problem(at Source, object, field, message string) {
	r.problems = append(r.problems, &Problem{Source: at, Object: object, Field: field, Message: message})
}

// versionHint names the API version of kinds that people write by hand.
func versionHint(kind string) string {
	switch kind {
	case "Service", "Pod", "ConfigMap", "Secret", "Namespace", "Endpoints", "ServiceAccount":
		return fmt.Sprintf("for %s write v1", kind)
	case "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet":
		return fmt.Sprintf("for %s write apps/v1", kind)
	case "Ingress", "IngressClass", "NetworkPolicy":
		return fmt.Sprintf("for %s write networking.k8s.io/v1", kind)
	case "EndpointSlice":
		return "for EndpointSlice write discovery.k8s.io/v1"
	}
	return "kubectl api-resources lists the versions of each kind"
}
