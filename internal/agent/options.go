package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// Common are the options of every role.
type Common struct {
	// Kubeconfig is a file; empty means the Pod's own service account.
	Kubeconfig string
	// ReadyFile is written when the role serves; its time is set anew every second while it lives. Optional.
	ReadyFile string
	// MetricsAddress serves /metrics, /healthz and /readyz; empty for none.
	MetricsAddress string
	// Version is that of the program, for metrics. Optional.
	Version string
	// Logger is required.
	Logger *slog.Logger
}

// LogClientGo has client-go, which logs by klog, say it where the role does. It
// holds for the whole process, and is for its start.
func LogClientGo(l *slog.Logger) { klog.SetSlogLogger(l) }

// restConfig returns how to reach the API; role shows there as user agent.
func (c Common) restConfig(role string) (*rest.Config, error) {
	var cfg *rest.Config
	var err error
	if c.Kubeconfig != "" {
		cfg, err = clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	} else if cfg, err = rest.InClusterConfig(); errors.Is(err, rest.ErrNotInCluster) {
		err = errors.New("no --kubeconfig given, and this is no Pod of a cluster")
	}
	if err != nil {
		return nil, fmt.Errorf("reach the Kubernetes API: %w", err)
	}
	cfg.UserAgent = "fairway-" + role
	// Watches are few and long; writes (status, Events) come in bursts at start.
	cfg.QPS, cfg.Burst = 100, 200
	return cfg, nil
}

// identity tells this process from the other replicas of its role. A host, or a
// node, and a PID do not: in a container the PID mostly is 1, and two replicas on one
// node that had the same identity would both take the Lease for theirs, and lead.
func identity(node string) string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	if node != "" {
		host = node
	}
	return fmt.Sprintf("%s_%s", host, uuid.NewUUID())
}
