package apply

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// ClusterOptions say which cluster is meant.
type ClusterOptions struct {
	// Kubeconfig is a file; by default the files in KUBECONFIG, else that of
	// `fairway up` in DataDir, else ~/.kube/config.
	Kubeconfig string
	// Context is a context in it; optional.
	Context string
	// DataDir is where `fairway up` keeps its cluster; optional.
	DataDir string
}

// Cluster is how to reach a Kubernetes API.
type Cluster struct {
	Config *rest.Config
	// Namespace is that of the context, or "default".
	Namespace string
	// Origin names the kubeconfig, for people.
	Origin string
}

// FindCluster reads the kubeconfig that the options and the environment name.
func FindCluster(o ClusterOptions) (Cluster, error) {
	rules, origin, err := kubeconfig(o)
	if err != nil {
		return Cluster{}, err
	}
	overrides := &clientcmd.ConfigOverrides{CurrentContext: o.Context}
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
	config, err := loader.ClientConfig()
	if err != nil && unreadable(origin) {
		return Cluster{}, fmt.Errorf("%s: may be read by its owner only; try as root (sudo), or name a kubeconfig of your own with --kubeconfig", origin)
	}
	if err != nil {
		return Cluster{}, fmt.Errorf("%s: %w", origin, err)
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return Cluster{}, fmt.Errorf("%s: %w", origin, err)
	}
	return Cluster{Config: config, Namespace: namespace, Origin: origin}, nil
}

// unreadable reports whether a file is there that is not for us. The error of who reads it does not tell.
func unreadable(path string) bool {
	file, err := os.Open(path)
	if err == nil {
		file.Close()
	}
	return errors.Is(err, fs.ErrPermission)
}

func kubeconfig(o ClusterOptions) (rules *clientcmd.ClientConfigLoadingRules, origin string, err error) {
	if o.Kubeconfig != "" {
		return &clientcmd.ClientConfigLoadingRules{ExplicitPath: o.Kubeconfig}, o.Kubeconfig, nil
	}
	if files := os.Getenv(clientcmd.RecommendedConfigPathEnvVar); files != "" {
		return &clientcmd.ClientConfigLoadingRules{Precedence: filepath.SplitList(files)}, files, nil
	}
	var looked []string
	if o.DataDir != "" {
		looked = append(looked, filepath.Join(o.DataDir, "kubeconfig"))
	}
	if home, err := os.UserHomeDir(); err == nil {
		looked = append(looked, filepath.Join(home, ".kube", "config"))
	}
	for _, file := range looked {
		_, err := os.Stat(file)
		if err == nil {
			return &clientcmd.ClientConfigLoadingRules{ExplicitPath: file}, file, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, "", err
		}
	}
	return nil, "", fmt.Errorf("no cluster: none of %s exists; start one with `fairway up`, or name a kubeconfig with --kubeconfig", strings.Join(looked, ", "))
}
