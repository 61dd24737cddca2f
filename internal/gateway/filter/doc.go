// Package filter holds what the gateway does to a request between the router
// and the backend: one file per feature, and their order with the reason for
// it in order.go.
//
// Filters see a [request.View] and leave what they decided in an [Exchange];
// the engine carries it out. So each feature is written once, whatever HTTP
// version or server read the request.
//
// The package must not know about connections, servers or endpoints.
package filter
