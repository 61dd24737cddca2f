package model

import (
	"net/netip"
	"time"
)

// DefaultClusterDomain is the domain of all names of a cluster unless told otherwise.
const DefaultClusterDomain = "cluster.local"

// DNSConfig is what an administrator has written for the cluster's DNS, in the
// form of CoreDNS' Corefile. Names in it are fully qualified and in lower case.
type DNSConfig struct {
	// TTL is that of answers of the cluster domain; 0 says nothing.
	TTL time.Duration
	// NoPods refuses the names of Pods, such as 10-244-0-5.ns.pod.cluster.local.
	NoPods bool
	// Autopath goes along Pods' search paths in their place.
	Autopath bool
	// Blocks say what becomes of which names. Of two that a name lies in, the
	// one with the longer zone counts.
	Blocks []DNSBlock
}

// DNSBlock is what becomes of the names of some zones: they are rewritten,
// looked up in Hosts, then in the cluster, and at last asked of Forwards.
type DNSBlock struct {
	// Zones are the names that it is for, with all below them.
	Zones []string
	// Rewrites change names before anything else.
	Rewrites []DNSRewrite
	// Hosts is nil for none.
	Hosts *DNSHosts
	// Cache is nil where answers are not kept.
	Cache *DNSCache
	// Forwards are whom to ask; the first that takes the name counts.
	Forwards []DNSForward
}

// DNSMatch is how a rule finds the names that it rewrites.
type DNSMatch string

// The ways to match.
const (
	DNSExact     DNSMatch = "exact"
	DNSPrefix    DNSMatch = "prefix"
	DNSSuffix    DNSMatch = "suffix"
	DNSSubstring DNSMatch = "substring"
	DNSRegex     DNSMatch = "regex"
)

// DNSRewrite has one name answered with what is known of another.
type DNSRewrite struct {
	Match DNSMatch
	// From is what is looked for in names, To what takes its place. In To of a
	// regular expression {1} stands for its first group.
	From, To string
	// Continue goes on with the next rule, for the new name.
	Continue bool
	// Auto turns names in the answer back, as far as they end in the new name.
	Auto bool
	// Answers are further rewrites of names in the answer.
	Answers []DNSAnswerRewrite
}

// DNSAnswerRewrite rewrites names in answers.
type DNSAnswerRewrite struct {
	// Value rewrites what records say, and not whose they are.
	Value bool
	// From is a regular expression, To as in [DNSRewrite].
	From, To string
}

// DNSHosts are names with their addresses, as in /etc/hosts.
type DNSHosts struct {
	// Zones are the names that it answers for, with all below them.
	Zones []string
	// Fallthrough are those of which names that it does not know go on; all
	// others fail.
	Fallthrough []string
	// Entries stand in the order of the file.
	Entries []DNSHost
	// NoReverse makes no names for the addresses.
	NoReverse bool
	TTL       time.Duration
}

// DNSHost is a name with an address. In one that begins with "*." that stands
// for any one label.
type DNSHost struct {
	Name string
	Addr netip.Addr
}

// DNSCache says how long answers are kept. Zero values say nothing.
type DNSCache struct {
	// Zones are those whose answers are kept; none for all.
	Zones []string
	// MaxTTL and MinTTL bound the time that an answer is kept for; the others,
	// "there is none".
	MaxTTL, MinTTL, MaxNegativeTTL, MinNegativeTTL time.Duration
	// Entries is how many answers shall fit.
	Entries int
	// NoSuccess and NoDenial are zones of which no answers of that kind are kept.
	NoSuccess, NoDenial []string
	// StaleFor is how long answers are kept past their time for when no server answers.
	StaleFor time.Duration
	// Prefetch is after how many uses an answer is fetched again before it
	// expires, when PrefetchPercent of its time are left. Negative turns it off.
	Prefetch, PrefetchPercent int
}

// DNSForward are servers for names.
type DNSForward struct {
	// From is whose names are asked of them, Except which of these are not.
	From   string
	Except []string
	// Servers are asked in the order of Policy. NodeServers adds those of the
	// node's resolv.conf.
	Servers     []DNSServer
	NodeServers bool
	// Policy is sequential, round_robin or random.
	Policy string
	// MaxConcurrent bounds the different questions under way; 0 for the default.
	MaxConcurrent int
	// TCP asks by TCP alone.
	TCP bool
	// HealthCheck is how often a server that is down is asked for a sign of
	// life, HealthDomain for what name; zero values say nothing.
	HealthCheck  time.Duration
	HealthDomain string
	// MaxFails is after how many unanswered questions a server counts as down;
	// 0 says nothing, negative is never.
	MaxFails int
}

// DNSServer is a name server.
type DNSServer struct {
	Addr netip.AddrPort
	// TLS asks it by DNS over TLS; Name is the one that its certificate must be
	// good for, the address' where it is empty.
	TLS  bool
	Name string
}
