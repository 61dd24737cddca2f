package model

import (
	"cmp"
	"fmt"
)

// Key names a namespaced object of a kind that the context tells.
type Key struct {
	Namespace string
	Name      string
}

// String returns "namespace/name", or only the name of a cluster-scoped object.
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Name
	}
	return k.Namespace + "/" + k.Name
}

// Compare orders keys by namespace, then name.
func (k Key) Compare(o Key) int {
	if c := cmp.Compare(k.Namespace, o.Namespace); c != 0 {
		return c
	}
	return cmp.Compare(k.Name, o.Name)
}

// IsZero reports whether the key names nothing.
func (k Key) IsZero() bool { return k == Key{} }

// Ref names one API object in full, for people and for Events.
type Ref struct {
	// Kind is the API kind, for example "Service" or "Ingress".
	Kind string
	Key
	// UID is the object's uid; it may be empty where it is not known.
	UID string
}

// String returns "Kind namespace/name".
func (r Ref) String() string { return fmt.Sprintf("%s %s", r.Kind, r.Key) }

// Compare orders refs by kind, then key. The UID takes no part.
func (r Ref) Compare(o Ref) int {
	if c := cmp.Compare(r.Kind, o.Kind); c != 0 {
		return c
	}
	return r.Key.Compare(o.Key)
}
