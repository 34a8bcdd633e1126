/* norm.c - over the last dim of x, with an optional scale and shift of that size:
 *
 *   layer_norm  y = (x - mean) rstd weight + bias,  rstd = 1 / sqrt(var + eps)
 *   rms_norm    y = x rstd weight,                  rstd = 1 / sqrt(mean(x^2) + eps)
 *
 * Inside it is all f32; mean and rstd, one number a row, are saved for backward. */
#include "runtime/ops/op.h"

enum { X, WEIGHT, MEAN, RSTD }; /* saved */

static float *floats(const lm_tensor *t) { return t ? (float *)(void *)t->data : NULL; }
static void *data(const lm_tensor *t) { return t ? t->data : NULL; }

static int norm_backward(lm_node *n) { /* inputs x, weight, bias; i[0]: 1 for layer_norm */
    lm_tensor *x, *weight, *mean, *rstd, *dy = NULL, *dx = NULL, *dw = NULL, *db = NULL;
    bool layer = n->i[0] != 0;
    int st = lm__saved(n, X, &x);
    if (st == LM_OK) st = lm__saved(n, WEIGHT, &weight);
    if (st == LM_OK) st = lm__saved(n, MEAN, &mean);
    if (st == LM_OK) st = lm__saved(n, RSTD, &rstd);
    if (st != LM_OK) return st;
    int64_t rows = lm__rows(x), width = lm__width(x);
    st = lm__tensor_dense(lm__grad(n, 0), x->dtype, &dy);
    if (st == LM_OK) st = lm__tensor_like(x, x->dtype, &dx);
    if (st == LM_OK && lm__wants(n, 1)) st = lm_tensor_new(LM_F32, 1, &width, &dw);
    if (st == LM_OK && lm__wants(n, 2)) st = lm_tensor_new(LM_F32, 1, &width, &db);
    if (st == LM_OK) {
        int w_dtype = weight ? weight->dtype : LM_F32;
        st = layer ? lm__ran(n->op, lm__kernels(x)->layer_norm_bwd(
                                        x->dtype, rows, width, dx->data, floats(dw), floats(db),
                                        dy->data, x->data, floats(mean), floats(rstd),
                                        data(weight), w_dtype))
                   : lm__ran(n->op, lm__kernels(x)->rms_norm_bwd(
                                        x->dtype, rows, width, dx->data, floats(dw), dy->data,
                                        x->data, floats(rstd), data(weight), w_dtype));
    }
    lm_tensor_release(dy);
    st = lm__give_result(st, n, 0, dx);
    st = lm__give_result(st, n, 1, dw);
    return lm__give_result(st, n, 2, db);
}

static int fits(const char *op, const char *what, const lm_tensor *x, const lm_tensor *w) {
    char xs[96], ws[96];
    int st = w ? lm__floating(op, w) : LM_OK;
    if (st == LM_OK && w && (w->ndim != 1 || w->shape[0] != lm__width(x)))
        st = lm_fail(LM_ESHAPE, "%s: %s is %s, but x is %s", op, what, lm__describe(w, ws),
                     lm__describe(x, xs));
    return st;
}

static int norm(const char *op, bool layer, lm_tensor *x, lm_tensor *weight, lm_tensor *bias,
                double eps, lm_tensor **out) {
    char xs[96];
    int st = lm__floating(op, x);
    if (st == LM_OK && x->ndim == 0)
        st = lm_fail(LM_ESHAPE, "%s: %s has no last dim", op, lm__describe(x, xs));
    if (st == LM_OK) st = fits(op, "weight", x, weight);
    if (st == LM_OK) st = fits(op, "bias", x, bias);
    if (st != LM_OK) return st;

    int64_t rows = lm__rows(x), width = lm__width(x);
    int w_dtype = weight ? weight->dtype : bias ? bias->dtype : LM_F32;
    if (weight && bias && weight->dtype != bias->dtype) w_dtype = LM_F32;
    lm_tensor *dense = NULL, *w = NULL, *b = NULL, *mean = NULL, *rstd = NULL, *y = NULL;
    lm_node *n = NULL;
    st = lm__tensor_dense(x, x->dtype, &dense);
    if (st == LM_OK && weight) st = lm__tensor_dense(weight, w_dtype, &w);
    if (st == LM_OK && bias) st = lm__tensor_dense(bias, w_dtype, &b);
    if (st == LM_OK && layer) st = lm_tensor_new(LM_F32, 1, &rows, &mean);
    if (st == LM_OK) st = lm_tensor_new(LM_F32, 1, &rows, &rstd);
    if (st == LM_OK) st = lm__tensor_like(x, x->dtype, &y);
    if (st == LM_OK)
        st = layer ? lm__ran(op, lm__kernels(x)->layer_norm_fwd(
                                     x->dtype, rows, width, y->data, floats(mean), floats(rstd),
                                     dense->data, data(w), data(b), w_dtype, eps))
                   : lm__ran(op, lm__kernels(x)->rms_norm_fwd(x->dtype, rows, width, y->data,
                                                              floats(rstd), dense->data,
                                                              data(w), w_dtype, eps));
    if (st == LM_OK)
        st = lm__record(op, norm_backward, 3, (lm_tensor *[]){x, weight, bias}, 1, &y, &n);
    if (n) n->i[0] = layer;
    if (st == LM_OK) st = lm__save(n, X, dense);
    if (st == LM_OK) st = lm__save(n, WEIGHT, w);
    if (st == LM_OK) st = lm__save(n, MEAN, mean);
    if (st == LM_OK) st = lm__save(n, RSTD, rstd);
    lm_tensor_release(dense), lm_tensor_release(w), lm_tensor_release(b);
    lm_tensor_release(mean), lm_tensor_release(rstd);
    return lm__finish(st, y, out);
}

int lm_layer_norm(lm_tensor *x, lm_tensor *weight, lm_tensor *bias, double eps,
                  lm_tensor **out) {
    return norm("layer_norm", true, x, weight, bias, eps, out);
}
int lm_rms_norm(lm_tensor *x, lm_tensor *weight, double eps, lm_tensor **out) {
    return norm("rms_norm", false, x, weight, NULL, eps, out);
}
