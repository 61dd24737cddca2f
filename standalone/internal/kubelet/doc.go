// Package kubelet runs one node of a standalone cluster: the real kubelet over Fairway's own container runtime.
//
// It owns in the data directory nodes/NAME/kubelet (kubelet's state) and nodes/NAME/log (the containers' logs), the Node
// object's Pod ranges, and what kubelet gets to know about the machine. Probes, lifecycle, volumes, environment,
// logs, exec, attach and port-forward are kubelet's own code.
//
// It must not know how containers are made or connected: that is the runtime's, behind the interface Runtime. It must
// not be used in a process that does anything else, because kubelet works with process-wide state and may end the
// process.
package kubelet
