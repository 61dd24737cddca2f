package dialect

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// lookup returns the value of a key of a mapping, or nil.
func lookup(m *yaml.Node, key string) *yaml.Node {
	if i := index(m, key); i >= 0 {
		return m.Content[i+1]
	}
	return nil
}

// at follows a path of keys.
func at(m *yaml.Node, path ...string) *yaml.Node {
	for _, key := range path {
		m = lookup(m, key)
	}
	return m
}

// index is where a key stands in the content of a mapping, or -1.
func index(m *yaml.Node, key string) int {
	if m == nil || m.Kind != yaml.MappingNode {
		return -1
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Kind == yaml.ScalarNode && m.Content[i].Value == key {
			return i
		}
	}
	return -1
}

// keys returns the keys of a mapping in order.
func keys(m *yaml.Node) []string {
	var out []string
	if m != nil && m.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(m.Content); i += 2 {
			out = append(out, m.Content[i].Value)
		}
	}
	return out
}

// items returns the elements of a sequence; of anything else none.
func items(n *yaml.Node) []*yaml.Node {
	if n == nil || n.Kind != yaml.SequenceNode {
		return nil
	}
	return n.Content
}

// scalar returns the text of a scalar other than null.
func scalar(n *yaml.Node) (string, bool) {
	if n == nil || n.Kind != yaml.ScalarNode || isNull(n) {
		return "", false
	}
	return n.Value, true
}

// stringAt returns the text of a key's scalar, or "".
func stringAt(m *yaml.Node, key string) string {
	s, _ := scalar(lookup(m, key))
	return s
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// isMapping reports whether a value is there and a mapping.
func isMapping(n *yaml.Node) bool { return n != nil && n.Kind == yaml.MappingNode }

// isSet reports whether a value is there and says something: the API takes
// null and "" for not set.
func isSet(n *yaml.Node) bool {
	return n != nil && !isNull(n) && (n.Kind != yaml.ScalarNode || n.Value != "")
}

// text makes a string, in quotes where YAML 1.1, which kubectl reads, or
// YAML 1.2 takes the bare word for something else.
func text(s string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	if !isPlain(s) {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

func isPlain(s string) bool {
	if strings.Trim(s, plainRunes) != "" || s == "" || !strings.ContainsRune(plainRunes[:53], rune(s[0])) {
		return false
	}
	switch strings.ToLower(s) {
	case "y", "n", "yes", "no", "on", "off", "true", "false", "null":
		return false
	}
	return true
}

// plainRunes starts with those that a plain word may start with.
const plainRunes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789-./"

func number(n int) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: fmt.Sprint(n)}
}

// mapping makes a mapping from keys and values in turn.
func mapping(content ...*yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Content: content}
}

// set gives a key a value: in its place, or at the end.
func set(m *yaml.Node, key string, value *yaml.Node) {
	if i := index(m, key); i >= 0 {
		m.Content[i+1] = value
		return
	}
	grow(m)
	m.Content = append(m.Content, text(key), value)
}

// prepend gives a key a value: in its place, or as the first.
func prepend(m *yaml.Node, key string, value *yaml.Node) {
	if index(m, key) >= 0 {
		set(m, key, value)
		return
	}
	grow(m)
	k := text(key)
	if len(m.Content) > 0 {
		// A comment above the first key is about the block as a whole.
		k.HeadComment, m.Content[0].HeadComment = m.Content[0].HeadComment, ""
	}
	m.Content = slices.Insert(m.Content, 0, k, value)
}

// grow makes an empty mapping, which can only be written as {}, take lines.
func grow(m *yaml.Node) {
	if len(m.Content) == 0 {
		m.Style &^= yaml.FlowStyle
	}
}

// rename changes a key in its place.
func rename(m *yaml.Node, from, to string) {
	if i := index(m, from); i >= 0 {
		m.Content[i].Value = to
	}
}

func remove(m *yaml.Node, key string) {
	if i := index(m, key); i >= 0 {
		m.Content = slices.Delete(m.Content, i, i+2)
	}
}

// child returns the mapping at a key, and makes it where there is none or null.
// It returns nil where the key holds something else.
func child(m *yaml.Node, key string) *yaml.Node {
	n := lookup(m, key)
	if n == nil || isNull(n) {
		n = mapping()
		set(m, key, n)
	}
	if n.Kind != yaml.MappingNode {
		return nil
	}
	return n
}

// maxNodes limits a document after its aliases are written out.
const maxNodes = 1_000_000

// maxDepth limits how deep a document nests.
const maxDepth = 1000

// expander writes out aliases and merge keys, so that a change to one use of
// an anchor leaves the other uses alone.
type expander struct{ nodes int }

var (
	errTooLarge = errors.New("is too large once its aliases are written out; write it without them")
	errTooDeep  = fmt.Errorf("nests deeper than %d levels, or an alias holds itself; write it flat", maxDepth)
)

func expand(n *yaml.Node) (*yaml.Node, error) {
	return new(expander).copy(n, 0)
}

func (e *expander) copy(n *yaml.Node, depth int) (*yaml.Node, error) {
	if e.nodes++; e.nodes > maxNodes {
		return nil, errTooLarge
	}
	if depth > maxDepth {
		return nil, errTooDeep
	}
	if n.Kind == yaml.AliasNode {
		return e.copy(n.Alias, depth+1)
	}
	out := *n
	out.Anchor, out.Content = "", make([]*yaml.Node, 0, len(n.Content))
	if isNull(n) {
		// The encoder writes an empty null as "" in flow style.
		out.Value, out.Style = "null", 0
	}
	for _, c := range n.Content {
		c, err := e.copy(c, depth+1)
		if err != nil {
			return nil, err
		}
		out.Content = append(out.Content, c)
	}
	if n.Kind == yaml.MappingNode {
		return &out, settle(&out)
	}
	return &out, nil
}

// settle checks the keys of a mapping and resolves its merge key.
func settle(m *yaml.Node) error {
	seen := map[string]int{}
	var merged []*yaml.Node
	var own []*yaml.Node
	for i := 0; i+1 < len(m.Content); i += 2 {
		k, v := m.Content[i], m.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			return fmt.Errorf("%sthe key of a field must be plain text", atLine(k))
		}
		if k.ShortTag() == "!!merge" {
			if v.Kind == yaml.SequenceNode {
				merged = append(merged, v.Content...)
			} else {
				merged = append(merged, v)
			}
			continue
		}
		if _, ok := seen[k.Value]; ok {
			return fmt.Errorf("%sfield %s is there twice; remove one of them", atLine(k), k.Value)
		}
		seen[k.Value] = i
		own = append(own, k, v)
	}
	for _, from := range merged {
		if from.Kind != yaml.MappingNode {
			return fmt.Errorf("%s<< must stand before an alias of a mapping", atLine(from))
		}
		for i := 0; i+1 < len(from.Content); i += 2 {
			if _, ok := seen[from.Content[i].Value]; !ok {
				seen[from.Content[i].Value] = i
				own = append(own, from.Content[i], from.Content[i+1])
			}
		}
	}
	m.Content = own
	return nil
}

// atLine tells the line of a node that was read from YAML.
func atLine(n *yaml.Node) string {
	if n.Line == 0 {
		return ""
	}
	return fmt.Sprintf("line %d: ", n.Line)
}
