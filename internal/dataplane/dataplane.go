package dataplane

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"time"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
)

// Dataplane programs the kernel. Its objects are the Services of the node;
// what it holds survives the process, so that a restart interrupts nothing.
type Dataplane interface {
	reconcile.Target[model.Key, plan.Service]
	// SetNode replaces what it knows of the node. It is idempotent.
	SetNode(ctx context.Context, n Node) error
	// Verify compares what the kernel holds with what it should hold and
	// repairs the difference, for when somebody else has changed it.
	Verify(ctx context.Context) error
	// Pulse tells that the node's own server (plan.Options.OwnServer) answers, and
	// is to be called again before valid is over: from then on clients go to those
	// that stand by, where there are any (plan.Frontend.Standby). They do so before where
	// the kernel sees that the process, or one of sockets, has ended: these are the
	// cookies (SO_COOKIE) of those that the server has for UDP. It may be called beside all the others.
	//
	// direct are where the server answers at the addresses of its frontends
	// (plan.Frontend.OwnServer) themselves, by UDP and TCP, with the port that it has there: their
	// packets are then neither translated nor tracked. They are all such
	// addresses, and local ones to the node's routes, or none. Answers that are under way
	// leave untracked for some seconds more.
	Pulse(valid time.Duration, sockets []uint64, direct []netip.AddrPort) error
}

// Glancer is a data path that can tell at little cost that somebody else has taken
// away much of what it has. Others need not.
type Glancer interface {
	// Disturbed reports whether somebody has removed tables or flushed rules, so
	// that Verify is to be called at once. It is called several times a second.
	Disturbed() (bool, error)
}

// Node is what a data path has to know of the node and its network. Addresses
// of both families may stand in one list.
type Node struct {
	// LocalPods are the ranges that the node's own Pods have addresses of: their
	// replies pass this node, so their connections are never masqueraded.
	// Without it and PodInterfaces, Pods' connections to endpoints on other
	// nodes are masqueraded, which always works but hides the Pod's address.
	LocalPods []netip.Prefix
	// PodInterfaces are prefixes of the names of interfaces that lead to the
	// node's own Pods, for networks where LocalPods is not known.
	PodInterfaces []string
	// Cluster are ranges whose clients count as this node's own, which
	// externalTrafficPolicy: Local does not bind. LocalPods and the node's own
	// addresses always do, so it is for nodes whose LocalPods are not known.
	Cluster []netip.Prefix
	// Services are the ranges of cluster addresses: those that no Service has
	// are refused rather than sent on.
	Services []netip.Prefix
	// NodePorts limit the node's addresses that serve NodePorts; empty means
	// all but loopback ones.
	NodePorts []netip.Prefix
	// TLSProxy are where the node's TLS proxy listens, at most one address of
	// each family, never a loopback one.
	TLSProxy []netip.AddrPort
}

// Equal reports whether both are the same.
func (n Node) Equal(o Node) bool {
	return slices.Equal(n.LocalPods, o.LocalPods) && slices.Equal(n.PodInterfaces, o.PodInterfaces) &&
		slices.Equal(n.Cluster, o.Cluster) && slices.Equal(n.Services, o.Services) &&
		slices.Equal(n.NodePorts, o.NodePorts) && slices.Equal(n.TLSProxy, o.TLSProxy)
}

// SupportsSCTP reports whether the kernel can track, and so translate, SCTP in
// the network namespace of the calling thread (plan.Options.SCTP).
func SupportsSCTP() bool {
	_, err := os.Stat("/proc/sys/net/netfilter/nf_conntrack_sctp_timeout_established")
	return err == nil
}
