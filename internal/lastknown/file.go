package lastknown

import (
	"bytes"
	"crypto/sha256"
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// FileName is the name of the file in a state directory.
const FileName = "last-known"

// MaxAge is how old a state may be to be used at all: RFC 8767 section 5 lets
// stale answers of DNS live for up to three days.
const MaxAge = 3 * 24 * time.Hour

// magic is the start of every file. Its number is that of the content's layout:
// what was written with another is not read.
const magic = "fairway last known state, layout 1\n"

// State is what was known at a time.
type State struct {
	// Snapshot has Services, Endpoints, Nodes, Namespaces and DNS, and counts as synced.
	Snapshot *state.Snapshot
	// At is when it was last true for certain.
	At time.Time
}

// content is what a file holds, after magic and checksum.
type content struct {
	// Node is whose state it is, Cluster the API that it came from.
	Node, Cluster string
	At            time.Time
	Services      []*model.Service
	Endpoints     []endpoints
	Nodes         []*model.Node
	Namespaces    []*model.Namespace
	DNS           *model.DNSConfig
}

// endpoints are those of a Service. Endpoints share lists of ports, which would
// be most of the file if each was written with its own.
type endpoints struct {
	Service model.Key
	Groups  []group
}

type group struct {
	Ports     []model.EndpointPort
	Endpoints []model.Endpoint // without Ports
}

// encode returns the bytes of a file.
func encode(snap *state.Snapshot, node, cluster string, at time.Time) ([]byte, error) {
	c := content{Node: node, Cluster: cluster, At: at, DNS: snap.DNS}
	for _, s := range snap.Services.All() {
		c.Services = append(c.Services, s)
	}
	for key, set := range snap.Endpoints.All() {
		e := endpoints{Service: key}
		for _, one := range set.Endpoints {
			i := slices.IndexFunc(e.Groups, func(g group) bool { return slices.Equal(g.Ports, one.Ports) })
			if i < 0 {
				i = len(e.Groups)
				e.Groups = append(e.Groups, group{Ports: one.Ports})
			}
			one.Ports = nil
			e.Groups[i].Endpoints = append(e.Groups[i].Endpoints, one)
		}
		c.Endpoints = append(c.Endpoints, e)
	}
	for _, n := range snap.Nodes.All() {
		c.Nodes = append(c.Nodes, n)
	}
	for _, n := range snap.Namespaces.All() {
		c.Namespaces = append(c.Namespaces, n)
	}
	head := len(magic) + sha256.Size
	var b bytes.Buffer
	b.WriteString(magic)
	b.Write(make([]byte, sha256.Size))
	if err := gob.NewEncoder(&b).Encode(c); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	sum := sha256.Sum256(b.Bytes()[head:])
	copy(b.Bytes()[len(magic):], sum[:])
	return b.Bytes(), nil
}

// decode is the reverse of encode.
func decode(data []byte) (*content, error) {
	body, ok := bytes.CutPrefix(data, []byte(magic))
	if !ok {
		return nil, errors.New("it is damaged, or of another version of Fairway")
	}
	if len(body) < sha256.Size {
		return nil, errors.New("it is damaged: cut short")
	}
	if sum := sha256.Sum256(body[sha256.Size:]); !bytes.Equal(sum[:], body[:sha256.Size]) {
		return nil, errors.New("it is damaged: the checksum does not fit")
	}
	c := &content{}
	if err := gob.NewDecoder(bytes.NewReader(body[sha256.Size:])).Decode(c); err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	return c, nil
}

func (c *content) snapshot() *state.Snapshot {
	store := state.New()
	store.Update(func(tx *state.Tx) {
		for _, s := range c.Services {
			tx.PutService(s)
		}
		for _, e := range c.Endpoints {
			slice := &model.EndpointSlice{Key: e.Service, Service: e.Service}
			for _, g := range e.Groups {
				for _, one := range g.Endpoints {
					one.Ports = g.Ports
					slice.Endpoints = append(slice.Endpoints, one)
				}
			}
			tx.PutSlice(slice)
		}
		for _, n := range c.Nodes {
			tx.PutNode(n)
		}
		for _, n := range c.Namespaces {
			tx.PutNamespace(n)
		}
		tx.SetDNS(c.DNS)
		tx.SetSynced()
	})
	return store.Snapshot()
}

// Load reads the state of a node from a state directory. The error is of
// [os.ErrNotExist] where there is none; any other says why what is there cannot
// be used.
func Load(dir, node, cluster string) (*State, error) {
	path := filepath.Join(dir, FileName)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	c, err := decode(data)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", path, err)
	case c.Node != node:
		return nil, fmt.Errorf("%s: it is the state of node %q, not of %q; give every node a directory of its own", path, c.Node, node)
	case c.Cluster != cluster:
		return nil, fmt.Errorf("%s: it came from the API at %s, not at %s", path, c.Cluster, cluster)
	case time.Since(c.At) > MaxAge:
		return nil, fmt.Errorf("%s: it was true at %s, more than %v ago", path, c.At.Format(time.RFC3339), MaxAge)
	}
	return &State{Snapshot: c.snapshot(), At: c.At}, nil
}

// write replaces the file in dir, so that a reader or a crash finds the old or
// the new one.
func write(dir string, data []byte) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(dir, FileName)
	tmp, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = tmp.Close()
			_ = os.Remove(tmp.Name())
		}
	}()
	if _, err := tmp.Write(data); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
