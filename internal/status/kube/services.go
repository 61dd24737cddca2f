package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairway.dev/fairway/internal/lb/ipam"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// newAllocator returns an allocator that knows what every Service has.
func (w *Writer) newAllocator(ctx context.Context) (*ipam.Allocator, error) {
	list, err := w.Client.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list Services: %w", err)
	}
	a := ipam.New(*w.Addresses)
	for i := range list.Items {
		s := &list.Items[i]
		var addrs []netip.Addr
		for _, in := range s.Status.LoadBalancer.Ingress {
			if addr, err := netip.ParseAddr(in.IP); err == nil {
				addrs = append(addrs, addr.Unmap())
			}
		}
		if len(addrs) > 0 {
			a.Remember(model.Key{Namespace: s.Namespace, Name: s.Name}, string(s.UID), addrs)
		}
	}
	return a, nil
}

// writeServices brings status.loadBalancer of Services to the addresses given.
func (w *Writer) writeServices(ctx context.Context, snap *state.Snapshot, addrs map[model.Key][]netip.Addr) error {
	var differing []*model.Service
	for key, want := range addrs {
		if s, ok := snap.Services.Get(key); ok && !sameAddrs(s.LoadBalancer.Ingress, want) {
			differing = append(differing, s)
		}
	}
	slices.SortFunc(differing, func(a, b *model.Service) int { return a.Created.Compare(b.Created) })
	return parallel(differing, func(s *model.Service) error {
		err := w.writeService(ctx, s, addrs[s.Key])
		if err == nil {
			w.Logger.Info("load balancer addresses", "service", s.Key.String(), "addresses", addrs[s.Key])
		}
		return err
	})
}

func sameAddrs(have []model.LoadBalancerIngress, want []netip.Addr) bool {
	if len(have) != len(want) {
		return false
	}
	for _, h := range have {
		if h.Proxy || !slices.Contains(want, h.Addr) {
			return false
		}
	}
	return true
}

// writeService writes the addresses of one Service. ipMode VIP lets nodes take
// connections to them themselves (KEP-1860).
func (w *Writer) writeService(ctx context.Context, s *model.Service, addrs []netip.Addr) error {
	vip := corev1.LoadBalancerIPModeVIP
	ingress := make([]corev1.LoadBalancerIngress, 0, len(addrs))
	for _, a := range addrs {
		ingress = append(ingress, corev1.LoadBalancerIngress{IP: a.String(), IPMode: &vip})
	}
	patch, err := statusPatch(s.UID, "", ingress)
	if err != nil {
		return err
	}
	_, err = w.Client.CoreV1().Services(s.Namespace).Patch(ctx, s.Name, types.MergePatchType, patch, patchOptions(), "status")
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("write status of Service %s: %w", s.Key, err)
	}
	return nil
}

// statusPatch replaces status.loadBalancer.ingress of the object with that UID,
// and of no other that took its name meanwhile; where version is given, only if
// nobody has written it since.
func statusPatch[T any](uid, version string, ingress []T) ([]byte, error) {
	metadata := map[string]any{}
	if uid != "" {
		metadata["uid"] = uid
	}
	if version != "" {
		metadata["resourceVersion"] = version
	}
	var value any // null removes the field
	if len(ingress) > 0 {
		value = ingress
	}
	return json.Marshal(map[string]any{
		"metadata": metadata,
		"status":   map[string]any{"loadBalancer": map[string]any{"ingress": value}},
	})
}

func patchOptions() metav1.PatchOptions { return metav1.PatchOptions{FieldManager: FieldManager} }

// gone reports whether a write came too late: the object is not there any
// more, or is another one under the same name, whose UID cannot be changed.
func gone(err error) bool {
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return true
	}
	return apierrors.IsInvalid(err) && apierrors.HasStatusCause(err, metav1.CauseTypeFieldValueInvalid) &&
		strings.Contains(err.Error(), "metadata.uid")
}
