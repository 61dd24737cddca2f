package control

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"

	"fairway.dev/fairway/standalone/internal/pki"
)

// frontProxyName is the user that aggregated API servers accept other users' names from.
const frontProxyName = "front-proxy-client"

// mastersGroup is bound to the role cluster-admin by the API server itself, before any RBAC object exists.
const mastersGroup = "system:masters"

// credentials are the certificates that the control plane works with.
type credentials struct {
	pki           *pki.PKI
	apiServer     pki.Pair
	kubeletClient pki.Pair
	frontProxy    pki.Pair
	// controllerManager and scheduler are kubeconfig files.
	controllerManager string
	scheduler         string
}

// makeCredentials opens the PKI, issues what the control plane needs and writes the kubeconfig files.
func makeCredentials(o *Options, dir *dataDir) (*credentials, error) {
	p, err := pki.Open(pki.Options{Dir: dir.join("pki")})
	if err != nil {
		return nil, err
	}
	c := &credentials{pki: p}
	id, err := apiServerIdentity(o)
	if err != nil {
		return nil, err
	}
	if c.apiServer, err = p.Server("apiserver", id); err != nil {
		return nil, err
	}
	if c.kubeletClient, err = p.Client("apiserver-kubelet-client",
		pki.Identity{CommonName: "kube-apiserver-kubelet-client", Groups: []string{mastersGroup}}); err != nil {
		return nil, err
	}
	if c.frontProxy, err = p.FrontProxyClient("front-proxy-client", pki.Identity{CommonName: frontProxyName}); err != nil {
		return nil, err
	}
	port := strconv.Itoa(o.SecurePort)
	local := "https://" + net.JoinHostPort("127.0.0.1", port)
	advertised := "https://" + net.JoinHostPort(o.AdvertiseAddresses[0].String(), port)
	for _, user := range []struct {
		name, commonName, server string
		path                     string
		store                    *string
	}{
		{name: "admin", commonName: "kubernetes-admin", server: local, path: dir.join("kubeconfig")},
		{name: "node", commonName: "fairway-node", server: advertised, path: dir.join("node.kubeconfig")},
		// Controllers and scheduler hold the cluster's keys or decide where Pods run; a narrower role would protect
		// nothing and make them wait for the API server to create it.
		{name: "controller-manager", commonName: "system:kube-controller-manager", server: local,
			path: dir.join("pki", "controller-manager.kubeconfig"), store: &c.controllerManager},
		{name: "scheduler", commonName: "system:kube-scheduler", server: local,
			path: dir.join("pki", "scheduler.kubeconfig"), store: &c.scheduler},
	} {
		pair, err := p.Client(user.name, pki.Identity{CommonName: user.commonName, Groups: []string{mastersGroup}})
		if err != nil {
			return nil, err
		}
		if err := writeKubeconfig(user.path, user.server, p.CA(), pair); err != nil {
			return nil, err
		}
		if user.store != nil {
			*user.store = user.path
		}
	}
	return c, nil
}

// apiServerIdentity is every name and address that a client may reach the API server by.
func apiServerIdentity(o *Options) (pki.Identity, error) {
	id := pki.Identity{
		CommonName: "kube-apiserver",
		DNSNames: []string{
			"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + o.ClusterDomain,
		},
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()},
	}
	if host, err := os.Hostname(); err == nil && host != "" {
		id.DNSNames = append(id.DNSNames, host)
	}
	id.Addresses = append(id.Addresses, o.AdvertiseAddresses...)
	for _, cidr := range o.ServiceCIDRs {
		id.Addresses = append(id.Addresses, firstAddress(cidr))
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return pki.Identity{}, fmt.Errorf("list the machine's addresses: %w", err)
	}
	for _, addr := range addrs {
		prefix, err := netip.ParsePrefix(addr.String())
		// Link-local addresses cannot be written in a URL without a zone, which no certificate can carry.
		if err == nil && !prefix.Addr().IsLinkLocalUnicast() {
			id.Addresses = append(id.Addresses, prefix.Addr())
		}
	}
	return id, nil
}
