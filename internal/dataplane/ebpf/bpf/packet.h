/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * What the ingress programs read of a packet.
 */
#ifndef FAIRWAY_PACKET_H
#define FAIRWAY_PACKET_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "lookup.h"

#define TCP_FLAGS 13 /* where they are in the header */
#define TCP_SYN 0x02
#define TCP_ACK 0x10
#define EXTENSIONS 4 /* IPv6 extension headers that are looked behind */

/* The part of a TCP or UDP packet that says where it goes. */
struct packet {
	struct address src, dst;
	__be16 sport, dport;
	__u8 protocol;
	__u8 v6;
	__u8 opens; /* a TCP connection */
};

/* Offsets are relative to the network header: not every device has Ethernet's. */
static __always_inline int load(struct __sk_buff *skb, __u32 at, void *to, __u32 size)
{
	return bpf_skb_load_bytes_relative(skb, at, to, size, BPF_HDR_START_NET) == 0;
}

/* What is read of a packet at once: ports are at the same place for TCP and UDP. */
struct l4_head {
	__be16 sport, dport;
	__u8 rest[TCP_FLAGS - 4];
	__u8 tcp_flags;
} __attribute__((packed));

static __always_inline void set_l4(struct packet *p, const struct l4_head *l4)
{
	p->sport = l4->sport;
	p->dport = l4->dport;
	p->opens = p->protocol == IPPROTO_TCP && (l4->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* Reads the packets that nearly all are like: headers without options or
 * extensions, no fragment, and not shorter than a TCP header. 0 if it is not
 * one of these; it may be another one of TCP or UDP then. */
static __always_inline int parse_plain(struct __sk_buff *skb, struct packet *p)
{
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct {
			struct iphdr ip;
			struct l4_head l4;
		} __attribute__((packed)) head;

		if (!load(skb, 0, &head, sizeof(head)) || head.ip.ihl != sizeof(head.ip) / 4 || head.ip.frag_off & bpf_htons(0x1fff))
			return 0;
		if (head.ip.protocol != IPPROTO_TCP && head.ip.protocol != IPPROTO_UDP)
			return 0;
		p->src = address4(head.ip.saddr);
		p->dst = address4(head.ip.daddr);
		p->protocol = head.ip.protocol;
		set_l4(p, &head.l4);
		return 1;
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct {
			struct ipv6hdr ip;
			struct l4_head l4;
		} __attribute__((packed)) head;

		if (!load(skb, 0, &head, sizeof(head)) || (head.ip.nexthdr != IPPROTO_TCP && head.ip.nexthdr != IPPROTO_UDP))
			return 0;
		__builtin_memcpy(&p->src, &head.ip.saddr, sizeof(p->src));
		__builtin_memcpy(&p->dst, &head.ip.daddr, sizeof(p->dst));
		p->v6 = 1;
		p->protocol = head.ip.nexthdr;
		set_l4(p, &head.l4);
		return 1;
	}
	return 0;
}

static __always_inline int parse4(struct __sk_buff *skb, struct packet *p, __u32 *l4)
{
	struct iphdr ip;

	if (!load(skb, 0, &ip, sizeof(ip)) || ip.frag_off & bpf_htons(0x1fff))
		return 0;
	p->src = address4(ip.saddr);
	p->dst = address4(ip.daddr);
	p->protocol = ip.protocol;
	*l4 = ip.ihl * 4;
	return 1;
}

static __always_inline int parse6(struct __sk_buff *skb, struct packet *p, __u32 *l4)
{
	struct ipv6hdr ip;
	struct {
		__u8 next, size;
		__be16 fragment;
	} ext;
	__u32 at = sizeof(ip);
	__u8 next;

	if (!load(skb, 0, &ip, sizeof(ip)))
		return 0;
	__builtin_memcpy(&p->src, &ip.saddr, sizeof(p->src));
	__builtin_memcpy(&p->dst, &ip.daddr, sizeof(p->dst));
	p->v6 = 1;
	next = ip.nexthdr;
#pragma unroll
	for (int i = 0; i < EXTENSIONS; i++) {
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS && next != IPPROTO_FRAGMENT)
			break;
		if (!load(skb, at, &ext, sizeof(ext)))
			return 0;
		if (next != IPPROTO_FRAGMENT)
			at += ext.size * 8;
		else if (ext.fragment & bpf_htons(0xfff8))
			return 0;
		at += 8;
		next = ext.next;
	}
	p->protocol = next;
	*l4 = at;
	return 1;
}

/* Reads a packet; 0 for all that is neither TCP nor UDP, and for fragments but
 * the first: netfilter puts them together before it looks for the flow, which
 * the first one has made. */
CALLED int parse(struct __sk_buff *skb, struct packet *p)
{
	struct {
		__be16 sport, dport;
	} ports;
	__u32 l4 = 0;
	__u8 flags;

	if (!p)
		return 0;
	if (parse_plain(skb, p))
		return 1;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (!parse4(skb, p, &l4))
			return 0;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (!parse6(skb, p, &l4))
			return 0;
	} else {
		return 0;
	}
	if ((p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP) || !load(skb, l4, &ports, sizeof(ports)))
		return 0;
	p->sport = ports.sport;
	p->dport = ports.dport;
	if (p->protocol != IPPROTO_TCP)
		return 1;
	if (!load(skb, l4 + TCP_FLAGS, &flags, sizeof(flags)))
		return 0;
	p->opens = (flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	return 1;
}

#endif
