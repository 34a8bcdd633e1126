/* elementwise.c - a op b with broadcasting, with numbers, comparisons, choice.
 *
 * The result has the promoted dtype (ops.c); kernels walk strides, so an operand
 * is only copied to change its dtype. Gradients are given in the result's shape;
 * the tape sums them over what was broadcast. */
#include "runtime/ops/op.h"

#include <math.h>

/* Operands of one dtype, their strides over the common shape. */
typedef struct pair {
    lm_tensor *a, *b; /* references */
    int ndim;
    int64_t shape[LM_MAX_DIMS], a_stride[LM_MAX_DIMS], b_stride[LM_MAX_DIMS];
} pair;

static void pair_release(pair *p) { lm_tensor_release(p->a), lm_tensor_release(p->b); }

static int with_dtype(lm_tensor *x, int dtype, lm_tensor **out) {
    if (x->dtype != dtype) return lm__tensor_dense(x, dtype, out);
    lm_tensor_retain(*out = x);
    return LM_OK;
}

static int pair_of(const char *op, lm_tensor *a, lm_tensor *b, int dtype, pair *p) {
    p->a = p->b = NULL;
    int st = lm__broadcast(op, a, b, &p->ndim, p->shape);
    if (st == LM_OK) st = with_dtype(a, dtype, &p->a);
    if (st == LM_OK) st = with_dtype(b, dtype, &p->b);
    if (st != LM_OK) return st;
    lm__broadcast_strides(p->a, p->ndim, p->shape, p->a_stride);
    lm__broadcast_strides(p->b, p->ndim, p->shape, p->b_stride);
    return LM_OK;
}

static int usable2(const char *op, lm_tensor *a, lm_tensor *b) {
    int st = lm__usable(op, a);
    return st == LM_OK ? lm__usable(op, b) : st;
}

/* ---- a op b ---- */

static int mask(lm_tensor *a, lm_tensor *b, int op, lm_tensor **out) { /* 0 or 1, as f32 */
    lm_tensor *bits = NULL;
    int st = lm_compare(a, b, op, &bits);
    if (st == LM_OK) st = lm_to_dtype(bits, LM_F32, out);
    lm_tensor_release(bits);
    return st;
}

static int give_product(lm_node *n, int input, lm_tensor *dy, lm_tensor *factor) {
    lm_tensor *g;
    int st = lm_mul(dy, factor, &g);
    return st == LM_OK ? lm__give(n, input, g) : st;
}

static int give_scaled(lm_node *n, int input, lm_tensor *dy, double s) {
    lm_tensor *g;
    int st = lm_mul_scalar(dy, s, &g);
    return st == LM_OK ? lm__give(n, input, g) : st;
}

static int give_same(lm_node *n, int input, lm_tensor *dy) {
    lm_tensor_retain(dy);
    return lm__give(n, input, dy);
}

static int mul_backward(lm_node *n) {
    lm_tensor *a, *b, *dy = lm__grad(n, 0);
    int st = lm__saved(n, 0, &a);
    if (st == LM_OK) st = lm__saved(n, 1, &b);
    if (st == LM_OK && lm__wants(n, 0)) st = give_product(n, 0, dy, b);
    if (st == LM_OK && lm__wants(n, 1)) st = give_product(n, 1, dy, a);
    return st;
}

static int div_backward(lm_node *n) { /* da = dy / b, db = -da y */
    lm_tensor *b, *y, *da = NULL, *db = NULL, *dy = lm__grad(n, 0);
    int st = lm__saved(n, 1, &b);
    if (st == LM_OK) st = lm__saved(n, 2, &y);
    if (st == LM_OK) st = lm_div(dy, b, &da);
    if (st == LM_OK && lm__wants(n, 1)) {
        st = lm_mul(da, y, &db);
        if (st == LM_OK) st = give_scaled(n, 1, db, -1);
        lm_tensor_release(db);
    }
    if (st == LM_OK) return lm__give(n, 0, da);
    lm_tensor_release(da);
    return st;
}

static int pow_backward(lm_node *n) { /* da = dy b a^(b-1), db = dy y log a, 0 where a is 0 */
    lm_tensor *a, *b, *y, *t = NULL, *u = NULL, *v = NULL, *dy = lm__grad(n, 0);
    int st = lm__saved(n, 0, &a);
    if (st == LM_OK) st = lm__saved(n, 1, &b);
    if (st == LM_OK) st = lm__saved(n, 2, &y);
    if (st == LM_OK && lm__wants(n, 0)) {
        st = lm_add_scalar(b, -1, &t);
        if (st == LM_OK) st = lm_pow(a, t, &u);
        if (st == LM_OK) st = lm_mul(u, b, &v);
        if (st == LM_OK) st = give_product(n, 0, dy, v);
        lm_tensor_release(t), lm_tensor_release(u), lm_tensor_release(v);
        t = u = v = NULL;
    }
    if (st == LM_OK && lm__wants(n, 1)) {
        lm_tensor *zero = NULL, *is_zero = NULL;
        st = lm_log(a, &t);
        if (st == LM_OK) st = lm_mul(t, y, &u);
        if (st == LM_OK) st = lm_tensor_full(LM_F32, 0, NULL, 0, &zero);
        if (st == LM_OK) st = lm_compare(a, zero, LM_EQ, &is_zero);
        if (st == LM_OK) st = lm_masked_fill(u, is_zero, 0, &v);
        if (st == LM_OK) st = give_product(n, 1, dy, v);
        lm_tensor_release(zero), lm_tensor_release(is_zero);
        lm_tensor_release(t), lm_tensor_release(u), lm_tensor_release(v);
    }
    return st;
}

static int
maximum_backward(lm_node *n) { /* i[0]: the comparison that lets a through; ties halve */
    lm_tensor *a, *b, *wins = NULL, *ties = NULL, *half = NULL, *wa = NULL, *wb = NULL;
    lm_tensor *dy = lm__grad(n, 0);
    int st = lm__saved(n, 0, &a);
    if (st == LM_OK) st = lm__saved(n, 1, &b);
    if (st == LM_OK) st = mask(a, b, (int)n->i[0], &wins);
    if (st == LM_OK) st = mask(a, b, LM_EQ, &ties);
    if (st == LM_OK) st = lm_mul_scalar(ties, 0.5, &half);
    if (st == LM_OK) st = lm_add(wins, half, &wa);
    if (st == LM_OK) st = lm_rsub_scalar(wa, 1, &wb);
    if (st == LM_OK && lm__wants(n, 0)) st = give_product(n, 0, dy, wa);
    if (st == LM_OK && lm__wants(n, 1)) st = give_product(n, 1, dy, wb);
    lm_tensor_release(wins), lm_tensor_release(ties), lm_tensor_release(half);
    lm_tensor_release(wa), lm_tensor_release(wb);
    return st;
}

static bool twice_the_same(const lm_node *n) { /* x + x */
    const lm_edge *a = &n->edge[0], *b = &n->edge[1];
    return a->node && a->node == b->node && a->output == b->output;
}

static int add_backward(lm_node *n) { /* i[0]: the sign of b */
    lm_tensor *dy = lm__grad(n, 0);
    if (n->i[0] > 0 && twice_the_same(n)) return give_scaled(n, 0, dy, 2);
    int st = give_same(n, 0, dy);
    if (st != LM_OK || !lm__wants(n, 1)) return st;
    return n->i[0] > 0 ? give_same(n, 1, dy) : give_scaled(n, 1, dy, -1);
}

static int binary(const char *name, int op, lm_backward_fn backward, lm_tensor *a, lm_tensor *b,
                  lm_tensor **out) {
    int st = usable2(name, a, b);
    if (st != LM_OK) return st;
    int dtype = lm__promote(a, b);
    if (dtype == LM_U8) dtype = LM_I32;
    if ((op == LM_DIV || op == LM_POW) && !lm__is_float(dtype)) dtype = LM_F32;

    pair p;
    lm_tensor *y = NULL;
    lm_node *n = NULL;
    st = pair_of(name, a, b, dtype, &p);
    if (st == LM_OK) st = lm_tensor_new(dtype, p.ndim, p.shape, &y);
    if (st == LM_OK)
        st =
            lm__ran(name, lm__kernels(a)->binary(op, dtype, p.ndim, p.shape, y->data, p.a->data,
                                                 p.a_stride, p.b->data, p.b_stride));
    if (st == LM_OK) st = lm__record(name, backward, 2, (lm_tensor *[]){a, b}, 1, &y, &n);
    if (st == LM_OK && n) {
        n->i[0] = op == LM_MAXIMUM ? LM_GT : op == LM_MINIMUM ? LM_LT : op == LM_SUB ? -1 : 1;
        if (op != LM_ADD && op != LM_SUB) {
            st = lm__save(n, 0, a);
            if (st == LM_OK) st = lm__save(n, 1, b);
        }
        if (st == LM_OK && (op == LM_DIV || op == LM_POW)) st = lm__save(n, 2, y);
    }
    pair_release(&p);
    return lm__finish(st, y, out);
}

int lm_add(lm_tensor *a, lm_tensor *b, lm_tensor **out) {
    return binary("add", LM_ADD, add_backward, a, b, out);
}
int lm_sub(lm_tensor *a, lm_tensor *b, lm_tensor **out) {
    return binary("sub", LM_SUB, add_backward, a, b, out);
}
int lm_mul(lm_tensor *a, lm_tensor *b, lm_tensor **out) {
    return binary("mul", LM_MUL, mul_backward, a, b, out);
}
int lm_div(lm_tensor *a, lm_tensor *b, lm_tensor **out) {
    return binary("div", LM_DIV, div_backward, a, b, out);
}
int lm_pow(lm_tensor *a, lm_tensor *b, lm_tensor **out) {
    return binary("pow", LM_POW, pow_backward, a, b, out);
}
int lm_maximum(lm_tensor *a, lm_tensor *b, lm_tensor **out) {
    return binary("maximum", LM_MAXIMUM, maximum_backward, a, b, out);
}
int lm_minimum(lm_tensor *a, lm_tensor *b, lm_tensor **out) {
    return binary("minimum", LM_MINIMUM, maximum_backward, a, b, out);
}

/* ---- a op number ---- */

static int scalar_backward(lm_node *n) {
    int op = (int)n->i[0];
    bool reversed = n->i[1] != 0;
    double s = n->f[0];
    lm_tensor *a, *y, *t = NULL, *u = NULL, *dy = lm__grad(n, 0);
    if (op == LM_ADD) return give_same(n, 0, dy);
    if (op == LM_SUB) return give_scaled(n, 0, dy, reversed ? -1 : 1);
    if (op == LM_MUL) return give_scaled(n, 0, dy, s);
    if (op == LM_DIV && !reversed) return give_scaled(n, 0, dy, 1 / s);

    int st = lm__saved(n, 0, &a);
    if (st == LM_OK) st = lm__saved(n, 1, &y);
    if (st != LM_OK) return st;
    if (op == LM_POW && !reversed) { /* s a^(s-1) */
        if (s == 0) return give_scaled(n, 0, dy, 0);
        st = lm_pow_scalar(a, s - 1, &t);
        if (st == LM_OK) st = lm_mul_scalar(t, s, &u);
    } else if (op == LM_POW) { /* s^a log s */
        st = lm_mul_scalar(y, log(s), &u);
    } else { /* s / a: -y / a */
        st = lm_div(y, a, &t);
        if (st == LM_OK) st = lm_mul_scalar(t, -1, &u);
    }
    if (st == LM_OK) st = give_product(n, 0, dy, u);
    lm_tensor_release(t), lm_tensor_release(u);
    return st;
}

static int with_number(const char *name, int op, bool reversed, lm_tensor *a, double s,
                       lm_tensor **out) {
    int st = lm__usable(name, a);
    if (st != LM_OK) return st;
    int dtype = a->dtype == LM_U8 ? LM_I32 : a->dtype;
    if (!lm__is_float(dtype) && (op == LM_DIV || op == LM_POW || s != floor(s))) dtype = LM_F32;

    lm_tensor *x = NULL, *y = NULL;
    lm_node *n = NULL;
    st = lm__tensor_dense(a, dtype, &x);
    if (st == LM_OK) st = lm__tensor_like(x, dtype, &y);
    if (st == LM_OK)
        st = lm__ran(name, lm__kernels(a)->binary_scalar(op, dtype, y->numel, y->data, x->data,
                                                         s, reversed));
    if (st == LM_OK) st = lm__record(name, scalar_backward, 1, &a, 1, &y, &n);
    if (st == LM_OK && n) {
        n->i[0] = op, n->i[1] = reversed, n->f[0] = s;
        if (op == LM_POW || (op == LM_DIV && reversed)) {
            st = lm__save(n, 0, x);
            if (st == LM_OK) st = lm__save(n, 1, y);
        }
    }
    lm_tensor_release(x);
    return lm__finish(st, y, out);
}

int lm_add_scalar(lm_tensor *a, double s, lm_tensor **out) {
    return with_number("add", LM_ADD, false, a, s, out);
}
int lm_mul_scalar(lm_tensor *a, double s, lm_tensor **out) {
    return with_number("mul", LM_MUL, false, a, s, out);
}
int lm_div_scalar(lm_tensor *a, double s, lm_tensor **out) {
    return with_number("div", LM_DIV, false, a, s, out);
}
int lm_pow_scalar(lm_tensor *a, double s, lm_tensor **out) {
    return with_number("pow", LM_POW, false, a, s, out);
}
int lm_rsub_scalar(lm_tensor *a, double s, lm_tensor **out) {
    return with_number("sub", LM_SUB, true, a, s, out);
}
int lm_rdiv_scalar(lm_tensor *a, double s, lm_tensor **out) {
    return with_number("div", LM_DIV, true, a, s, out);
}
int lm_rpow_scalar(lm_tensor *a, double s, lm_tensor **out) {
    return with_number("pow", LM_POW, true, a, s, out);
}

/* ---- comparison and choice ---- */

int lm_compare(lm_tensor *a, lm_tensor *b, int op, lm_tensor **out) {
    static const char *const name[] = {"eq", "ne", "lt", "le", "gt", "ge"};
    if (op < LM_EQ || op > LM_GE)
        return lm_fail(LM_EARG, "compare: no comparison has number %d", op);
    int st = usable2(name[op], a, b);
    if (st != LM_OK) return st;
    int dtype = lm__promote(a, b);
    pair p;
    lm_tensor *y = NULL;
    st = pair_of(name[op], a, b, dtype, &p);
    if (st == LM_OK) st = lm_tensor_new(LM_U8, p.ndim, p.shape, &y);
    if (st == LM_OK)
        st = lm__ran("compare",
                     lm__kernels(a)->compare(op, dtype, p.ndim, p.shape, (uint8_t *)y->data,
                                             p.a->data, p.a_stride, p.b->data, p.b_stride));
    pair_release(&p);
    return lm__finish(st, y, out);
}

static int where_backward(lm_node *n) {
    lm_tensor *cond, *zero = NULL, *g = NULL, *dy = lm__grad(n, 0);
    int st = lm__saved(n, 0, &cond);
    if (st == LM_OK) st = lm_tensor_full(dy->dtype, 0, NULL, 0, &zero);
    if (st == LM_OK && lm__wants(n, 0)) {
        st = lm_where(cond, dy, zero, &g);
        if (st == LM_OK) st = lm__give(n, 0, g);
    }
    if (st == LM_OK && lm__wants(n, 1)) {
        st = lm_where(cond, zero, dy, &g);
        if (st == LM_OK) st = lm__give(n, 1, g);
    }
    lm_tensor_release(zero);
    return st;
}

int lm_where(lm_tensor *cond, lm_tensor *a, lm_tensor *b, lm_tensor **out) {
    char cs[96], xs[96];
    int st = usable2("where", a, b);
    if (st == LM_OK) st = lm__usable("where", cond);
    if (st != LM_OK) return st;
    if (cond->dtype != LM_U8)
        return lm_fail(LM_EDTYPE, "where: the condition is %s; comparisons give u8",
                       lm_dtype_name(cond->dtype));
    int dtype = lm__promote(a, b), ndim = 0;
    int64_t shape[LM_MAX_DIMS], cs_stride[LM_MAX_DIMS], as[LM_MAX_DIMS], bs[LM_MAX_DIMS];
    pair p;
    lm_tensor *y = NULL, *like = NULL;
    lm_node *n = NULL;
    st = pair_of("where", a, b, dtype, &p);
    if (st == LM_OK) /* a header of the values' shape, to broadcast the condition against */
        st = lm__tensor_view(p.a, p.ndim, p.shape, p.a_stride, 0, &like);
    if (st == LM_OK) st = lm__broadcast("where", cond, like, &ndim, shape);
    if (st == LM_OK) st = lm_tensor_new(dtype, ndim, shape, &y);
    if (st == LM_OK) {
        if (lm__broadcast_strides(cond, ndim, shape, cs_stride) != LM_OK)
            st = lm_fail(LM_ESHAPE, "where: %s does not broadcast to %s",
                         lm__describe(cond, cs), lm__describe(y, xs));
        lm__broadcast_strides(p.a, ndim, shape, as);
        lm__broadcast_strides(p.b, ndim, shape, bs);
    }
    if (st == LM_OK)
        st = lm__ran("where", lm__kernels(a)->where(dtype, ndim, shape, y->data,
                                                    (const uint8_t *)cond->data, cs_stride,
                                                    p.a->data, as, p.b->data, bs));
    if (st == LM_OK && lm__is_float(dtype)) {
        st = lm__record("where", where_backward, 2, (lm_tensor *[]){a, b}, 1, &y, &n);
        if (st == LM_OK) st = lm__save(n, 0, cond);
    }
    lm_tensor_release(like);
    pair_release(&p);
    return lm__finish(st, y, out);
}

int lm_masked_fill(lm_tensor *x, lm_tensor *mask_, double value, lm_tensor **out) {
    int st = lm__usable("masked_fill", x);
    if (st != LM_OK) return st;
    lm_tensor *fill = NULL;
    st = lm_tensor_full(x->dtype, 0, NULL, value, &fill);
    if (st == LM_OK) st = lm_where(mask_, fill, x, out);
    lm_tensor_release(fill);
    return st;
}

static int clamp_backward(lm_node *n) {
    lm_tensor *x, *dy = NULL, *dx = NULL;
    int st = lm__saved(n, 0, &x);
    if (st == LM_OK) st = lm__tensor_dense(lm__grad(n, 0), x->dtype, &dy);
    if (st == LM_OK) st = lm__tensor_like(x, x->dtype, &dx);
    if (st == LM_OK)
        st = lm__ran(n->op, lm__kernels(x)->clamp_bwd(x->dtype, x->numel, dx->data, dy->data,
                                                      x->data, n->f[0], n->f[1]));
    lm_tensor_release(dy);
    if (st == LM_OK) return lm__give(n, 0, dx);
    lm_tensor_release(dx);
    return st;
}

int lm_clamp(lm_tensor *x, double lo, double hi, lm_tensor **out) {
    int st = lm__floating("clamp", x);
    if (st != LM_OK) return st;
    lm_tensor *dense = NULL, *y = NULL;
    lm_node *n = NULL;
    st = lm__tensor_dense(x, x->dtype, &dense);
    if (st == LM_OK) st = lm__tensor_like(x, x->dtype, &y);
    if (st == LM_OK)
        st = lm__ran("clamp",
                     lm__kernels(x)->clamp(x->dtype, x->numel, y->data, dense->data, lo, hi));
    if (st == LM_OK) st = lm__record("clamp", clamp_backward, 1, &x, 1, &y, &n);
    if (st == LM_OK && n) n->f[0] = lo, n->f[1] = hi, st = lm__save(n, 0, dense);
    lm_tensor_release(dense);
    return lm__finish(st, y, out);
}
