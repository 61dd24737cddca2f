/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Balances sockets: where one connects or sends to a frontend, a backend's
 * address takes the place of the frontend's, and where the peer is told, it is
 * the frontend's again.
 *
 * What has to be decided by the packet is left alone, and so reaches the packet
 * path as it is: clients of a restricted frontend, whose address is not known
 * yet; TLS, whose proxy asks connection tracking what was dialled; silence; and
 * datagrams to be refused, since an error of connect() on a UDP socket would be
 * taken for having no route, while an endpoint may well come later.
 */
#include "lookup.h"

#define AF_INET 2
#define ECONNREFUSED 111
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17

/* The cookie of the node's network namespace; set when loaded. */
volatile const __u64 node_netns;
/* Not 0 where only sockets in one of namespaces are ours; set when loaded. */
volatile const __u8 only_namespaces;
/* The port of a UDP server in the node's namespace, in host order, or 0; set when
 * loaded. */
volatile const __u16 server_port;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u64);
	__type(value, __u8);
} namespaces SEC(".maps");

/* What a socket dialled and what it got. */
struct translation {
	struct address frontend, backend;
	__be16 frontend_port, backend_port;
	__u32 id;   /* frontend.id */
	__u32 slot; /* where in the pool the backend was */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct translation);
} connected SEC(".maps");

/* A connected UDP socket, for the sweeper: it has to be told when its backend
 * goes, since nothing of ours runs when it sends. */
struct flow {
	struct address backend;
	__be16 port;
	__u16 zero;
	__u32 id; /* frontend.id */
};

/* By socket cookie. An entry goes with its socket; should there be too many,
 * the oldest go first. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, __u64);
	__type(value, struct flow);
} connected_udp SEC(".maps");

/* By cookie, the sockets by which the node's own server answers. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u8);
} server_sockets SEC(".maps");

/* The latest frontends that an unconnected UDP socket sent to. */
#define FLOWS 8
struct flows {
	struct translation flow[FLOWS];
	__u32 next;
	__u32 zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct flows);
} unconnected SEC(".maps");

static __always_inline int is_ours(__u64 netns)
{
	return !only_namespaces || bpf_map_lookup_elem(&namespaces, &netns);
}

static __always_inline struct address destination4(struct bpf_sock_addr *ctx)
{
	return address4(ctx->user_ip4);
}

static __always_inline struct address destination6(struct bpf_sock_addr *ctx)
{
	return (struct address){{ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]}};
}

static __always_inline void write_destination(struct bpf_sock_addr *ctx, int v6, const struct address *a, __be16 port)
{
	if (v6) {
		ctx->user_ip6[0] = a->word[0];
		ctx->user_ip6[1] = a->word[1];
		ctx->user_ip6[2] = a->word[2];
		ctx->user_ip6[3] = a->word[3];
	} else {
		ctx->user_ip4 = a->word[3];
	}
	ctx->user_port = port;
}

/* A socket bound to loopback cannot reach a backend elsewhere. */
static __always_inline int bound_to_loopback(struct bpf_sock *sk)
{
	struct address a = {{sk->src_ip6[0], sk->src_ip6[1], sk->src_ip6[2], sk->src_ip6[3]}};
	struct address a4 = address4(sk->src_ip4);

	return is_loopback(&a) || is_loopback(&a4);
}

/* Finds what a socket dials, if it is for us to translate. */
static __always_inline enum found dialled(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct frontend_key *key, __u64 netns, struct frontend *f)
{
	/* Who dials the unspecified address means loopback. It must not be looked for
	 * as it is, for NodePorts stand there. */
	if (is_unspecified(&key->addr))
		key->addr = loopback_like(&key->addr);
	/* The loopback addresses are the node's only in its own namespace. */
	if (is_loopback(&key->addr) && (netns != node_netns || bound_to_loopback(sk)))
		return FOUND_NOTHING;
	return find_frontend(key, f);
}

static __always_inline int refuse(void)
{
	bpf_set_retval(-ECONNREFUSED);
	return 0;
}

static __always_inline void note_udp(__u64 cookie, const struct translation *t)
{
	struct flow f = {.backend = t->backend, .port = t->backend_port, .id = t->id};

	bpf_map_update_elem(&connected_udp, &cookie, &f, BPF_ANY);
}

/* A UDP socket may be connected again, to somebody who is none of ours. */
static __always_inline void forget_udp(struct bpf_sock_addr *ctx, struct bpf_sock *sk)
{
	__u64 cookie;

	if (bpf_sk_storage_delete(&connected, sk))
		return; /* it had nothing */
	cookie = bpf_get_socket_cookie(ctx);
	bpf_map_delete_elem(&connected_udp, &cookie);
}

static __always_inline int connecting(struct bpf_sock_addr *ctx, int v6)
{
	struct frontend_key key = {.port = (__be16)ctx->user_port, .protocol = (__u8)ctx->protocol};
	struct bpf_sock *sk = ctx->sk;
	struct translation *t;
	struct address client;
	struct frontend f;
	struct backend *b;
	__u64 netns;
	int tcp;

	tcp = ctx->protocol == IPPROTO_TCP;
	if ((!tcp && ctx->protocol != IPPROTO_UDP) || !sk)
		return 1;
	netns = bpf_get_netns_cookie(ctx);
	if (!is_ours(netns))
		return 1;
	key.addr = v6 ? destination6(ctx) : destination4(ctx);
	if (only_namespaces) {
		/* Our program on the cgroup of Pods may have been here already. */
		t = bpf_sk_storage_get(&connected, sk, 0, 0);
		if (t && t->backend_port == key.port && same_address(&t->backend, &key.addr))
			return 1;
	}
	switch (dialled(ctx, sk, &key, netns, &f)) {
	case FOUND_FRONTEND:
		break;
	case FOUND_UNCLAIMED:
		return tcp ? refuse() : 1;
	default:
		if (!tcp)
			forget_udp(ctx, sk);
		return 1;
	}
	if (f.guard)
		return 1;
	if (f.actions[CLASS_INSIDE] == ACTION_REJECT && tcp) {
		count_refused(f.id);
		return refuse();
	}
	if (f.actions[CLASS_INSIDE] != ACTION_FORWARD)
		return 1;
	if (answered_directly(&key, &f)) {
		if (!tcp)
			forget_udp(ctx, sk);
		count_connection(f.id);
		return 1;
	}
	client = client_netns(netns);
	b = choose_backend(&f, CLASS_INSIDE, &client, bpf_get_prandom_u32());
	if (!b)
		return 1;
	t = bpf_sk_storage_get(&connected, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!t)
		return 1; /* out of memory: the packet path serves it */
	t->frontend = key.addr;
	t->frontend_port = key.port;
	t->backend = b->addr;
	t->backend_port = b->port;
	t->id = f.id;
	write_destination(ctx, v6, &t->backend, t->backend_port);
	if (!tcp)
		note_udp(bpf_get_socket_cookie(ctx), t);
	count_connection(f.id);
	return 1;
}

/* Which of a socket's flows is to a frontend; FLOWS if none. */
CALLED __u32 find_flow(const struct flows *all, const struct frontend_key *key)
{
	__u32 i;

	if (!all || !key)
		return FLOWS;
	for (i = 0; i < FLOWS; i++) {
		const struct translation *t = &all->flow[i];

		if (t->frontend_port == key->port && same_address(&t->frontend, &key->addr))
			return i;
	}
	return FLOWS;
}

/* Which of a socket's flows a backend is of; FLOWS if none. */
CALLED __u32 find_reply(const struct flows *all, const struct address *from, __be16 port)
{
	__u32 i;

	if (!all || !from)
		return FLOWS;
	for (i = 0; i < FLOWS; i++) {
		const struct translation *t = &all->flow[i];

		if (t->backend_port == port && same_address(&t->backend, from))
			return i;
	}
	return FLOWS;
}

/* Whether a UDP socket is of the node's own server, which answers whoever asked:
 * to look for its clients among the frontends would cost as much as to find the
 * answer, most of all where there are many frontends. */
static __always_inline int is_server(struct bpf_sock_addr *ctx, struct bpf_sock *sk)
{
	return server_port && sk->src_port == server_port && bpf_get_netns_cookie(ctx) == node_netns;
}

/* Translates a datagram. A socket stays with the backend that it has had for a
 * frontend as long as that serves. */
static __always_inline int sending(struct bpf_sock_addr *ctx, int v6)
{
	struct frontend_key key = {.port = (__be16)ctx->user_port, .protocol = IPPROTO_UDP};
	struct bpf_sock *sk = ctx->sk;
	struct translation *t = 0;
	struct address client;
	struct frontend f;
	struct backend *b;
	struct flows *all;
	__u64 netns;
	__u32 at;
	int slot;

	if (!sk || is_server(ctx, sk))
		return 1;
	netns = bpf_get_netns_cookie(ctx);
	if (!is_ours(netns))
		return 1;
	key.addr = v6 ? destination6(ctx) : destination4(ctx);
	if (dialled(ctx, sk, &key, netns, &f) != FOUND_FRONTEND)
		return 1;
	if (f.guard || f.actions[CLASS_INSIDE] != ACTION_FORWARD)
		return 1;
	if (answered_directly(&key, &f))
		return 1;
	all = bpf_sk_storage_get(&unconnected, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!all)
		return 1;
	at = find_flow(all, &key);
	if (at < FLOWS) {
		t = &all->flow[at];
		slot = find_backend(&f.pools[CLASS_INSIDE], &t->backend, t->backend_port, t->slot);
		if (slot >= 0) {
			t->slot = slot;
			write_destination(ctx, v6, &t->backend, t->backend_port);
			return 1;
		}
	}
	client = client_netns(netns);
	b = choose_backend(&f, CLASS_INSIDE, &client, bpf_get_prandom_u32());
	if (!b)
		return 1;
	if (!t) {
		t = &all->flow[all->next % FLOWS];
		all->next++;
	}
	t->frontend = key.addr;
	t->frontend_port = key.port;
	t->backend = b->addr;
	t->backend_port = b->port;
	t->id = f.id;
	t->slot = 0;
	write_destination(ctx, v6, &t->backend, t->backend_port);
	count_connection(f.id);
	return 1;
}

/* Writes the frontend in the place of the backend, where the peer is told. */
static __always_inline int telling_peer(struct bpf_sock_addr *ctx, int v6)
{
	struct address peer = v6 ? destination6(ctx) : destination4(ctx);
	__be16 port = (__be16)ctx->user_port;
	struct bpf_sock *sk = ctx->sk;
	struct translation *t;

	if (!sk)
		return 1;
	t = bpf_sk_storage_get(&connected, sk, 0, 0);
	if (t && t->backend_port == port && same_address(&t->backend, &peer))
		write_destination(ctx, v6, &t->frontend, t->frontend_port);
	return 1;
}

static __always_inline int receiving(struct bpf_sock_addr *ctx, int v6)
{
	struct address from = v6 ? destination6(ctx) : destination4(ctx);
	__be16 port = (__be16)ctx->user_port;
	struct bpf_sock *sk = ctx->sk;
	struct flows *all;
	__u32 at;

	if (!sk || is_server(ctx, sk))
		return 1;
	all = bpf_sk_storage_get(&unconnected, sk, 0, 0);
	if (!all)
		return telling_peer(ctx, v6);
	at = find_reply(all, &from, port);
	if (at >= FLOWS)
		return telling_peer(ctx, v6);
	write_destination(ctx, v6, &all->flow[at].frontend, all->flow[at].frontend_port);
	return 1;
}

/* The server has closed a socket, as it does when it is killed: clients need not
 * wait until it has been silent for long. Should it be there all the same, it will
 * say so. */
static __always_inline void server_ended(__u64 cookie)
{
	__u32 only = 0;
	__u64 *until = bpf_map_lookup_elem(&pulse, &only);

	bpf_map_delete_elem(&server_sockets, &cookie);
	if (until)
		*until = 0;
}

SEC("cgroup/connect4") int connect4(struct bpf_sock_addr *ctx) { return connecting(ctx, 0); }
SEC("cgroup/connect6") int connect6(struct bpf_sock_addr *ctx) { return connecting(ctx, 1); }
SEC("cgroup/sendmsg4") int sendmsg4(struct bpf_sock_addr *ctx) { return sending(ctx, 0); }
SEC("cgroup/sendmsg6") int sendmsg6(struct bpf_sock_addr *ctx) { return sending(ctx, 1); }
SEC("cgroup/recvmsg4") int recvmsg4(struct bpf_sock_addr *ctx) { return receiving(ctx, 0); }
SEC("cgroup/recvmsg6") int recvmsg6(struct bpf_sock_addr *ctx) { return receiving(ctx, 1); }
SEC("cgroup/getpeername4") int getpeername4(struct bpf_sock_addr *ctx) { return telling_peer(ctx, 0); }
SEC("cgroup/getpeername6") int getpeername6(struct bpf_sock_addr *ctx) { return telling_peer(ctx, 1); }

SEC("cgroup/sock_release") int sock_release(struct bpf_sock *sk)
{
	__u64 cookie;

	if (sk->protocol != IPPROTO_UDP)
		return 1;
	cookie = bpf_get_socket_cookie(sk);
	if (bpf_map_delete_elem(&connected_udp, &cookie) && bpf_map_lookup_elem(&server_sockets, &cookie))
		server_ended(cookie);
	return 1;
}

/* The kernel's licence check; what a program calls here is open to all. */
char programs_license[] SEC("license") = "Dual MIT/GPL";
