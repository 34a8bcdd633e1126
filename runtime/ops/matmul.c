/* matmul.c - matrix products, each one call of the library behind the gemm kernel.
 *
 * A transposed or strided operand is handed over as it is. Weight gradients are
 * added straight into a leaf's f32 gradient. */
#include "runtime/ops/op.h"

#include <string.h>

/* ---- batched product over already expanded operands ---- */

static lm_matrix matrix_of(const lm_tensor *t, int64_t batch_stride) {
    return (lm_matrix){t->data, t->dtype, batch_stride, t->stride[t->ndim - 2],
                       t->stride[t->ndim - 1]};
}

/* Strides of the batch dims as one stride; false when they are not one progression. */
static bool one_batch_stride(const lm_tensor *t, int64_t *stride) {
    *stride = 0;
    int64_t expected = -1;
    for (int d = t->ndim - 3; d >= 0; d--) {
        if (t->shape[d] == 1) continue;
        if (expected < 0) *stride = t->stride[d];
        else if (t->stride[d] != expected) return false;
        expected = t->stride[d] * t->shape[d];
    }
    return true;
}

static int product(lm_tensor *a, lm_tensor *b, lm_tensor *y) {
    int64_t m = y->shape[y->ndim - 2], k = a->shape[a->ndim - 1], n = y->shape[y->ndim - 1];
    int64_t batch = 1, as, bs;
    lm_tensor *da = NULL, *db = NULL;
    for (int d = 0; d < y->ndim - 2; d++) batch *= y->shape[d];
    int st = LM_OK;
    one_batch_stride(b, &bs);
    if (!one_batch_stride(a, &as) || (as == 0 && bs == 0 && batch > 1)) { /* gemm expands one */
        st = lm__tensor_like(a, a->dtype, &da);
        if (st == LM_OK) st = lm_tensor_copy(da, a), a = da;
        if (st == LM_OK) one_batch_stride(a, &as);
    }
    if (st == LM_OK && !one_batch_stride(b, &bs)) {
        st = lm__tensor_like(b, b->dtype, &db);
        if (st == LM_OK) st = lm_tensor_copy(db, b), b = db;
        if (st == LM_OK) one_batch_stride(b, &bs);
    }
    if (st == LM_OK) {
        lm_matrix ma = matrix_of(a, as), mb = matrix_of(b, bs), my = matrix_of(y, m * n);
        st = lm__ran("matmul",
                     lm__kernels(y)->gemm(batch, m, n, k, 1, &ma, &mb, 0, &my, NULL, 0));
    }
    lm_tensor_release(da), lm_tensor_release(db);
    return st;
}

static int matmul_backward(lm_node *n) { /* da = dy b', db = a' dy; both have 2 dims or more */
    lm_tensor *a, *b, *t = NULL, *g = NULL, *dy = lm__grad(n, 0);
    int st = lm__saved(n, 0, &a);
    if (st == LM_OK) st = lm__saved(n, 1, &b);
    if (st == LM_OK && lm__wants(n, 0)) {
        st = lm_transpose(b, -2, -1, &t);
        if (st == LM_OK) st = lm_matmul(dy, t, &g);
        lm_tensor_release(t), t = NULL;
        if (st == LM_OK) st = lm__give(n, 0, g);
    }
    if (st == LM_OK && lm__wants(n, 1)) {
        st = lm_transpose(a, -2, -1, &t);
        if (st == LM_OK) st = lm_matmul(t, dy, &g);
        lm_tensor_release(t);
        if (st == LM_OK) st = lm__give(n, 1, g);
    }
    return st;
}

static int matmul_nd(lm_tensor *a, lm_tensor *b, lm_tensor **out) {
    char as[96], bs[96];
    int64_t ka = a->shape[a->ndim - 1], kb = b->shape[b->ndim - 2];
    if (ka != kb)
        return lm_fail(LM_ESHAPE, "matmul: %s × %s: inner sizes %lld and %lld differ",
                       lm__describe(a, as), lm__describe(b, bs), (long long)ka, (long long)kb);
    int ndim = a->ndim > b->ndim ? a->ndim : b->ndim;
    int64_t sa[LM_MAX_DIMS], sb[LM_MAX_DIMS], sy[LM_MAX_DIMS];
    for (int d = 0; d < ndim - 2; d++) {
        int da = d - (ndim - a->ndim), db = d - (ndim - b->ndim);
        int64_t x = da >= 0 ? a->shape[da] : 1, y = db >= 0 ? b->shape[db] : 1;
        if (x != y && x != 1 && y != 1)
            return lm_fail(LM_ESHAPE, "matmul: %s × %s: batch dims do not broadcast",
                           lm__describe(a, as), lm__describe(b, bs));
        sa[d] = sb[d] = sy[d] = x == 1 ? y : x;
    }
    sa[ndim - 2] = sy[ndim - 2] = a->shape[a->ndim - 2], sa[ndim - 1] = ka;
    sb[ndim - 1] = sy[ndim - 1] = b->shape[b->ndim - 1], sb[ndim - 2] = kb;

    int dtype = lm__promote(a, b), before = lm_grad_set_enabled(0);
    lm_tensor *xa = NULL, *xb = NULL, *wa = NULL, *wb = NULL, *y = NULL;
    lm_node *n = NULL;
    int st = lm_to_dtype(a, dtype, &xa);
    if (st == LM_OK) st = lm_to_dtype(b, dtype, &xb);
    if (st == LM_OK) st = lm_expand(xa, ndim, sa, &wa);
    if (st == LM_OK) st = lm_expand(xb, ndim, sb, &wb);
    if (st == LM_OK) st = lm_tensor_new(dtype, ndim, sy, &y);
    if (st == LM_OK) st = product(wa, wb, y);
    lm_grad_set_enabled(before);
    if (st == LM_OK)
        st = lm__record("matmul", matmul_backward, 2, (lm_tensor *[]){a, b}, 1, &y, &n);
    if (st == LM_OK) st = lm__save(n, 0, xa);
    if (st == LM_OK) st = lm__save(n, 1, xb);
    lm_tensor_release(xa), lm_tensor_release(xb), lm_tensor_release(wa), lm_tensor_release(wb);
    return lm__finish(st, y, out);
}

/* A vector on the left is a row, on the right a column; its dim goes again. */
int lm_matmul(lm_tensor *a, lm_tensor *b, lm_tensor **out) {
    char as[96], bs[96];
    int st = lm__floating("matmul", a);
    if (st == LM_OK) st = lm__floating("matmul", b);
    if (st != LM_OK) return st;
    if (a->ndim == 0 || b->ndim == 0)
        return lm_fail(LM_ESHAPE, "matmul: %s × %s: numbers are multiplied with *",
                       lm__describe(a, as), lm__describe(b, bs));
    if (a->ndim > 1 && b->ndim > 1) return matmul_nd(a, b, out);
    if (a->ndim > 1 && a->shape[a->ndim - 1] != b->shape[0])
        return lm_fail(LM_ESHAPE, "matmul: %s × %s: inner sizes %lld and %lld differ",
                       lm__describe(a, as), lm__describe(b, bs),
                       (long long)a->shape[a->ndim - 1], (long long)b->shape[0]);
    lm_tensor *row = NULL, *column = NULL, *y = NULL, *z = NULL;
    st = a->ndim == 1 ? lm_unsqueeze(a, 0, &row) : (lm_tensor_retain(row = a), LM_OK);
    if (st == LM_OK)
        st = b->ndim == 1 ? lm_unsqueeze(b, 1, &column) : (lm_tensor_retain(column = b), LM_OK);
    if (st == LM_OK) st = matmul_nd(row, column, &y);
    if (st == LM_OK && b->ndim == 1) {
        st = lm_squeeze(y, -1, &z);
        lm_tensor_release(y), y = z, z = NULL;
    }
    if (st == LM_OK && a->ndim == 1) {
        st = lm_squeeze(y, b->ndim == 1 ? -1 : -2, &z);
        lm_tensor_release(y), y = z;
    }
    lm_tensor_release(row), lm_tensor_release(column);
    return lm__finish(st, y, out);
}

int lm_bmm(lm_tensor *a, lm_tensor *b, lm_tensor **out) {
    char as[96], bs[96];
    int st = lm__floating("bmm", a);
    if (st == LM_OK) st = lm__floating("bmm", b);
    if (st != LM_OK) return st;
    if (a->ndim != 3 || b->ndim != 3 || a->shape[0] != b->shape[0])
        return lm_fail(LM_ESHAPE, "bmm: %s × %s: wants [b, m, k] × [b, k, n]",
                       lm__describe(a, as), lm__describe(b, bs));
    return matmul_nd(a, b, out);
}

/* ---- linear: y = x W' + bias, W [out, in]; or relu of that, in the product's last step ----
 */

/* The gradient of what relu saw, which y tells; in dy's place where nobody else has that. */
static int through_relu(const char *op, lm_tensor *dy, const lm_tensor *y, lm_tensor **out) {
    lm_tensor *dense = NULL, *g = NULL;
    int st = LM_OK;
    if (lm__ours_alone(dy) && dy->dtype == y->dtype)
        lm_tensor_retain(dense = g = dy), lm_tensor_retain(g);
    else {
        st = lm__tensor_dense(dy, y->dtype, &dense);
        if (st == LM_OK) st = lm__tensor_like(y, y->dtype, &g);
    }
    if (st == LM_OK)
        st = lm__ran(op, lm__kernels(y)->unary_bwd(LM_RELU, y->dtype, y->numel, g->data,
                                                   dense->data, NULL, y->data));
    lm_tensor_release(dense);
    return lm__finish(st, g, out);
}

static int linear_backward(lm_node *n) { /* saved: x, weight, y of relu */
    lm_tensor *x, *w, *y, *dy = NULL, *dx = NULL, *dw, *own = NULL, *db = NULL;
    bool fresh;
    int st = lm__saved(n, 0, &x);
    if (st == LM_OK) st = lm__saved(n, 1, &w);
    if (st == LM_OK) st = lm__saved(n, 2, &y);
    if (st == LM_OK && y) st = through_relu(n->op, lm__grad(n, 0), y, &dy);
    else if (st == LM_OK) st = lm__tensor_dense(lm__grad(n, 0), x->dtype, &dy);
    if (st != LM_OK) return st;
    int64_t in = w->shape[1], outs = w->shape[0], rows = outs ? dy->numel / outs : 0;
    lm_matrix my = {dy->data, dy->dtype, 0, outs, 1}, mx = {x->data, x->dtype, 0, in, 1};
    lm_matrix mw = {w->data, w->dtype, 0, w->stride[0], w->stride[1]};
    if (lm__wants(n, 0)) {
        st = lm__tensor_like(x, x->dtype, &dx);
        if (st == LM_OK) {
            lm_matrix mdx = {dx->data, dx->dtype, 0, in, 1};
            st = lm__ran(
                n->op, lm__kernels(x)->gemm(1, rows, in, outs, 1, &my, &mw, 0, &mdx, NULL, 0));
        }
        if (st == LM_OK) st = lm__give(n, 0, dx);
        else lm_tensor_release(dx);
    }
    if (st == LM_OK && lm__wants(n, 1)) { /* dW += dy' x, straight into a leaf's gradient */
        st = lm__leaf_grad(n, 1, false, &dw, &fresh);
        if (st == LM_OK && !dw) {
            st = lm_tensor_new(LM_F32, 2, w->shape, &own);
            dw = own, fresh = true;
        }
        if (st == LM_OK) {
            lm_matrix dyt = {dy->data, dy->dtype, 0, 1, outs},
                      mdw = {dw->data, LM_F32, 0, in, 1};
            st = lm__ran(n->op, lm__kernels(x)->gemm(1, outs, in, rows, 1, &dyt, &mx,
                                                     fresh ? 0 : 1, &mdw, NULL, 0));
        }
        if (own && st == LM_OK) st = lm__give(n, 1, own);
        else lm_tensor_release(own);
    }
    if (st == LM_OK && n->inputs > 2 && lm__wants(n, 2)) {
        st = lm_tensor_new(LM_F32, 1, &outs, &db);
        if (st == LM_OK)
            st = lm__ran(n->op, lm__kernels(x)->reduce(LM_SUM, dy->dtype, 1, rows, outs,
                                                       db->data, LM_F32, dy->data));
        if (st == LM_OK) st = lm__give(n, 2, db);
        else lm_tensor_release(db);
    }
    lm_tensor_release(dy);
    return st;
}

static int linear(const char *op, int activation, lm_tensor *x, lm_tensor *weight,
                  lm_tensor *bias, lm_tensor **out) {
    char xs[96], ws[96];
    int st = lm__floating(op, x);
    if (st == LM_OK) st = lm__floating(op, weight);
    if (st == LM_OK && bias) st = lm__floating(op, bias);
    if (st != LM_OK) return st;
    int64_t in = x->ndim ? x->shape[x->ndim - 1] : -1;
    if (weight->ndim != 2 || weight->shape[1] != in)
        return lm_fail(LM_ESHAPE,
                       "%s: weight is %s, but x is %s; wants [out, in] and [..., in]", op,
                       lm__describe(weight, ws), lm__describe(x, xs));
    if (bias && (bias->ndim != 1 || bias->shape[0] != weight->shape[0]))
        return lm_fail(LM_ESHAPE, "%s: bias is %s, but weight is %s", op,
                       lm__describe(bias, xs), lm__describe(weight, ws));
    int64_t shape[LM_MAX_DIMS], outs = weight->shape[0], rows = 1;
    for (int d = 0; d < x->ndim; d++) shape[d] = x->shape[d];
    for (int d = 0; d < x->ndim - 1; d++) rows *= x->shape[d];
    shape[x->ndim - 1] = outs;
    int dtype = lm__promote(x, weight);
    lm_tensor *dx = NULL, *dw = NULL, *db = NULL, *y = NULL;
    lm_node *n = NULL;
    st = lm__tensor_dense(x, dtype, &dx);
    if (st == LM_OK) { /* any strides will do for the weight */
        if (weight->dtype == dtype) lm_tensor_retain(dw = weight);
        else st = lm__tensor_dense(weight, dtype, &dw);
    }
    if (st == LM_OK && bias) st = lm__tensor_dense(bias, bias->dtype, &db);
    if (st == LM_OK) st = lm_tensor_new(dtype, x->ndim, shape, &y);
    if (st == LM_OK) {
        lm_matrix mx = {dx->data, dtype, 0, in, 1}, my = {y->data, dtype, 0, outs, 1};
        lm_matrix wt = {dw->data, dtype, 0, dw->stride[1], dw->stride[0]};
        st = lm__ran(op, lm__kernels(x)->gemm_act(1, rows, outs, in, 1, &mx, &wt, 0, &my,
                                                  db ? db->data : NULL, db ? db->dtype : LM_F32,
                                                  activation));
    }
    if (st == LM_OK)
        st = lm__record(op, linear_backward, bias ? 3 : 2, (lm_tensor *[]){x, weight, bias}, 1,
                        &y, &n);
    if (st == LM_OK) st = lm__save(n, 0, dx);
    if (st == LM_OK) st = lm__save(n, 1, dw);
    if (st == LM_OK) st = lm__save(n, 2, activation == LM_RELU ? y : NULL);
    lm_tensor_release(dx), lm_tensor_release(dw), lm_tensor_release(db);
    return lm__finish(st, y, out);
}

int lm_linear(lm_tensor *x, lm_tensor *weight, lm_tensor *bias, lm_tensor **out) {
    return linear("linear", -1, x, weight, bias, out);
}
int lm_linear_relu(lm_tensor *x, lm_tensor *weight, lm_tensor *bias, lm_tensor **out) {
    return linear("linear_relu", LM_RELU, x, weight, bias, out);
}
