/* collective.c - the collectives, built on messages between pairs of ranks.
 *
 * Every rank sends its share straight to the rank that needs it, so each byte
 * crosses once; only broadcast and barrier take log2(size) rounds instead. A
 * large all_reduce is a reduce-scatter and an all-gather, segment by segment, so
 * that its scratch stays in the cache. */
#include "runtime/dist/dist_impl.h"
#include "runtime/dist/reduce.h"

#include <stdlib.h>
#include <string.h>

enum { SMALL_BYTES = 16 << 10, SEGMENT_BYTES = 4 << 20 };

static int no_memory(const char *op) {
    return lm_fail(LM_EOOM, "%s: no memory for its buffers", op);
}

/* NULL group -> the world; also the error when that does not start. */
static int enter(lm_group **g) {
    *g = lm__group(*g);
    return *g ? LM_OK : LM_ECOMM;
}

static int check_reduce(const char *op, int dtype, int how, int64_t count) {
    if (!lm__reduce_size(dtype))
        return lm_fail(LM_EDTYPE, "%s: no dtype has number %d", op, dtype);
    if (how < LM_REDUCE_SUM || how > LM_REDUCE_MIN)
        return lm_fail(LM_EARG, "%s: no reduction has number %d", op, how);
    if (count < 0) return lm_fail(LM_EARG, "%s: %lld elements", op, (long long)count);
    return LM_OK;
}

/* ---- the one pattern: everyone to everyone ---- */

/* sends[r] bytes at send[r] go to rank r, receives[r] come to receive[r]; not to itself. */
static int everyone(lm_group *g, const char *op, char *const *send, const int64_t *sends,
                    char *const *receive, const int64_t *receives) {
    lm__message *m = malloc(2 * (size_t)g->size * sizeof *m);
    if (!m) return no_memory(op);
    lm__message *in = m + g->size;
    int n = 0;
    for (int step = 1; step < g->size; step++, n++) { /* each starts at its neighbour */
        int to = (g->rank + step) % g->size, from = (g->rank + g->size - step) % g->size;
        m[n] = (lm__message){to, sends[to], send[to]};
        in[n] = (lm__message){from, receives[from], receive[from]};
    }
    int st = lm__exchange(g, op, n, m, n, in);
    free(m);
    return st;
}

/* Room for the arguments of everyone(): two arrays of pointers, two of sizes. */
typedef struct shares {
    char **send, **receive;
    int64_t *sends, *receives;
} shares;

static int shares_new(const char *op, int size, shares *s) {
    size_t n = (size_t)size;
    char *room = calloc(n, 2 * sizeof(char *) + 2 * sizeof(int64_t));
    if (!room) return no_memory(op);
    s->send = (char **)(void *)room;
    s->receive = s->send + n;
    s->sends = (int64_t *)(void *)(s->receive + n);
    s->receives = s->sends + n;
    return LM_OK;
}

static void shares_free(shares *s) { free(s->send); }

/* ---- all_reduce, reduce_scatter ---- */

/* Part r of data goes to rank r, which writes the reduced part to out. parts[r] bytes at
 * data + starts[r]; scratch holds size * parts[rank] bytes. */
static int scatter_sums(lm_group *g, const char *op, char *data, const int64_t *starts,
                        const int64_t *parts, int dtype, int how, char *scratch, char *out,
                        shares *s) {
    int64_t mine = parts[g->rank];
    for (int r = 0; r < g->size; r++) {
        s->send[r] = data + starts[r];
        s->sends[r] = parts[r];
        s->receive[r] = scratch + r * mine;
        s->receives[r] = mine;
    }
    int st = everyone(g, op, s->send, s->sends, s->receive, s->receives);
    if (st != LM_OK) return st;
    s->receive[g->rank] = data + starts[g->rank];
    lm__reduce_parts(dtype, how, g->size, (const void *const *)s->receive,
                     mine / lm__reduce_size(dtype), out);
    return LM_OK;
}

static int reduce_segment(lm_group *g, char *data, int64_t count, int dtype, int how,
                          char *scratch, int64_t *starts, shares *s) {
    int64_t each = lm__reduce_size(dtype), *parts = starts + g->size;
    for (int r = 0; r < g->size; r++) {
        starts[r] = count * r / g->size * each;
        parts[r] = count * (r + 1) / g->size * each - starts[r];
    }
    char *own = data + starts[g->rank];
    int st = scatter_sums(g, "all_reduce", data, starts, parts, dtype, how, scratch, own, s);
    if (st != LM_OK) return st;
    for (int r = 0; r < g->size; r++) {
        s->send[r] = own;
        s->sends[r] = parts[g->rank];
        s->receive[r] = data + starts[r];
        s->receives[r] = parts[r];
    }
    return everyone(g, "all_reduce", s->send, s->sends, s->receive, s->receives);
}

static int reduce_large(lm_group *g, char *data, int64_t count, int dtype, int how) {
    int64_t each = lm__reduce_size(dtype), segment = SEGMENT_BYTES / each;
    shares s = {0};
    int64_t *starts = malloc(2 * (size_t)g->size * sizeof *starts);
    char *scratch = malloc((size_t)(segment * each + g->size * each));
    int st =
        starts && scratch ? shares_new("all_reduce", g->size, &s) : no_memory("all_reduce");
    for (int64_t at = 0; at < count && st == LM_OK; at += segment) {
        int64_t n = count - at < segment ? count - at : segment;
        st = reduce_segment(g, data + at * each, n, dtype, how, scratch, starts, &s);
    }
    shares_free(&s);
    free(scratch);
    free(starts);
    return st;
}

/* Few bytes: everyone gets everything, and adds it up itself. */
static int reduce_small(lm_group *g, void *data, int64_t count, int dtype, int how) {
    int64_t bytes = count * lm__reduce_size(dtype);
    char *all = malloc((size_t)(bytes * g->size));
    const void **parts = malloc((size_t)g->size * sizeof *parts);
    int st = all && parts ? lm_all_gather(g, data, bytes, all) : no_memory("all_reduce");
    if (st == LM_OK) {
        for (int r = 0; r < g->size; r++) parts[r] = all + r * bytes;
        lm__reduce_parts(dtype, how, g->size, parts, count, data);
    }
    free(parts);
    free(all);
    return st;
}

int lm_all_reduce(lm_group *g, void *data, int64_t count, int dtype, int op) {
    int st = enter(&g);
    if (st == LM_OK) st = check_reduce("all_reduce", dtype, op, count);
    if (st != LM_OK || g->size == 1 || count == 0) return st;
    if (count * lm__reduce_size(dtype) <= SMALL_BYTES)
        return reduce_small(g, data, count, dtype, op);
    return reduce_large(g, data, count, dtype, op);
}

int lm_reduce_scatter(lm_group *g, void *data, int64_t count, int dtype, int op, void *recv) {
    int st = enter(&g);
    if (st == LM_OK) st = check_reduce("reduce_scatter", dtype, op, count);
    if (st != LM_OK || count == 0) return st;
    int64_t bytes = count * lm__reduce_size(dtype);
    if (g->size == 1) {
        memmove(recv, data, (size_t)bytes);
        return LM_OK;
    }
    shares s = {0};
    int64_t *starts = malloc(2 * (size_t)g->size * sizeof *starts);
    char *scratch = malloc((size_t)(bytes * g->size));
    st = starts && scratch ? shares_new("reduce_scatter", g->size, &s)
                           : no_memory("reduce_scatter");
    if (st == LM_OK) {
        for (int r = 0; r < g->size; r++) starts[r] = r * bytes, starts[g->size + r] = bytes;
        st = scatter_sums(g, "reduce_scatter", data, starts, starts + g->size, dtype, op,
                          scratch, recv, &s);
    }
    shares_free(&s);
    free(scratch);
    free(starts);
    return st;
}

/* ---- all_gather ---- */

int lm_all_gather_v(lm_group *g, const void *send, const int64_t *bytes, void *recv) {
    shares s = {0};
    int st = enter(&g);
    if (st == LM_OK) st = shares_new("all_gather", g->size, &s);
    if (st != LM_OK) return st;
    char *at = recv;
    for (int r = 0; r < g->size; r++) {
        s.send[r] = (char *)(uintptr_t)send;
        s.sends[r] = bytes[g->rank];
        s.receive[r] = at;
        s.receives[r] = bytes[r];
        at += bytes[r];
    }
    if (bytes[g->rank] && s.receive[g->rank] != send)
        memmove(s.receive[g->rank], send, (size_t)bytes[g->rank]);
    if (g->size > 1) st = everyone(g, "all_gather", s.send, s.sends, s.receive, s.receives);
    shares_free(&s);
    return st;
}

int lm_all_gather(lm_group *g, const void *send, int64_t bytes, void *recv) {
    int st = enter(&g);
    if (st != LM_OK) return st;
    int64_t *each = malloc((size_t)g->size * sizeof *each);
    if (!each) return no_memory("all_gather");
    for (int r = 0; r < g->size; r++) each[r] = bytes;
    st = lm_all_gather_v(g, send, each, recv);
    free(each);
    return st;
}

/* ---- all_to_all ---- */

int lm_all_to_all_v(lm_group *g, const void *send, const int64_t *sends, void *recv,
                    const int64_t *receives) {
    shares s = {0};
    int st = enter(&g);
    if (st == LM_OK && sends[g->rank] != receives[g->rank])
        st = lm_fail(LM_EARG, "all_to_all: rank %d sends itself %lld bytes and expects %lld",
                     g->rank, (long long)sends[g->rank], (long long)receives[g->rank]);
    if (st == LM_OK) st = shares_new("all_to_all", g->size, &s);
    if (st != LM_OK) return st;
    char *from = (char *)(uintptr_t)send, *to = recv;
    for (int r = 0; r < g->size; r++) {
        s.send[r] = from;
        s.sends[r] = sends[r];
        s.receive[r] = to;
        s.receives[r] = receives[r];
        from += sends[r];
        to += receives[r];
    }
    if (sends[g->rank]) memcpy(s.receive[g->rank], s.send[g->rank], (size_t)sends[g->rank]);
    if (g->size > 1) st = everyone(g, "all_to_all", s.send, s.sends, s.receive, s.receives);
    shares_free(&s);
    return st;
}

/* ---- broadcast, barrier: log2(size) rounds ---- */

/* A binomial tree. Ranks are counted from the root: in round k, rank r < 2^k sends to r + 2^k.
 */
int lm_broadcast(lm_group *g, void *data, int64_t bytes, int root) {
    int st = enter(&g);
    if (st != LM_OK) return st;
    if (root < 0 || root >= g->size)
        return lm_fail(LM_EARG, "broadcast: root %d of a group of %d", root, g->size);
    int me = (g->rank - root + g->size) % g->size;
    for (int reach = 1; reach < g->size && st == LM_OK; reach *= 2) {
        int peer = me < reach ? me + reach : me - reach;
        lm__message m = {(peer + root) % g->size, bytes, data};
        if (me < reach && peer < g->size) st = lm__exchange(g, "broadcast", 1, &m, 0, NULL);
        else if (me >= reach && me < 2 * reach)
            st = lm__exchange(g, "broadcast", 0, NULL, 1, &m);
    }
    return st;
}

/* After round k everyone has heard, directly or not, from the 2^k ranks before it. */
int lm_barrier(lm_group *g) {
    int st = enter(&g);
    if (st != LM_OK) return st;
    char here = 1, there = 0;
    for (int reach = 1; reach < g->size && st == LM_OK; reach *= 2) {
        lm__message to = {(g->rank + reach) % g->size, 1, &here};
        lm__message from = {(g->rank + g->size - reach) % g->size, 1, &there};
        st = lm__exchange(g, "barrier", 1, &to, 1, &from);
    }
    return st;
}

/* ---- errors ---- */

int lm_dist_agree_text(lm_group *g, int status, const char *text) {
    char shared[900] = "";
    int st = enter(&g);
    if (st != LM_OK) return st;
    if (g->size == 1)
        return status == LM_OK ? LM_OK : lm_fail(status, "%s", text ? text : "an error");
    int32_t *all = malloc((size_t)g->size * sizeof *all), mine = status;
    if (!all) return no_memory("agree");
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
