package machine

import (
	"github.com/google/nftables"
)

// ForwardDroppers names the chains of the namespace that drop forwarded packets unless a rule of theirs says otherwise, as
// Docker and many firewalls set up: packets of Pods may be lost there. Chains made by the legacy iptables are not seen.
func (n *Namespace) ForwardDroppers() ([]string, error) {
	c, err := nftables.New(nftables.WithNetNSFd(int(n.fd)))
	if err != nil {
		return nil, err
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, err
	}
	var droppers []string
	for _, chain := range chains {
		if chain.Hooknum != nil && *chain.Hooknum == *nftables.ChainHookForward && chain.Policy != nil && *chain.Policy == nftables.ChainPolicyDrop {
			droppers = append(droppers, "table "+chain.Table.Name+" chain "+chain.Name)
		}
	}
	return droppers, nil
}
