/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Connection tracking of the kernel as the engine that translates, by its
 * kfuncs (net/netfilter/nf_conntrack_bpf.c and nf_nat_bpf.c of Linux): a
 * program makes the entry of a flow, with the translation that it chose, and
 * netfilter does the rest for each packet, its replies and ICMP errors.
 */
#ifndef FAIRWAY_CONNTRACK_H
#define FAIRWAY_CONNTRACK_H

#include "packet.h"

/* What is read of the kernel's own types; the loader finds the offsets. */
struct ip_ct_tcp {
	__u8 state;
} __attribute__((preserve_access_index));

union nf_conntrack_proto {
	struct ip_ct_tcp tcp;
} __attribute__((preserve_access_index));

struct nf_conn {
	unsigned long status;
	union nf_conntrack_proto proto;
} __attribute__((preserve_access_index));

struct nf_conn___init {
	struct nf_conn ct;
} __attribute__((preserve_access_index));

union nf_inet_addr {
	__u32 all[4];
};

enum nf_nat_manip_type {
	NF_NAT_MANIP_SRC,
	NF_NAT_MANIP_DST,
};

/* The first form of the options, which every kernel accepts. */
struct bpf_ct_opts {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u8 reserved[2];
};

extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *, struct bpf_sock_tuple *, __u32, struct bpf_ct_opts *, __u32) __ksym;
extern struct nf_conn___init *bpf_skb_ct_alloc(struct __sk_buff *, struct bpf_sock_tuple *, __u32, struct bpf_ct_opts *, __u32) __ksym;
extern struct nf_conn *bpf_ct_insert_entry(struct nf_conn___init *) __ksym;
extern void bpf_ct_release(struct nf_conn *) __ksym;
extern void bpf_ct_set_timeout(struct nf_conn___init *, __u32) __ksym;
extern int bpf_ct_change_timeout(struct nf_conn *, __u32) __ksym;
extern int bpf_ct_set_nat_info(struct nf_conn___init *, union nf_inet_addr *, int, enum nf_nat_manip_type) __ksym;

#define CT_SYN_SENT 1		/* TCP_CONNTRACK_SYN_SENT */
#define CT_TIME_WAIT 7		/* TCP_CONNTRACK_TIME_WAIT; CLOSE comes after it */
#define CT_STATUS_DNAT (1 << 5) /* IPS_DST_NAT */

/* The first packet has this long to reach conntrack, in milliseconds; from then
 * on conntrack's own timeouts hold. */
#define CT_FIRST_TIMEOUT 30000

/* What identifies a flow to the kernel. */
struct flow {
	struct bpf_sock_tuple tuple;
	struct bpf_ct_opts opts;
};

/* The size of the tuple tells the kernel the family. */
static __always_inline __u32 tuple_size(const struct packet *p)
{
	struct bpf_sock_tuple *t;

	return p->v6 ? sizeof(t->ipv6) : sizeof(t->ipv4);
}

static __always_inline void flow_of(const struct packet *p, struct flow *f)
{
	__builtin_memset(f, 0, sizeof(*f));
	f->opts.netns_id = BPF_F_CURRENT_NETNS;
	f->opts.l4proto = p->protocol;
	if (p->v6) {
		__builtin_memcpy(f->tuple.ipv6.saddr, &p->src, sizeof(p->src));
		__builtin_memcpy(f->tuple.ipv6.daddr, &p->dst, sizeof(p->dst));
		f->tuple.ipv6.sport = p->sport;
		f->tuple.ipv6.dport = p->dport;
	} else {
		f->tuple.ipv4.saddr = p->src.word[3];
		f->tuple.ipv4.daddr = p->dst.word[3];
		f->tuple.ipv4.sport = p->sport;
		f->tuple.ipv4.dport = p->dport;
	}
}

/* Whether conntrack has the packet's flow. A packet that opens a TCP connection
 * on a flow that has ended makes it end altogether: conntrack would do so
 * later, and then make a new one that nobody translates. The same holds for a
 * connection that is being opened and is not translated: it dates from before
 * the Service. */
CALLED int flow_known(struct __sk_buff *skb, const struct packet *p)
{
	struct nf_conn *ct;
	struct flow f;
	int over = 0;

	if (!p)
		return 0;
	flow_of(p, &f);
	ct = bpf_skb_ct_lookup(skb, &f.tuple, tuple_size(p), &f.opts, sizeof(f.opts));
	if (!ct)
		return 0;
	if (p->protocol == IPPROTO_TCP) {
		__u8 state = ct->proto.tcp.state;

		over = state >= CT_TIME_WAIT || (state == CT_SYN_SENT && !(ct->status & CT_STATUS_DNAT));
	}
	if (over)
		bpf_ct_change_timeout(ct, 0);
	bpf_ct_release(ct);
	if (!over)
		return 1;
	/* Looking again frees an entry whose time is over. */
	ct = bpf_skb_ct_lookup(skb, &f.tuple, tuple_size(p), &f.opts, sizeof(f.opts));
	if (!ct)
		return 0;
	bpf_ct_release(ct);
	return 1;
}

static __always_inline int flow_translate(struct nf_conn___init *ct, const struct packet *p, const struct address *to, __be16 port, enum nf_nat_manip_type what)
{
	union nf_inet_addr a = {};

	if (p->v6)
		__builtin_memcpy(&a, to, sizeof(*to));
	else
		a.all[0] = to->word[3];
	return bpf_ct_set_nat_info(ct, &a, bpf_ntohs(port), what);
}

#define FLOW_TRIES 3

/* Makes the packet's flow one to an address and port, and, if from is given,
 * one from there, at a port that the kernel chooses. 0 if it could not: then
 * the packet must not go on. */
CALLED int flow_make(struct __sk_buff *skb, const struct packet *p, const struct address *to, __be16 port, const struct address *from)
{
	struct nf_conn___init *ct;
	struct nf_conn *made;
	struct flow f;
	int i, failed;

	if (!p || !to)
		return 0;
	for (i = 0; i < FLOW_TRIES; i++) {
		flow_of(p, &f);
		ct = bpf_skb_ct_alloc(skb, &f.tuple, tuple_size(p), &f.opts, sizeof(f.opts));
		if (!ct)
			return 0;
		failed = flow_translate(ct, p, to, port, NF_NAT_MANIP_DST);
		if (!failed && from)
			failed = flow_translate(ct, p, from, 0, NF_NAT_MANIP_SRC);
		/* There is no other way to give an entry back than to put it in. */
		bpf_ct_set_timeout(ct, failed ? 0 : CT_FIRST_TIMEOUT);
		made = bpf_ct_insert_entry(ct);
		if (made) {
			bpf_ct_release(made);
			return !failed;
		}
		/* Another packet of the flow was first, and its choice holds. */
		if (flow_known(skb, p))
			return 1;
		/* Or another flow has the port: the client's other connection, to
		 * another address of the same endpoint, or one that was made at the
		 * same moment. The client keeps its address. */
		if (!from)
			from = &p->src;
	}
	return 0;
}

#endif
