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

int lm__wire_swap(lm_plan *p, const lm__load *load, const void *from, const int64_t *sends,
                  void *to, const int64_t *receives) {
    int ranks = lm__plan_ranks(p), me = lm_group_rank(p->expert);
    int64_t *bytes = malloc(2 * (size_t)ranks * sizeof *bytes), *back = bytes + ranks;
    if (!bytes) return lm_fail(LM_EOOM, "moe: no memory for an exchange");
    for (int r = 0; r < ranks; r++) {
        bytes[r] = sends[r] * load->each, back[r] = receives[r] * load->each;
        if (r == me || bytes[r] == 0) continue;
        int64_t *count = p->traffic + ((int64_t)load->leg * ranks + r) * 3;
        count[0] += load->rows ? sends[r] : 0;
        count[1] += bytes[r];
        count[2]++;
    }
    int st = load->rows ? lm_dist_count_rows(p->expert, sends) : LM_OK;
    if (st == LM_OK) st = lm_all_to_all_v(p->expert, from, bytes, to, back);
    free(bytes);
    return st;
}

/* Each rank's block between its packed place and one of `pad` things; ours goes straight to
 * where it belongs, and has no room between the others. */
static void pack(const lm__load *load, int ranks, int me, int64_t pad, const char *from,
                 const int64_t *sends, char *out, char *own) {
    for (int r = 0; r < ranks; r++) {
        char *to = r == me ? own : out;
        if (sends[r]) memcpy(to, from, (size_t)(sends[r] * load->each));
        from += sends[r] * load->each;
        if (r != me) out += pad * load->each;
    }
}

static void unpack(const lm__load *load, int ranks, int me, int64_t pad, const char *in,
                   const int64_t *receives, char *to) {
    for (int r = 0; r < ranks; r++) {
        if (r != me && receives[r]) memcpy(to, in, (size_t)(receives[r] * load->each));
        to += receives[r] * load->each;
        if (r != me) in += pad * load->each;
    }
}

static int carry_padded(lm_plan *p, const lm__wire *w, const lm__load *load, const void *from,
                        void *to) {
    int ranks = lm__plan_ranks(p), me = lm_group_rank(p->expert), purpose;
    const int64_t *sends = load->back ? w->receives : w->sends;
    const int64_t *receives = load->back ? w->sends : w->receives;
    int64_t pad = 0, *same = malloc((size_t)ranks * sizeof *same);
    if (!same) return lm_fail(LM_EOOM, "moe: no memory for an exchange");
    for (int i = 0; i < ranks * ranks; i++)
        if (i / ranks != i % ranks && w->pairs[i] > pad) pad = w->pairs[i];
    for (int r = 0; r < ranks; r++) same[r] = r == me ? 0 : pad;
    int64_t half = pad * (ranks - 1) * load->each;
    void *room = NULL;
    int before = lm_memory_set_purpose(LM_MEM_EXCHANGE);
    int st = lm__memory_alloc(2 * half + 1, &room, &purpose);
    lm_memory_set_purpose(before);
    if (st == LM_OK) {
        char *out = room, *in = out + half, *own = to;
        memset(out, 0, (size_t)half);
        for (int r = 0; r < me; r++) own += receives[r] * load->each;
        pack(load, ranks, me, pad, from, sends, out, own);
        st = lm__wire_swap(p, load, out, same, in, same);
        if (st == LM_OK) unpack(load, ranks, me, pad, in, receives, to);
        lm__memory_free(room, 2 * half + 1, purpose);
    }
    free(same);
    return st;
}

int lm__wire_carry(lm_plan *p, const lm__wire *w, const lm__load *load, const void *from,
                   void *to) {
    if (p->way == LM_WAY_TWO_LEVEL) return lm__carry_two_level(p, w, load, from, to);
    if (p->way == LM_WAY_PADDED) return carry_padded(p, w, load, from, to);
    if (load->back) return lm__wire_swap(p, load, from, w->receives, to, w->sends);
    return lm__wire_swap(p, load, from, w->sends, to, w->receives);
}
