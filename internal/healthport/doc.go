// Package healthport tells load balancers and people by HTTP how a node does as
// a service proxy, in kube-proxy's words:
//
//   - [Services] answers at the healthCheckNodePort of every Service whether
//     this node has endpoints of it,
//   - [Proxy] answers /healthz and /livez: whether the data path follows the
//     cluster and, for healthz, whether the node will stay (KEP-3836).
//
// It must not decide which endpoints count; that is plan's.
package healthport
