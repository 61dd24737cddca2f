package corefile

import (
	"maps"
	"path"
	"slices"
	"strings"
)

// block is a server block as it stands there.
type block struct {
	keys       []token
	directives []directive
}

// directive is a line of a block, with the lines in its braces.
type directive struct {
	name token
	args []token
	body [][]token
}

const (
	// maxImports bounds how often something is imported, and maxTokens what a
	// file may grow to by that: snippets that import one another twice each
	// would grow without end.
	maxImports = 200
	maxTokens  = 20_000
)

// parser is between tokens and blocks.
type parser struct {
	tokens   []token
	at       int
	files    func(string) map[string]string
	env      func(string) (string, bool)
	snippets map[string][]token
	imports  int
	notes    *notes
}

// end is the place behind the last token, for errors.
func (p *parser) end() token {
	if len(p.tokens) == 0 {
		return token{file: "Corefile", line: 1}
	}
	return p.tokens[len(p.tokens)-1]
}

func (p *parser) more() bool { return p.at < len(p.tokens) }

// blocks reads all blocks.
func (p *parser) blocks() ([]block, error) {
	var list []block
	for p.more() {
		keys, err := p.keys()
		if err != nil {
			return nil, err
		}
		if len(keys) == 0 {
			continue
		}
		if name, ok := snippet(keys); ok {
			if err := p.snippet(keys[0], name); err != nil {
				return nil, err
			}
			continue
		}
		b := block{keys: keys}
		if err := p.body(&b); err != nil {
			return nil, err
		}
		list = append(list, b)
	}
	return list, nil
}

// keys reads what stands before a block's brace.
func (p *parser) keys() ([]token, error) {
	var keys []token
	comma := false
	for p.more() {
		t := p.tokens[p.at]
		if t.text == "import" && t.first && len(keys) == 0 {
			if err := p.imported(); err != nil {
				return nil, err
			}
			continue
		}
		t = p.expand(t)
		if t.text == "{" {
			if comma {
				return nil, t.errorf("a comma promises another zone, but the block begins; take the comma away")
			}
			if len(keys) == 0 {
				return nil, t.errorf("a block without zones; write them before the brace, for example .:53 {")
			}
			return keys, nil
		}
		if t.text == "}" {
			return nil, t.errorf("a closing brace that closes nothing; take it away")
		}
		if len(keys) > 0 && t.first && !comma {
			return keys, nil // a block without braces
		}
		text, more := strings.CutSuffix(t.text, ",")
		comma = more
		if t.text = text; text != "" {
			keys = append(keys, t)
		}
		p.at++
	}
	if comma {
		return nil, p.end().errorf("a comma promises another zone, but the file ends")
	}
	return keys, nil
}

func snippet(keys []token) (string, bool) {
	if len(keys) != 1 {
		return "", false
	}
	name, open := strings.CutPrefix(keys[0].text, "(")
	name, closed := strings.CutSuffix(name, ")")
	return name, open && closed
}

// snippet keeps the text of "(name) { ... }" for imports.
func (p *parser) snippet(at token, name string) error {
	if _, ok := p.snippets[name]; ok {
		return at.errorf("snippet (%s) stands there twice; give them different names", name)
	}
	if !p.more() || p.tokens[p.at].text != "{" {
		return at.errorf("snippet (%s) needs its lines in braces", name)
	}
	p.at++
	depth, start := 1, p.at
	for ; p.more(); p.at++ {
		switch p.tokens[p.at].text {
		case "{":
			depth++
		case "}":
			depth--
		}
		if depth == 0 {
			p.snippets[name] = slices.Clone(p.tokens[start:p.at])
			p.at++
			return nil
		}
	}
	return at.errorf("the brace of snippet (%s) is never closed", name)
}

// body reads the directives of a block.
func (p *parser) body(b *block) error {
	braces := p.more() && p.tokens[p.at].text == "{"
	if braces {
		p.at++
	}
	for p.more() {
		t := p.tokens[p.at]
		switch {
		case t.text == "}" && braces:
			p.at++
			return nil
		case t.text == "}":
			return t.errorf("a closing brace that closes nothing; take it away")
		case t.text == "import":
			if err := p.imported(); err != nil {
				return err
			}
			continue
		}
		d, err := p.directive()
		if err != nil {
			return err
		}
		b.directives = append(b.directives, d)
	}
	if braces {
		return b.keys[0].errorf("the brace of block %s is never closed", b.keys[0].text)
	}
	return nil
}

// directive reads one, to the end of its line or of its braces.
func (p *parser) directive() (directive, error) {
	d := directive{name: p.expand(p.tokens[p.at])}
	if d.name.text == "{" {
		return d, d.name.errorf("a brace without a directive before it")
	}
	p.at++
	depth := 0
	for p.more() {
		t := p.tokens[p.at]
		switch {
		case depth == 0 && t.first:
			return d, nil
		case t.first && t.text == "import":
			if err := p.imported(); err != nil {
				return d, err
			}
			continue
		case t.text == "{":
			depth++
		case t.text == "}" && depth == 0:
			return d, t.errorf("a closing brace on the line of %s that closes nothing; put it on a line of its own", d.name.text)
		case t.text == "}":
			depth--
		}
		p.at++
		t = p.expand(t)
		switch {
		case t.text == "}" && depth == 0:
			return d, nil
		case depth == 0:
			d.args = append(d.args, t)
		case t.text == "{" && depth == 1:
		case t.first || len(d.body) == 0:
			d.body = append(d.body, []token{t})
		default:
			d.body[len(d.body)-1] = append(d.body[len(d.body)-1], t)
		}
	}
	if depth > 0 {
		return d, d.name.errorf("the brace of %s is never closed", d.name.text)
	}
	return d, nil
}

// imported puts a snippet or files in the place of the import at hand.
func (p *parser) imported() error {
	at := p.tokens[p.at]
	next := func(i int) bool { return p.at+i < len(p.tokens) && !p.tokens[p.at+i].first }
	if !next(1) {
		return at.errorf("import of nothing; name a snippet or a file")
	}
	if next(2) && p.tokens[p.at+2].text != "}" {
		return at.errorf("import takes one snippet or file; give each a line of its own")
	}
	what := p.expand(p.tokens[p.at+1]).text
	if p.imports++; p.imports > maxImports {
		return at.errorf("more than %d imports; does %s import itself?", maxImports, what)
	}
	found, ok := p.snippets[what]
	if !ok {
		var err error
		if found, err = p.importedFiles(at, what); err != nil {
			return err
		}
	}
	if len(p.tokens)+len(found) > maxTokens {
		return at.errorf("more than %d words with all imports; does %s import itself?", maxTokens, what)
	}
	if found = slices.Clone(found); len(found) > 0 {
		found[0].first = true
	}
	p.tokens = slices.Concat(p.tokens[:p.at], found, p.tokens[p.at+2:])
	return nil
}

// importedFiles are the words of the files of a name or pattern. They are found
// by the last part of the path, for that is what a ConfigMap has as key.
func (p *parser) importedFiles(at token, what string) ([]token, error) {
	pattern := path.Base(what)
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, at.errorf("import %s: not a pattern of file names", what)
	}
	if InCustom(at.file) && path.Dir(what) == "." {
		what = path.Join(Custom, what) // beside the file that imports
	}
	files := p.files(what)
	delete(files, at.file) // a file does not import itself
	names := slices.Sorted(maps.Keys(files))
	var found []token
	for _, name := range names {
		found = append(found, tokens(name, files[name])...)
	}
	switch glob := strings.ContainsAny(pattern, `*?[`); {
	case len(names) > 0:
	case glob && InCustom(what): // it stands there for whoever wants to add some
	case InCustom(what):
		p.notes.add(at, "import "+what, "there is no such snippet, and no such file; put it as a key %s into the ConfigMap whose name ends in -custom", pattern)
	default:
		p.notes.add(at, "import "+what, "there is no such snippet, and no such file beside the Corefile; put it into the same ConfigMap as a key %s", pattern)
	}
	return found, nil
}

// expand puts the values of {$NAME} and {%NAME%} into a word, once each: what a
// value has of that form stays as it is.
func (p *parser) expand(t token) token {
	for _, form := range [...]struct{ open, close string }{{"{%", "%}"}, {"{$", "}"}} {
		var out strings.Builder
		rest := t.text
		for {
			before, after, ok := strings.Cut(rest, form.open)
			name, tail, closed := strings.Cut(after, form.close)
			if !ok || !closed || name == "" {
				break
			}
			value, set := p.env(name)
			if !set {
				p.notes.add(t, form.open+name+form.close, "there is no such variable in the environment of Fairway; nothing stands in its place")
			}
			out.WriteString(before + value)
			rest = tail
		}
		t.text = out.String() + rest
	}
	return t
}
