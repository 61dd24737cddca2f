package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// NodeNetworksOptions configure [NodeNetworks].
type NodeNetworksOptions struct {
	// Config reaches the API. Required, unless Client is given.
	Config *rest.Config
	// Client replaces Config.
	Client kubernetes.Interface
	// Logger is told of failures. Required.
	Logger *slog.Logger
	// Node is the name of the Node object to annotate. Required.
	Node string
	// Annotation is the key to write. Required.
	Annotation string
}

// NodeNetworks publishes the networks that a node is on, as an annotation of
// its Node object.
type NodeNetworks struct {
	NodeNetworksOptions
	changed chan struct{}

	mu     sync.Mutex
	newest []netip.Prefix
}

// NewNodeNetworks returns it; nothing is written before Run.
func NewNodeNetworks(o NodeNetworksOptions) (*NodeNetworks, error) {
	if o.Logger == nil || o.Node == "" || o.Annotation == "" {
		return nil, errors.New("node networks: Logger, Node and Annotation are required")
	}
	if o.Client == nil {
		if o.Config == nil {
			return nil, errors.New("node networks: Config or Client is required")
		}
		var err error
		if o.Client, err = kubernetes.NewForConfig(o.Config); err != nil {
			return nil, fmt.Errorf("node networks: %w", err)
		}
	}
	return &NodeNetworks{NodeNetworksOptions: o, changed: make(chan struct{}, 1)}, nil
}

// Set replaces the networks to publish. It does not block.
func (n *NodeNetworks) Set(networks []netip.Prefix) {
	n.mu.Lock()
	n.newest = networks
	n.mu.Unlock()
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// Run publishes what Set says until ctx ends; it then returns nil. What
// somebody else makes of the annotation is put right every few minutes.
func (n *NodeNetworks) Run(ctx context.Context) error {
	delay := retryMin
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.changed:
		case <-again:
		}
		if err := n.ensure(ctx); err != nil && ctx.Err() == nil {
			n.Logger.Warn("cannot publish this node's networks", "error", err, "retryIn", delay)
			again, delay = time.After(delay), min(delay*2, retryMax)
			continue
		}
		again, delay = time.After(repeat), retryMin
	}
}

func (n *NodeNetworks) ensure(ctx context.Context) error {
	n.mu.Lock()
	texts := make([]string, len(n.newest))
	for i, p := range n.newest {
		texts[i] = p.String()
	}
	n.mu.Unlock()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{n.Annotation: strings.Join(texts, ",")}}})
	if err != nil {
		return err
	}
	_, err = n.Client.CoreV1().Nodes().Patch(ctx, n.Node, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: FieldManager})
	return err
}
