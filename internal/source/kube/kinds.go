package kube

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/source/translate"
	"fairway.dev/fairway/internal/state"
)

// PoolResource is MetalLB's kind of address pools.
var PoolResource = schema.GroupVersionResource{Group: "metallb.io", Version: "v1beta1", Resource: "ipaddresspools"}

// secretTypes are types of Secrets that never hold a certificate to serve. They
// are most of the Secrets in a cluster, so they are left out by the API server.
var secretTypes = []corev1.SecretType{
	corev1.SecretTypeServiceAccountToken, corev1.SecretTypeDockercfg, corev1.SecretTypeDockerConfigJson,
	corev1.SecretTypeBasicAuth, corev1.SecretTypeSSHAuth, corev1.SecretTypeBootstrapToken, "helm.sh/release.v1",
}

// kindsOf returns the kinds that are asked for.
func kindsOf(o *Options) []kind {
	var out []kind
	add := func(flag Kinds, kinds ...kind) {
		if o.Kinds&flag != 0 {
			out = append(out, kinds...)
		}
	}
	add(Services, services(o))
	add(EndpointSlices, endpointSlices(o))
	add(Nodes, nodes(o))
	add(Namespaces, namespaces(o))
	add(Secrets, secrets(o))
	add(Ingresses, newIngresses(o.ServeNginx).kinds(o)...)
	if !o.TCPServices.IsZero() {
		add(Streams, streamServices(o, o.TCPServices, model.TCP))
	}
	if !o.UDPServices.IsZero() {
		add(Streams, streamServices(o, o.UDPServices, model.UDP))
	}
	if !o.Corefile.IsZero() {
		kinds, update := corefile(o)
		add(Corefile, kinds...)
		for i := range out {
			if out[i].name == nodesName && o.Kinds&Corefile != 0 {
				out[i].first = update
			}
		}
	}
	if o.Dynamic != nil {
		add(Pools, pools(o))
	}
	return out
}

// lister is what the typed clients have in common.
type lister[L runtime.Object] interface {
	List(ctx context.Context, options metav1.ListOptions) (L, error)
	Watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error)
}

// listWatchOf makes a ListerWatcher of a typed client, with selectors.
func listWatchOf[L runtime.Object](o *Options, client lister[L], labelSelector, fieldSelector string) cache.ListerWatcher {
	narrow := func(options *metav1.ListOptions) {
		options.LabelSelector, options.FieldSelector = labelSelector, fieldSelector
	}
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			narrow(&options)
			return client.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			narrow(&options)
			return client.Watch(ctx, options)
		},
	}, o.Client)
}

func services(o *Options) kind {
	return kind{
		name: "services", object: &corev1.Service{},
		lw: listWatchOf(o, o.services.Services(""), "", ""),
		put: func(object any) change {
			s, problems := translate.Service(object.(*corev1.Service))
			problems = append(problems, translate.AliasOfItself(object.(*corev1.Service), o.ClusterDomain)...)
			return func(tx *state.Tx) {
				tx.PutService(s)
				tx.PutProblems(model.Ref{Kind: "Service", Key: s.Key}, problems)
			}
		},
		remove: func(key model.Key) change {
			return func(tx *state.Tx) {
				tx.DeleteService(key)
				tx.PutProblems(model.Ref{Kind: "Service", Key: key}, nil)
			}
		},
	}
}

func endpointSlices(o *Options) kind {
	remove := func(key model.Key) change {
		return func(tx *state.Tx) {
			tx.DeleteSlice(key)
			tx.PutProblems(model.Ref{Kind: "EndpointSlice", Key: key}, nil)
		}
	}
	return kind{
		name: "endpointslices", object: &discoveryv1.EndpointSlice{},
		lw:     listWatchOf(o, o.slices.EndpointSlices(""), discoveryv1.LabelServiceName, ""),
		remove: remove,
		put: func(object any) change {
			slice, problems := translate.EndpointSlice(object.(*discoveryv1.EndpointSlice))
			if slice == nil {
				m := object.(metav1.Object)
				return remove(model.Key{Namespace: m.GetNamespace(), Name: m.GetName()})
			}
			if !o.About {
				for i := range slice.Endpoints {
					slice.Endpoints[i].About = nil
				}
			}
			return func(tx *state.Tx) {
				tx.PutSlice(slice)
				tx.PutProblems(model.Ref{Kind: "EndpointSlice", Key: slice.Key}, problems)
			}
		},
	}
}

const nodesName = "nodes"

func nodes(o *Options) kind {
	return kind{
		name: nodesName, object: &corev1.Node{},
		lw: listWatchOf(o, o.Client.CoreV1().Nodes(), "", ""),
		put: func(object any) change {
			n, problems := translate.Node(object.(*corev1.Node))
			return func(tx *state.Tx) {
				tx.PutNode(n)
				tx.PutProblems(model.Ref{Kind: "Node", Key: model.Key{Name: n.Name}}, problems)
			}
		},
		remove: func(key model.Key) change {
			return func(tx *state.Tx) {
				tx.DeleteNode(key.Name)
				tx.PutProblems(model.Ref{Kind: "Node", Key: key}, nil)
			}
		},
	}
}

func namespaces(o *Options) kind {
	return kind{
		name: "namespaces", object: &corev1.Namespace{},
		lw: listWatchOf(o, o.Client.CoreV1().Namespaces(), "", ""),
		put: func(object any) change {
			n := translate.Namespace(object.(*corev1.Namespace))
			return func(tx *state.Tx) { tx.PutNamespace(n) }
		},
		remove: func(key model.Key) change {
			return func(tx *state.Tx) { tx.DeleteNamespace(key.Name) }
		},
	}
}

func secrets(o *Options) kind {
	terms := make([]string, 0, len(secretTypes))
	for _, t := range secretTypes {
		terms = append(terms, fields.OneTermNotEqualSelector("type", string(t)).String())
	}
	return kind{
		name: "secrets", object: &corev1.Secret{},
		lw: listWatchOf(o, o.Client.CoreV1().Secrets(""), "", strings.Join(terms, ",")),
		put: func(object any) change {
			c := translate.Secret(object.(*corev1.Secret))
			return func(tx *state.Tx) { tx.PutCertificate(c) }
		},
		remove: func(key model.Key) change {
			return func(tx *state.Tx) { tx.DeleteCertificate(key) }
		},
	}
}

func streamServices(o *Options, key model.Key, protocol model.Protocol) kind {
	ref := model.Ref{Kind: "ConfigMap", Key: key}
	return kind{
		name: "configmap " + key.String(), object: &corev1.ConfigMap{},
		lw: listWatchOf(o, o.Client.CoreV1().ConfigMaps(key.Namespace), "", fields.OneTermEqualSelector("metadata.name", key.Name).String()),
		put: func(object any) change {
			cm := object.(*corev1.ConfigMap)
			if cm.Name != key.Name {
				return func(*state.Tx) {} // a client that does not know field selectors
			}
			routes, problems := translate.StreamServices(cm, protocol)
			return func(tx *state.Tx) {
				tx.PutStreams(ref, routes)
				tx.PutProblems(ref, problems)
			}
		},
		remove: func(gone model.Key) change {
			return func(tx *state.Tx) {
				if gone == key {
					tx.PutStreams(ref, nil)
					tx.PutProblems(ref, nil)
				}
			}
		},
	}
}

// corefile follows the ConfigMap with CoreDNS' configuration, and the one with what
// users add to it. What cannot be read leaves what was there before. Until it is
// known of both what is in them nothing is used: one without the other is a
// configuration that nobody wrote, in which names of the other's stub zones would be
// asked of servers that should not see them.
//
// It returns with them what is to follow the first list of Nodes: their addresses
// have a part in what a Corefile may forward to.
func corefile(o *Options) ([]kind, change) {
	key := o.Corefile
	custom := model.Key{Namespace: key.Namespace, Name: key.Name + translate.CustomSuffix}
	// Changed within transactions only, which are one after the other.
	have := map[model.Key]*corev1.ConfigMap{}
	listed := map[model.Key]bool{}
	nodesListed, first := o.Kinds&Nodes == 0, true
	update := func(tx *state.Tx) {
		if !listed[key] || !listed[custom] || !nodesListed {
			return
		}
		var problems model.Problems
		if have[key] == nil {
			tx.SetDNS(nil)
			if have[custom] != nil {
				problems = translate.CustomAlone(have[custom], key)
			}
		} else {
			var config *model.DNSConfig
			config, problems = translate.Corefile(have[key], have[custom], o.ClusterDomain, o.ClusterDNS, OwnDNS(tx.Snapshot(), o.NodeDNSPort), o.Env)
			if config == nil && first && o.LastDNS != nil {
				config = o.LastDNS()
			}
			if config != nil {
				tx.SetDNS(config)
			}
		}
		first = false
		for _, of := range []model.Key{key, custom} {
			var own model.Problems
			for _, p := range problems {
				if p.Object.Key == of {
					own = append(own, p)
				}
			}
			tx.PutProblems(model.Ref{Kind: "ConfigMap", Key: of}, own)
		}
	}
	follow := func(key model.Key) kind {
		return kind{
			name: "configmap " + key.String(), object: &corev1.ConfigMap{}, mayBeForbidden: true,
			lw: listWatchOf(o, o.Client.CoreV1().ConfigMaps(key.Namespace), "", fields.OneTermEqualSelector("metadata.name", key.Name).String()),
			first: func(tx *state.Tx) {
				listed[key] = true
				update(tx)
			},
			put: func(object any) change {
				cm := object.(*corev1.ConfigMap)
				if cm.Name != key.Name {
					return func(*state.Tx) {} // a client that does not know field selectors
				}
				return func(tx *state.Tx) {
					have[key] = cm
					update(tx)
				}
			},
			remove: func(gone model.Key) change {
				return func(tx *state.Tx) {
					if gone == key {
						delete(have, key)
						update(tx)
					}
				}
			},
		}
	}
	return []kind{follow(custom), follow(key)}, func(tx *state.Tx) {
		nodesListed = true
		update(tx)
	}
}

// OwnDNS returns what reports whether a node's DNS answers at an address: at its
// port, and an address of a node that is known, or a loopback one.
func OwnDNS(snap *state.Snapshot, port uint16) func(netip.AddrPort) bool {
	return func(a netip.AddrPort) bool {
		if port == 0 || a.Port() != port {
			return false
		}
		if a.Addr().IsLoopback() {
			return true
		}
		for _, n := range snap.Nodes.All() {
			if slices.Contains(n.Addrs, a.Addr()) {
				return true
			}
		}
		return false
	}
}

func pools(o *Options) kind {
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(PoolResource.GroupVersion().WithKind("IPAddressPool"))
	client := o.Dynamic.Resource(PoolResource)
	return kind{
		name: PoolResource.Resource, object: object, optional: true,
		lw: cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
				return client.List(ctx, options)
			},
			WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
				return client.Watch(ctx, options)
			},
		}, o.Dynamic),
		put: func(object any) change {
			p, problems := translate.Pool(object.(*unstructured.Unstructured))
			return func(tx *state.Tx) {
				tx.PutPool(p)
				tx.PutProblems(model.Ref{Kind: "IPAddressPool", Key: p.Key}, problems)
			}
		},
		remove: func(key model.Key) change {
			return func(tx *state.Tx) {
				tx.DeletePool(key)
				tx.PutProblems(model.Ref{Kind: "IPAddressPool", Key: key}, nil)
			}
		},
	}
}

// ingressObject keeps of an Ingress what translation reads.
func ingressObject(o *networkingv1.Ingress) *networkingv1.Ingress {
	return &networkingv1.Ingress{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: o.Namespace, Name: o.Name, UID: o.UID,
			CreationTimestamp: o.CreationTimestamp, Annotations: o.Annotations,
		},
		Spec: o.Spec,
	}
}
