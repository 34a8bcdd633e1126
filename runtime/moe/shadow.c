/* shadow.c - hot experts come to the tokens (He et al. 2022, FasterMoE).
 *
 * An expert that is much busier than the mean is shadowed for this plan: every rank
 * of the expert group has its weights and keeps its own rows for it, so that they do
 * not travel, and no rank waits for the one that would have had them all. To a rank,
 * shadows are local experts after its own. What travels instead:
 *   forward:   the owners' weights to all;
 *   backward:  each rank's gradient of them to the owner, which adds them up in the
 *              order of the ranks.
 * Which experts they are follows from counts that all ranks have. */
#include "runtime/moe/exchange_impl.h"

#include <stdlib.h>
#include <string.h>

int lm__plan_shadow(lm_plan *p, double over) {
    double mean = 0;
    if (over <= 0 || !p->expert) return LM_OK;
    int st = lm__plan_array(p, p->experts, sizeof *p->shadow, &p->shadow);
    for (int e = 0; e < p->experts; e++) mean += (double)p->kept[e] / p->experts;
    for (int e = 0; e < p->experts && st == LM_OK; e++) {
        if ((double)p->kept[e] <= over * mean) continue;
        p->shadow[e] = 1;
        p->shadows++;
        if (p->owner[e] != p->place) p->expert_of[p->local_experts++] = e;
    }
    return st;
}

/* ---- who sends what ---- */

/* Shadows that rank r owns. */
static int owned_by(const lm_plan *p, int r) {
    int n = 0;
    for (int e = 0; e < p->experts; e++) n += p->shadow[e] && p->owner[e] == r;
    return n;
}

/* The weights of one expert, and where they lie: the local index of expert e. */
static int64_t bytes_of(const lm_tensor *w) {
    int64_t n = lm_dtype_size(w->dtype);
    for (int d = 1; d < w->ndim; d++) n *= w->shape[d];
    return n;
}

static int local_index(const lm_plan *p, int e) {
    int i = 0;
    while (p->expert_of[i] != e) i++;
    return i;
}

/* Experts' weights one after the other, those of rank 0's shadows first; to or from w. */
static void copy_owned(const lm_plan *p, int r, char *packed, const lm_tensor *w, bool out) {
    int64_t each = bytes_of(w);
    for (int e = 0; e < p->experts; e++) {
        if (!p->shadow[e] || p->owner[e] != r) continue;
        char *at = w->data + local_index(p, e) * each;
        memcpy(out ? packed : at, out ? at : packed, (size_t)each);
        packed += each;
    }
}

/* counts[ranks], and what goes to each: ours to all, or to each its own. */
static int swap(lm_plan *p, int leg, int64_t each, const void *from, bool ours_to_all,
                void *to) {
    int ranks = lm__plan_ranks(p), me = p->place;
    int64_t *sends = calloc(2 * (size_t)ranks, sizeof *sends), *receives = sends + ranks;
    if (!sends) return lm_fail(LM_EOOM, "moe: no memory for shadows");
    for (int r = 0; r < ranks; r++) {
        if (r == me) continue;
        sends[r] = owned_by(p, ours_to_all ? me : r);
        receives[r] = owned_by(p, ours_to_all ? r : me);
    }
    lm__load load = {.leg = leg, .each = each};
    int st = lm__wire_swap(p, &load, from, sends, to, receives);
    free(sends);
    return st;
}

static int room_for(int64_t experts, const lm_tensor *w, lm_tensor **out) {
    int64_t shape[LM_MAX_DIMS];
    memcpy(shape, w->shape, sizeof shape);
    shape[0] = experts;
    int st = lm_tensor_new(w->dtype, w->ndim, shape, out);
    if (st == LM_OK) lm_tensor_set_purpose(*out, LM_MEM_EXCHANGE);
    return st;
}

/* ---- weights to all ---- */

/* The same weights for every other rank: a message each. */
static int weights_to_all(lm_plan *p, const lm_tensor *w, lm_tensor *y) {
    int ranks = lm__plan_ranks(p), mine = owned_by(p, p->place);
    int64_t each = bytes_of(w);
    lm_tensor *out = NULL, *in = NULL;
    int st = room_for((int64_t)mine * (ranks - 1), w, &out);
    if (st == LM_OK) st = room_for(p->shadows - mine, w, &in);
    for (int i = 0; i < ranks - 1 && st == LM_OK; i++)
        copy_owned(p, p->place, out->data + i * mine * each, w, true);
    if (st == LM_OK) st = swap(p, LM_LEG_SHADOW, each, out->data, true, in->data);
    char *at = st == LM_OK ? in->data : NULL;
    for (int r = 0; r < ranks && st == LM_OK; r++) {
        if (r == p->place) continue;
        copy_owned(p, r, at, y, false);
        at += owned_by(p, r) * each;
    }
    lm_tensor_release(in);
    lm_tensor_release(out);
    return st;
}

/* ---- gradients home ---- */

static void add(float *sum, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) sum[i] += x[i];
}

/* dw, [own experts], holds the own experts' gradients; those of others' shadows are in dy. */
static int gradients_home(lm_plan *p, const lm_tensor *dy, lm_tensor *dw) {
    int ranks = lm__plan_ranks(p), mine = owned_by(p, p->place);
    int64_t each = bytes_of(dy), n = each / (int64_t)sizeof(float);
    lm_tensor *out = NULL, *in = NULL;
    int st = room_for(p->shadows - mine, dy, &out);
    if (st == LM_OK) st = room_for((int64_t)mine * (ranks - 1), dy, &in);
    char *at = st == LM_OK ? out->data : NULL;
    for (int r = 0; r < ranks && st == LM_OK; r++) {
        if (r == p->place) continue;
        copy_owned(p, r, at, dy, true);
        at += owned_by(p, r) * each;
    }
    if (st == LM_OK) st = swap(p, LM_LEG_SHADOW_BACKWARD, each, out->data, false, in->data);
    for (int e = 0, k = 0; e < p->experts && st == LM_OK; e++) {
        if (!p->shadow[e] || p->owner[e] != p->place) continue;
        float *sum = (float *)(void *)(dw->data + local_index(p, e) * each);
        const float *own = (const float *)(const void *)(dy->data + local_index(p, e) * each);
        const float *theirs = (const float *)(const void *)in->data + k++ * n;
        memset(sum, 0, (size_t)each);
        for (int r = 0; r < ranks; r++) {
            add(sum, r == p->place ? own : theirs, n);
            if (r != p->place) theirs += mine * n;
        }
    }
    lm_tensor_release(in);
    lm_tensor_release(out);
    return st;
}

static int shadow_backward(lm_node *n) {
    lm_plan *p = n->extra;
    lm_tensor *dy = NULL, *dw = NULL;
    int st = lm__tensor_dense(lm__grad(n, 0), LM_F32, &dy);
    if (st == LM_OK) st = room_for(p->own_experts, dy, &dw);
    if (st == LM_OK && p->own_experts)
        memcpy(dw->data, dy->data, (size_t)(p->own_experts * bytes_of(dy)));
    if (st == LM_OK) st = gradients_home(p, dy, dw);
    if (st == LM_OK) st = lm__give(n, 0, dw), dw = NULL;
    lm_tensor_release(dw);
    lm_tensor_release(dy);
    return st;
}

int lm_moe_shadow(lm_plan *p, lm_tensor *w, lm_tensor **out) {
    char text[96];
    lm_tensor *dense = NULL, *y = NULL;
    lm_node *n = NULL;
    int st = lm__floating("shadow", w);
    if (st == LM_OK && (w->ndim < 1 || w->shape[0] != p->own_experts))
        st = lm_fail(LM_ESHAPE, "shadow: weight is %s, but this rank has %d experts",
                     lm__describe(w, text), p->own_experts);
    if (st == LM_OK && !p->shadows) return lm_tensor_retain(*out = w), LM_OK;
    if (st == LM_OK) st = lm__tensor_dense(w, w->dtype, &dense);
    if (st == LM_OK) st = room_for(p->local_experts, dense, &y);
    if (st == LM_OK && p->own_experts)
        memcpy(y->data, dense->data, (size_t)(p->own_experts * bytes_of(dense)));
    if (st == LM_OK) st = weights_to_all(p, dense, y);
    if (st == LM_OK) st = lm__record("shadow", shadow_backward, 1, &w, 1, &y, &n);
    if (n) n->dtype[0] = LM_F32; /* its gradient stays f32, as a leaf's does */
    lm__hold_plan(n, p);
    lm_tensor_release(dense);
    return lm__finish(st, y, out);
}
