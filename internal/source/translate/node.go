package translate

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"fairway.dev/fairway/internal/model"
)

// taintToBeDeleted is set by the cluster autoscaler on nodes that it is about
// to remove (KEP-3836).
const taintToBeDeleted = "ToBeDeletedByClusterAutoscaler"

// AnnotationNetworks lists the link-layer networks that a node is on. The
// node's agent writes it, so that addresses are announced where they belong.
const AnnotationNetworks = "fairway.dev/networks"

// Node translates a Node.
func Node(o *corev1.Node) (*model.Node, model.Problems) {
	r := newReport("Node", o)
	n := &model.Node{
		Name:    o.Name,
		UID:     string(o.UID),
		Zone:    o.Labels[corev1.LabelTopologyZone],
		Deleted: deleted(o),
	}
	_, excluded := o.Labels[corev1.LabelNodeExcludeBalancers]
	n.Leaving = n.Deleted || excluded
	for i, a := range o.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		ip, ok := address(a.Address)
		if !ok {
			r.invalid(fmt.Sprintf("status.addresses[%d]", i), "%q is no IP address", a.Address)
			continue
		}
		n.Addrs = append(n.Addrs, ip)
	}
	cidrs := o.Spec.PodCIDRs
	if len(cidrs) == 0 && o.Spec.PodCIDR != "" {
		cidrs = []string{o.Spec.PodCIDR}
	}
	for i, c := range cidrs {
		p, err := netip.ParsePrefix(c)
		if err != nil {
			r.invalid(fmt.Sprintf("spec.podCIDRs[%d]", i), "%q is no range of addresses", c)
			continue
		}
		n.PodCIDRs = append(n.PodCIDRs, p.Masked())
	}
	if text, ok := o.Annotations[AnnotationNetworks]; ok {
		n.NetworksKnown = true
		for _, c := range commaList(text) {
			p, err := netip.ParsePrefix(c)
			if err != nil {
				r.invalid(annotationField(AnnotationNetworks), "%q is no network; the node's agent writes it, so remove the annotation and it comes back right", c)
				continue
			}
			n.Networks = append(n.Networks, p.Masked())
		}
	}
	for _, c := range o.Status.Conditions {
		if c.Type == corev1.NodeReady {
			n.Ready = c.Status == corev1.ConditionTrue
		}
	}
	return n, r.problems
}

func deleted(o *corev1.Node) bool {
	return o.DeletionTimestamp != nil || slices.ContainsFunc(o.Spec.Taints, func(t corev1.Taint) bool { return t.Key == taintToBeDeleted })
}

// Namespace translates a Namespace.
func Namespace(o *corev1.Namespace) *model.Namespace { return &model.Namespace{Name: o.Name} }
