/* unary.c - y = f(x), element by element; and swiglu, which halves the last dim.
 * Backward needs x or y, whichever the derivative is cheaper from (kernels.h). */
#include "runtime/ops/op.h"

static bool reads_y(int op) {
    return op == LM_EXP || op == LM_SQRT || op == LM_RSQRT || op == LM_TANH ||
           op == LM_SIGMOID || op == LM_RECIPROCAL || op == LM_RELU;
}

static int unary_backward(lm_node *n) {
    lm_tensor *x, *y, *dy = NULL, *dx = NULL;
    int st = lm__saved(n, 0, &x);
    if (st == LM_OK) st = lm__saved(n, 1, &y);
    if (st != LM_OK) return st;
    lm_tensor *like = x ? x : y;
    st = lm__tensor_dense(lm__grad(n, 0), like->dtype, &dy);
    if (st == LM_OK) st = lm__tensor_like(like, like->dtype, &dx);
    if (st == LM_OK)
        st = lm__ran(n->op, lm__kernels(like)->unary_bwd((int)n->i[0], like->dtype, like->numel,
                                                         dx->data, dy->data, x ? x->data : NULL,
                                                         y ? y->data : NULL));
    lm_tensor_release(dy);
    if (st == LM_OK) return lm__give(n, 0, dx);
    lm_tensor_release(dx);
    return st;
}

static int unary(const char *name, int op, lm_tensor *x, lm_tensor **out) {
    int st = lm__floating(name, x);
    if (st != LM_OK) return st;
    lm_tensor *dense = NULL, *y = NULL;
    lm_node *n = NULL;
    st = lm__tensor_dense(x, x->dtype, &dense);
    if (st == LM_OK) st = lm__tensor_like(x, x->dtype, &y);
    if (st == LM_OK)
        st = lm__ran(name, lm__kernels(x)->unary(op, x->dtype, x->numel, y->data, dense->data));
    if (st == LM_OK) st = lm__record(name, unary_backward, 1, &x, 1, &y, &n);
    if (st == LM_OK && n) {
        n->i[0] = op;
        st = reads_y(op) ? lm__save(n, 1, y) : lm__save(n, 0, dense);
    }
    lm_tensor_release(dense);
    return lm__finish(st, y, out);
}

int lm_exp(lm_tensor *x, lm_tensor **out) { return unary("exp", LM_EXP, x, out); }
int lm_log(lm_tensor *x, lm_tensor **out) { return unary("log", LM_LOG, x, out); }
int lm_sqrt(lm_tensor *x, lm_tensor **out) { return unary("sqrt", LM_SQRT, x, out); }
int lm_rsqrt(lm_tensor *x, lm_tensor **out) { return unary("rsqrt", LM_RSQRT, x, out); }
int lm_square(lm_tensor *x, lm_tensor **out) { return unary("square", LM_SQUARE, x, out); }
int lm_reciprocal(lm_tensor *x, lm_tensor **out) {
    return unary("reciprocal", LM_RECIPROCAL, x, out);
}
int lm_sin(lm_tensor *x, lm_tensor **out) { return unary("sin", LM_SIN, x, out); }
int lm_cos(lm_tensor *x, lm_tensor **out) { return unary("cos", LM_COS, x, out); }
int lm_relu(lm_tensor *x, lm_tensor **out) { return unary("relu", LM_RELU, x, out); }
int lm_gelu(lm_tensor *x, lm_tensor **out) { return unary("gelu", LM_GELU, x, out); }
int lm_gelu_tanh(lm_tensor *x, lm_tensor **out) {
    return unary("gelu_tanh", LM_GELU_TANH, x, out);
}
int lm_silu(lm_tensor *x, lm_tensor **out) { return unary("silu", LM_SILU, x, out); }
int lm_tanh(lm_tensor *x, lm_tensor **out) { return unary("tanh", LM_TANH, x, out); }
int lm_sigmoid(lm_tensor *x, lm_tensor **out) { return unary("sigmoid", LM_SIGMOID, x, out); }

int lm_neg(lm_tensor *x, lm_tensor **out) {
    int st = lm__usable("neg", x);
    return st == LM_OK ? lm_mul_scalar(x, -1, out) : st;
}

int lm_abs(lm_tensor *x, lm_tensor **out) { /* of integers: the larger of x and -x */
    lm_tensor *minus;
    int st = lm__usable("abs", x);
    if (st != LM_OK || lm__is_float(x->dtype))
        return st == LM_OK ? unary("abs", LM_ABS, x, out) : st;
    st = lm_neg(x, &minus);
    if (st == LM_OK) st = lm_maximum(x, minus, out), lm_tensor_release(minus);
    return st;
}

static int swiglu_backward(lm_node *n) {
    lm_tensor *x, *dy = NULL, *dx = NULL;
    int st = lm__saved(n, 0, &x);
    if (st != LM_OK) return st;
    int64_t h = x->shape[x->ndim - 1] / 2;
    st = lm__tensor_dense(lm__grad(n, 0), x->dtype, &dy);
    if (st == LM_OK) st = lm__tensor_like(x, x->dtype, &dx);
    if (st == LM_OK)
        st = lm__ran(n->op, lm__kernels(x)->swiglu_bwd(x->dtype, h ? x->numel / (2 * h) : 0, h,
                                                       dx->data, dy->data, x->data));
    lm_tensor_release(dy);
    if (st == LM_OK) return lm__give(n, 0, dx);
    lm_tensor_release(dx);
    return st;
}

int lm_swiglu(lm_tensor *x, lm_tensor **out) {
    char xs[96];
    int st = lm__floating("swiglu", x);
    if (st != LM_OK) return st;
    if (x->ndim == 0 || x->shape[x->ndim - 1] % 2)
        return lm_fail(LM_ESHAPE, "swiglu: %s has no even last dim to halve",
                       lm__describe(x, xs));
    lm_tensor *dense = NULL, *y = NULL;
    lm_node *n = NULL;
    int64_t shape[LM_MAX_DIMS], h = x->shape[x->ndim - 1] / 2;
    for (int d = 0; d < x->ndim; d++) shape[d] = x->shape[d];
    shape[x->ndim - 1] = h;
    st = lm__tensor_dense(x, x->dtype, &dense);
    if (st == LM_OK) st = lm_tensor_new(x->dtype, x->ndim, shape, &y);
    if (st == LM_OK)
        st = lm__ran("swiglu", lm__kernels(x)->swiglu_fwd(x->dtype, h ? x->numel / (2 * h) : 0,
                                                          h, y->data, dense->data));
    if (st == LM_OK) st = lm__record("swiglu", swiglu_backward, 1, &x, 1, &y, &n);
    if (st == LM_OK) st = lm__save(n, 0, dense);
    lm_tensor_release(dense);
    return lm__finish(st, y, out);
}
