/* wire.c - things from rank to rank, each way counted as it really goes.
 *
 * Exactly what there is, straight to where it belongs; or padded to the busiest
 * pair of ranks (what systems with fixed shapes do; here for comparison); or over
 * two levels (two_level.c). */
#include "runtime/memory.h"
#include "runtime/moe/plan_impl.h"
#include "runtime/tensor_impl.h"

#include <stdlib.h>
#include <string.h>

/* ---- memory of messages ---- */

typedef struct room {
    int64_t bytes;
    int purpose;
} room;

enum { ROOM_HEADER = 64 };

int lm__room_new(int64_t count, size_t size, void *out) {
    void *data;
    int purpose, before = lm_memory_set_purpose(LM_MEM_EXCHANGE);
    int64_t bytes = ROOM_HEADER + (count > 0 ? count : 1) * (int64_t)size;
    int st = lm__memory_alloc(bytes, &data, &purpose);
    lm_memory_set_purpose(before);
    if (st != LM_OK) return st;
    memset(data, 0, (size_t)bytes);
    *(room *)data = (room){bytes, purpose};
    *(void **)out = (char *)data + ROOM_HEADER;
    return LM_OK;
}

void lm__room_free(void *p) {
    if (!p) return;
    room *r = (room *)(void *)((char *)p - ROOM_HEADER);
    lm__memory_free(r, r->bytes, r->purpose);
}

/* ---- wires ---- */

int lm__wire_new(lm_plan *p, lm__wire *w) {
    int ranks = lm__plan_ranks(p);
    int st = lm__plan_array(p, ranks, sizeof *w->sends, &w->sends);
    if (st == LM_OK) st = lm__plan_array(p, ranks, sizeof *w->receives, &w->receives);
    return st;
}

int lm__wire_ready(lm_plan *p, lm__wire *w) {
    int ranks = lm__plan_ranks(p);
    w->leaving = w->arriving = 0;
    for (int r = 0; r < ranks; r++) w->leaving += w->sends[r], w->arriving += w->receives[r];
    if (!p->expert || p->way == LM_WAY_DIRECT) return LM_OK;
    int st = lm__plan_array(p, (int64_t)ranks * ranks, sizeof *w->pairs, &w->pairs);
    if (st != LM_OK) return st;
    return lm_all_gather(p->expert, w->sends, ranks * (int64_t)sizeof *w->sends, w->pairs);
}

/* Counts what goes, and says how many bytes: bytes[ranks] to each, then bytes[ranks] from. */
static int measure(lm_plan *p, const lm__load *load, const int64_t *sends,
                   const int64_t *receives, int64_t **out) {
    int ranks = lm__plan_ranks(p), me = lm_group_rank(p->expert);
    int64_t *bytes = malloc(2 * (size_t)ranks * sizeof *bytes);
    if (!bytes) return lm_fail(LM_EOOM, "moe: no memory for an exchange");
    for (int r = 0; r < ranks; r++) {
        bytes[r] = sends[r] * load->each, bytes[ranks + r] = receives[r] * load->each;
        if (r == me || bytes[r] == 0) continue;
        int64_t *count = p->traffic + ((int64_t)load->leg * ranks + r) * 3;
        count[0] += load->rows ? sends[r] : 0;
        count[1] += bytes[r];
        count[2]++;
    }
    *out = bytes;
    return load->rows ? lm_dist_count_rows(p->expert, sends) : LM_OK;
}

int lm__carry_swap(lm__carry *c, const void *from, const int64_t *sends, void *to,
                   const int64_t *receives) {
    int64_t *bytes = NULL;
    int st = measure(c->plan, &c->load, sends, receives, &bytes);
    if (st == LM_OK)
        st = lm_all_to_all_v_start(c->plan->expert, from, bytes, to,
                                   bytes + lm__plan_ranks(c->plan), &c->flight);
    free(bytes);
    return st;
}

int lm__wire_swap(lm_plan *p, const lm__load *load, const void *from, const int64_t *sends,
                  void *to, const int64_t *receives) {
    lm__carry c = {.plan = p, .load = *load};
    int st = lm__carry_swap(&c, from, sends, to, receives);
    return st == LM_OK ? lm_async_wait(c.flight) : st;
}

int lm__carry_room(lm__carry *c, int64_t bytes) {
    int before = lm_memory_set_purpose(LM_MEM_EXCHANGE);
    c->room_bytes = bytes > 0 ? bytes : 1;
    int st = lm__memory_obtain(c->room_bytes, &c->room, &c->room_purpose);
    lm_memory_set_purpose(before);
    return st;
}

/* ---- directly ---- */

static const int64_t *sends_of(const lm__carry *c) {
    return c->load.back ? c->wire->receives : c->wire->sends;
}
static const int64_t *receives_of(const lm__carry *c) {
    return c->load.back ? c->wire->sends : c->wire->receives;
}

static int carry_direct(lm__carry *c) {
    return lm__carry_swap(c, c->from, sends_of(c), c->to, receives_of(c));
}

/* ---- padded ---- */

/* What goes between the two that have most; our own goes nowhere. */
static int64_t pad_of(const lm__carry *c) {
    int ranks = lm__plan_ranks(c->plan);
    int64_t pad = 0;
    for (int i = 0; i < ranks * ranks; i++)
        if (i / ranks != i % ranks && c->wire->pairs[i] > pad) pad = c->wire->pairs[i];
    return pad;
}

/* Blocks for the others lie `pad` things apart; ours goes straight to where it belongs. */
static void pack(const lm__carry *c, int64_t pad) {
    int me = lm_group_rank(c->plan->expert);
    const int64_t *sends = sends_of(c), *receives = receives_of(c);
    const char *from = c->from;
    char *out = c->room, *own = c->to;
    for (int r = 0; r < me; r++) own += receives[r] * c->load.each;
    for (int r = 0; r < lm__plan_ranks(c->plan); r++) {
        if (sends[r]) memcpy(r == me ? own : out, from, (size_t)(sends[r] * c->load.each));
        from += sends[r] * c->load.each;
        if (r != me) out += pad * c->load.each;
    }
}

static int unpack(lm__carry *c) {
    int me = lm_group_rank(c->plan->expert);
    const int64_t *receives = receives_of(c);
    const char *in = (const char *)c->room + c->arrived_at;
    int64_t pad = pad_of(c);
    char *to = c->to;
    for (int r = 0; r < lm__plan_ranks(c->plan); r++) {
        if (r != me && receives[r]) memcpy(to, in, (size_t)(receives[r] * c->load.each));
        to += receives[r] * c->load.each;
        if (r != me) in += pad * c->load.each;
    }
    return LM_OK;
}

static int carry_padded(lm__carry *c) {
    int ranks = lm__plan_ranks(c->plan), me = lm_group_rank(c->plan->expert);
    int64_t pad = pad_of(c), *same = malloc((size_t)ranks * sizeof *same);
    if (!same) return lm_fail(LM_EOOM, "moe: no memory for an exchange");
    for (int r = 0; r < ranks; r++) same[r] = r == me ? 0 : pad;
    c->arrived_at = pad * (ranks - 1) * c->load.each;
    int st = lm__carry_room(c, 2 * c->arrived_at);
    if (st == LM_OK) {
        memset(c->room, 0, (size_t)c->arrived_at);
        pack(c, pad);
        st = lm__carry_swap(c, c->room, same, (char *)c->room + c->arrived_at, same);
        c->then = unpack;
    }
    free(same);
    return st;
}

/* ---- any ---- */

static void carry_free(lm__carry *c) {
    if (c->room) lm__memory_free(c->room, c->room_bytes, c->room_purpose);
    free(c);
}

int lm__carry_start(lm_plan *p, const lm__wire *w, const lm__load *load, const void *from,
                    void *to, lm__carry **out) {
    lm__carry *c = calloc(1, sizeof *c);
    if (!c) return lm_fail(LM_EOOM, "moe: no memory for an exchange");
    *c = (lm__carry){.plan = p, .wire = w, .load = *load, .from = from, .to = to};
    bool per_host = load->rows && p->per_host.across_at;
    int st = p->way == LM_WAY_PADDED   ? carry_padded(c)
             : p->way == LM_WAY_DIRECT ? carry_direct(c)
             : per_host                ? lm__carry_per_host(c)
                                       : lm__carry_two_level(c);
    if (st == LM_OK) *out = c;
    else carry_free(c);
    return st;
}

int lm__carry_wait(lm__carry *c) {
    int st = lm_async_wait(c->flight);
    c->flight = NULL;
    if (st == LM_OK && c->then) st = c->then(c);
    carry_free(c);
    return st;
}

void lm__carry_settle(lm__carry *c) {
    (void)lm_async_wait(c->flight);
    carry_free(c);
}

void lm__carry_drop(lm__carry *c) {
    if (!c) return;
    lm_async_drop(c->flight);
    carry_free(c);
}
