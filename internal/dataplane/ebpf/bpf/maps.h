/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The maps of the eBPF data path, shared by all programs and written by the
 * Go package around this directory. layout.go repeats these structures; a test
 * compares them.
 */
#ifndef FAIRWAY_MAPS_H
#define FAIRWAY_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* IPv6, or IPv4 mapped into it (::ffff:a.b.c.d): one set of maps serves both
 * families, and sockets of IPv6 that speak IPv4. */
struct address {
	__be32 word[4];
};

/* A frontend as a client writes it. NodePorts have the unspecified address of
 * their family: :: or ::ffff:0.0.0.0. */
struct frontend_key {
	struct address addr;
	__be16 port;
	__u8 protocol; /* IPPROTO_TCP or IPPROTO_UDP, and PROTOCOL_STANDBY */
	__u8 zero;
};

enum action {
	ACTION_FORWARD = 0,  /* to one of the backends */
	ACTION_REDIRECT = 1, /* to the node's TLS proxy, see proxies */
	ACTION_REJECT = 2,   /* reset or ICMP port unreachable */
	ACTION_DROP = 3,     /* no answer */
};

/* Who a client is to a frontend. */
enum class {
	CLASS_INSIDE = 0,  /* Pods and nodes */
	CLASS_OUTSIDE = 1, /* all others */
};

/* Backends [base, base + count) of the map backends. */
struct pool {
	__u32 base;
	__u32 count;
};

struct frontend {
	struct pool pools[2]; /* by enum class */
	/* The Service's port in one address family: its frontends share clients'
	 * affinity and counters. Never 0. */
	__u32 id;
	/* Not 0 where only the clients in the map sources may connect. */
	__u32 guard;
	__u32 affinity;   /* seconds; 0 for none */
	__u8 actions[2]; /* enum action, by enum class */
	__u8 kind;       /* plan.Kind */
	/* Of a frontend whose backend is the node's own server: SERVER_STANDBY, SERVER_OWN. */
	__u8 standby;
};

/* The backends on other nodes are to be had under the same key with
 * PROTOCOL_STANDBY. */
#define SERVER_STANDBY 1
/* The server may answer at the frontend's address itself, see pulse. */
#define SERVER_OWN 2

/* Added to the protocol of a key that no client can dial. */
#define PROTOCOL_STANDBY 0x80

#define BACKEND_LOCAL 1 /* on this node */

struct backend {
	struct address addr;
	__be16 port;
	__u8 flags;
	__u8 zero;
	__u32 zero4;
};

/* What an address of ours is. */
#define ADDRESS_NODE_PORTS 1 /* the node's, with NodePorts at it */
#define ADDRESS_CLUSTER 2    /* some Service's cluster IP */
#define ADDRESS_NODE 4       /* the node's own, whatever serves there */
#define ADDRESS_FRONTEND 8   /* that of a frontend, written there or not yet */

/* What the addresses in a range are. A range has the flags of those around it. */
#define RANGE_SERVICES 1   /* cluster IPs: what no Service has is refused */
#define RANGE_CLUSTER 2    /* Pods: clients inside the cluster */
#define RANGE_LOCAL_PODS 4 /* this node's Pods: replies to them pass here */

struct range_key {
	__u32 prefix; /* bits of addr that count */
	struct address addr;
};

struct source_key {
	__u32 prefix; /* 32, and the bits of addr that count */
	__u32 guard;
	struct address addr;
};

/* client is an address, or, for sockets, the cookie of their network namespace
 * as CLIENT_NETNS makes it one. */
struct affinity_key {
	__u32 id;
	struct address client;
};

struct affinity {
	__u64 used; /* bpf_ktime_get_boot_ns of the last new connection */
	struct address addr;
	__be16 port;
	__u16 zero;
	__u32 slot; /* where in the pool it was; it may have moved */
};

struct counters {
	__u64 connections; /* TCP connections and UDP sockets, or flows */
	__u64 refused;
};

/* Sizes are the defaults; the Go package sets others as it is told. */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct frontend_key);
	__type(value, struct frontend);
} frontends SEC(".maps");

/* First a new range is written, then the frontends that have it. A range that
 * was given up stays as it is for a grace period. That it could be mapped into
 * memory is of no use any more; it stays so that an upgrade finds its maps. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 524288);
	__type(key, __u32);
	__type(value, struct backend);
} backends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct address);
	__type(value, __u32);
} addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct range_key);
	__type(value, __u32);
} ranges SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct source_key);
	__type(value, __u8);
} sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct affinity_key);
	__type(value, struct affinity);
} affinities SEC(".maps");

/* The node's TLS proxy by family: 0 IPv4, 1 IPv6; port 0 for none. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct backend);
} proxies SEC(".maps");

/* Until when the node's own server counts as one that answers, by
 * bpf_ktime_get_ns; the agent puts it off while it does. The lowest bit, of a
 * nanosecond, is no time: it is 1 while the server answers at the addresses of
 * frontends with SERVER_OWN as they are, so that nothing is to be translated. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} pulse SEC(".maps");

/* By frontend.id; an entry is made with the first connection. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, __u32);
	__type(value, struct counters);
} traffic SEC(".maps");

#endif
