package up

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"slices"
)

// ourNode is how the names of the nodes look that layout makes.
var ourNode = regexp.MustCompile(`^node-[0-9]+$`)

// forgetNodes deletes the Node objects of nodes that an earlier run on the data directory had and this one has not, and the
// Pods on them. Their processes are gone for certain, so there is nothing to wait for: without this Kubernetes takes six
// minutes to give up on a node, and StatefulSets wait forever.
func (c *Cluster) forgetNodes(ctx context.Context, kubeconfig string) error {
	api, err := openKubeAPI(kubeconfig, c.nodes[0])
	if err != nil {
		return err
	}
	defer api.close()
	gone, err := api.nodesBeside(ctx, c.plan.nodes)
	if err != nil {
		return fmt.Errorf("looking for nodes of an earlier run: %w", err)
	}
	for _, name := range gone {
		// The Node first, so that nothing new is put on it.
		if err := api.remove(ctx, "/api/v1/nodes/"+url.PathEscape(name)); err != nil {
			return fmt.Errorf("deleting node %s, which is no longer there: %w", name, err)
		}
		pods, err := api.podsOn(ctx, name)
		if err != nil {
			return fmt.Errorf("looking for the Pods of %s, which is no longer there: %w", name, err)
		}
		for _, pod := range pods {
			if err := api.remove(ctx, "/api/v1/namespaces/"+url.PathEscape(pod.Namespace)+"/pods/"+url.PathEscape(pod.Name)); err != nil {
				return fmt.Errorf("deleting Pod %s/%s of node %s, which is no longer there: %w", pod.Namespace, pod.Name, name, err)
			}
		}
		c.o.Progress.Note("node %s of an earlier run is no longer there: deleted it and its %d Pods", name, len(pods))
	}
	return nil
}

// objectList is what is read of a list of objects.
type objectList struct {
	Items []objectItem `json:"items"`
}

type objectItem struct {
	Metadata objectName `json:"metadata"`
}

type objectName struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// nodesBeside lists the Nodes that have a name of ours and are not among nodes. Others may have been added by hand.
func (k *kubeAPI) nodesBeside(ctx context.Context, nodes []Node) ([]string, error) {
	body, err := k.get(ctx, "/api/v1/nodes")
	if err != nil {
		return nil, err
	}
	var list objectList
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, err
	}
	var names []string
	for _, item := range list.Items {
		name := item.Metadata.Name
		if ourNode.MatchString(name) && !slices.ContainsFunc(nodes, func(n Node) bool { return n.Name == name }) {
			names = append(names, name)
		}
	}
	return names, nil
}

// podsOn lists the Pods that are bound to a node.
func (k *kubeAPI) podsOn(ctx context.Context, node string) ([]objectName, error) {
	body, err := k.get(ctx, "/api/v1/pods?fieldSelector="+url.QueryEscape("spec.nodeName="+node))
	if err != nil {
		return nil, err
	}
	var list objectList
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, err
	}
	pods := make([]objectName, len(list.Items))
	for i, item := range list.Items {
		pods[i] = item.Metadata
	}
	return pods, nil
}
