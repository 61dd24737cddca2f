/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * What every program does with the maps: find the frontend that a client
 * dialled, and choose a backend.
 */
#ifndef FAIRWAY_LOOKUP_H
#define FAIRWAY_LOOKUP_H

#include "maps.h"

/* The verifier goes through a function that is called, and not static, once,
 * whatever comes before or after: inlined, all that may follow is looked at for
 * every way through it. It knows nothing of what such a function is given, not
 * even that a pointer is not 0. */
#define CALLED __attribute__((noinline))

#define MAPPED bpf_htonl(0xffff) /* word 2 of an IPv4 address */
#define NANOSECONDS 1000000000ULL

static __always_inline struct address address4(__be32 addr)
{
	return (struct address){{0, 0, MAPPED, addr}};
}

static __always_inline int is4(const struct address *a)
{
	return a->word[0] == 0 && a->word[1] == 0 && a->word[2] == MAPPED;
}

static __always_inline int same_address(const struct address *a, const struct address *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] && a->word[3] == b->word[3];
}

static __always_inline int is_loopback(const struct address *a)
{
	if (is4(a))
		return (a->word[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return a->word[0] == 0 && a->word[1] == 0 && a->word[2] == 0 && a->word[3] == bpf_htonl(1);
}

static __always_inline int is_unspecified(const struct address *a)
{
	return a->word[0] == 0 && a->word[1] == 0 && a->word[3] == 0 && (a->word[2] == 0 || a->word[2] == MAPPED);
}

/* The loopback address of the family that an address is of. */
static __always_inline struct address loopback_like(const struct address *a)
{
	return is4(a) ? address4(bpf_htonl(0x7f000001)) : (struct address){{0, 0, 0, bpf_htonl(1)}};
}

/* The client that all sockets of a network namespace are: a Pod, or the node.
 * No address has this form. */
static __always_inline struct address client_netns(__u64 cookie)
{
	return (struct address){{~0U, 0, (__u32)(cookie >> 32), (__u32)cookie}};
}

/* The flags of the range that an address is in, or 0. */
static __always_inline __u32 range_flags(const struct address *a)
{
	struct range_key key = {.prefix = 128, .addr = *a};
	__u32 *flags = bpf_map_lookup_elem(&ranges, &key);

	return flags ? *flags : 0;
}

enum found {
	FOUND_NOTHING = 0,   /* no business of ours */
	FOUND_FRONTEND = 1,
	FOUND_UNCLAIMED = 2, /* a Service address without such a port: refuse */
};

/* The flags of an address, or 0. */
static __always_inline __u32 address_flags(const struct address *a)
{
	__u32 *flags = bpf_map_lookup_elem(&addresses, a);

	return flags ? *flags : 0;
}

/* Finds the frontend with that very address. It is copied, for the kernel may
 * use its memory for another one soon after it was replaced. */
static __always_inline int frontend_at(const struct frontend_key *key, struct frontend *out)
{
	struct frontend *f = bpf_map_lookup_elem(&frontends, key);

	if (f)
		*out = *f;
	return f != 0;
}

/* Finds what serves a destination that no frontend has as its address: at the
 * node's addresses, a NodePort. */
static __always_inline enum found find_elsewhere(struct frontend_key *key, __u32 ours, struct frontend *out)
{
	if (ours & ADDRESS_NODE_PORTS) {
		struct frontend_key any = *key;

		any.addr.word[3] = 0;
		if (!is4(&key->addr))
			any.addr.word[0] = any.addr.word[1] = any.addr.word[2] = 0;
		if (frontend_at(&any, out))
			return FOUND_FRONTEND;
	}
	if (ours & ADDRESS_CLUSTER)
		return FOUND_UNCLAIMED;
	if (!(ours & ~ADDRESS_FRONTEND) && (range_flags(&key->addr) & RANGE_SERVICES))
		return FOUND_UNCLAIMED;
	return FOUND_NOTHING;
}

/* Finds the frontend that a socket dials. */
static __always_inline enum found find_frontend(struct frontend_key *key, struct frontend *out)
{
	if (frontend_at(key, out))
		return FOUND_FRONTEND;
	return find_elsewhere(key, address_flags(&key->addr), out);
}

/* Whether the source ranges of a frontend let a client in. */
static __always_inline int may_connect(const struct frontend *f, const struct address *client)
{
	struct source_key key = {.prefix = 32 + 128, .guard = f->guard, .addr = *client};

	return !f->guard || bpf_map_lookup_elem(&sources, &key);
}

static __always_inline struct backend *backend_at(const struct pool *p, __u32 slot)
{
	__u32 i = p->base + slot;

	return bpf_map_lookup_elem(&backends, &i);
}

static __always_inline int is_backend(const struct backend *b, const struct address *addr, __be16 port)
{
	return b->port == port && same_address(&b->addr, addr);
}

struct search {
	struct pool pool;
	struct address addr;
	__be16 port;
	__u32 slot;
	__u32 found;
};

static long search_slot(__u32 slot, void *context)
{
	struct search *s = context;
	struct backend *b = backend_at(&s->pool, slot);

	if (!b || !is_backend(b, &s->addr, s->port))
		return 0;
	s->slot = slot;
	s->found = 1;
	return 1;
}

/* Finds a backend in a pool, first where it was when last seen: backends stay
 * in their places when others come and go, but for one that fills a gap. -1 if
 * it is not there. */
CALLED int find_backend(const struct pool *p, const struct address *addr, __be16 port, __u32 slot)
{
	struct search s = {.port = port};
	struct backend *b;

	if (!p || !addr)
		return -1;
	s.pool = *p;
	s.addr = *addr;
	if (slot < p->count) {
		b = backend_at(p, slot);
		if (b && is_backend(b, addr, port))
			return slot;
	}
	bpf_loop(p->count, search_slot, &s, 0);
	return s.found ? s.slot : -1;
}

/* Where the backend is that a client of a frontend with affinity has, if it
 * still serves, else -1. */
static __always_inline int remembered(const struct frontend *f, const struct pool *p, const struct address *client)
{
	struct affinity_key key = {.id = f->id, .client = *client};
	struct affinity *a = bpf_map_lookup_elem(&affinities, &key);
	__u64 now = bpf_ktime_get_boot_ns();
	int slot;

	/* Another processor may have been there meanwhile, and its clock ahead. */
	if (!a || (__s64)(now - a->used) > (__s64)(f->affinity * NANOSECONDS))
		return -1;
	slot = find_backend(p, &a->addr, a->port, a->slot);
	if (slot < 0)
		return -1;
	a->used = now;
	a->slot = slot;
	return slot;
}

static __always_inline void remember(const struct frontend *f, const struct backend *b, __u32 slot, const struct address *client)
{
	struct affinity_key key = {.id = f->id, .client = *client};
	struct affinity a = {.used = bpf_ktime_get_boot_ns(), .addr = b->addr, .port = b->port, .slot = slot};

	bpf_map_update_elem(&affinities, &key, &a, BPF_ANY);
}

static __always_inline struct pool pool_of(const struct frontend *f, __u32 class)
{
	return class == CLASS_OUTSIDE ? f->pools[1] : f->pools[0];
}

/* Where in the pool the backend is that a client of a frontend with affinity
 * has, or gets now: the one that number leads to. */
CALLED int choose_again(const struct frontend *f, __u32 class, const struct address *client, __u32 number)
{
	struct backend *b;
	struct pool p;
	int slot;

	if (!f || !client)
		return 0;
	p = pool_of(f, class);
	slot = remembered(f, &p, client);
	if (slot >= 0)
		return slot;
	slot = p.count ? number % p.count : 0;
	b = backend_at(&p, slot);
	if (b)
		remember(f, b, slot, client);
	return slot;
}

/* Chooses a backend for a new connection: the one that the client has, else
 * the one that number, random or a hash, leads to. 0 if there is none. */
static __always_inline struct backend *choose_backend(const struct frontend *f, __u32 class, const struct address *client, __u32 number)
{
	struct pool p = pool_of(f, class);

	if (!p.count)
		return 0;
	return backend_at(&p, f->affinity ? choose_again(f, class, client, number) : number % p.count);
}

/* How the node's own server answers. */
enum answers {
	ANSWERS_NOT = 0,
	ANSWERS_TRANSLATED = 1, /* at its address of a backend only */
	ANSWERS_DIRECTLY = 2,	/* and at that of the frontend as it is */
};

static __always_inline enum answers server_answers(void)
{
	__u32 only = 0;
	__u64 *pulsed = bpf_map_lookup_elem(&pulse, &only), until;

	if (!pulsed)
		return ANSWERS_NOT;
	until = *pulsed;
	if (bpf_ktime_get_ns() >= until)
		return ANSWERS_NOT;
	return until & 1 ? ANSWERS_DIRECTLY : ANSWERS_TRANSLATED;
}

/* Whether a frontend is to be left as it is, since the node's own server answers
 * there. If not, and that does not answer at all, those that stand by take the
 * frontend's place. */
static __always_inline int answered_directly(const struct frontend_key *key, struct frontend *f)
{
	struct frontend_key other = *key;
	enum answers how;

	if (!f->standby)
		return 0;
	how = server_answers();
	if (how == ANSWERS_DIRECTLY && f->standby & SERVER_OWN)
		return 1;
	if (how != ANSWERS_NOT || !(f->standby & SERVER_STANDBY))
		return 0;
	other.protocol |= PROTOCOL_STANDBY;
	frontend_at(&other, f);
	return 0;
}

static __always_inline struct counters *counters_of(__u32 id)
{
	struct counters zero = {}, *c = bpf_map_lookup_elem(&traffic, &id);

	if (c)
		return c;
	bpf_map_update_elem(&traffic, &id, &zero, BPF_NOEXIST);
	return bpf_map_lookup_elem(&traffic, &id);
}

static __always_inline void count_connection(__u32 id)
{
	struct counters *c = counters_of(id);

	if (c)
		c->connections++;
}

static __always_inline void count_refused(__u32 id)
{
	struct counters *c = counters_of(id);

	if (c)
		c->refused++;
}

#endif
