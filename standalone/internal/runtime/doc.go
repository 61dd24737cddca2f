// Package runtime is a container runtime for Kubernetes whose containers are
// processes of the machine itself.
//
// It owns everything below kubelet: Pod sandboxes, containers, their mounts,
// cgroups, logs and streams, and the mapping from image references to commands
// of the machine. It speaks the Container Runtime Interface of
// k8s.io/cri-api, in process, so that no socket and no daemon lie between
// kubelet and the containers. Pod networking is package podnet's, and what must
// happen inside a container before its command starts is fairway-init's.
//
// A container is a process of the machine with the machine's files, to which
// its changes are kept apart in memory. It has namespaces of its own, the user,
// groups, capabilities and mounts that its Pod asks for, and, where the machine's
// cgroup v2 has the controllers, its limits. It has no seccomp or AppArmor
// profile and no user namespace: containers are kept from being in each other's
// way, not from being malicious.
//
// It must not know the Kubernetes API, must not pull or unpack images, and must
// not leave anything behind: containers do not outlive the process that runs
// them, and New removes what a killed predecessor left.
package runtime
