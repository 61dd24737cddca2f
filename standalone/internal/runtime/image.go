package runtime

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairway.dev/fairway/standalone/internal/runtime/initspec"
)

// Paths of Fairway's own programs inside of containers.
const (
	containerBinDir = "/.fairway/bin"
	containerInit   = "/.fairway/init"
)

// builtinImages are there without being mapped; a mapping of the same reference
// replaces them.
var builtinImages = []ImageMapping{
	{Ref: "fairway.dev/echo", Command: []string{containerBinDir + "/fairway", "echo"}},
	{Ref: "pause", Command: []string{containerInit, "pause"}},
	{Ref: "*/pause", Command: []string{containerInit, "pause"}},
}

// ImageMapping says which command an image reference stands for.
type ImageMapping struct {
	// Ref is an image reference with or without registry, tag and digest; `*`
	// stands for any run of characters. Of several that match an image the one
	// with the most characters besides `*` counts.
	Ref string
	// Command is the image's entrypoint: executable and first arguments. A
	// container's command replaces it, its args are appended.
	Command []string
}

// ImageFiles says which files containers of an image see besides the machine's.
type ImageFiles struct {
	// Ref is an image reference as in ImageMapping.
	Ref string
	// Dir is the absolute path of a directory laid out as the root of the image:
	// Dir/etc/app.conf is /etc/app.conf in the container.
	Dir string
}

// ParseImageFiles reads REF=DIR as given to the flag --image-files.
func ParseImageFiles(s string) (ImageFiles, error) {
	ref, dir, _ := strings.Cut(s, "=")
	if ref == "" || !filepath.IsAbs(dir) {
		return ImageFiles{}, fmt.Errorf("image files %q: want REF=DIR with the absolute path of a directory, for example nginx=/srv/nginx-root", s)
	}
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = errors.New("is not a directory")
	}
	if err != nil {
		return ImageFiles{}, fmt.Errorf("image files %q: %w", s, err)
	}
	return ImageFiles{Ref: ref, Dir: filepath.Clean(dir)}, nil
}

// mounts shows the files at their places in a container, read-only: one mount
// for each file or directory that the machine does not have, and for each file
// that it has.
func (f ImageFiles) mounts() ([]initspec.Mount, error) {
	var out []initspec.Mount
	err := filepath.WalkDir(f.Dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == f.Dir {
			return err
		}
		target := strings.TrimPrefix(path, f.Dir)
		if entry.IsDir() {
			if there, err := os.Stat(target); err == nil && there.IsDir() {
				return nil
			}
		}
		out = append(out, initspec.Mount{Source: path, Target: target, ReadOnly: true})
		if entry.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("files of image %s: %w", f.Ref, err)
	}
	return out, nil
}

// ParseImageMapping reads REF=COMMAND as given to the flag --image; COMMAND is
// split into words as a shell would, with quotes and backslashes.
func ParseImageMapping(s string) (ImageMapping, error) {
	ref, line, _ := strings.Cut(s, "=")
	words, err := splitWords(line)
	if err == nil && (ref == "" || len(words) == 0) {
		err = errors.New("want REF=COMMAND, for example nginx='/usr/sbin/nginx -g \"daemon off;\"'")
	}
	if err != nil {
		return ImageMapping{}, fmt.Errorf("image mapping %q: %w", s, err)
	}
	return ImageMapping{Ref: ref, Command: words}, nil
}

// splitWords splits a command line as a POSIX shell does, without expansions.
func splitWords(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	inWord := false
	var quote rune
	escaped := false
	for _, c := range line {
		switch {
		case escaped:
			// Within double quotes the backslash only means something before these.
			if quote == '"' && !strings.ContainsRune("\"\\$`\n", c) {
				word.WriteRune('\\')
			}
			word.WriteRune(c)
			escaped = false
		case c == '\\' && quote != '\'':
			escaped, inWord = true, true
		case quote != 0:
			if c == quote {
				quote = 0
			} else {
				word.WriteRune(c)
			}
		case c == '\'' || c == '"':
			quote, inWord = c, true
		case c == ' ' || c == '\t' || c == '\n':
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
		default:
			word.WriteRune(c)
			inWord = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("the quote %c is not closed", quote)
	}
	if escaped {
		return nil, errors.New("nothing follows the last backslash")
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}

// image is a reference and what stands for its content.
type image struct{ ref, id string }

func newImage(spec *runtimeapi.ImageSpec) image {
	ref := spec.GetUserSpecifiedImage()
	if ref == "" {
		ref = spec.GetImage()
	}
	return image{ref: ref, id: imageID(ref)}
}

// imageID makes up the digest that other runtimes take from the content.
func imageID(ref string) string {
	sum := sha256.Sum256([]byte(fullName(ref)))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// command is what a container runs, and where that was said.
type command struct {
	args  []string
	image string
	// mapping is the reference that maps the image, if the executable comes
	// from there.
	mapping string
}

// explain adds the cure to the reason why a command did not start.
func (c command) explain(e *startError) string {
	if e.Code != initspec.CodeNotFound && e.Code != initspec.CodeNotRunable {
		return e.Message
	}
	if c.mapping != "" {
		return fmt.Sprintf("%s; image %q is mapped to it: install it, or map the image with --image %s=COMMAND", e.Message, c.image, c.mapping)
	}
	return fmt.Sprintf("%s; images are not pulled, `command:` of the Pod runs on this machine: install it, "+
		"or take `command:` out and map the image with --image %s=COMMAND", e.Message, c.image)
}

// imageMap finds the command of an image. Nothing is ever pulled.
type imageMap struct {
	mappings []ImageMapping
	files    []ImageFiles

	mu   sync.Mutex
	seen map[string]image // by id
}

func newImageMap(mappings []ImageMapping, files ...ImageFiles) *imageMap {
	m := &imageMap{mappings: append(append([]ImageMapping(nil), builtinImages...), mappings...), files: files, seen: map[string]image{}}
	for _, mapping := range m.mappings {
		if !strings.Contains(mapping.Ref, "*") {
			m.note(mapping.Ref)
		}
	}
	return m
}

// note remembers an image that was asked for.
func (m *imageMap) note(ref string) image {
	m.mu.Lock()
	defer m.mu.Unlock()
	if known, ok := m.seen[ref]; ok { // asked for by id
		return known
	}
	img := image{ref: ref, id: imageID(ref)}
	if known, ok := m.seen[img.id]; ok {
		return known
	}
	m.seen[img.id] = img
	return img
}

func (m *imageMap) list() []image {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []image
	for _, img := range m.seen {
		out = append(out, img)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ref < out[j].ref })
	return out
}

// forget drops an image that is only in the list because it was asked for.
func (m *imageMap) forget(ref string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.seen, ref)
	delete(m.seen, imageID(ref))
}

// command puts together what a container runs, as Kubernetes does with an
// image's entrypoint: the container's command replaces it, the container's args
// are appended.
func (m *imageMap) command(ref string, own, args []string) (command, error) {
	if len(own) > 0 {
		return command{args: append(append([]string(nil), own...), args...), image: ref}, nil
	}
	mapping, ok := m.find(ref)
	if !ok {
		return command{}, fmt.Errorf("image %q is not mapped to a command of this machine (standalone nodes pull no images): "+
			"start with `fairway up --image %s=COMMAND`, or set `command:` in the Pod spec", ref, familiarName(ref))
	}
	return command{args: append(append([]string(nil), mapping.Command...), args...), image: ref, mapping: mapping.Ref}, nil
}

// find returns the most specific mapping of an image.
func (m *imageMap) find(ref string) (ImageMapping, bool) {
	return mostSpecific(m.mappings, func(m ImageMapping) string { return m.Ref }, ref)
}

// mounts are those of the files that the image brings.
func (m *imageMap) mounts(ref string) ([]initspec.Mount, error) {
	files, ok := mostSpecific(m.files, func(f ImageFiles) string { return f.Ref }, ref)
	if !ok {
		return nil, nil
	}
	return files.mounts()
}

// mostSpecific picks the entry for an image: that whose reference has the most
// characters besides `*`, of equals the last.
func mostSpecific[T any](entries []T, pattern func(T) string, ref string) (best T, found bool) {
	rank := -1
	for _, entry := range entries {
		p := pattern(entry)
		if !matchImage(p, ref) {
			continue
		}
		// Without a `*` a reference says more than with one of the same length.
		r := 2 * len(strings.ReplaceAll(familiarName(p), "*", ""))
		if !strings.Contains(p, "*") {
			r++
		}
		if r >= rank {
			best, rank, found = entry, r, true
		}
	}
	return best, found
}

// matchImage tells whether a reference with `*` covers an image. What the
// pattern leaves out (tag, digest, the default registry) may be anything.
func matchImage(pattern, ref string) bool {
	name, tag, digest := splitRef(ref)
	patternName, patternTag, patternDigest := splitRef(pattern)
	if patternDigest != "" && !glob(patternDigest, digest) {
		return false
	}
	if tag == "" && digest == "" {
		tag = "latest"
	}
	if patternTag != "" && !glob(patternTag, tag) {
		return false
	}
	return glob(fullName(patternName), fullName(name)) || glob(patternName, name) || glob(patternName, familiarName(name))
}

// splitRef takes an image reference apart: name[:tag][@digest].
func splitRef(ref string) (name, tag, digest string) {
	name, digest, _ = strings.Cut(ref, "@")
	if i := strings.LastIndex(name, ":"); i > strings.LastIndex(name, "/") {
		name, tag = name[:i], name[i+1:]
	}
	return name, tag, digest
}

// The registry that references without one mean, and what it leaves out.
const (
	defaultRegistry = "docker.io/"
	officialImages  = "library/"
)

// fullName spells out the default registry.
func fullName(ref string) string {
	ref = strings.TrimPrefix(ref, "index."+defaultRegistry)
	first, _, hasSlash := strings.Cut(ref, "/")
	switch {
	case strings.HasPrefix(ref, "*"):
		return ref
	case !hasSlash:
		return defaultRegistry + officialImages + ref
	case strings.ContainsAny(first, ".:") || first == "localhost":
		return ref
	}
	return defaultRegistry + ref
}

// familiarName leaves the default registry out.
func familiarName(ref string) string {
	name := fullName(ref)
	if rest, ok := strings.CutPrefix(name, defaultRegistry); ok {
		return strings.TrimPrefix(rest, officialImages)
	}
	return name
}

// glob matches s against a pattern in which `*` stands for any characters.
func glob(pattern, s string) bool {
	head, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == s
	}
	if !strings.HasPrefix(s, head) {
		return false
	}
	s = s[len(head):]
	for {
		part, next, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(s, part)
		}
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s, rest = s[i+len(part):], next
	}
}
