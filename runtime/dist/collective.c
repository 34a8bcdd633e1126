/* collective.c - the collectives, as stages of messages between pairs of ranks (async.c).
 *
 * Every rank sends its share straight to the rank that needs it, so each byte
 * crosses once; only broadcast and barrier take log2(size) rounds instead. A
 * large all_reduce is a reduce-scatter and an all-gather. Each has one form,
 * which is started; the one that blocks starts and waits. */
#include "runtime/dist/dist_impl.h"
#include "runtime/dist/far_copy.h"
#include "runtime/dist/reduce.h"

#include <stdlib.h>
#include <string.h>

enum { SMALL_BYTES = 16 << 10 };
/* Of a large all_reduce: of all ranks together, as they share a cache; of one at least. */
enum { SEGMENTS_BYTES = 8 << 20, SEGMENT_LEAST = 2 << 20 };

/* NULL group -> the world; also the error when that does not start. */
static int enter(lm_group **g) {
    *g = lm__group(*g);
    return *g ? LM_OK : LM_ECOMM;
}

static int check_reduce(const char *name, int dtype, int op, int64_t count) {
    if (!lm__reduce_size(dtype))
        return lm_fail(LM_EDTYPE, "%s: no dtype has number %d", name, dtype);
    if (op < LM_REDUCE_SUM || op > LM_REDUCE_MIN)
        return lm_fail(LM_EARG, "%s: no reduction has number %d", name, op);
    if (count < 0) return lm_fail(LM_EARG, "%s: %lld elements", name, (long long)count);
    return LM_OK;
}

static int wait_if(int started, lm_async *const *a) {
    return started == LM_OK ? lm_async_wait(*a) : started;
}

/* ---- all_reduce, reduce_scatter ---- */

/* Where rank r's share of the elements begins, in bytes. */
static int64_t share(const lm_async *a, int r) {
    return a->count * r / a->group->size * lm__reduce_size(a->dtype);
}

/* Adds up what the others have sent, and our own part, into out. */
static void add_up(lm_async *a, char *own, int64_t bytes, char *out) {
    a->receive[a->group->rank] = own;
    lm__reduce_parts(a->dtype, a->op, a->group->size, (const void *const *)a->receive,
                     bytes / lm__reduce_size(a->dtype), out);
}

/* Few bytes: everyone gets everything, and adds it up itself. */
static int add_all(lm_async *a) {
    add_up(a, a->data, a->sends[0], a->data);
    return LM_OK;
}

static int send_all(lm_async *a) {
    int64_t bytes = a->count * lm__reduce_size(a->dtype);
    for (int r = 0; r < a->group->size; r++) {
        a->send[r] = a->data;
        a->receive[r] = a->scratch + r * bytes;
        a->sends[r] = a->receives[r] = bytes;
    }
    a->then = add_all;
    return lm__async_everyone(a);
}

/* Many: each adds up its share, and gives that to the others. */
static int gather_shares(lm_async *a) {
    int me = a->group->rank;
    char *own = a->data + share(a, me);
    int64_t mine = a->receives[me];
    add_up(a, own, mine, own);
    for (int r = 0; r < a->group->size; r++) {
        a->send[r] = own;
        a->sends[r] = mine;
        a->receive[r] = a->data + share(a, r);
        a->receives[r] = share(a, r + 1) - share(a, r);
    }
    return lm__async_everyone(a);
}

static int scatter_shares(lm_async *a) {
    int me = a->group->rank;
    int64_t mine = share(a, me + 1) - share(a, me);
    for (int r = 0; r < a->group->size; r++) {
        a->send[r] = a->data + share(a, r);
        a->sends[r] = share(a, r + 1) - share(a, r);
        a->receive[r] = a->scratch + r * mine;
        a->receives[r] = mine;
    }
    a->then = gather_shares;
    return lm__async_everyone(a);
}

int lm_all_reduce_start(lm_group *g, void *data, int64_t count, int dtype, int op,
                        lm_async **out) {
    lm_async *a = NULL;
    int st = enter(&g);
    if (st == LM_OK) st = check_reduce("all_reduce", dtype, op, count);
    if (st == LM_OK && (g->size == 1 || count == 0)) return *out = NULL, LM_OK;
    int64_t each = lm__reduce_size(dtype);
    bool small = count * each <= SMALL_BYTES;
    if (st == LM_OK) st = lm__async_new(g, "all_reduce", small ? send_all : scatter_shares, &a);
    if (st != LM_OK) return st;
    a->data = data;
    a->count = count;
    a->dtype = dtype;
    a->op = op;
    return lm__async_start(
        a, lm__async_scratch(a, small ? g->size * count * each : (count + g->size) * each),
        out);
}

static int64_t segment_bytes(const lm_group *g) {
    int64_t even = SEGMENTS_BYTES / g->size;
    return even > SEGMENT_LEAST ? even : SEGMENT_LEAST;
}

/* Segment by segment, so that the scratch stays in the cache. */
int lm_all_reduce(lm_group *g, void *data, int64_t count, int dtype, int op) {
    lm_async *a = NULL;
    int st = enter(&g);
    if (st == LM_OK) st = check_reduce("all_reduce", dtype, op, count);
    if (st != LM_OK) return st;
    int64_t each = lm__reduce_size(dtype), segment = segment_bytes(g) / each, at = 0;
    do {
        int64_t n = count - at < segment ? count - at : segment;
        st = wait_if(lm_all_reduce_start(g, (char *)data + at * each, n, dtype, op, &a), &a);
        at += n;
    } while (st == LM_OK && at < count);
    return st;
}

static int add_mine(lm_async *a) {
    int64_t mine = a->sends[0];
    add_up(a, a->data + a->group->rank * mine, mine, a->recv);
    return LM_OK;
}

static int scatter_parts(lm_async *a) {
    int64_t part = a->count * lm__reduce_size(a->dtype);
    for (int r = 0; r < a->group->size; r++) {
        a->send[r] = a->data + r * part;
        a->receive[r] = a->scratch + r * part;
        a->sends[r] = a->receives[r] = part;
    }
    a->then = add_mine;
    return lm__async_everyone(a);
}

int lm_reduce_scatter_start(lm_group *g, void *data, int64_t count, int dtype, int op,
                            void *recv, lm_async **out) {
    lm_async *a = NULL;
    int st = enter(&g);
    if (st == LM_OK) st = check_reduce("reduce_scatter", dtype, op, count);
    if (st != LM_OK) return st;
    int64_t bytes = count * lm__reduce_size(dtype);
    if (g->size == 1 || count == 0) {
        if (bytes) memmove(recv, data, (size_t)bytes);
        return *out = NULL, LM_OK;
    }
    st = lm__async_new(g, "reduce_scatter", scatter_parts, &a);
    if (st != LM_OK) return st;
    a->data = data;
    a->recv = recv;
    a->count = count;
    a->dtype = dtype;
    a->op = op;
    return lm__async_start(a, lm__async_scratch(a, g->size * bytes), out);
}

int lm_reduce_scatter(lm_group *g, void *data, int64_t count, int dtype, int op, void *recv) {
    lm_async *a = NULL;
    return wait_if(lm_reduce_scatter_start(g, data, count, dtype, op, recv, &a), &a);
}

/* ---- all_gather, all_to_all: one stage ---- */

/* What a rank gives itself, while `others` bytes come from the others. */
static void keep(char *to, const char *from, int64_t bytes, int64_t others) {
    if (bytes == 0) return;
    if (others < LM__FAR) memcpy(to, from, (size_t)bytes);
    else lm__far_copy(to, from, (size_t)bytes);
}

int lm_all_gather_v_start(lm_group *g, const void *send, const int64_t *bytes, void *recv,
                          lm_async **out) {
    lm_async *a = NULL;
    int st = enter(&g);
    if (st != LM_OK) return st;
    int64_t mine = bytes[g->rank], all = 0;
    char *own = recv;
    for (int r = 0; r < g->rank; r++) own += bytes[r];
    for (int r = 0; r < g->size; r++) all += bytes[r];
    if (own != send) keep(own, send, mine, all - mine);
    if (g->size == 1) return *out = NULL, LM_OK;
    st = lm__async_new(g, "all_gather", lm__async_everyone, &a);
    if (st != LM_OK) return st;
    char *at = recv;
    for (int r = 0; r < g->size; r++) {
        a->send[r] = own;
        a->sends[r] = mine;
        a->receive[r] = at;
        a->receives[r] = bytes[r];
        at += bytes[r];
    }
    return lm__async_start(a, LM_OK, out);
}

int lm_all_gather_v(lm_group *g, const void *send, const int64_t *bytes, void *recv) {
    lm_async *a = NULL;
    return wait_if(lm_all_gather_v_start(g, send, bytes, recv, &a), &a);
}

int lm_all_gather_start(lm_group *g, const void *send, int64_t bytes, void *recv,
                        lm_async **out) {
    int st = enter(&g);
    if (st != LM_OK) return st;
    int64_t *each = malloc((size_t)g->size * sizeof *each);
    if (!each) return lm_fail(LM_EOOM, "all_gather: no memory");
    for (int r = 0; r < g->size; r++) each[r] = bytes;
    st = lm_all_gather_v_start(g, send, each, recv, out);
    free(each);
    return st;
}

int lm_all_gather(lm_group *g, const void *send, int64_t bytes, void *recv) {
    lm_async *a = NULL;
    return wait_if(lm_all_gather_start(g, send, bytes, recv, &a), &a);
}

int lm_all_to_all_v_start(lm_group *g, const void *send, const int64_t *sends, void *recv,
                          const int64_t *receives, lm_async **out) {
    lm_async *a = NULL;
    int st = enter(&g);
    if (st == LM_OK && sends[g->rank] != receives[g->rank])
        st = lm_fail(LM_EARG, "all_to_all: rank %d sends itself %lld bytes and expects %lld",
                     g->rank, (long long)sends[g->rank], (long long)receives[g->rank]);
    if (st != LM_OK) return st;
    char *from = (char *)(uintptr_t)send, *to = recv;
    int64_t before = 0, place = 0, own = sends[g->rank];
    for (int r = 0; r < g->rank; r++) before += sends[r], place += receives[r];
    const char *ours = from + before;
    char *home = to + place;
    if (g->size == 1) {
        if (own) memcpy(home, ours, (size_t)own);
        return *out = NULL, LM_OK;
    }
    st = lm__async_new(g, "all_to_all", lm__async_everyone, &a);
    if (st != LM_OK) return st;
    for (int r = 0; r < g->size; r++) {
        a->send[r] = from;
        a->sends[r] = sends[r];
        a->receive[r] = to;
        a->receives[r] = receives[r];
        from += sends[r];
        to += receives[r];
    }
    st = lm__async_start(a, LM_OK, out);
    int64_t others = to - (char *)recv - own; /* they are on their way */
    if (st == LM_OK) keep(home, ours, own, others);
    return st;
}

int lm_all_to_all_v(lm_group *g, const void *send, const int64_t *sends, void *recv,
                    const int64_t *receives) {
    lm_async *a = NULL;
    return wait_if(lm_all_to_all_v_start(g, send, sends, recv, receives, &a), &a);
}

/* ---- broadcast, barrier: log2(size) rounds ---- */

/* A binomial tree. Ranks are counted from the root: in round k, rank r < 2^k sends to r + 2^k.
 */
static int broadcast_round(lm_async *a) {
    int size = a->group->size, root = a->op, me = (a->group->rank - root + size) % size;
    for (; a->reach < size; a->reach *= 2) {
        int peer = me < a->reach ? me + a->reach : me - a->reach;
        bool sends = me < a->reach && peer < size,
             receives = me >= a->reach && me < 2 * a->reach;
        if (!sends && !receives) continue;
        a->out[0] = a->in[0] = (lm__message){(peer + root) % size, a->count, a->data};
        a->reach *= 2;
        a->then = broadcast_round;
        return lm__async_post(a, sends, a->out, receives, a->in);
    }
    return LM_OK;
}

int lm_broadcast(lm_group *g, void *data, int64_t bytes, int root) {
    lm_async *a = NULL;
    int st = enter(&g);
    if (st == LM_OK && (root < 0 || root >= g->size))
        st = lm_fail(LM_EARG, "broadcast: root %d of a group of %d", root, g->size);
    if (st != LM_OK || g->size == 1) return st;
    st = lm__async_new(g, "broadcast", broadcast_round, &a);
    if (st != LM_OK) return st;
    a->data = data;
    a->count = bytes;
    a->op = root;
    a->reach = 1;
    return wait_if(lm__async_start(a, LM_OK, &a), &a);
}

/* After round k everyone has heard, directly or not, from the 2^k ranks before it. */
static int barrier_round(lm_async *a) {
    static char here = 1, there;
    int size = a->group->size, rank = a->group->rank, reach = a->reach;
    if (reach >= size) return LM_OK;
    a->out[0] = (lm__message){(rank + reach) % size, 1, &here};
    a->in[0] = (lm__message){(rank + size - reach) % size, 1, &there};
    a->reach *= 2;
    a->then = barrier_round;
    return lm__async_post(a, 1, a->out, 1, a->in);
}

int lm_barrier(lm_group *g) {
    lm_async *a = NULL;
    int st = enter(&g);
    if (st != LM_OK || g->size == 1) return st;
    st = lm__async_new(g, "barrier", barrier_round, &a);
    if (st != LM_OK) return st;
    a->reach = 1;
    return wait_if(lm__async_start(a, LM_OK, &a), &a);
}

/* ---- errors ---- */

int lm_dist_agree_text(lm_group *g, int status, const char *text) {
    char shared[900] = "";
    int st = enter(&g);
    if (st != LM_OK) return st;
    if (g->size == 1)
        return status == LM_OK ? LM_OK : lm_fail(status, "%s", text ? text : "an error");
    int32_t *all = malloc((size_t)g->size * sizeof *all), mine = status;
    if (!all) return lm_fail(LM_EOOM, "agree: no memory");
    st = lm_all_gather(g, &mine, sizeof mine, all);
    int first = 0;
    while (st == LM_OK && first < g->size && all[first] == LM_OK) first++;
    int code = st == LM_OK && first < g->size ? all[first] : LM_OK;
    free(all);
    if (st != LM_OK || code == LM_OK) return st;

    if (text) strncpy(shared, text, sizeof shared - 1);
    st = lm_broadcast(g, shared, sizeof shared, first);
    if (st != LM_OK) return st;
    if (first == g->rank) return lm_fail(code, "%s", shared);
    return lm_fail(code, "%s [on rank %d]", shared, g->world_rank[first]);
}

int lm_dist_agree(lm_group *g, int status) {
    char text[900] = "";
    if (status != LM_OK) strncpy(text, lm_last_error(), sizeof text - 1);
    return lm_dist_agree_text(g, status, text);
}
