/* exchange.c - dispatch and combine: rows to the experts, and back.
 *
 *   dispatch:  tokens --gather--> copies ==wire==> received --gather--> arrivals
 *   combine:   arrivals --gather--> received ==wire==> copies --sum--> parcels
 *              --weighted sum--> tokens
 *
 * Each is the other's backward. A parcel has one copy, unless its expert is cut into
 * slices: then one for each, and what they return is added up in the order of the
 * ranks. Exactly the rows that move are sent; alone, or where all is in order
 * already, nothing is copied that need not be. */
#include "runtime/moe/exchange_impl.h"

/* ---- pieces ---- */

static void drop_plan(void *p) { lm_plan_release(p); }

void lm__hold_plan(lm_node *n, lm_plan *p) {
    if (!n) return;
    lm_plan_retain(p);
    n->extra = p;
    n->free_extra = drop_plan;
}

int lm__rows_new(int dtype, int64_t rows, int64_t dim, lm_tensor **out) {
    return lm_tensor_new(dtype, 2, (int64_t[]){rows, dim}, out);
}

int lm__rows_gather(lm_tensor *x, const int32_t *ids, int64_t count, lm_tensor **out) {
    if (!ids) {
        lm_tensor_retain(*out = x);
        return LM_OK;
    }
    int64_t bad, dim = x->shape[1];
    lm_tensor *y;
    int st = lm__rows_new(x->dtype, count, dim, &y);
    if (st != LM_OK) return st;
    st = lm__kernels(x)->gather_rows(x->dtype, count, dim, x->shape[0], y->data, x->data,
                                     LM_I32, ids, &bad);
    return lm__finish(lm__ran("moe: gathering rows", st), y, out);
}

int lm__rows_sum(lm_tensor *x, int64_t count, int slots, const float *weights,
                 const int32_t *at, lm_tensor **out) {
    lm_tensor *y;
    int64_t dim = x->shape[1];
    int st = lm__rows_new(x->dtype, count, dim, &y);
    if (st != LM_OK) return st;
    st =
        lm__kernels(x)->combine_fwd(x->dtype, count, slots, dim, y->data, x->data, weights, at);
    return lm__finish(lm__ran("moe: adding up rows", st), y, out);
}

int lm__rows_carry(lm_plan *p, const lm__wire *w, const lm__load *load, lm_tensor *x,
                   lm_tensor **out) {
    lm_tensor *y;
    if (!p->expert) {
        lm_tensor_retain(*out = x);
        return LM_OK;
    }
    int st = lm__rows_new(x->dtype, load->back ? w->leaving : w->arriving, x->shape[1], &y);
    if (st != LM_OK) return st;
    lm_tensor_set_purpose(y, LM_MEM_EXCHANGE);
    st = lm__wire_carry(p, w, load, x->data, y->data);
    return lm__finish(st, y, out);
}

int lm__parcels_forth(lm_plan *p, int leg, lm_tensor *copies, lm_tensor **out) {
    lm__load load = {leg, true, false, copies->shape[1] * lm_dtype_size(copies->dtype)};
    return lm__rows_carry(p, &p->wire, &load, copies, out);
}

int lm__parcels_back(lm_plan *p, int leg, lm_tensor *received, lm_tensor **out) {
    lm__load load = {leg, true, true, received->shape[1] * lm_dtype_size(received->dtype)};
    lm_tensor *copies;
    int st = lm__rows_carry(p, &p->wire, &load, received, &copies);
    if (st != LM_OK) return st;
    if (p->copy_of) st = lm__rows_sum(copies, p->parcels, p->etp, NULL, p->copy_of, out);
    else lm_tensor_retain(*out = copies);
    lm_tensor_release(copies);
    return st;
}

static int check_rows(const char *op, const lm_tensor *x, int64_t rows, const char *what) {
    char text[96];
    int st = lm__floating(op, x);
    if (st == LM_OK && (x->ndim != 2 || x->shape[0] != rows))
        st = lm_fail(LM_ESHAPE, "%s: x is %s, but the plan has %lld %s", op,
                     lm__describe(x, text), (long long)rows, what);
    return st;
}

/* ---- dispatch ---- */

static int dispatch_backward(lm_node *n) {
    lm_plan *p = n->extra;
    lm_tensor *dy = NULL, *received = NULL, *parcels = NULL, *dx = NULL;
    int st = lm__tensor_dense(lm__grad(n, 0), n->dtype[0], &dy);
    if (st == LM_OK && p->once)
        st = lm__rows_sum(dy, p->wire.arriving, p->width, NULL, p->arrival_at, &received);
    if (st == LM_OK && !p->once)
        st = lm__rows_gather(dy, p->arrival_at, p->arrivals, &received);
    if (st == LM_OK) st = lm__parcels_back(p, LM_LEG_DISPATCH_BACKWARD, received, &parcels);
    if (st == LM_OK) st = lm__rows_sum(parcels, p->tokens, p->fan, NULL, p->parcel_of, &dx);
    if (st == LM_OK) st = lm__give(n, 0, dx);
    lm_tensor_release(parcels);
    lm_tensor_release(received);
    lm_tensor_release(dy);
    return st;
}

int lm_moe_dispatch(lm_plan *p, lm_tensor *x, lm_tensor **out) {
    lm_tensor *dense = NULL, *copies = NULL, *received = NULL, *y = NULL;
    lm_node *n = NULL;
    int st = check_rows("dispatch", x, p->tokens, "tokens");
    if (st == LM_OK) st = lm__tensor_dense(x, x->dtype, &dense);
    if (st == LM_OK) st = lm__rows_gather(dense, p->token_of, p->wire.leaving, &copies);
    if (st == LM_OK) st = lm__parcels_forth(p, LM_LEG_DISPATCH, copies, &received);
    if (st == LM_OK) st = lm__rows_gather(received, p->arrival_of, p->arrivals, &y);
    if (st == LM_OK) st = lm__record("dispatch", dispatch_backward, 1, &x, 1, &y, &n);
    lm__hold_plan(n, p);
    lm_tensor_release(received);
    lm_tensor_release(copies);
    lm_tensor_release(dense);
    return lm__finish(st, y, out);
}

/* ---- combine ---- */

static const float *floats(const lm_tensor *t) { return (const float *)(const void *)t->data; }

/* Weights applied at home: gives the rows that came back, which backward needs. */
static int combine_at_home(lm_plan *p, lm_tensor *x, lm_tensor *weights, lm_tensor **out,
                           lm_tensor **rows) {
    lm_tensor *received;
    int st = lm__rows_gather(x, p->arrival_at, p->arrivals, &received);
    if (st != LM_OK) return st;
    st = lm__parcels_back(p, LM_LEG_COMBINE, received, rows);
    lm_tensor_release(received);
    if (st != LM_OK) return st;
    return lm__rows_sum(*rows, p->tokens, p->top_k, floats(weights), p->row_of, out);
}

static int combine_at_home_backward(lm_plan *p, lm_tensor *dy, lm_tensor *rows,
                                    lm_tensor *weights, lm_tensor *dw, lm_tensor **dx) {
    lm_tensor *d_rows = NULL, *copies = NULL, *received = NULL;
    int st = lm__tensor_like(rows, rows->dtype, &d_rows);
    if (st == LM_OK)
        st = lm__ran("combine", lm__kernels(rows)->combine_bwd(
                                    rows->dtype, p->tokens, p->top_k, rows->shape[1],
                                    d_rows->data, (float *)(void *)dw->data, dy->data,
                                    rows->data, floats(weights), p->row_of));
    if (st == LM_OK) st = lm__rows_gather(d_rows, p->parcel_at, p->wire.leaving, &copies);
    if (st == LM_OK) st = lm__parcels_forth(p, LM_LEG_COMBINE_BACKWARD, copies, &received);
    if (st == LM_OK) st = lm__rows_gather(received, p->arrival_of, p->arrivals, dx);
    lm_tensor_release(received);
    lm_tensor_release(copies);
    lm_tensor_release(d_rows);
    return st;
}

/* Even a rank whose rows or weights want no gradient takes part: others may wait for its rows.
 */
static int combine_backward(lm_node *n) {
    lm_plan *p = n->extra;
    lm_tensor *x, *weights, *dy = NULL, *dx = NULL, *dw = NULL;
    int st = lm__saved(n, 0, &x);
    if (st == LM_OK) st = lm__saved(n, 1, &weights);
    if (st == LM_OK) st = lm__tensor_dense(lm__grad(n, 0), x->dtype, &dy);
    if (st == LM_OK) st = lm_tensor_full(LM_F32, 2, (int64_t[]){p->tokens, p->top_k}, 0, &dw);
    if (st == LM_OK)
        st = p->once ? lm__combine_once_backward(p, dy, x, weights, dw, &dx)
                     : combine_at_home_backward(p, dy, x, weights, dw, &dx);
    if (st == LM_OK) {
        lm_tensor_retain(dw);
        st = lm__give(n, 1, dw);
    }
    if (st == LM_OK) st = lm__give(n, 0, dx), dx = NULL;
    lm_tensor_release(dx);
    lm_tensor_release(dw);
    lm_tensor_release(dy);
    return st;
}

int lm_moe_combine(lm_plan *p, lm_tensor *x, lm_tensor *weights, lm_tensor **out) {
    char text[96];
    lm_tensor *dense = NULL, *w = NULL, *y = NULL;
    lm_tensor *kept = NULL; /* what backward needs besides: rows at home, or weights away */
    lm_node *n = NULL;
    int st = check_rows("combine", x, p->arrivals, "arrivals");
    if (st == LM_OK) st = lm__floating("combine", weights);
    if (st == LM_OK &&
        (weights->ndim != 2 || weights->shape[0] != p->tokens || weights->shape[1] != p->top_k))
        st = lm_fail(LM_ESHAPE, "combine: weights are %s, but the plan has %lld tokens, top %d",
                     lm__describe(weights, text), (long long)p->tokens, p->top_k);
    if (st == LM_OK) st = lm__tensor_dense(x, x->dtype, &dense);
    if (st == LM_OK) st = lm__tensor_dense(weights, LM_F32, &w);
    if (st == LM_OK)
        st = p->once ? lm__combine_once(p, dense, w, &y, &kept)
                     : combine_at_home(p, dense, w, &y, &kept);
    if (st == LM_OK)
        st = lm__record("combine", combine_backward, 2, (lm_tensor *[]){x, weights}, 1, &y, &n);
    if (st == LM_OK) st = lm__save(n, 0, p->once ? dense : kept);
    if (st == LM_OK) st = lm__save(n, 1, p->once ? kept : w);
    lm__hold_plan(n, p);
    lm_tensor_release(kept);
    lm_tensor_release(w);
    lm_tensor_release(dense);
    return lm__finish(st, y, out);
}
