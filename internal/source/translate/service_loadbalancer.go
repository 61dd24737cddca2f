package translate

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"fairway.dev/fairway/internal/model"
)

// Each wish can be written in Fairway's name or MetalLB's (new and old); the
// first annotation that is there counts.
var (
	annotationsLoadBalancerIPs = []string{"fairway.dev/load-balancer-ips", "metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs"}
	annotationsAddressPool     = []string{"fairway.dev/address-pool", "metallb.io/address-pool", "metallb.universe.tf/address-pool"}
	annotationsSharedIP        = []string{"fairway.dev/allow-shared-ip", "metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip"}
)

// nobody is a range that no client is in. It stands for source ranges none of
// which could be read, so that a mistake does not open the Service to all.
var nobody = netip.PrefixFrom(netip.IPv4Unspecified(), 32)

// firstAnnotation returns the first of the annotations that is there.
func firstAnnotation(o *corev1.Service, names []string) (name, value string) {
	for _, n := range names {
		if v, ok := o.Annotations[n]; ok {
			return n, v
		}
	}
	return "", ""
}

func serviceLoadBalancer(r *report, o *corev1.Service) model.ServiceLoadBalancer {
	var lb model.ServiceLoadBalancer
	if c := o.Spec.LoadBalancerClass; c != nil {
		lb.Class = *c
	}
	lb.Requested = requestedAddresses(r, o)
	if name, value := firstAnnotation(o, annotationsAddressPool); name != "" {
		if isDNSName(value) {
			lb.Pool = value
		} else {
			r.invalid(annotationField(name), "%q is no name of an address pool; name one, or remove the annotation to use any pool", value)
		}
	}
	_, lb.SharingKey = firstAnnotation(o, annotationsSharedIP)
	lb.SourceRanges = sourceRanges(r, o)
	for i, in := range o.Status.LoadBalancer.Ingress {
		if in.IP == "" {
			continue // a host name is for people; there is nothing to route
		}
		a, ok := address(in.IP)
		if !ok {
			r.invalid(fmt.Sprintf("status.loadBalancer.ingress[%d].ip", i), "%q is no IP address", in.IP)
			continue
		}
		proxy := in.IPMode != nil && *in.IPMode == corev1.LoadBalancerIPModeProxy
		lb.Ingress = append(lb.Ingress, model.LoadBalancerIngress{Addr: a, Proxy: proxy})
	}
	return lb
}

// requestedAddresses reads the wish for addresses: the annotation before the
// deprecated spec.loadBalancerIP, which holds only one.
func requestedAddresses(r *report, o *corev1.Service) []netip.Addr {
	name, value := firstAnnotation(o, annotationsLoadBalancerIPs)
	if name == "" {
		if o.Spec.LoadBalancerIP == "" {
			return nil
		}
		return addresses(r, "spec.loadBalancerIP", []string{o.Spec.LoadBalancerIP})
	}
	var out []netip.Addr
	families := map[bool]bool{}
	for _, s := range commaList(value) {
		a, ok := address(s)
		switch {
		case !ok:
			r.invalid(annotationField(name), "%q is no IP address; write one address, or one of each family separated by a comma", s)
		case families[a.Is4()]:
			r.invalid(annotationField(name), "%s is a second address of the same family; a Service has at most one of each. It is left out", a)
		default:
			families[a.Is4()] = true
			out = append(out, a)
		}
	}
	return out
}

// sourceRanges reads spec.loadBalancerSourceRanges or, where that is empty, the
// annotation that came before it.
func sourceRanges(r *report, o *corev1.Service) []netip.Prefix {
	field, list := "spec.loadBalancerSourceRanges", o.Spec.LoadBalancerSourceRanges
	if v, ok := o.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]; ok && len(list) == 0 {
		field, list = annotationField(corev1.AnnotationLoadBalancerSourceRangesKey), commaList(v)
		if len(list) == 0 && strings.TrimSpace(v) != "" {
			r.invalid(field, "%q has commas and no range of addresses between them; write one as 192.0.2.0/24, or remove the annotation to let in everybody. It lets in nobody", v)
			return []netip.Prefix{nobody}
		}
	}
	var out []netip.Prefix
	for _, s := range list {
		p, ok := prefix(s)
		if !ok {
			r.invalid(field, "%q is no range of addresses; write it as 192.0.2.0/24. It admits nobody", s)
			continue
		}
		out = append(out, p)
	}
	if len(out) == 0 && len(list) > 0 {
		return []netip.Prefix{nobody}
	}
	return out
}
