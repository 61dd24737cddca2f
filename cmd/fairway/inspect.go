package main

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"fairway.dev/fairway/internal/apply"
	"fairway.dev/fairway/internal/up"
)

// inspection is what the commands have in common that look into a cluster, as
// seen from one of its nodes, and tell what they find to people or to programs.
type inspection struct {
	cluster         apply.ClusterOptions
	namespace, node string
	output          string
}

// inspectionLong says in a command's help which cluster it is about.
const inspectionLong = "The cluster is that of --kubeconfig, else of KUBECONFIG, else the one that `fairway up` started, else that of ~/.kube/config."

// flags adds the flags that all of them have; namespace and node are what these two mean.
func (i *inspection) flags(cmd *cobra.Command, namespace, node string) {
	f := cmd.Flags()
	f.StringVarP(&i.namespace, "namespace", "n", "", namespace)
	f.StringVar(&i.node, "node", "", node)
	f.StringVarP(&i.output, "output", "o", "", "json: the same for programs")
	f.StringVar(&i.cluster.Kubeconfig, "kubeconfig", "", "`file` that says how to reach the cluster")
	f.StringVar(&i.cluster.Context, "context", "", "`context` in the kubeconfig")
	dataDirFlag(cmd, &i.cluster.DataDir)
}

// inspected is a cluster that was found.
type inspected struct {
	apply.Cluster
	// namespace is that of the flag, or of the context.
	namespace string
	// firstNode, domain and enter are those of a cluster of fairway up: its nodes have
	// network namespaces of their own on this machine. The ports are
	// those of its gateway. Else all are empty.
	firstNode string
	domain    string
	enter     func(node string, f func() error) error
	httpPort  uint16
	httpsPort uint16
}

// enterFirst returns what runs a function where the gateway of fairway up is; nil
// for this machine's network namespace.
func (i *inspected) enterFirst() func(func() error) error {
	if i.enter == nil {
		return nil
	}
	return func(f func() error) error { return i.enter(i.firstNode, f) }
}

// find finds the cluster, and refuses flags that make no sense.
func (i *inspection) find() (*inspected, error) {
	if i.output != "" && i.output != "json" {
		return nil, fmt.Errorf("--output %q: must be json", i.output)
	}
	var err error
	if i.cluster.DataDir, err = filepath.Abs(i.cluster.DataDir); err != nil {
		return nil, err
	}
	cluster, err := apply.FindCluster(i.cluster)
	if err != nil {
		return nil, err
	}
	found := &inspected{Cluster: cluster, namespace: i.namespace}
	if found.namespace == "" {
		found.namespace = cluster.Namespace
	}
	if cluster.Origin == filepath.Join(i.cluster.DataDir, "kubeconfig") {
		nodes, err := up.OpenNodes(i.cluster.DataDir)
		if err != nil {
			return nil, err
		}
		if nodes != nil {
			found.firstNode, found.domain, found.enter = nodes.First(), nodes.Domain(), nodes.Do
			if found.httpPort, err = nodes.GatewayPort("http"); err != nil {
				return nil, err
			}
			if found.httpsPort, err = nodes.GatewayPort("https"); err != nil {
				return nil, err
			}
		}
	}
	return found, nil
}

// slow returns what tells people that nothing hangs but the API.
func (i *inspection) slow(cmd *cobra.Command, in *inspected) func() {
	return func() {
		fmt.Fprintf(cmd.ErrOrStderr(), "the Kubernetes API at %s does not answer yet; fairway status tells why\n", in.Config.Host)
	}
}

// tell prints a report, and returns an error that says no more than that where
// it is not good.
func (i *inspection) tell(cmd *cobra.Command, report interface{ Text() string }, good bool) error {
	var err error
	if i.output == "json" {
		encoder := json.NewEncoder(cmd.OutOrStdout())
		encoder.SetIndent("", "  ")
		err = encoder.Encode(report)
	} else {
		_, err = io.WriteString(cmd.OutOrStdout(), report.Text())
	}
	if err == nil && !good {
		err = reported()
	}
	return err
}
