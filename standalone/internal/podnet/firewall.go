package podnet

import (
	"fmt"
	"log/slog"

	"github.com/google/nftables"
)

// warnAboutFirewall names every chain of others that drops what it does not
// know on its way through the machine, as Docker and many firewalls have it. No
// table of ours can overrule a drop, and those of others are theirs.
func warnAboutFirewall(log *slog.Logger) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return fmt.Errorf("list nftables chains: %w", err)
	}
	for _, c := range chains {
		if c.Type != nftables.ChainTypeFilter || c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward ||
			c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop {
			continue
		}
		family, ok := familyNames[c.Table.Family]
		if !ok {
			continue
		}
		chain := fmt.Sprintf("%s %s %s", family, c.Table.Name, c.Name)
		log.Warn("a firewall of this machine drops forwarded packets, those of Pods among them, unless a rule accepts them: allow Pods",
			"chain", chain, "cure", fmt.Sprintf(`nft insert rule %s iifname '"%s*"' accept && nft insert rule %s oifname '"%s*"' accept`, chain, linkPattern, chain, linkPattern))
	}
	return nil
}

// familyNames are the table families that packets of Pods pass.
var familyNames = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
}
