package control

import (
	"fmt"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"fairway.dev/fairway/standalone/internal/atomicfile"
	"fairway.dev/fairway/standalone/internal/pki"
)

// writeKubeconfig writes the file by which a client reaches server as the holder of the certificate user. Everything is
// inside the file, so that it can be copied elsewhere.
func writeKubeconfig(path, server string, ca []byte, user pki.Pair) error {
	const cluster, name = "fairway", "admin"
	config := clientcmdapi.NewConfig()
	config.Clusters[cluster] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: ca}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: user.Cert, ClientKeyData: user.Key}
	config.Contexts[cluster] = &clientcmdapi.Context{Cluster: cluster, AuthInfo: name}
	config.CurrentContext = cluster
	data, err := clientcmd.Write(*config)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return atomicfile.Write(path, data, 0o600)
}
