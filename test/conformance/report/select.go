package report

import (
	"regexp"
	"slices"
)

// Names of the suites that a run consists of.
const (
	// Conformance is the conformance tests of SIG network.
	Conformance = "conformance"
	// Services is all others that can run, but those of Local.
	Services = "services"
	// Local is those in which a client of the outside has to reach a Pod through
	// the node that the Pod is on, whichever that is.
	Local = "local"
)

// Suites are all suites in the order of the report.
var Suites = []string{Conformance, Services, Local}

// Regular expressions over full test names.
const (
	conformancePattern = `\[Conformance\]`
	localPattern       = `ExternalTrafficPolicy: Local|with Local traffic policy`
)

// sigNetwork begins the names of all tests of SIG network.
const sigNetwork = "[sig-network]"

// Exclusion is a set of tests that cannot pass here, and why.
type Exclusion struct {
	// Pattern is a regular expression over full test names.
	Pattern string
	// DataPath is the only one that it is about; "" for all.
	DataPath string
	// Reason is one sentence for the report.
	Reason string
}

// Exclusions lists every test of SIG network that is not run. No conformance
// test is among them, which is checked.
var Exclusions = []Exclusion{
	{`\] Netpol `, "", "NetworkPolicy is the network plugin's, not that of the Service layer; standalone nodes enforce none"},
	{`Feature:SCTPConnectivity`, "", "needs a kernel with SCTP"},
	{`Networking should provider? Internet connection`, "", "needs the Internet; the run has no way out"},
	{`Feature:Networking-Performance`, "", "a benchmark, of nothing that Fairway is part of: from Pod to Pod"},
	{`Feature:PerformanceDNS`, "", "a benchmark with 10,000 Services; it takes longer than the whole run"},
	{`Provider:gce`, "", "needs a cloud provider"},
	{`\[Disruptive\]`, "", "restarts components that run as Pods, or over SSH; here they are processes"},
	{`DNS configMap nameserver`, "", "restarts the Pods of CoreDNS, which Fairway replaces"},
	{`Feature:KubeProxyNFAcct`, "", "reads a metric of kube-proxy's iptables mode"},
	{`LocalhostNodePorts`, "nft", "would need route_localnet, which lets the network reach what listens on loopback (CVE-2020-8558)"},
	{`should let a node pull an image`, "", "standalone nodes pull no images"},
	{`no default IngressClass`, "", "wants a cluster without a default IngressClass; fairway up has one, so that Ingresses need not name it"},
	{`load balancer cleanup finalizer`, "", "wants the finalizer of a cloud's controller; nothing of ours outlives a Service, and a finalizer would keep Services from being deleted once Fairway is uninstalled"},
}

// Selection returns the regular expressions that select the tests of a suite
// on a data path.
func Selection(suite, dataPath string) (focus string, skip []string) {
	switch suite {
	case Conformance:
		return `\[sig-network\].*` + conformancePattern, nil
	case Local:
		focus = `\[sig-network\].*(` + localPattern + ")"
	default:
		focus, skip = `\[sig-network\]`, []string{localPattern}
	}
	skip = append(skip, conformancePattern)
	for _, e := range Exclusions {
		if e.on(dataPath) {
			skip = append(skip, e.Pattern)
		}
	}
	return focus, skip
}

// Expect returns the tests that a suite has to run on a data path, and, with
// Services, those that no suite runs there, with their reasons. Required are the
// conformance tests.
func Expect(suite, dataPath string, all, required []string) (run []string, excluded []Test) {
	if suite == Conformance {
		return required, nil
	}
	local := regexp.MustCompile(localPattern)
	for _, name := range all {
		reason := reasonFor(name, dataPath)
		switch {
		case slices.Contains(required, name):
		case reason != "" && suite == Services:
			excluded = append(excluded, Test{Name: name, Result: Excluded, Reason: reason})
		case reason == "" && local.MatchString(name) == (suite == Local):
			run = append(run, name)
		}
	}
	return run, excluded
}

// on reports whether the exclusion is one on a data path.
func (e Exclusion) on(dataPath string) bool { return e.DataPath == "" || e.DataPath == dataPath }

// reasonFor returns why a test is left out on a data path, and "" when it is not.
func reasonFor(name, dataPath string) string {
	i := slices.IndexFunc(Exclusions, func(e Exclusion) bool { return e.on(dataPath) && regexp.MustCompile(e.Pattern).MatchString(name) })
	if i < 0 {
		return ""
	}
	return Exclusions[i].Reason
}
