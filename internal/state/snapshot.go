package state

import "fairway.dev/fairway/internal/model"

// Snapshot is everything known at one moment. It never changes.
type Snapshot struct {
	// Revision grows with every commit.
	Revision uint64
	// Synced is true once every source has delivered its first full list.
	// Before that, absence means nothing: do not prune, do not say NXDOMAIN.
	Synced bool

	Services     Table[model.Key, *model.Service]
	Endpoints    Table[model.Key, *model.EndpointSet] // by Service
	Nodes        Table[string, *model.Node]
	Namespaces   Table[string, *model.Namespace]
	Routes       Table[model.Ref, *model.Route]        // Ref without UID
	Streams      Table[model.Ref, []model.StreamRoute] // by the object that asks for them, Ref without UID
	Certificates Table[model.Key, *model.Certificate]
	Pools        Table[model.Key, *model.Pool]
	// DNS is what somebody has said of cluster DNS in a Corefile; nil for nothing.
	DNS *model.DNSConfig
	// Problems are what translation found wrong, by object (Ref without UID).
	Problems Table[model.Ref, model.Problems]
}
