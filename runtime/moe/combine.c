/* combine.c - rows home from the experts, weighed and added up.
 *
 * A row of its own for every route is weighed at home, in the order of the slots.
 * Where a token goes to a place only once, it is weighed there: a parcel becomes the
 * sum over its slots of w x[arrival], one row that goes home, where a token adds up
 * its parcels in the order of the places. The weights (weights.c) have gone there too.
 * exchange.c says why there are two halves. */
#include "runtime/moe/exchange_impl.h"

static float *floats(const lm_tensor *t) { return (float *)(void *)t->data; }

/* A sum of rows of x by weights, backward: dx and dw, both new. */
static int weigh_backward(lm_tensor *x, int64_t count, int slots, lm_tensor *weights,
                          const int32_t *at, lm_tensor *dy, lm_tensor **dx, lm_tensor **dw) {
    lm_tensor *d = NULL, *g = NULL;
    int st = lm__tensor_like(x, x->dtype, &d);
    if (st == LM_OK) st = lm__tensor_like(weights, LM_F32, &g);
    if (st == LM_OK)
        st = lm__ran("combine", lm__kernels(x)->combine_bwd(x->dtype, count, slots, x->shape[1],
                                                            d->data, floats(g), dy->data,
                                                            x->data, floats(weights), at));
    if (st == LM_OK) *dx = d, *dw = g;
    else lm_tensor_release(d), lm_tensor_release(g);
    return st;
}

/* ---- weighed at the experts' place ---- */

/* The gradient of each parcel's sum -> those of its arrivals, and of their weights. */
static int start_weighed_backward(lm_node *n) {
    lm_plan *p = n->extra;
    lm_tensor *x, *w, *received = NULL, *dx = NULL, *dw = NULL;
    int st = lm__saved(n, 0, &x);
    if (st == LM_OK) st = lm__saved(n, 1, &w);
    if (st == LM_OK) st = lm__land(p, LM_LEG_COMBINE_BACKWARD, &received);
    if (st == LM_OK)
        st =
            weigh_backward(x, p->wire.arriving, p->width, w, p->arrival_at, received, &dx, &dw);
    if (st == LM_OK) st = lm__give(n, 1, dw), dw = NULL;
    if (st == LM_OK) st = lm__give(n, 0, dx), dx = NULL;
    lm_tensor_release(dw);
    lm_tensor_release(dx);
    lm_tensor_release(received);
    return st;
}

/* w: the weights of the parcels received, [received, width]. */
static int start_weighed(lm_plan *p, lm_tensor *x, lm_tensor *dense, lm_tensor *w) {
    lm_tensor *sums = NULL, *copies = NULL;
    lm_node *n = NULL;
    int st = lm__rows_sum(dense, p->wire.arriving, p->width, floats(w), p->arrival_at, &sums);
    if (st == LM_OK) st = lm__depart(p, LM_LEG_COMBINE, true, sums, &copies);
    if (st == LM_OK)
        st = lm__record("combine_start", start_weighed_backward, 2, (lm_tensor *[]){x, w}, 1,
                        &copies, &n);
    if (st == LM_OK) st = lm__save(n, 0, dense);
    if (st == LM_OK) st = lm__save(n, 1, w);
    lm__hold_plan(n, p);
    lm_tensor_release(copies);
    lm_tensor_release(sums);
    return st;
}

static int finish_weighed_backward(lm_node *n) {
    lm_plan *p = n->extra;
    lm_tensor *dy = NULL, *copies = NULL;
    int st = lm__tensor_dense(lm__grad(n, 0), n->dtype[0], &dy);
    if (st == LM_OK) st = lm__rows_gather(dy, p->token_of, p->wire.leaving, &copies);
    if (st == LM_OK) st = lm__depart_gradient(n, LM_LEG_COMBINE_BACKWARD, false, copies);
    lm_tensor_release(copies);
    lm_tensor_release(dy);
    return st;
}

static int finish_weighed(lm_plan *p, lm_tensor *copies, lm_tensor **out) {
    lm_tensor *parcels = NULL, *y = NULL;
    lm_node *n = NULL;
    int st = lm__sum_copies(p, copies, &parcels);
    if (st == LM_OK) st = lm__rows_sum(parcels, p->tokens, p->fan, NULL, p->parcel_of, &y);
    if (st == LM_OK) st = lm__record("combine", finish_weighed_backward, 1, &copies, 1, &y, &n);
    lm__hold_plan(n, p);
    lm_tensor_release(parcels);
    return lm__finish(st, y, out);
}

/* ---- weighed at home ---- */

static int start_plain_backward(lm_node *n) {
    lm_plan *p = n->extra;
    lm_tensor *received = NULL, *dx = NULL;
    int st = lm__land(p, LM_LEG_COMBINE_BACKWARD, &received);
    if (st == LM_OK) st = lm__rows_gather(received, p->arrival_of, p->arrivals, &dx);
    if (st == LM_OK) st = lm__give(n, 0, dx);
    lm_tensor_release(received);
    return st;
}

static int start_plain(lm_plan *p, lm_tensor *x, lm_tensor *dense) {
    lm_tensor *received = NULL, *copies = NULL;
    lm_node *n = NULL;
    int st = lm__rows_gather(dense, p->arrival_at, p->arrivals, &received);
    if (st == LM_OK) st = lm__depart(p, LM_LEG_COMBINE, true, received, &copies);
    if (st == LM_OK)
        st = lm__record("combine_start", start_plain_backward, 1, &x, 1, &copies, &n);
    lm__hold_plan(n, p);
    lm_tensor_release(copies);
    lm_tensor_release(received);
    return st;
}

static int finish_plain_backward(lm_node *n) {
    lm_plan *p = n->extra;
    lm_tensor *rows, *w, *dy = NULL, *d_rows = NULL, *copies = NULL, *dw = NULL;
    int st = lm__saved(n, 0, &rows);
    if (st == LM_OK) st = lm__saved(n, 1, &w);
    if (st == LM_OK) st = lm__tensor_dense(lm__grad(n, 0), rows->dtype, &dy);
    if (st == LM_OK)
        st = weigh_backward(rows, p->tokens, p->top_k, w, p->row_of, dy, &d_rows, &dw);
    if (st == LM_OK) st = lm__rows_gather(d_rows, p->parcel_at, p->wire.leaving, &copies);
    if (st == LM_OK) st = lm__depart_gradient(n, LM_LEG_COMBINE_BACKWARD, false, copies);
    if (st == LM_OK) st = lm__give(n, 1, dw), dw = NULL;
    lm_tensor_release(dw);
    lm_tensor_release(copies);
    lm_tensor_release(d_rows);
    lm_tensor_release(dy);
    return st;
}

static int finish_plain(lm_plan *p, lm_tensor *copies, lm_tensor *weights, lm_tensor **out) {
    lm_tensor *rows = NULL, *w = NULL, *y = NULL;
    lm_node *n = NULL;
    int st = lm__tensor_dense(weights, LM_F32, &w);
    if (st == LM_OK) st = lm__sum_copies(p, copies, &rows);
    if (st == LM_OK) st = lm__rows_sum(rows, p->tokens, p->top_k, floats(w), p->row_of, &y);
    if (st == LM_OK)
        st = lm__record("combine", finish_plain_backward, 2, (lm_tensor *[]){copies, weights},
                        1, &y, &n);
    if (st == LM_OK) st = lm__save(n, 0, rows);
    if (st == LM_OK) st = lm__save(n, 1, w);
    lm__hold_plan(n, p);
    lm_tensor_release(w);
    lm_tensor_release(rows);
    return lm__finish(st, y, out);
}

/* ---- either ---- */

int lm_moe_combine_start(lm_plan *p, lm_tensor *x, lm_tensor *weights) {
    lm_tensor *dense = NULL, *w = NULL;
    int st = lm__check_rows("combine", x, p->arrivals, "arrivals");
    if (st == LM_OK) st = lm__check_weights(p, weights);
    if (st == LM_OK) st = lm__tensor_dense(x, x->dtype, &dense);
    if (st == LM_OK && p->once && !lm__weights_under_way(p)) st = lm__weights_start(p, weights);
    if (st == LM_OK && p->once) st = lm__weights_finish(p, &w);
    if (st == LM_OK) st = p->once ? start_weighed(p, x, dense, w) : start_plain(p, x, dense);
    lm_tensor_release(w);
    lm_tensor_release(dense);
    if (st != LM_OK) lm__settle(p, LM_LEG_COMBINE);
    return st;
}

int lm_moe_combine_finish(lm_plan *p, lm_tensor *weights, lm_tensor **out) {
    lm_tensor *copies;
    int st = lm__check_weights(p, weights);
    if (st == LM_OK) st = lm__land(p, LM_LEG_COMBINE, &copies);
    if (st != LM_OK) return st;
    st = p->once ? finish_weighed(p, copies, out) : finish_plain(p, copies, weights, out);
    lm_tensor_release(copies);
    return st;
}

int lm_moe_combine(lm_plan *p, lm_tensor *x, lm_tensor *weights, lm_tensor **out) {
    int st = lm_moe_combine_start(p, x, weights);
    return st == LM_OK ? lm_moe_combine_finish(p, weights, out) : st;
}
