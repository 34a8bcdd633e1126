/* softmax.c - softmax, log-softmax and logsumexp over any dim, in f32 inside. Kernels see rows:
 * another dim than the last is turned to the end and back, as recorded views. */
#include "runtime/ops/op.h"

static int softmax_backward(lm_node *n) { /* i[0]: log; saved 0: y */
    lm_tensor *y, *dy = NULL, *dx = NULL;
    int st = lm__saved(n, 0, &y);
    if (st == LM_OK) st = lm__tensor_dense(lm__grad(n, 0), y->dtype, &dy);
    if (st == LM_OK) st = lm__tensor_like(y, y->dtype, &dx);
    if (st == LM_OK) {
        int64_t rows = lm__rows(y), width = lm__width(y);
        st = lm__ran(n->op, lm__kernels(y)->softmax_bwd(y->dtype, rows, width, (int)n->i[0],
                                                        dx->data, dy->data, y->data));
    }
    lm_tensor_release(dy);
    return lm__give_result(st, n, 0, dx);
}

static int over_rows(const char *name, lm_tensor *x, int log, lm_tensor **out) {
    lm_tensor *dense = NULL, *y = NULL;
    lm_node *n = NULL;
    int st = lm__tensor_dense(x, x->dtype, &dense);
    if (st == LM_OK) st = lm__tensor_like(x, x->dtype, &y);
    if (st == LM_OK)
        st = lm__ran(name, lm__kernels(x)->softmax_fwd(x->dtype, lm__rows(x), lm__width(x), log,
                                                       y->data, dense->data));
    if (st == LM_OK) st = lm__record(name, softmax_backward, 1, &x, 1, &y, &n);
    if (st == LM_OK && n) n->i[0] = log, st = lm__save(n, 0, y);
    lm_tensor_release(dense);
    return lm__finish(st, y, out);
}

static int softmax(const char *name, lm_tensor *x, int64_t dim, int log, lm_tensor **out) {
    int d = 0, st = lm__floating(name, x);
    if (st == LM_OK) st = lm__dim(name, x, dim, &d);
    if (st != LM_OK) return st;
    if (d >= x->ndim - 1) return over_rows(name, x, log, out);
    lm_tensor *turned = NULL, *y = NULL;
    st = lm_transpose(x, d, -1, &turned);
    if (st == LM_OK) st = over_rows(name, turned, log, &y);
    if (st == LM_OK) st = lm_transpose(y, d, -1, out);
    lm_tensor_release(turned), lm_tensor_release(y);
    return st;
}

int lm_softmax(lm_tensor *x, int64_t dim, lm_tensor **out) {
    return softmax("softmax", x, dim, 0, out);
}
int lm_log_softmax(lm_tensor *x, int64_t dim, lm_tensor **out) {
    return softmax("log_softmax", x, dim, 1, out);
}

/* ---- logsumexp: its gradient is the softmax ---- */

static int logsumexp_backward(lm_node *n) { /* i: dim, keepdim; saved 0: x */
    lm_tensor *x, *p = NULL, *dy = NULL, *g = NULL;
    int st = lm__saved(n, 0, &x);
    if (st == LM_OK) st = lm_softmax(x, n->i[0], &p);
    if (st == LM_OK) {
        if (n->i[1] || x->ndim == 0) lm_tensor_retain(dy = lm__grad(n, 0));
        else st = lm_unsqueeze(lm__grad(n, 0), n->i[0], &dy);
    }
    if (st == LM_OK) st = lm_mul(p, dy, &g);
    lm_tensor_release(p), lm_tensor_release(dy);
    return lm__give_result(st, n, 0, g);
}

int lm_logsumexp(lm_tensor *x, int64_t dim, int keepdim, lm_tensor **out) {
    int d = 0, st = lm__floating("logsumexp", x);
    if (st == LM_OK) st = lm__dim("logsumexp", x, dim, &d);
    if (st != LM_OK) return st;
    int64_t shape[LM_MAX_DIMS], outer, width, inner, turned_shape[LM_MAX_DIMS];
    int ndim = lm__reduced_shape(x, d, keepdim, shape);
    lm__around(x, d, &outer, &width, &inner);
    /* [.., n, ..] with n in dim d becomes [outer, inner, n]: the rows in the result's order */
    lm_tensor *flat = NULL, *turned = NULL, *dense = NULL, *sums = NULL, *y = NULL;
    lm_node *n = NULL;
    int before = lm_grad_set_enabled(0);
    turned_shape[0] = outer, turned_shape[1] = width, turned_shape[2] = inner;
    st = lm_reshape(x, 3, turned_shape, &flat);
    if (st == LM_OK) st = lm_transpose(flat, 1, 2, &turned);
    if (st == LM_OK) st = lm__tensor_dense(turned, x->dtype, &dense);
    if (st == LM_OK) st = lm_tensor_new(LM_F32, ndim, shape, &sums);
    if (st == LM_OK)
        st = lm__ran("logsumexp",
                     lm__kernels(x)->logsumexp(x->dtype, outer * inner, width,
                                               (float *)(void *)sums->data, dense->data));
    if (st == LM_OK) st = lm__tensor_dense(sums, x->dtype, &y);
    lm_grad_set_enabled(before);
    if (st == LM_OK) st = lm__record("logsumexp", logsumexp_backward, 1, &x, 1, &y, &n);
    if (st == LM_OK && n) n->i[0] = d, n->i[1] = keepdim, st = lm__save(n, 0, x);
    lm_tensor_release(flat), lm_tensor_release(turned), lm_tensor_release(dense);
    lm_tensor_release(sums);
    return lm__finish(st, y, out);
}
