package dialect

import (
	"bytes"
	"encoding/json"
	"fmt"

	"go.yaml.in/yaml/v3"
	kyaml "sigs.k8s.io/yaml"
)

// YAML returns the object as a document. One that was not changed is returned
// as it was written, with its comments.
func (o *Object) YAML() ([]byte, error) {
	if o.text == nil {
		return encode(o.node)
	}
	text := o.text
	if isMarker(text, "---") {
		// What follows the marker on its line may be content.
		text = bytes.TrimLeft(text[len("---"):], " \t")
	}
	return append(bytes.Trim(text, "\r\n"), '\n'), nil
}

func encode(n *yaml.Node) ([]byte, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(n); err != nil {
		return nil, err
	}
	return b.Bytes(), e.Close()
}

// JSON returns the object as the API reads it: plain scalars as kubectl takes
// them, which is by YAML 1.1 (yes is true).
func (o *Object) JSON() ([]byte, error) {
	text, err := encode(bare(o.node))
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", o.Source, o, err)
	}
	j, err := kyaml.YAMLToJSON(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", o.Source, o, err)
	}
	return j, nil
}

// bare is a copy without comments, which could go wrong on their way.
func bare(n *yaml.Node) *yaml.Node {
	out := *n
	out.HeadComment, out.LineComment, out.FootComment = "", "", ""
	out.Content = make([]*yaml.Node, len(n.Content))
	for i, c := range n.Content {
		out.Content[i] = bare(c)
	}
	return &out
}

// YAML returns objects as a file of documents.
func YAML(objects []*Object) ([]byte, error) {
	var b bytes.Buffer
	for i, o := range objects {
		text, err := o.YAML()
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", o.Source, o, err)
		}
		if i > 0 {
			b.WriteString("---\n")
		}
		b.Write(text)
	}
	return b.Bytes(), nil
}

// JSON returns one object as it is, and several as a List.
func JSON(objects []*Object) ([]byte, error) {
	all := make([]json.RawMessage, 0, len(objects))
	for _, o := range objects {
		j, err := o.JSON()
		if err != nil {
			return nil, err
		}
		all = append(all, j)
	}
	var out any = map[string]any{"apiVersion": "v1", "kind": "List", "items": all}
	if len(all) == 1 {
		out = all[0]
	}
	j, err := json.MarshalIndent(out, "", "  ")
	return append(j, '\n'), err
}
