package kube

import (
	networkingv1 "k8s.io/api/networking/v1"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/source/translate"
	"fairway.dev/fairway/internal/state"
)

// ingresses translates Ingresses again when an IngressClass changes, for that
// may change which of them are Fairway's.
// Its fields belong to the goroutine that applies changes.
type ingresses struct {
	classes translate.Classes
	objects map[model.Key]*networkingv1.Ingress
}

func newIngresses(serveNginx bool) *ingresses {
	return &ingresses{
		classes: translate.Classes{ByName: map[string]translate.Class{}, ServeNginx: serveNginx},
		objects: map[model.Key]*networkingv1.Ingress{},
	}
}

func (x *ingresses) kinds(o *Options) []kind {
	return []kind{
		{
			name: "ingressclasses", object: &networkingv1.IngressClass{},
			lw:     listWatchOf(o, o.Client.NetworkingV1().IngressClasses(), "", ""),
			put:    x.putClass,
			remove: x.removeClass,
		},
		{
			name: "ingresses", object: &networkingv1.Ingress{},
			lw:     listWatchOf(o, o.Client.NetworkingV1().Ingresses(""), "", ""),
			put:    x.put,
			remove: x.remove,
		},
	}
}

// The changes of both kinds translate when they are applied and not when they
// arrive: they are applied one after the other, so none of them can put back
// what was translated with classes of before.

func (x *ingresses) putClass(object any) change {
	class := translate.IngressClass(object.(*networkingv1.IngressClass))
	return func(tx *state.Tx) {
		if old, ok := x.classes.ByName[class.Name]; ok && old == class {
			return
		}
		x.classes.ByName[class.Name] = class
		x.translateAll(tx)
	}
}

func (x *ingresses) removeClass(key model.Key) change {
	return func(tx *state.Tx) {
		delete(x.classes.ByName, key.Name)
		x.translateAll(tx)
	}
}

func (x *ingresses) put(object any) change {
	o := ingressObject(object.(*networkingv1.Ingress))
	return func(tx *state.Tx) {
		x.objects[model.Key{Namespace: o.Namespace, Name: o.Name}] = o
		x.translate(tx, o)
	}
}

func (x *ingresses) remove(key model.Key) change {
	return func(tx *state.Tx) {
		delete(x.objects, key)
		ref := model.Ref{Kind: "Ingress", Key: key}
		tx.DeleteRoute(ref)
		tx.PutStreams(ref, nil)
		tx.PutProblems(ref, nil)
	}
}

func (x *ingresses) translateAll(tx *state.Tx) {
	for _, o := range x.objects {
		x.translate(tx, o)
	}
}

func (x *ingresses) translate(tx *state.Tx, o *networkingv1.Ingress) {
	ref := model.Ref{Kind: "Ingress", Key: model.Key{Namespace: o.Namespace, Name: o.Name}}
	serves, problems := x.classes.Serves(o)
	var result translate.IngressResult
	if serves {
		result, problems = translate.Ingress(o)
	}
	if result.Route == nil {
		tx.DeleteRoute(ref)
	} else {
		tx.PutRoute(result.Route)
	}
	tx.PutStreams(ref, result.Streams)
	tx.PutProblems(ref, problems)
}
