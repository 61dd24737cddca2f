package up

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"sigs.k8s.io/yaml"

	"fairway.dev/fairway/internal/up/machine"
)

// kubeAPI asks the Kubernetes API a few simple questions.
type kubeAPI struct {
	server string
	client *http.Client
}

// kubeconfigFile is what is needed of a kubeconfig (clientcmd/v1) with one cluster and one user.
type kubeconfigFile struct {
	Clusters []struct {
		Cluster struct {
			Server string `json:"server"`
			CAData string `json:"certificate-authority-data"`
			CAFile string `json:"certificate-authority"`
		} `json:"cluster"`
	} `json:"clusters"`
	Users []struct {
		User struct {
			CertData string `json:"client-certificate-data"`
			CertFile string `json:"client-certificate"`
			KeyData  string `json:"client-key-data"`
			KeyFile  string `json:"client-key"`
		} `json:"user"`
	} `json:"users"`
}

// openKubeAPI reads a kubeconfig as the control process writes it: one cluster, one user with a client certificate. The API
// is connected to from the given namespace.
func openKubeAPI(path string, from *machine.Namespace) (*kubeAPI, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var config kubeconfigFile
	if err := yaml.Unmarshal(text, &config); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if len(config.Clusters) == 0 || len(config.Users) == 0 {
		return nil, fmt.Errorf("reading %s: no cluster or no user in it", path)
	}
	cluster, user := config.Clusters[0].Cluster, config.Users[0].User
	ca, err1 := dataOrFile(cluster.CAData, cluster.CAFile)
	cert, err2 := dataOrFile(user.CertData, user.CertFile)
	key, err3 := dataOrFile(user.KeyData, user.KeyFile)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("reading %s: no CA certificate in it", path)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}},
		ForceAttemptHTTP2: true,
		DialContext:       dialFrom(from),
		Proxy:             func(*http.Request) (*url.URL, error) { return nil, nil }, // it is on this machine
	}
	return &kubeAPI{server: cluster.Server, client: &http.Client{Transport: transport, Timeout: 5 * time.Second}}, nil
}

// dialFrom connects from a namespace. A socket belongs to the namespace of the thread that makes it, and for an address
// that is no name net.Dialer does so in the goroutine that calls it.
func dialFrom(ns *machine.Namespace) func(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: 2 * time.Second}
	return func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = ns.Do(func() error {
			c, err = dialer.DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
}

func dataOrFile(data, file string) ([]byte, error) {
	if data != "" {
		return base64.StdEncoding.DecodeString(data)
	}
	if file == "" {
		return nil, errors.New("a certificate or key is missing")
	}
	return os.ReadFile(file)
}

func (k *kubeAPI) close() { k.client.CloseIdleConnections() }

// errNotFound says that an object does not exist.
var errNotFound = errors.New("not found")

func (k *kubeAPI) get(ctx context.Context, path string) ([]byte, error) {
	return k.do(ctx, http.MethodGet, path)
}

// remove deletes an object at once. One that does not exist is fine.
func (k *kubeAPI) remove(ctx context.Context, path string) error {
	_, err := k.do(ctx, http.MethodDelete, path+"?gracePeriodSeconds=0")
	if errors.Is(err, errNotFound) {
		return nil
	}
	return err
}

func (k *kubeAPI) do(ctx context.Context, method, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, k.server+path, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/json")
	response, err := k.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 64<<20))
	if err != nil {
		return nil, err
	}
	if response.StatusCode == http.StatusNotFound {
		return nil, fmt.Errorf("%s: %w", path, errNotFound)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %.300s", path, response.Status, body)
	}
	return body, nil
}

// ready asks whether the API server takes requests.
func (k *kubeAPI) ready(ctx context.Context) error {
	_, err := k.get(ctx, "/readyz")
	return err
}

// nodeCondition is a Node's condition of type Ready.
type nodeCondition struct {
	Ready     bool
	Reason    string
	Message   string
	Heartbeat time.Time
}

// node returns the condition Ready of a Node.
func (k *kubeAPI) node(ctx context.Context, name string) (nodeCondition, error) {
	body, err := k.get(ctx, "/api/v1/nodes/"+url.PathEscape(name))
	if err != nil {
		return nodeCondition{}, err
	}
	var node struct {
		Status struct {
			Conditions []struct {
				Type, Status, Reason, Message string
				LastHeartbeatTime             time.Time
			}
		}
	}
	if err := json.Unmarshal(body, &node); err != nil {
		return nodeCondition{}, fmt.Errorf("node %s: %w", name, err)
	}
	for _, c := range node.Status.Conditions {
		if c.Type == "Ready" {
			return nodeCondition{Ready: c.Status == "True", Reason: c.Reason, Message: c.Message, Heartbeat: c.LastHeartbeatTime}, nil
		}
	}
	return nodeCondition{Reason: "NoStatus", Message: "the kubelet has not reported yet"}, nil
}

// ownDNS reports whether the DNS Service is Fairway's own.
func (k *kubeAPI) ownDNS(ctx context.Context) (bool, error) {
	body, err := k.get(ctx, "/api/v1/namespaces/kube-system/services/kube-dns")
	if err != nil {
		return false, err
	}
	var service struct {
		Metadata struct{ Labels map[string]string }
	}
	if err := json.Unmarshal(body, &service); err != nil {
		return false, err
	}
	return service.Metadata.Labels["kubernetes.io/name"] == "Fairway", nil
}

// dnsServers returns the nodes of all ready endpoints of the DNS Service; an endpoint without a node counts as "".
func (k *kubeAPI) dnsServers(ctx context.Context) ([]string, error) {
	body, err := k.get(ctx, "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices?labelSelector="+url.QueryEscape("kubernetes.io/service-name=kube-dns"))
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []struct {
			Endpoints []struct {
				NodeName   string
				Conditions struct{ Ready *bool }
			}
		}
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, err
	}
	var nodes []string
	for _, slice := range list.Items {
		for _, e := range slice.Endpoints {
			if e.Conditions.Ready == nil || *e.Conditions.Ready {
				nodes = append(nodes, e.NodeName)
			}
		}
	}
	return nodes, nil
}
