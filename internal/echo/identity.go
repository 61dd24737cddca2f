package echo

import (
	"net"
	"os"
	"strings"
)

// Identity says who answers. Its fields come from the downward API where the
// Pod asks for it, and else from what the container can see itself.
type Identity struct {
	// Name is how the workload calls itself; by default the Pod's name.
	Name string `json:"name"`
	// Pod is POD_NAME, or the host name, which Kubernetes sets to the Pod's name.
	Pod string `json:"pod"`
	// Namespace is POD_NAMESPACE, or that of the mounted service account.
	Namespace string `json:"namespace,omitempty"`
	// Node is NODE_NAME; nothing else in a container tells it.
	Node string `json:"node,omitempty"`
	// IP is POD_IP, or the first address that is not loopback or link-local.
	IP string `json:"ip,omitempty"`
}

// namespaceFile is where kubelet mounts the namespace of the service account.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// Identify reads the identity of this process. An empty name means the Pod's name.
func Identify(name string) Identity {
	id := Identity{
		Name:      name,
		Pod:       os.Getenv("POD_NAME"),
		Namespace: os.Getenv("POD_NAMESPACE"),
		Node:      os.Getenv("NODE_NAME"),
		IP:        os.Getenv("POD_IP"),
	}
	if id.Pod == "" {
		id.Pod, _ = os.Hostname()
	}
	if id.Namespace == "" {
		if b, err := os.ReadFile(namespaceFile); err == nil {
			id.Namespace = strings.TrimSpace(string(b))
		}
	}
	if id.IP == "" {
		id.IP = ownAddress()
	}
	if id.Name == "" {
		id.Name = id.Pod
	}
	return id
}

func ownAddress() string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return ""
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	return ""
}
