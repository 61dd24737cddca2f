package translate

import (
	"fmt"
	"math"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"fairway.dev/fairway/internal/model"
)

// poolKind is the kind of MetalLB's address pools (metallb.io/v1beta1).
const poolKind = "IPAddressPool"

// lastPriority is that of a pool without priority, which MetalLB writes as 0.
const lastPriority = math.MaxInt32

// Pool translates a MetalLB IPAddressPool.
func Pool(o *unstructured.Unstructured) (*model.Pool, model.Problems) {
	r := newReport(poolKind, o)
	p := &model.Pool{Key: keyOf(o), UID: string(o.GetUID()), AutoAssign: true, Priority: lastPriority}
	spec, found, err := unstructured.NestedMap(o.Object, "spec")
	if err != nil || !found {
		r.invalid("spec", "is missing; give spec.addresses")
		return p, r.problems
	}
	list, _, err := unstructured.NestedStringSlice(spec, "addresses")
	if err != nil || len(list) == 0 {
		r.invalid("spec.addresses", "holds no addresses; list ranges such as 192.0.2.0/24 or 192.0.2.10-192.0.2.20")
	}
	for i, text := range list {
		rng, ok := addrRange(text)
		if !ok {
			r.invalid(fmt.Sprintf("spec.addresses[%d]", i), "%q is no range of addresses; write it as 192.0.2.0/24 or 192.0.2.10-192.0.2.20", text)
			continue
		}
		p.Ranges = append(p.Ranges, rng)
	}
	p.AutoAssign = nestedBool(r, spec, "autoAssign", true)
	p.AvoidBuggy = nestedBool(r, spec, "avoidBuggyIPs", false)
	poolAllocation(r, spec, p)
	return p, r.problems
}

func nestedBool(r *report, spec map[string]any, name string, fallback bool) bool {
	b, found, err := unstructured.NestedBool(spec, name)
	if err != nil {
		r.invalid("spec."+name, "is neither true nor false; it is taken as %t", fallback)
	}
	if err != nil || !found {
		return fallback
	}
	return b
}

// poolAllocation reads spec.serviceAllocation. A selector that cannot be
// followed would let in Services that it is meant to keep out, so the pool is
// then used by Services that ask for it by name only.
func poolAllocation(r *report, spec map[string]any, p *model.Pool) {
	allocation, found, err := unstructured.NestedMap(spec, "serviceAllocation")
	if err != nil || !found {
		return
	}
	if n, found, err := unstructured.NestedInt64(allocation, "priority"); err != nil {
		r.invalid("spec.serviceAllocation.priority", "is no number; lower numbers are used first")
	} else if found && n != 0 {
		p.Priority = int(n)
	}
	namespaces, _, err := unstructured.NestedStringSlice(allocation, "namespaces")
	if err != nil {
		r.invalid("spec.serviceAllocation.namespaces", "is no list of names")
	}
	p.Namespaces = namespaces
	for _, name := range []string{"namespaceSelectors", "serviceSelectors"} {
		if list, found, _ := unstructured.NestedSlice(allocation, name); found && len(list) > 0 {
			r.add(ReasonUnsupported, "spec.serviceAllocation."+name, "is not supported; use namespaces. The pool serves only Services that name it by annotation %s", annotationsAddressPool[0])
			p.AutoAssign = false
		}
	}
}

// addrRange parses a CIDR, or "first-last".
func addrRange(s string) (model.AddrRange, bool) {
	if first, last, ok := strings.Cut(s, "-"); ok {
		f, okFirst := address(first)
		l, okLast := address(last)
		r := model.AddrRange{First: f, Last: l}
		return r, okFirst && okLast && f.Is4() == l.Is4() && f.Compare(l) <= 0
	}
	p, ok := prefix(s)
	if !ok || !strings.Contains(s, "/") {
		return model.AddrRange{}, false
	}
	return model.RangeOf(p), true
}
