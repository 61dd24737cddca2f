package kube

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// ingressStatus remembers what stands in the status of Ingresses, which is not
// part of the snapshot.
type ingressStatus struct {
	written map[model.Key]writtenIngress
}

type writtenIngress struct {
	uid   string
	addrs []netip.Addr
	// ours is true where the addresses were written by Fairway, which then
	// also takes them back.
	ours bool
}

func (w *Writer) newIngressStatus(ctx context.Context) (*ingressStatus, error) {
	list, err := w.Client.NetworkingV1().Ingresses("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list Ingresses: %w", err)
	}
	st := &ingressStatus{written: map[model.Key]writtenIngress{}}
	for i := range list.Items {
		in := &list.Items[i]
		row := writtenIngress{uid: string(in.UID), addrs: addrsOf(in)}
		row.ours = slices.ContainsFunc(in.ManagedFields, func(f metav1.ManagedFieldsEntry) bool { return f.Manager == FieldManager })
		st.written[model.Key{Namespace: in.Namespace, Name: in.Name}] = row
	}
	return st, nil
}

// addrsOf are the addresses in the status of an Ingress.
func addrsOf(in *networkingv1.Ingress) []netip.Addr {
	var out []netip.Addr
	for _, a := range in.Status.LoadBalancer.Ingress {
		if addr, err := netip.ParseAddr(a.IP); err == nil {
			out = append(out, addr.Unmap())
		}
	}
	return out
}

// writeIngresses writes the gateway's addresses into the status of all
// Ingresses that Fairway serves, and takes them back from those that it does
// not serve any more.
func (w *Writer) writeIngresses(ctx context.Context, snap *state.Snapshot) error {
	addrs := w.publishAddrs(snap)
	served := map[model.Key]string{} // UIDs
	for ref, r := range snap.Routes.All() {
		if ref.Kind == "Ingress" {
			served[ref.Key] = r.UID
		}
	}
	for ref, list := range snap.Streams.All() {
		if ref.Kind == "Ingress" {
			served[ref.Key] = list[0].UID
		}
	}
	var todo []*ingressWrite
	known := w.term.ingresses.written
	for key, uid := range served {
		if row, ok := known[key]; !ok || row.uid != uid || !slices.Equal(row.addrs, addrs) {
			todo = append(todo, &ingressWrite{key: key, uid: uid, addrs: addrs})
		}
	}
	for key, row := range known {
		if _, ok := served[key]; ok {
			continue
		}
		if row.ours && len(row.addrs) > 0 {
			todo = append(todo, &ingressWrite{key: key, uid: row.uid, back: row.addrs})
		} else {
			delete(known, key)
		}
	}
	slices.SortFunc(todo, func(a, b *ingressWrite) int { return a.key.Compare(b.key) })
	err := parallel(todo, func(t *ingressWrite) error {
		write := w.writeIngress
		if t.back != nil {
			write = w.takeBack
		}
		err := write(ctx, t)
		t.done = err == nil
		return err
	})
	for _, t := range todo {
		if t.done {
			known[t.key] = writtenIngress{uid: t.uid, addrs: t.addrs, ours: true}
		}
	}
	return err
}

// ingressWrite is one status to write.
type ingressWrite struct {
	key   model.Key
	uid   string
	addrs []netip.Addr
	// back are addresses that were written before and are to go; nil for a status
	// that gets addrs.
	back []netip.Addr
	done bool
}

// publishAddrs are the addresses of the gateway.
func (w *Writer) publishAddrs(snap *state.Snapshot) []netip.Addr {
	if w.PublishService.IsZero() {
		return w.Publish
	}
	var out []netip.Addr
	if s, ok := snap.Services.Get(w.PublishService); ok {
		for _, in := range s.LoadBalancer.Ingress {
			out = append(out, in.Addr)
		}
	}
	return out
}

func (w *Writer) writeIngress(ctx context.Context, t *ingressWrite) error {
	ingress := make([]networkingv1.IngressLoadBalancerIngress, 0, len(t.addrs))
	for _, a := range t.addrs {
		ingress = append(ingress, networkingv1.IngressLoadBalancerIngress{IP: a.String()})
	}
	patch, err := statusPatch(t.uid, "", ingress)
	if err != nil {
		return err
	}
	_, err = w.Client.NetworkingV1().Ingresses(t.key.Namespace).Patch(ctx, t.key.Name, types.MergePatchType, patch, patchOptions(), "status")
	if err != nil && !gone(err) {
		return fmt.Errorf("write status of Ingress %s: %w", t.key, err)
	}
	return nil
}

// takeBack removes addresses from the status of an Ingress that Fairway does not
// serve any more. Whoever serves it now may have written its own meanwhile: those stay.
func (w *Writer) takeBack(ctx context.Context, t *ingressWrite) error {
	client := w.Client.NetworkingV1().Ingresses(t.key.Namespace)
	now, err := client.Get(ctx, t.key.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("read status of Ingress %s: %w", t.key, err)
	case string(now.UID) != t.uid || !slices.Equal(addrsOf(now), t.back):
		return nil
	}
	patch, err := statusPatch[networkingv1.IngressLoadBalancerIngress](t.uid, now.ResourceVersion, nil)
	if err != nil {
		return err
	}
	// A conflict is one with a write in between: the next try looks again.
	_, err = client.Patch(ctx, t.key.Name, types.MergePatchType, patch, patchOptions(), "status")
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("take back the status of Ingress %s: %w", t.key, err)
	}
	return nil
}
