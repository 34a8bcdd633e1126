/* weigh.c - combine, when a token goes to each place once.
 *
 * Weights follow the tokens to the places, where each parcel becomes
 *   s = sum over its slots of w x[arrival],
 * one row that goes home; there a token adds up its parcels in the order of the
 * places. Backward is the mirror: the gradient of y goes to the places, gives that of
 * the arrivals and of the weights there, and the weights' come home. */
#include "runtime/moe/exchange_impl.h"

static float *floats(const lm_tensor *t) { return (float *)(void *)t->data; }

/* weights [tokens, top_k] -> those of each parcel received, [received, width] by slot. */
static int weights_forth(lm_plan *p, const lm_tensor *weights, lm_tensor **out) {
    const lm__wire *w = &p->routes;
    lm__load load = {LM_LEG_COMBINE, false, false, sizeof(float)};
    lm_tensor *mine = NULL, *theirs = NULL, *table = NULL;
    int st = lm__rows_new(LM_F32, w->leaving, 1, &mine);
    for (int64_t i = 0; i < w->leaving && st == LM_OK; i++)
        floats(mine)[i] = floats(weights)[p->route_at[i]];
    if (st == LM_OK) st = lm__rows_carry(p, w, &load, mine, &theirs);
    if (st == LM_OK) st = lm__rows_new(LM_F32, p->wire.arriving, p->width, &table);
    int64_t next = 0;
    for (int64_t i = 0; i < p->wire.arriving * p->width && st == LM_OK; i++)
        floats(table)[i] = p->arrival_at[i] >= 0 ? floats(theirs)[next++] : 0;
    lm_tensor_release(mine);
    lm_tensor_release(theirs);
    return lm__finish(st, table, out);
}

/* Their gradients, back: dw must be 0. With slices of experts each has a part of it. */
static int weights_back(lm_plan *p, const lm_tensor *d_table, lm_tensor *dw) {
    const lm__wire *w = &p->routes;
    lm__load load = {LM_LEG_COMBINE_BACKWARD, false, true, sizeof(float)};
    lm_tensor *mine = NULL, *theirs = NULL;
    int64_t next = 0;
    int st = lm__rows_new(LM_F32, w->arriving, 1, &theirs);
    for (int64_t i = 0; i < p->wire.arriving * p->width && st == LM_OK; i++)
        if (p->arrival_at[i] >= 0) floats(theirs)[next++] = floats(d_table)[i];
    if (st == LM_OK) st = lm__rows_carry(p, w, &load, theirs, &mine);
    for (int64_t i = 0; i < w->leaving && st == LM_OK; i++)
        floats(dw)[p->route_at[i]] += floats(mine)[i];
    lm_tensor_release(mine);
    lm_tensor_release(theirs);
    return st;
}

int lm__combine_once(lm_plan *p, lm_tensor *x, lm_tensor *weights, lm_tensor **out,
                     lm_tensor **table) {
    lm_tensor *w = NULL, *sums = NULL, *parcels = NULL;
    int st = weights_forth(p, weights, &w);
    if (st == LM_OK)
        st = lm__rows_sum(x, p->wire.arriving, p->width, floats(w), p->arrival_at, &sums);
    if (st == LM_OK) st = lm__parcels_back(p, LM_LEG_COMBINE, sums, &parcels);
    if (st == LM_OK) st = lm__rows_sum(parcels, p->tokens, p->fan, NULL, p->parcel_of, out);
    lm_tensor_release(sums);
    lm_tensor_release(parcels);
    return lm__finish(st, w, table);
}

int lm__combine_once_backward(lm_plan *p, lm_tensor *dy, lm_tensor *x, lm_tensor *table,
                              lm_tensor *dw, lm_tensor **dx) {
    lm_tensor *copies = NULL, *sums = NULL, *d_x = NULL, *d_table = NULL;
    int st = lm__rows_gather(dy, p->token_of, p->wire.leaving, &copies);
    if (st == LM_OK) st = lm__parcels_forth(p, LM_LEG_COMBINE_BACKWARD, copies, &sums);
    if (st == LM_OK) st = lm__tensor_like(x, x->dtype, &d_x);
    if (st == LM_OK) st = lm__tensor_like(table, LM_F32, &d_table);
    if (st == LM_OK)
        st = lm__ran("combine",
                     lm__kernels(x)->combine_bwd(
                         x->dtype, p->wire.arriving, p->width, x->shape[1], d_x->data,
                         floats(d_table), sums->data, x->data, floats(table), p->arrival_at));
    if (st == LM_OK) st = weights_back(p, d_table, dw);
    lm_tensor_release(d_table);
    lm_tensor_release(sums);
    lm_tensor_release(copies);
    return lm__finish(st, d_x, dx);
}
