package corefile

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/model"
)

// Options say what to read.
type Options struct {
	// Name is what errors and notes call the text, Text the Corefile itself.
	// Required.
	Name, Text string
	// Files returns what import and hosts may read, by name: the files that a path
	// as it stands there may mean, whose last part may be a pattern of [path.Match].
	// See [FilesOf]. Default: there are none.
	Files func(path string) map[string]string
	// Env looks up the variables of {$NAME}. Default: there are none.
	Env func(name string) (string, bool)
	// Domain is the cluster domain. Default "cluster.local".
	Domain string
	// Self are addresses of cluster DNS, which is not forwarded to. Optional.
	Self []netip.Addr
	// Own reports whether a node's DNS answers there, which is not forwarded to
	// either. Optional.
	Own func(netip.AddrPort) bool
}

// Custom is the folder in which CoreDNS of k3s and AKS has the files of a second
// ConfigMap, which is the user's own: import custom/*.server.
const Custom = "custom"

// InCustom reports whether a path leads into the folder [Custom], wherever that is.
func InCustom(name string) bool { return path.Base(path.Dir(name)) == Custom }

// FilesOf are the files of ConfigMaps, by the last part of a path: CoreDNS has data
// beside its Corefile, and custom in the folder [Custom]. The names of the latter
// begin with that. A path into it means files of data where custom has none.
func FilesOf(data, custom map[string]string) func(string) map[string]string {
	return func(name string) map[string]string {
		pattern, found := path.Base(name), map[string]string{}
		matching := func(files map[string]string, folder string) {
			for key, text := range files {
				if ok, err := path.Match(pattern, key); ok && err == nil {
					found[path.Join(folder, key)] = text
				}
			}
		}
		if InCustom(name) {
			matching(custom, Custom)
		}
		if len(found) == 0 {
			matching(data, "")
		}
		return found
	}
}

// Note is something in a Corefile that is left out.
type Note struct {
	// File and Line are its place, What the directive or option.
	File string
	Line int
	What string
	// Why it is left out, or what is done in its place.
	Why string
}

// String returns the note in one line.
func (n Note) String() string {
	return fmt.Sprintf("%s, line %d: %s is ignored: %s", n.File, n.Line, n.What, n.Why)
}

// notes gathers notes, each once.
type notes struct{ list []Note }

func (n *notes) add(at token, what, format string, args ...any) {
	one := Note{at.file, at.line, short(what), bounded(format, args)}
	if !slices.Contains(n.list, one) {
		n.list = append(n.list, one)
	}
}

// Parse reads a Corefile. What Fairway does not know is left out and noted; an
// error, an [*Error], is something that cannot be read in whole, or that CoreDNS
// would not start with.
func Parse(o Options) (*model.DNSConfig, []Note, error) {
	if o.Env == nil {
		o.Env = func(string) (string, bool) { return "", false }
	}
	if o.Domain == "" {
		o.Domain = "cluster.local"
	}
	if o.Files == nil {
		o.Files = func(string) map[string]string { return nil }
	}
	n := &notes{}
	p := &parser{tokens: tokens(o.Name, o.Text), files: o.Files, env: o.Env, snippets: map[string][]token{}, notes: n}
	list, err := p.blocks()
	if err != nil {
		return nil, nil, err
	}
	c := &compiler{notes: n, files: o.Files, domain: strings.ToLower(dns.Fqdn(o.Domain)), self: o.Self, own: o.Own, config: &model.DNSConfig{}}
	if err := c.blocks(list); err != nil {
		return nil, nil, err
	}
	if len(c.config.Blocks) == 0 {
		// Taken as it stands it would refuse every name outside the cluster, which
		// is what somebody gets who clears a key, and what nobody asks for.
		return nil, nil, token{file: o.Name, line: 1}.errorf("no block that serves DNS, so that all names outside the cluster would be refused; " +
			"write one, .:53 { with the line forward . /etc/resolv.conf in it, or delete the Corefile and its ConfigMap for Fairway's defaults")
	}
	return c.config, n.list, nil
}

// compiler is between blocks and what they mean.
type compiler struct {
	*notes
	files  func(string) map[string]string
	domain string
	self   []netip.Addr
	own    func(netip.AddrPort) bool
	config *model.DNSConfig
}

// directives are what is known. Those without a function are what Fairway does
// anyway, or has in another place under the same name of metric.
var directives = map[string]func(*compiler, *model.DNSBlock, directive) error{
	"errors":      nil, // answers that failed are logged with --dns-log
	"health":      nil, // /healthz
	"ready":       nil, // /readyz
	"loop":        nil, // loops are always looked for
	"reload":      nil, // changes are always followed
	"prometheus":  nil, // /metrics
	"loadbalance": (*compiler).loadbalance,
	"kubernetes":  (*compiler).kubernetes,
	"autopath":    (*compiler).autopath,
	"hosts":       (*compiler).hosts,
	"rewrite":     (*compiler).rewrite,
	"cache":       (*compiler).cache,
	"forward":     (*compiler).forward,
}

// elsewhere says of directives that are left out what there is in their place.
var elsewhere = map[string]string{
	"log":       "give fairway node --dns-log all, or errors, or a share such as 1%",
	"debug":     "give fairway node --log-level debug",
	"bind":      "Fairway serves DNS at the node's own addresses",
	"acl":       "give fairway node --dns-clients, and --cluster-cidr",
	"bufsize":   "answers by UDP have at most 1232 bytes",
	"any":       "ANY is answered as RFC 8482 says in any case",
	"minimal":   "answers have no more than clients need in any case",
	"ratelimit": "give fairway node --dns-client-rate",
}

// others are directives of CoreDNS that Fairway has nothing like. One that is in none
// of these lists is most likely mistyped.
var others = []string{
	"auto", "azure", "cancel", "chaos", "clouddns", "dns64", "dnssec", "dnstap", "erratic", "etcd", "file", "geoip", "grpc", "grpc_server", "header",
	"https", "https3", "k8s_external", "local", "metadata", "multisocket", "nomad", "nsid", "pprof", "quic", "root", "route53", "secondary", "sign",
	"template", "timeouts", "tls", "trace", "transfer", "tsig", "view", "whoami",
}

// once are the directives that a block may have once, as in CoreDNS.
var once = []string{"kubernetes", "hosts", "cache", "autopath"}

func (c *compiler) blocks(list []block) error {
	port := servedPort(list)
	seen := map[string]token{}
	for _, b := range list {
		var out model.DNSBlock
		for _, key := range b.keys {
			zones, err := c.blockZones(key, port)
			if err != nil {
				return err
			}
			for _, z := range zones {
				if first, ok := seen[z]; ok {
					return key.errorf("zone %s has a block already, in %s, line %d; write both as one", z, first.file, first.line)
				}
				seen[z] = key
			}
			out.Zones = append(out.Zones, zones...)
		}
		if len(out.Zones) == 0 {
			continue // served elsewhere; noted
		}
		count := map[string]int{}
		var strange []token // directives that CoreDNS would not know either
		for _, d := range b.directives {
			name := d.name.text
			compile, known := directives[name]
			if count[name]++; count[name] > 1 && slices.Contains(once, name) {
				return d.name.errorf("%s stands twice in a block; write both as one", name)
			}
			switch {
			case known && compile != nil:
				if err := compile(c, &out, d); err != nil {
					return err
				}
			case !known && elsewhere[name] != "":
				c.add(d.name, name, "%s", elsewhere[name])
			case !known:
				c.add(d.name, name, "Fairway's DNS does not have it")
				if !slices.Contains(others, name) {
					strange = append(strange, d.name)
				}
			}
		}
		if err := waysOut(b, out, strange); err != nil {
			return err
		}
		c.inCluster(b, out)
		c.config.Blocks = append(c.config.Blocks, out)
	}
	return nil
}

// waysOut returns an error where the block for all names was meant to have servers to
// ask, and is left with none: that would take every name outside of the cluster away,
// while CoreDNS would go on with what it had. A block in which nothing was left out, or
// only what CoreDNS has and Fairway has not, is taken to mean it.
func waysOut(b block, out model.DNSBlock, strange []token) error {
	if !slices.Contains(out.Zones, ".") {
		return nil
	}
	for _, f := range out.Forwards {
		if f.From == "." && (len(f.Servers) > 0 || f.NodeServers) {
			return nil
		}
	}
	const cure = "so that all names outside the cluster would fail"
	for _, d := range b.directives {
		if d.name.text != "forward" {
			continue
		}
		if from, err := zoneList(d.args[:1]); err == nil && from[0] == "." {
			return d.name.errorf("forward . has no server that can be asked (%s; names, https:// and the cluster's or a node's own DNS cannot), "+cure+"; give the address of another server, or /etc/resolv.conf", list(d.args[1:]))
		}
	}
	if len(strange) > 0 {
		return strange[0].errorf("there is no directive %s, and the block has no forward . either, "+cure+"; correct it, or take it away if that is meant", strange[0].text)
	}
	return nil
}

// list is words in one line.
func list(words []token) string {
	var all []string
	for _, w := range words {
		all = append(all, w.text)
	}
	return strings.Join(all, " ")
}

// inCluster notes what is forwarded of the cluster's own names. A block that
// rewrites is not meant: its servers are asked for what names are rewritten to.
func (c *compiler) inCluster(b block, out model.DNSBlock) {
	if len(out.Rewrites) > 0 {
		return
	}
	for _, d := range b.directives {
		if d.name.text != "forward" {
			continue
		}
		why := func(what string) {
			c.add(d.name, what, "names of %s are answered from the cluster and never asked of others; give hosts for single names, or take a domain outside of it", c.domain)
		}
		for _, z := range out.Zones {
			if within(z, c.domain) {
				why("forward in block " + z)
			}
		}
		if from, err := zoneList(d.args[:1]); err == nil && within(from[0], c.domain) {
			why("forward " + from[0])
		}
	}
}

// splitKey cuts a block's key into its parts.
func splitKey(text string) (transport, zone, port string) {
	transport, zone, ok := strings.Cut(text, "://")
	if !ok {
		transport, zone = "dns", text
	}
	port = "53"
	if i := strings.LastIndexByte(zone, ':'); i >= 0 && i+1 < len(zone) && strings.Trim(zone[i+1:], "0123456789") == "" {
		zone, port = zone[:i], zone[i+1:]
	}
	return transport, zone, port
}

// servedPort is the one whose blocks count: 53, or where no block has it, that
// of the first. CoreDNS' Pods often serve another, which its Service leads to.
func servedPort(list []block) string {
	first := ""
	for _, b := range list {
		for _, key := range b.keys {
			transport, _, port := splitKey(key.text)
			if transport == "dns" && port == "53" {
				return port
			}
			if transport == "dns" && first == "" {
				first = port
			}
		}
	}
	return first
}

// blockZones returns the zones of a block's key; none where it is for a server that
// Fairway does not have.
func (c *compiler) blockZones(key token, served string) ([]string, error) {
	transport, zone, port := splitKey(key.text)
	switch {
	case transport != "dns":
		c.add(key, "block "+key.text, "Fairway serves DNS by UDP and TCP only")
		return nil, nil
	case port != served:
		c.add(key, "block "+key.text, "Fairway serves one port, and other blocks are for port %s", served)
		return nil, nil
	}
	return zonesOf(key, zone)
}

// zonesOf reads a name of a zone, or a range of addresses that stands for
// the zones of its reverse names.
func zonesOf(at token, text string) ([]string, error) {
	if reverse, ok := reverseZones(text); ok {
		return reverse, nil
	}
	if _, ok := dns.IsDomainName(text); !ok || text == "" || strings.ContainsAny(text, "/{}") {
		return nil, at.errorf("%q is no name of a zone", text)
	}
	return []string{strings.ToLower(dns.Fqdn(text))}, nil
}

// zoneList reads several, as [zonesOf].
func zoneList(args []token) ([]string, error) {
	var list []string
	for _, a := range args {
		_, zone, _ := splitKey(a.text)
		zones, err := zonesOf(a, zone)
		if err != nil {
			return nil, err
		}
		list = append(list, zones...)
	}
	return list, nil
}
