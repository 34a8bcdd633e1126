/* exchange.c - rows to the experts: dispatch; and the pieces that combine.c shares.
 *
 *   dispatch:  tokens --gather--> copies ==wire==> received --gather--> arrivals
 *   combine:   arrivals --gather--> received ==wire==> copies --sum--> parcels
 *              --weighted sum--> tokens
 *
 * Each is the other's backward. A parcel has one copy, unless its expert is cut into
 * slices: then one for each, and what they return is added up in the order of the
 * ranks. Exactly the rows that move are sent; alone, or where all is in order
 * already, nothing is copied that need not be.
 *
 * Both come in two halves, start and finish, with the wire between them, and each
 * half is a node of its own on the tape. What is computed between the halves has the
 * wire's company; and since backward walks the nodes in the other order, finish
 * starting the gradient's way and start ending it, so has its gradient. */
#include "runtime/moe/exchange_impl.h"

#include <stdio.h>

/* ---- pieces ---- */

static void drop_plan(void *p) { lm_plan_release(p); }

void lm__hold_plan(lm_node *n, lm_plan *p) {
    if (!n) return;
    lm_plan_retain(p);
    n->extra = p;
    n->free_extra = drop_plan;
}

int lm__check_rows(const char *op, const lm_tensor *x, int64_t rows, const char *what) {
    char text[96];
    int st = lm__floating(op, x);
    if (st == LM_OK && (x->ndim != 2 || x->shape[0] != rows))
        st = lm_fail(LM_ESHAPE, "%s: x is %s, but the plan has %lld %s", op,
                     lm__describe(x, text), (long long)rows, what);
    return st;
}

int lm__rows_new(int dtype, int64_t rows, int64_t dim, lm_tensor **out) {
    return lm_tensor_new(dtype, 2, (int64_t[]){rows, dim}, out);
}

int lm__rows_gather(lm_tensor *x, const int32_t *ids, int64_t count, lm_tensor **out) {
    if (!ids) return lm__tensor_alias(x, out);
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

int lm__sum_copies(const lm_plan *p, lm_tensor *copies, lm_tensor **out) {
    if (!p->copy_of) return lm__tensor_alias(copies, out);
    return lm__rows_sum(copies, p->parcels, p->etp, NULL, p->copy_of, out);
}

/* ---- the wire ---- */

int lm__depart(lm_plan *p, int leg, bool back, lm_tensor *x, lm_tensor **out) {
    lm__flight *f = &p->flight[leg];
    bool rows = leg < LM__WEIGHTS;
    const lm__wire *w = rows ? &p->wire : &p->routes;
    lm__load load = {.leg = rows ? leg : leg - LM__WEIGHTS,
                     .rows = rows,
                     .back = back,
                     .each = x->shape[1] * lm_dtype_size(x->dtype),
                     .dtype = x->dtype,
                     .dim = x->shape[1]};
    if (f->to) return lm_fail(LM_EARG, "moe: these rows of the plan are on their way already");
    lm_tensor *to;
    int st = p->expert
                 ? lm__rows_new(x->dtype, back ? w->leaving : w->arriving, x->shape[1], &to)
                 : lm__tensor_alias(x, &to);
    if (st != LM_OK) return st;
    if (p->expert) {
        lm_tensor_set_purpose(to, LM_MEM_EXCHANGE);
        st = lm__carry_start(p, w, &load, x->data, to->data, &f->carry);
    }
    if (st == LM_OK) {
        lm_tensor_retain(f->from = x);
        lm_tensor_retain(f->to = to);
    }
    return lm__finish(st, to, out);
}

int lm__land(lm_plan *p, int leg, lm_tensor **out) {
    lm__flight f = p->flight[leg];
    if (!f.to) return lm_fail(LM_EARG, "moe: no rows of the plan are on their way");
    p->flight[leg] = (lm__flight){NULL, NULL, NULL};
    int st = f.carry ? lm__carry_wait(f.carry) : LM_OK;
    lm_tensor_release(f.from);
    return lm__finish(st, f.to, out);
}

void lm__settle(lm_plan *p, int leg) {
    lm__flight f = p->flight[leg];
    char error[1024];
    if (!f.to) return;
    snprintf(error, sizeof error, "%s", lm_last_error());
    p->flight[leg] = (lm__flight){NULL, NULL, NULL};
    if (f.carry) lm__carry_settle(f.carry);
    lm_tensor_release(f.from);
    lm_tensor_release(f.to);
    lm_fail(LM_EINTERNAL, "%s", error); /* the caller has the code */
}

int lm_moe_abandon(lm_plan *p) {
    for (int leg = 0; leg < 2 * LM_LEGS; leg++) lm__settle(p, leg);
    for (int i = 0; i < p->parts; i++) lm_moe_abandon(p->part[i]);
    return LM_OK;
}

int lm__depart_gradient(lm_node *n, int leg, bool back, lm_tensor *x) {
    lm_tensor *there;
    int st = lm__depart(n->extra, leg, back, x, &there);
    if (st != LM_OK) return st;
    lm_tensor_release(there);
    if (lm__wants(n, 0)) {
        lm_tensor_retain(x);
        return lm__give(n, 0, x);
    }
    st = lm__land(n->extra, leg, &there);
    if (st == LM_OK) lm_tensor_release(there);
    return st;
}

/* ---- dispatch ---- */

/* copies' gradients -> tokens' */
static int dispatch_start_backward(lm_node *n) {
    lm_plan *p = n->extra;
    lm_tensor *copies = NULL, *parcels = NULL, *dx = NULL;
    int st = lm__land(p, LM_LEG_DISPATCH_BACKWARD, &copies);
    if (st == LM_OK) st = lm__sum_copies(p, copies, &parcels);
    if (st == LM_OK) st = lm__rows_sum(parcels, p->tokens, p->fan, NULL, p->parcel_of, &dx);
    if (st == LM_OK) st = lm__give(n, 0, dx);
    lm_tensor_release(parcels);
    lm_tensor_release(copies);
    return st;
}

static int dispatch_start(lm_plan *p, lm_tensor *x) {
    lm_tensor *dense = NULL, *copies = NULL, *received = NULL;
    lm_node *n = NULL;
    int st = lm__check_rows("dispatch", x, p->tokens, "tokens");
    if (st == LM_OK) st = lm__tensor_dense(x, x->dtype, &dense);
    if (st == LM_OK) st = lm__rows_gather(dense, p->token_of, p->wire.leaving, &copies);
    if (st == LM_OK) st = lm__depart(p, LM_LEG_DISPATCH, false, copies, &received);
    if (st == LM_OK)
        st = lm__record("dispatch_start", dispatch_start_backward, 1, &x, 1, &received, &n);
    lm__hold_plan(n, p);
    lm_tensor_release(received);
    lm_tensor_release(copies);
    lm_tensor_release(dense);
    if (st != LM_OK) lm__settle(p, LM_LEG_DISPATCH);
    return st;
}

/* arrivals' gradients -> those of parcels received, on their way */
static int dispatch_finish_backward(lm_node *n) {
    lm_plan *p = n->extra;
    lm_tensor *dy = NULL, *received = NULL;
    int st = lm__tensor_dense(lm__grad(n, 0), n->dtype[0], &dy);
    if (st == LM_OK)
        st = p->once
                 ? lm__rows_sum(dy, p->wire.arriving, p->width, NULL, p->arrival_at, &received)
                 : lm__rows_gather(dy, p->arrival_at, p->arrivals, &received);
    if (st == LM_OK) st = lm__depart_gradient(n, LM_LEG_DISPATCH_BACKWARD, true, received);
    lm_tensor_release(received);
    lm_tensor_release(dy);
    return st;
}

int lm_moe_dispatch_finish(lm_plan *p, lm_tensor **out) {
    lm_tensor *received = NULL, *y = NULL;
    lm_node *n = NULL;
    int st = lm__land(p, LM_LEG_DISPATCH, &received);
    if (st == LM_OK) st = lm__rows_gather(received, p->arrival_of, p->arrivals, &y);
    if (st == LM_OK)
        st = lm__record("dispatch", dispatch_finish_backward, 1, &received, 1, &y, &n);
    lm__hold_plan(n, p);
    lm_tensor_release(received);
    return lm__finish(st, y, out);
}

int lm_moe_dispatch_start(lm_plan *p, lm_tensor *x, lm_tensor *weights) {
    int st = dispatch_start(p, x);
    if (st == LM_OK && weights && p->once) st = lm__weights_start(p, weights);
    if (st != LM_OK) lm__settle(p, LM_LEG_DISPATCH);
    return st;
}

int lm_moe_dispatch(lm_plan *p, lm_tensor *x, lm_tensor **out) {
    int st = dispatch_start(p, x);
    return st == LM_OK ? lm_moe_dispatch_finish(p, out) : st;
}
