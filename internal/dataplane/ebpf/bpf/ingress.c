/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Services for packets that arrive: from clients outside, from Pods whose
 * sockets the socket programs do not see, and from other nodes. The programs
 * choose where a new flow goes and have conntrack translate it; packets
 * themselves they leave as they are. They run at tcx ingress, before routing.
 */
#include <linux/if_packet.h>

#include "conntrack.h"

#define TCX_NEXT (-1)
#define TCX_DROP 2

/* Told to the nftables table, see netfilter.go. */
#define MARK_REFUSE 0x46770001
#define MARK_STRAY 0x46770002

#define KIND_NODE_PORT 1 /* plan.NodePort */
#define CONTEST_MAX 512	  /* contestMax in compile.go */

#define AF_INET 2
#define AF_INET6 10
/* Linux 6.7 and later; earlier ones refuse it. */
#define FIB_LOOKUP_SRC (1U << 4)
#define FIB_LOOKUP_SKIP_NEIGH (1U << 2)

static __always_inline int mark(struct __sk_buff *skb, __u32 value)
{
	if (!skb->mark)
		skb->mark = value;
	return TCX_NEXT;
}

static __always_inline __u64 mix(__u64 h)
{
	h ^= h >> 33;
	h *= 0xff51afd7ed558ccdULL;
	h ^= h >> 33;
	h *= 0xc4ceb9fe1a85ec53ULL;
	return h ^ h >> 33;
}

static __always_inline __u64 mix_address(__u64 h, const struct address *a)
{
	h = mix(h ^ ((__u64)a->word[0] << 32 | a->word[1]));
	return mix(h ^ ((__u64)a->word[2] << 32 | a->word[3]));
}

struct contest {
	struct pool pool;
	__u64 hash, best;
	__u32 slot;
};

static long contest_slot(__u32 slot, void *context)
{
	struct contest *c = context;
	struct backend *b = backend_at(&c->pool, slot);
	__u64 score;

	if (!b)
		return 0;
	score = mix_address(c->hash ^ b->port, &b->addr);
	if (score >= c->best) {
		c->best = score;
		c->slot = slot;
	}
	return 0;
}

/* A number for a client and what it dialled, the same at every node. */
static __always_inline __u64 turn(const struct frontend *f, const struct packet *p)
{
	__u64 h = mix_address(mix((__u64)p->sport << 32 | (__u64)p->dport << 16 | p->protocol), &p->src);

	/* The same NodePort has another address at each node. */
	return f->kind == KIND_NODE_PORT ? h : mix_address(h, &p->dst);
}

/* The backend of a pool that has the highest score with the client and what it
 * dialled (rendezvous hashing): every node finds the same one, in whatever order
 * it has them, and when a backend comes or goes only its own clients move. Very
 * large pools are in the order of addresses at every node (see place in
 * compile.go), and there one step has to do. */
static __always_inline __u32 rendezvous(const struct frontend *f, const struct packet *p)
{
	struct contest c = {.pool = f->pools[1], .hash = turn(f, p)};

	if (c.pool.count > CONTEST_MAX)
		return c.hash % c.pool.count;
	bpf_loop(c.pool.count, contest_slot, &c, 0);
	return c.slot;
}

/* The node's address on the way to a backend. */
static __always_inline int node_address(struct __sk_buff *skb, const struct packet *p, const struct backend *b, struct address *out)
{
	struct bpf_fib_lookup fib = {.ifindex = skb->ifindex, .l4_protocol = p->protocol, .sport = p->sport, .dport = b->port};

	if (p->v6) {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, &p->src, sizeof(p->src));
		__builtin_memcpy(fib.ipv6_dst, &b->addr, sizeof(b->addr));
	} else {
		fib.family = AF_INET;
		fib.ipv4_src = p->src.word[3];
		fib.ipv4_dst = b->addr.word[3];
	}
	if (bpf_fib_lookup(skb, &fib, sizeof(fib), FIB_LOOKUP_SRC | FIB_LOOKUP_SKIP_NEIGH))
		return 0;
	if (p->v6)
		__builtin_memcpy(out, fib.ipv6_src, sizeof(*out));
	else
		*out = address4(fib.ipv4_src);
	return 1;
}

/* Who the client of a packet is: the flags of its address, and of all around it. */
static __always_inline __u32 client_flags(const struct packet *p)
{
	if (address_flags(&p->src) & ADDRESS_NODE)
		return RANGE_CLUSTER;
	return range_flags(&p->src);
}

static __always_inline int forward(struct __sk_buff *skb, const struct packet *p, const struct frontend *f, enum class class, int here)
{
	struct address node;
	struct backend *b;
	int hide;

	b = choose_backend(f, class, &p->src, class == CLASS_OUTSIDE ? rendezvous(f, p) : bpf_get_prandom_u32());
	if (!b)
		return TCX_DROP;
	/* The reply passes this node where the backend is here, or the client is;
	 * but not when a Pod talks to itself. */
	hide = same_address(&b->addr, &p->src) || (!(b->flags & BACKEND_LOCAL) && !here);
	if (hide && !node_address(skb, p, b, &node))
		return TCX_DROP;
	return flow_make(skb, p, &b->addr, b->port, hide ? &node : 0) ? TCX_NEXT : TCX_DROP;
}

static __always_inline int redirect(struct __sk_buff *skb, const struct packet *p)
{
	__u32 family = p->v6;
	struct backend *b = bpf_map_lookup_elem(&proxies, &family);

	if (!b || !b->port)
		return mark(skb, MARK_REFUSE);
	return flow_make(skb, p, &b->addr, b->port, 0) ? TCX_NEXT : TCX_DROP;
}

static __always_inline int serve(struct __sk_buff *skb, int pod)
{
	struct frontend_key key = {};
	struct packet p = {};
	struct frontend f;
	enum class class;
	enum found found;
	__u32 client, ours;

	/* A packet with a tag comes again at the interface of its VLAN, one to
	 * another station at that of its macvlan or not at all. */
	if (skb->vlan_present || skb->pkt_type != PACKET_HOST || !parse(skb, &p))
		return TCX_NEXT;
	key.addr = p.dst;
	key.port = p.dport;
	key.protocol = p.protocol;
	/* Most packets are for none of ours, and on their ways back to ports that
	 * are seldom the same: there are few addresses, which are found faster. */
	ours = address_flags(&p.dst);
	if (p.protocol == IPPROTO_TCP && !p.opens)
		return ours & ADDRESS_FRONTEND && bpf_map_lookup_elem(&frontends, &key) ? mark(skb, MARK_STRAY) : TCX_NEXT;
	found = ours & ADDRESS_FRONTEND && frontend_at(&key, &f) ? FOUND_FRONTEND : find_elsewhere(&key, ours, &f);
	switch (found) {
	case FOUND_NOTHING:
		return TCX_NEXT;
	case FOUND_UNCLAIMED:
		return flow_known(skb, &p) ? TCX_NEXT : mark(skb, MARK_REFUSE);
	case FOUND_FRONTEND:
		break;
	}
	if (answered_directly(&key, &f) || flow_known(skb, &p))
		return TCX_NEXT;
	if (!may_connect(&f, &p.src))
		return TCX_DROP;
	client = client_flags(&p);
	class = pod || client & (RANGE_CLUSTER | RANGE_LOCAL_PODS) ? CLASS_INSIDE : CLASS_OUTSIDE;
	switch (class == CLASS_OUTSIDE ? f.actions[1] : f.actions[0]) {
	case ACTION_REJECT:
		count_refused(f.id);
		return mark(skb, MARK_REFUSE);
	case ACTION_DROP:
		count_refused(f.id);
		return TCX_DROP;
	case ACTION_REDIRECT:
		count_connection(f.id);
		return redirect(skb, &p);
	}
	count_connection(f.id);
	return forward(skb, &p, &f, class, pod || client & RANGE_LOCAL_PODS);
}

SEC("tcx/ingress")
int fairway_uplink(struct __sk_buff *skb)
{
	return serve(skb, 0);
}

SEC("tcx/ingress")
int fairway_pod(struct __sk_buff *skb)
{
	return serve(skb, 1);
}

char programs_license[] SEC("license") = "Dual MIT/GPL";
