/* exchange.c - dispatch and combine: rows to the experts, and back.
 *
 *   dispatch:  tokens --gather--> copies ==all_to_all==> received --gather--> arrivals
 *   combine:   arrivals --gather--> received ==all_to_all==> copies --sum--> rows
 *              --weighted sum--> tokens
 *
 * Each is the other's backward. A row has one copy, unless its expert is cut into
 * slices: then one for each, and what they return is added up in the order of the
 * ranks. Exactly the rows that move are sent; alone, or
 * where all is in order already, nothing is copied that need not be. */
#include "runtime/moe/plan_impl.h"
#include "runtime/ops/op.h"

#include <stdlib.h>

/* ---- plans on the tape ---- */

static void drop_plan(void *p) { lm_plan_release(p); }

static void hold_plan(lm_node *n, lm_plan *p) {
    if (!n) return;
    lm_plan_retain(p);
    n->extra = p;
    n->free_extra = drop_plan;
}

/* ---- pieces ---- */

static int rows_new(int dtype, int64_t rows, int64_t dim, lm_tensor **out) {
    return lm_tensor_new(dtype, 2, (int64_t[]){rows, dim}, out);
}

/* out[i] = x[ids[i]]; ids NULL: x itself. */
static int gather(lm_tensor *x, const int32_t *ids, int64_t count, lm_tensor **out) {
    if (!ids) {
        lm_tensor_retain(*out = x);
        return LM_OK;
    }
    int64_t bad, dim = x->shape[1];
    lm_tensor *y;
    int st = rows_new(x->dtype, count, dim, &y);
    if (st != LM_OK) return st;
    st = lm__kernels(x)->gather_rows(x->dtype, count, dim, x->shape[0], y->data, x->data,
                                     LM_I32, ids, &bad);
    if (st != LM_OK) st = lm_fail(LM_EINTERNAL, "moe: gathering rows failed");
    return lm__finish(st, y, out);
}

/* rows[r] rows go to rank r of the group, back[r] come from it. */
static int exchange(const lm_plan *p, lm_tensor *x, const int64_t *rows, const int64_t *back,
                    int64_t count, lm_tensor **out) {
    if (!p->expert) {
        lm_tensor_retain(*out = x);
        return LM_OK;
    }
    int ranks = lm_group_size(p->expert);
    int64_t bytes = x->shape[1] * lm_dtype_size(x->dtype);
    lm_tensor *y = NULL;
    int64_t *sends = malloc(2 * (size_t)ranks * sizeof *sends), *receives = sends + ranks;
    int st = sends ? rows_new(x->dtype, count, x->shape[1], &y)
                   : lm_fail(LM_EOOM, "moe: no memory for an exchange");
    if (st == LM_OK) {
        lm_tensor_set_purpose(y, LM_MEM_EXCHANGE);
        for (int r = 0; r < ranks; r++)
            sends[r] = rows[r] * bytes, receives[r] = back[r] * bytes;
        st = lm_all_to_all_v(p->expert, x->data, sends, y->data, receives);
    }
    free(sends);
    return lm__finish(st, y, out);
}

/* out[i] = the sum over slots of weights[i, s] x[at[i, s]]; weights NULL: ones. */
static int sum(lm_tensor *x, int64_t count, int slots, const float *weights, const int32_t *at,
               lm_tensor **out) {
    lm_tensor *y;
    int64_t dim = x->shape[1];
    int st = rows_new(x->dtype, count, dim, &y);
    if (st != LM_OK) return st;
    st =
        lm__kernels(x)->combine_fwd(x->dtype, count, slots, dim, y->data, x->data, weights, at);
    if (st != LM_OK) st = lm_fail(st, "moe: adding up rows failed");
    return lm__finish(st, y, out);
}

/* copies in send order -> arrivals */
static int forth(const lm_plan *p, lm_tensor *copies, lm_tensor **out) {
    lm_tensor *received;
    int st = exchange(p, copies, p->sends, p->receives, p->arrivals, &received);
    if (st != LM_OK) return st;
    st = gather(received, p->arrival_of, p->arrivals, out);
    lm_tensor_release(received);
    return st;
}

/* arrivals -> rows in send order */
static int back(const lm_plan *p, lm_tensor *arrivals, lm_tensor **out) {
    lm_tensor *received, *copies = NULL;
    int st = gather(arrivals, p->arrival_at, p->arrivals, &received);
    if (st != LM_OK) return st;
    st = exchange(p, received, p->receives, p->sends, p->copies, &copies);
    lm_tensor_release(received);
    if (st != LM_OK) return st;
    if (p->copy_of) st = sum(copies, p->rows, p->etp, NULL, p->copy_of, out);
    else lm_tensor_retain(*out = copies);
    lm_tensor_release(copies);
    return st;
}

static int sum_slots(const lm_plan *p, lm_tensor *rows, const float *weights, lm_tensor **out) {
    return sum(rows, p->tokens, p->top_k, weights, p->row_of, out);
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
    const lm_plan *p = n->extra;
    lm_tensor *dy = NULL, *rows = NULL, *dx = NULL;
    int st = lm__tensor_dense(lm__grad(n, 0), n->dtype[0], &dy);
    if (st == LM_OK) st = back(p, dy, &rows);
    if (st == LM_OK) st = sum_slots(p, rows, NULL, &dx);
    if (st == LM_OK) st = lm__give(n, 0, dx);
    lm_tensor_release(rows);
    lm_tensor_release(dy);
    return st;
}

int lm_moe_dispatch(lm_plan *p, lm_tensor *x, lm_tensor **out) {
    lm_tensor *dense = NULL, *copies = NULL, *y = NULL;
    lm_node *n = NULL;
    int st = check_rows("dispatch", x, p->tokens, "tokens");
    if (st == LM_OK) st = lm__tensor_dense(x, x->dtype, &dense);
    if (st == LM_OK) st = gather(dense, p->token_of, p->copies, &copies);
    if (st == LM_OK) st = forth(p, copies, &y);
    if (st == LM_OK) st = lm__record("dispatch", dispatch_backward, 1, &x, 1, &y, &n);
    hold_plan(n, p);
    lm_tensor_release(copies);
    lm_tensor_release(dense);
    return lm__finish(st, y, out);
}

/* ---- combine ---- */

/* Even a rank whose rows or weights want no gradient takes part: others may wait for its rows.
 */
static int combine_backward(lm_node *n) {
    const lm_plan *p = n->extra;
    lm_tensor *rows, *weights, *dy = NULL, *d_rows = NULL, *copies = NULL;
    lm_tensor *dx = NULL, *dw = NULL;
    int st = lm__saved(n, 0, &rows);
    if (st == LM_OK) st = lm__saved(n, 1, &weights);
    if (st == LM_OK) st = lm__tensor_dense(lm__grad(n, 0), rows->dtype, &dy);
    if (st == LM_OK) st = lm__tensor_like(rows, rows->dtype, &d_rows);
    if (st == LM_OK) st = lm__tensor_like(weights, LM_F32, &dw);
    if (st == LM_OK)
        st = lm__kernels(rows)->combine_bwd(
            rows->dtype, p->tokens, p->top_k, rows->shape[1], d_rows->data,
            (float *)(void *)dw->data, dy->data, rows->data,
            (const float *)(const void *)weights->data, p->row_of);
    if (st == LM_OK) st = gather(d_rows, p->row_at, p->copies, &copies);
    if (st == LM_OK) st = forth(p, copies, &dx);
    if (st == LM_OK) {
        lm_tensor_retain(dw);
        st = lm__give(n, 1, dw);
    }
    if (st == LM_OK) st = lm__give(n, 0, dx), dx = NULL;
    lm_tensor_release(dx);
    lm_tensor_release(dw);
    lm_tensor_release(copies);
    lm_tensor_release(d_rows);
    lm_tensor_release(dy);
    return st;
}

int lm_moe_combine(lm_plan *p, lm_tensor *x, lm_tensor *weights, lm_tensor **out) {
    char text[96];
    lm_tensor *dense = NULL, *rows = NULL, *y = NULL, *w = NULL;
    lm_node *n = NULL;
    int st = check_rows("combine", x, p->arrivals, "arrivals");
    if (st == LM_OK) st = lm__floating("combine", weights);
    if (st == LM_OK &&
        (weights->ndim != 2 || weights->shape[0] != p->tokens || weights->shape[1] != p->top_k))
        st = lm_fail(LM_ESHAPE, "combine: weights are %s, but the plan has %lld tokens, top %d",
                     lm__describe(weights, text), (long long)p->tokens, p->top_k);
    if (st == LM_OK) st = lm__tensor_dense(x, x->dtype, &dense);
    if (st == LM_OK) st = lm__tensor_dense(weights, LM_F32, &w);
    if (st == LM_OK) st = back(p, dense, &rows);
    if (st == LM_OK) st = sum_slots(p, rows, (const float *)(const void *)w->data, &y);
    if (st == LM_OK)
        st = lm__record("combine", combine_backward, 2, (lm_tensor *[]){x, weights}, 1, &y, &n);
    if (st == LM_OK) st = lm__save(n, 0, rows);
    if (st == LM_OK) st = lm__save(n, 1, w);
    hold_plan(n, p);
    lm_tensor_release(rows);
    lm_tensor_release(w);
    lm_tensor_release(dense);
    return lm__finish(st, y, out);
}
