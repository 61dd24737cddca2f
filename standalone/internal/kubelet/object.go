package kubelet

import (
	"context"
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// apiPatience is how long a node waits for an API server that does not answer yet.
const apiPatience = 60 * time.Second

// ensureNode makes the Node object with its Pod ranges before kubelet registers itself, so that nobody ever sees the
// node without them. kubelet fills in the rest.
func ensureNode(ctx context.Context, client kubernetes.Interface, o *Options) error {
	want := texts(o.PodCIDRs)
	deadline := time.Now().Add(apiPatience)
	for {
		err := tryEnsureNode(ctx, client, o.NodeName, want)
		if err == nil || ctx.Err() != nil || permanent(err) || time.Now().After(deadline) {
			return err
		}
		o.Logger.Debug("waiting for the API server", "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// rangeError is a Node whose Pod ranges are not the ones given: the API does not allow to change them.
type rangeError struct {
	node       string
	have, want []string
}

func (e *rangeError) Error() string {
	return fmt.Sprintf("node %s has the Pod ranges %v, which cannot be changed to %v: give the same --pod-cidr as before, or delete "+
		"the node first (kubectl delete node %s)", e.node, e.have, e.want, e.node)
}

// permanent reports whether trying again cannot help.
func permanent(err error) bool {
	_, wrong := err.(*rangeError)
	return wrong || apierrors.IsUnauthorized(err) || apierrors.IsForbidden(err) || apierrors.IsInvalid(err)
}

func tryEnsureNode(ctx context.Context, client kubernetes.Interface, name string, cidrs []string) error {
	nodes := client.CoreV1().Nodes()
	node, err := nodes.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = nodes.Create(ctx, &v1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       v1.NodeSpec{PodCIDR: cidrs[0], PodCIDRs: cidrs},
		}, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("create node %s: %w", name, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("get node %s: %w", name, err)
	}
	if slices.Equal(node.Spec.PodCIDRs, cidrs) {
		return nil
	}
	if len(node.Spec.PodCIDRs) > 0 {
		return &rangeError{node: name, have: node.Spec.PodCIDRs, want: cidrs}
	}
	node = node.DeepCopy()
	node.Spec.PodCIDR, node.Spec.PodCIDRs = cidrs[0], cidrs
	if _, err := nodes.Update(ctx, node, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("set the Pod ranges of node %s: %w", name, err)
	}
	return nil
}

// waitReady waits until kubelet has said that the node is ready, not before since, or the context ends.
func waitReady(ctx context.Context, client kubernetes.Interface, name string, since time.Time) error {
	for {
		node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err == nil && ready(node, since) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// ready reports whether a heartbeat that is not older than since says that the node is ready. A node that was killed
// stays ready in the API for a while.
func ready(node *v1.Node, since time.Time) bool {
	since = since.Truncate(time.Second) // what the API keeps of a time
	return slices.ContainsFunc(node.Status.Conditions, func(condition v1.NodeCondition) bool {
		return condition.Type == v1.NodeReady && condition.Status == v1.ConditionTrue &&
			!condition.LastHeartbeatTime.Time.Before(since)
	})
}
