/* weigh.c - weights that go to the experts' places, where tokens go there once.
 *
 *   weights [tokens, top_k] --gather--> by route ==wire==> [received, width] by slot
 *
 * and their gradients come back; with experts in slices, a part of it from each. */
#include "runtime/moe/exchange_impl.h"

enum { FORTH = LM__WEIGHTS + LM_LEG_COMBINE, BACK = LM__WEIGHTS + LM_LEG_COMBINE_BACKWARD };

static float *floats(const lm_tensor *t) { return (float *)(void *)t->data; }

int lm__check_weights(const lm_plan *p, const lm_tensor *weights) {
    char text[96];
    int st = lm__floating("combine", weights);
    if (st == LM_OK &&
        (weights->ndim != 2 || weights->shape[0] != p->tokens || weights->shape[1] != p->top_k))
        st = lm_fail(LM_ESHAPE, "combine: weights are %s, but the plan has %lld tokens, top %d",
                     lm__describe(weights, text), (long long)p->tokens, p->top_k);
    return st;
}

static int start_backward(lm_node *n) {
    lm_plan *p = n->extra;
    lm_tensor *mine = NULL, *dw = NULL;
    int st = lm__land(p, BACK, &mine);
    if (st == LM_OK) st = lm_tensor_full(LM_F32, 2, (int64_t[]){p->tokens, p->top_k}, 0, &dw);
    for (int64_t i = 0; i < p->routes.leaving && st == LM_OK; i++)
        floats(dw)[p->route_at[i]] += floats(mine)[i];
    if (st == LM_OK) st = lm__give(n, 0, dw);
    lm_tensor_release(mine);
    return st;
}

int lm__weights_start(lm_plan *p, lm_tensor *weights) {
    lm_tensor *w = NULL, *mine = NULL, *theirs = NULL;
    lm_node *n = NULL;
    int st = lm__check_weights(p, weights);
    if (st == LM_OK) st = lm__tensor_dense(weights, LM_F32, &w);
    if (st == LM_OK) st = lm__rows_new(LM_F32, p->routes.leaving, 1, &mine);
    for (int64_t i = 0; i < p->routes.leaving && st == LM_OK; i++)
        floats(mine)[i] = floats(w)[p->route_at[i]];
    if (st == LM_OK) st = lm__depart(p, FORTH, false, mine, &theirs);
    if (st == LM_OK)
        st = lm__record("weights_start", start_backward, 1, &weights, 1, &theirs, &n);
    lm__hold_plan(n, p);
    lm_tensor_release(theirs);
    lm_tensor_release(mine);
    lm_tensor_release(w);
    if (st != LM_OK) lm__settle(p, FORTH);
    return st;
}

static int finish_backward(lm_node *n) {
    lm_plan *p = n->extra;
    lm_tensor *d_table = NULL, *theirs = NULL;
    int64_t next = 0;
    int st = lm__tensor_dense(lm__grad(n, 0), LM_F32, &d_table);
    if (st == LM_OK) st = lm__rows_new(LM_F32, p->routes.arriving, 1, &theirs);
    for (int64_t i = 0; i < p->wire.arriving * p->width && st == LM_OK; i++)
        if (p->arrival_at[i] >= 0) floats(theirs)[next++] = floats(d_table)[i];
    if (st == LM_OK) st = lm__depart_gradient(n, BACK, true, theirs);
    lm_tensor_release(theirs);
    lm_tensor_release(d_table);
    return st;
}

bool lm__weights_under_way(const lm_plan *p) { return p->flight[FORTH].to != NULL; }

int lm__weights_finish(lm_plan *p, lm_tensor **out) {
    lm_tensor *theirs = NULL, *table = NULL;
    lm_node *n = NULL;
    int64_t next = 0;
    int st = lm__land(p, FORTH, &theirs);
    if (st == LM_OK) st = lm__rows_new(LM_F32, p->wire.arriving, p->width, &table);
    for (int64_t i = 0; i < p->wire.arriving * p->width && st == LM_OK; i++)
        floats(table)[i] = p->arrival_at[i] >= 0 ? floats(theirs)[next++] : 0;
    if (st == LM_OK) st = lm__record("weights", finish_backward, 1, &theirs, 1, &table, &n);
    lm__hold_plan(n, p);
    lm_tensor_release(theirs);
    return lm__finish(st, table, out);
}
