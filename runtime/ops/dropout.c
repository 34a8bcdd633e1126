/* dropout.c - zeroes an element with probability p and scales the rest by 1 / (1 - p); alone,
 * or of what a residual adds: dropout_add is x + dropout(h) in one pass.
 *
 * The draws are a function of (stream, row's id, element), so padding or ranks change nothing.
 * Which elements were kept is saved for backward, one bit each. */
#include "runtime/ops/dropout.h"
#include "runtime/random.h"

enum { MASK }; /* saved; f[0]: p */

int lm__dropout_draw(const char *op, const lm_tensor *x, double p, double high, double low,
                     lm_tensor *rows, lm_tensor **ids, lm_draw *draw) {
    char xs[96], rs[96];
    int st = lm__floating(op, x);
    if (st == LM_OK && rows) st = lm__usable(op, rows);
    if (st != LM_OK) return st;
    if (!(p >= 0 && p <= 1)) return lm_fail(LM_EARG, "%s: p is %g, wants 0 to 1", op, p);
    if (rows && (rows->dtype != LM_I64 || rows->numel != lm__rows(x)))
        return lm_fail(LM_ESHAPE, "%s: %s has %lld rows, but their ids are %s", op,
                       lm__describe(x, xs), (long long)lm__rows(x), lm__describe(rows, rs));
    if (rows) st = lm__tensor_dense(rows, LM_I64, ids);
    if (st != LM_OK) return st;
    /* Two exact halves of the stream, since Lua's numbers hold 53 bits. */
    *draw = (lm_draw){.seed = (uint64_t)(int64_t)lm_random_get_seed(),
                      .stream = (uint64_t)high << 32 | (uint64_t)low,
                      .row_ids = rows ? (const int64_t *)(const void *)(*ids)->data : NULL};
    return LM_OK;
}

int lm__dropout_mask(const lm_tensor *x, lm_tensor **out) {
    int64_t shape[2] = {lm__rows(x), (lm__width(x) + 7) / 8};
    return lm_tensor_new(LM_U8, 2, shape, out);
}

int lm__dropout_gradient(const char *op, lm_tensor *dy, const lm_tensor *mask, double p,
                         lm_tensor **out) {
    lm_tensor *dense = NULL, *dx = NULL;
    int st = lm__tensor_dense(dy, dy->dtype, &dense);
    if (st == LM_OK) st = lm__tensor_like(dy, dy->dtype, &dx);
    if (st == LM_OK)
        st = lm__ran(op, lm__kernels(dy)->dropout_bwd(dy->dtype, lm__rows(dy), lm__width(dy),
                                                      dx->data, dense->data,
                                                      lm__mask_bits(mask), p));
    lm_tensor_release(dense);
    return lm__finish(st, dx, out);
}

static int dropout_backward(lm_node *n) {
    lm_tensor *mask, *g = NULL;
    int st = lm__saved(n, MASK, &mask);
    if (st == LM_OK) st = lm__dropout_gradient(n->op, lm__grad(n, 0), mask, n->f[0], &g);
    return lm__give_result(st, n, 0, g);
}

int lm_dropout(lm_tensor *x, double p, double stream_high, double stream_low, lm_tensor *rows,
               lm_tensor **out) {
    lm_tensor *ids = NULL, *dense = NULL, *mask = NULL, *y = NULL;
    lm_node *n = NULL;
    lm_draw draw;
    int st = lm__dropout_draw("dropout", x, p, stream_high, stream_low, rows, &ids, &draw);
    if (st == LM_OK) st = lm__tensor_dense(x, x->dtype, &dense);
    if (st == LM_OK) st = lm__tensor_like(x, x->dtype, &y);
    if (st == LM_OK && lm__grad_enabled() && x->requires_grad) st = lm__dropout_mask(x, &mask);
    if (st == LM_OK)
        st = lm__ran("dropout",
                     lm__kernels(x)->dropout_fwd(x->dtype, lm__rows(x), lm__width(x), y->data,
                                                 lm__mask_bits(mask), dense->data, p, &draw));
    if (st == LM_OK) st = lm__record("dropout", dropout_backward, 1, &x, 1, &y, &n);
    if (n) n->f[0] = p;
    if (st == LM_OK) st = lm__save(n, MASK, mask);
    lm_tensor_release(ids), lm_tensor_release(dense), lm_tensor_release(mask);
    return lm__finish(st, y, out);
}

/* ---- x + dropout(h) ---- */

int lm__residual(const char *op, lm_tensor *h, lm_tensor *x, lm_tensor **dense_h,
                 lm_tensor **dense_x) {
    char hs[96], xs[96];
    int st = lm__floating(op, h);
    if (st == LM_OK) st = lm__floating(op, x);
    if (st == LM_OK && !lm__same_shape(h, x))
        st = lm_fail(LM_ESHAPE, "%s: h is %s, but x is %s", op, lm__describe(h, hs),
                     lm__describe(x, xs));
    if (st == LM_OK) st = lm__tensor_dense(h, lm__promote(h, x), dense_h);
    if (st == LM_OK) st = lm__tensor_dense(x, lm__promote(h, x), dense_x);
    return st;
}

static int dropout_add_backward(lm_node *n) { /* inputs h, x */
    lm_tensor *mask, *dh = NULL, *dy = lm__grad(n, 0);
    int st = lm__saved(n, MASK, &mask);
    if (st == LM_OK && lm__wants(n, 0)) {
        if (mask) st = lm__dropout_gradient(n->op, dy, mask, n->f[0], &dh);
        else lm_tensor_retain(dh = dy);
        st = lm__give_result(st, n, 0, dh);
    }
    if (st != LM_OK) return st;
    lm_tensor_retain(dy);
    return lm__give(n, 1, dy);
}

int lm_dropout_add(lm_tensor *h, lm_tensor *x, double p, double stream_high, double stream_low,
                   lm_tensor *rows, lm_tensor **out) {
    lm_tensor *ids = NULL, *dh = NULL, *dx = NULL, *mask = NULL, *y = NULL;
    lm_node *n = NULL;
    lm_draw draw;
    int st = lm__residual("dropout_add", h, x, &dh, &dx);
    if (st == LM_OK)
        st = lm__dropout_draw("dropout_add", h, p, stream_high, stream_low, rows, &ids, &draw);
    if (st == LM_OK) st = lm__tensor_like(dx, dx->dtype, &y);
    if (st == LM_OK && p > 0 && lm__grad_enabled() && h->requires_grad)
        st = lm__dropout_mask(h, &mask);
    if (st == LM_OK)
        st = lm__ran("dropout_add", lm__kernels(x)->dropout_add_norm_fwd(
                                        y->dtype, lm__rows(y), lm__width(y), y->data,
                                        lm__mask_bits(mask), NULL, NULL, NULL, dx->data,
                                        dh->data, p, &draw, NULL, NULL, LM_F32, 0));
    if (st == LM_OK)
        st = lm__record("dropout_add", dropout_add_backward, 2, (lm_tensor *[]){h, x}, 1, &y,
                        &n);
    if (n) n->f[0] = p;
    if (st == LM_OK) st = lm__save(n, MASK, mask);
    lm_tensor_release(ids), lm_tensor_release(dh), lm_tensor_release(dx);
    lm_tensor_release(mask);
    return lm__finish(st, y, out);
}
