package podnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
)

// verifyEvery is how often the kernel's table is compared with what it should hold.
const verifyEvery = 15 * time.Second

// keepRules puts back what others take from the table, until Close.
func (n *Network) keepRules(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-n.closing:
			return
		case <-tick.C:
		}
		n.mu.Lock()
		err := n.repair()
		n.mu.Unlock()
		if err != nil {
			n.opts.Logger.Warn("the packet rules of Pods cannot be compared with what they should be", "error", err)
		}
	}
}

// followAddresses puts the routes to Pods back whenever one of NodeIPs comes or
// goes, until Close: with an address, Linux takes every IPv4 route away that
// names it as its source, as when a machine moves to another network.
func (n *Network) followAddresses() error {
	updates := make(chan netlink.AddrUpdate, 64)
	err := netlink.AddrSubscribeWithOptions(updates, n.closing, netlink.AddrSubscribeOptions{ErrorCallback: func(err error) {
		select {
		case <-n.closing: // the socket was closed by us
		default:
			n.opts.Logger.Warn("the node's addresses are not followed any more: routes to Pods may go with them", "error", err)
		}
	}})
	if err != nil {
		return err
	}
	n.keeper.Go(func() {
		for u := range updates {
			addr, _ := netip.AddrFromSlice(u.LinkAddress.IP)
			if !slices.Contains(n.opts.NodeIPs, addr.Unmap()) {
				continue
			}
			n.mu.Lock()
			err := n.repairRoutes()
			n.mu.Unlock()
			if err != nil {
				n.opts.Logger.Warn("routes to Pods cannot be put back", "error", err)
			}
		}
	})
	return nil
}

func (n *Network) repairRoutes() error {
	var errs []error
	for _, a := range n.pods {
		link, err := netlink.LinkByName(a.link)
		if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
			continue // its Pod is on the way out
		}
		if err == nil {
			err = n.routesTo(a, link)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// repair compares the table with what it should hold and makes it anew where
// somebody changed it, as "nft flush ruleset" does.
func (n *Network) repair() error {
	damage, err := n.rules.damage()
	if err == nil && damage != "" {
		damage, err = n.rules.damage() // as a whole: before, it may have been done while we read
	}
	if err != nil || damage == "" {
		return err
	}
	if err := n.rules.make(n.pods); err != nil {
		return err
	}
	n.opts.Logger.Warn("somebody else changed the packet rules of Pods; they are put back", "table", "inet "+tableName, "changed", damage)
	return nil
}

// damage says in words how the kernel's table differs from what it should hold;
// "" where it does not.
func (r *rules) damage() (string, error) {
	conn, err := nftables.New()
	if err != nil {
		return "", fmt.Errorf("nftables: %w", err)
	}
	found, err := readTable(conn)
	if err != nil {
		return "", err
	}
	if len(found) == 0 {
		return "the table is missing", nil
	}
	var damage []string
	for _, what := range slices.Sorted(maps.Keys(r.want)) {
		switch is, ok := found[what]; {
		case !ok:
			damage = append(damage, what+" is missing")
		case is != r.want[what]:
			damage = append(damage, what+" is another")
		}
	}
	for _, what := range slices.Sorted(maps.Keys(found)) {
		if _, ok := r.want[what]; !ok {
			damage = append(damage, what+" is not ours")
		}
	}
	return strings.Join(damage, ", "), nil
}

// readTable returns all parts of the table by what they are, without what the
// kernel numbers anew each time; none where there is no table.
func readTable(conn *nftables.Conn) (map[string]string, error) {
	var err error
	for range 3 { // for it may be deleted or made while we read
		var parts map[string]string
		if parts, err = readParts(conn); err == nil {
			return parts, nil
		}
	}
	return nil, fmt.Errorf("read nftables table %s: %w", tableName, err)
}

func readParts(conn *nftables.Conn) (map[string]string, error) {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName })
	if i < 0 {
		return nil, nil
	}
	table := tables[i]
	parts := map[string]string{"the table": fmt.Sprint("flags ", table.Flags)}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	for _, c := range chains {
		if c.Table.Name != tableName {
			continue
		}
		list, err := conn.GetRules(table, c)
		if err != nil {
			return nil, err
		}
		content := struct {
			Hook     *nftables.ChainHook
			Priority *nftables.ChainPriority
			Type     nftables.ChainType
			Policy   *nftables.ChainPolicy
			Rules    [][]expr.Any
		}{Hook: c.Hooknum, Priority: c.Priority, Type: c.Type, Policy: c.Policy}
		for _, rule := range list {
			content.Rules = append(content.Rules, rule.Exprs)
		}
		text, err := json.Marshal(content)
		if err != nil {
			return nil, err
		}
		parts["chain "+c.Name] = string(text)
	}
	sets, err := conn.GetSets(table)
	if err != nil {
		return nil, err
	}
	for _, s := range sets {
		elements, err := conn.GetSetElements(s)
		if err != nil {
			return nil, err
		}
		parts[setPart(s)] = elementsText(elements)
	}
	return parts, nil
}

// setPart is what a set is called among the parts of the table.
func setPart(s *nftables.Set) string { return "set " + s.Name }

// elementsText is the same for the same elements in any order.
func elementsText(elements []nftables.SetElement) string {
	var lines []string
	for _, e := range elements {
		lines = append(lines, fmt.Sprintf("%x:%x", e.Key, e.Val))
	}
	slices.Sort(lines)
	return strings.Join(lines, " ")
}
