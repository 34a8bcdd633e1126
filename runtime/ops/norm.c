/* norm.c - over the last dim of x, with an optional scale and shift of that size:
 *
 *   layer_norm  y = (x - mean) rstd weight + bias,  rstd = 1 / sqrt(var + eps)
 *   rms_norm    y = x rstd weight,                  rstd = 1 / sqrt(mean(x^2) + eps)
 *
 * Inside it is all f32; mean and rstd, one number a row, are saved for backward. A pre-norm
 * layer's residual, x = a + dropout(h), goes with the norm that follows: one pass each way. */
#include "runtime/ops/dropout.h"

enum { X, WEIGHT, STATS, MASK }; /* saved; i[0]: 1 for layer_norm; f[0]: p */

static float *floats(const lm_tensor *t) { return t ? (float *)(void *)t->data : NULL; }
static void *data(const lm_tensor *t) { return t ? t->data : NULL; }

/* Of each row: [rows] rstd, or [2, rows] rstd and mean. */
static float *rstd(const lm_tensor *stats) { return floats(stats); }
static float *mean(const lm_tensor *stats) {
    return stats->ndim == 2 ? floats(stats) + stats->shape[1] : NULL;
}

/* What backward starts from: dy, x and room for the gradients of weight and bias, which are
 * inputs number `weight` and the next. */
typedef struct {
    lm_tensor *x, *weight, *stats, *mask, *dy, *dw, *db;
} saved;

static int restore(lm_node *n, saved *s, lm_tensor *dy, int weight) {
    int64_t width;
    int st = lm__saved(n, X, &s->x);
    if (st == LM_OK) st = lm__saved(n, WEIGHT, &s->weight);
    if (st == LM_OK) st = lm__saved(n, STATS, &s->stats);
    if (st == LM_OK) st = lm__saved(n, MASK, &s->mask);
    if (st != LM_OK || !dy) return st;
    width = lm__width(s->x);
    st = lm__tensor_dense(dy, s->x->dtype, &s->dy);
    if (st == LM_OK && lm__wants(n, weight)) st = lm_tensor_new(LM_F32, 1, &width, &s->dw);
    if (st == LM_OK && lm__wants(n, weight + 1)) st = lm_tensor_new(LM_F32, 1, &width, &s->db);
    return st;
}

/* dsum and dh may be NULL */
static int gradients(const lm_node *n, const saved *s, lm_tensor *dx, const lm_tensor *dsum,
                     lm_tensor *dh) {
    const lm_tensor *x = s->x;
    return lm__ran(n->op,
                   lm__kernels(x)->norm_bwd(x->dtype, lm__rows(x), lm__width(x), dx->data,
                                            floats(s->dw), floats(s->db), s->dy->data, x->data,
                                            mean(s->stats), rstd(s->stats), data(s->weight),
                                            s->weight ? s->weight->dtype : LM_F32, data(dsum),
                                            data(dh), lm__mask_bits(s->mask), n->f[0]));
}

/* The last step: gradients of weight and bias. */
static int give_affine(int st, lm_node *n, saved *s, int weight) {
    lm_tensor_release(s->dy);
    st = lm__give_result(st, n, weight, s->dw);
    return lm__give_result(st, n, weight + 1, s->db);
}

static int norm_backward(lm_node *n) { /* inputs x, weight, bias */
    saved s = {NULL};
    lm_tensor *dx = NULL, *there = NULL;
    int st = restore(n, &s, lm__grad(n, 0), 1);
    if (st == LM_OK) there = lm__given(n, 0, s.x->dtype);
    if (there) { /* a residual's gradient, as a rule: what is new is added in the same pass */
        st = gradients(n, &s, there, there, NULL);
        return give_affine(st, n, &s, 1);
    }
    if (st == LM_OK) st = lm__tensor_like(s.x, s.x->dtype, &dx);
    if (st == LM_OK) st = gradients(n, &s, dx, NULL, NULL);
    st = lm__give_result(st, n, 0, dx);
    return give_affine(st, n, &s, 1);
}

static int fits(const char *op, const char *what, const lm_tensor *x, const lm_tensor *w) {
    char xs[96], ws[96];
    int st = w ? lm__floating(op, w) : LM_OK;
    if (st == LM_OK && w && (w->ndim != 1 || w->shape[0] != lm__width(x)))
        st = lm_fail(LM_ESHAPE, "%s: %s is %s, but x is %s", op, what, lm__describe(w, ws),
                     lm__describe(x, xs));
    return st;
}

/* What forward makes besides its results. */
typedef struct {
    lm_tensor *weight, *bias, *stats; /* dense */
    int w_dtype;
} prepared;

/* stats: the statistics get a tensor */
static int prepare(const char *op, bool layer, bool stats, const lm_tensor *x,
                   lm_tensor *weight, lm_tensor *bias, prepared *p) {
    char xs[96];
    int st = LM_OK;
    if (x->ndim == 0)
        st = lm_fail(LM_ESHAPE, "%s: %s has no last dim", op, lm__describe(x, xs));
    if (st == LM_OK) st = fits(op, "weight", x, weight);
    if (st == LM_OK) st = fits(op, "bias", x, bias);
    if (st != LM_OK) return st;
    int64_t shape[2] = {2, lm__rows(x)};
    p->w_dtype = weight ? weight->dtype : bias ? bias->dtype : LM_F32;
    if (weight && bias && weight->dtype != bias->dtype) p->w_dtype = LM_F32;
    if (weight) st = lm__tensor_dense(weight, p->w_dtype, &p->weight);
    if (st == LM_OK && bias) st = lm__tensor_dense(bias, p->w_dtype, &p->bias);
    if (st == LM_OK && stats) st = lm_tensor_new(LM_F32, 1 + layer, shape + !layer, &p->stats);
    return st;
}

/* n may be NULL: nothing is recorded */
static int save(lm_node *n, bool layer, lm_tensor *x, const prepared *p) {
    if (n) n->i[0] = layer, n->f[0] = 0;
    int st = lm__save(n, X, x);
    if (st == LM_OK) st = lm__save(n, WEIGHT, p->weight);
    if (st == LM_OK) st = lm__save(n, STATS, p->stats);
    return st == LM_OK ? lm__save(n, MASK, NULL) : st;
}

static void release(prepared *p) {
    lm_tensor_release(p->weight), lm_tensor_release(p->bias);
    lm_tensor_release(p->stats);
}

static int norm(const char *op, bool layer, lm_tensor *x, lm_tensor *weight, lm_tensor *bias,
                double eps, lm_tensor **out) {
    enum { FEW = 64 };
    float few[2 * FEW]; /* statistics of few rows that nobody asks for again */
    prepared p = {NULL};
    lm_tensor *dense = NULL, *y = NULL;
    lm_node *n = NULL;
    int st = lm__floating(op, x);
    lm_tensor *in[] = {x, weight, bias};
    bool kept = st == LM_OK && (lm__rows(x) > FEW || lm__recording(3, in));
    if (st == LM_OK) st = prepare(op, layer, kept, x, weight, bias, &p);
    if (st == LM_OK) st = lm__tensor_dense(x, x->dtype, &dense);
    if (st == LM_OK) st = lm__tensor_like(x, x->dtype, &y);
    if (st == LM_OK) {
        float *means = kept ? mean(p.stats) : layer ? few + FEW : NULL;
        st =
            lm__ran(op, lm__kernels(x)->norm_fwd(x->dtype, lm__rows(x), lm__width(x), y->data,
                                                 means, kept ? rstd(p.stats) : few, dense->data,
                                                 data(p.weight), data(p.bias), p.w_dtype, eps));
    }
    if (st == LM_OK && kept) st = lm__record(op, norm_backward, 3, in, 1, &y, &n);
    if (st == LM_OK) st = save(n, layer, dense, &p);
    lm_tensor_release(dense), release(&p);
    return lm__finish(st, y, out);
}

int lm_layer_norm(lm_tensor *x, lm_tensor *weight, lm_tensor *bias, double eps,
                  lm_tensor **out) {
    return norm("layer_norm", true, x, weight, bias, eps, out);
}
int lm_rms_norm(lm_tensor *x, lm_tensor *weight, double eps, lm_tensor **out) {
    return norm("rms_norm", false, x, weight, NULL, eps, out);
}

/* ---- sum = x + dropout(h), and its norm ---- */

static int dropout_add_norm_backward(lm_node *n) { /* inputs h, x, weight, bias */
    saved s = {NULL};
    lm_tensor *given = lm__grad(n, 0), *dy = lm__grad(n, 1);
    lm_tensor *dsum = NULL, *dx = NULL, *dh = NULL;
    int st = restore(n, &s, dy, 2);
    bool drops = st == LM_OK && s.mask && lm__wants(n, 0);
    bool alone = given && st == LM_OK && lm__ours_alone(given) && given->dtype == s.x->dtype;
    if (st == LM_OK && given) st = lm__tensor_dense(given, s.x->dtype, &dsum);
    if (st == LM_OK && dy) { /* dx in dsum's place, where nobody else has that */
        if (alone) lm_tensor_retain(dx = dsum);
        else st = lm__tensor_like(s.x, s.x->dtype, &dx);
        if (st == LM_OK && drops) st = lm__tensor_like(s.x, s.x->dtype, &dh);
        if (st == LM_OK) st = gradients(n, &s, dx, dsum, dh);
    } else if (st == LM_OK) { /* the norm was not used */
        lm_tensor_retain(dx = dsum);
        if (drops) st = lm__dropout_gradient(n->op, dx, s.mask, n->f[0], &dh);
    }
    lm_tensor_release(dsum);
    if (st == LM_OK && !drops) lm_tensor_retain(dh = dx);
    st = lm__give_result(st, n, 0, dh);
    st = lm__give_result(st, n, 1, dx);
    return give_affine(st, n, &s, 2);
}

static int dropout_add_norm(const char *op, bool layer, lm_tensor *h, lm_tensor *x,
                            lm_tensor *weight, lm_tensor *bias, double eps, double p,
                            double high, double low, lm_tensor *rows, lm_tensor **out_sum,
                            lm_tensor **out) {
    prepared with = {NULL};
    lm_tensor *dh = NULL, *dx = NULL, *ids = NULL, *mask = NULL, *made[2] = {NULL, NULL};
    lm_node *n = NULL;
    lm_draw draw;
    int st = lm__residual(op, h, x, &dh, &dx);
    if (st == LM_OK) st = lm__dropout_draw(op, h, p, high, low, rows, &ids, &draw);
    if (st == LM_OK) st = prepare(op, layer, true, x, weight, bias, &with);
    for (int i = 0; i < 2 && st == LM_OK; i++) st = lm__tensor_like(dx, dx->dtype, &made[i]);
    if (st == LM_OK && p > 0 && lm__grad_enabled() && h->requires_grad)
        st = lm__dropout_mask(h, &mask);
    if (st == LM_OK)
        st = lm__ran(op, lm__kernels(x)->dropout_add_norm_fwd(
                             dx->dtype, lm__rows(dx), lm__width(dx), made[0]->data,
                             lm__mask_bits(mask), made[1]->data, mean(with.stats),
                             rstd(with.stats), dx->data, dh->data, p, &draw, data(with.weight),
                             data(with.bias), with.w_dtype, eps));
    if (st == LM_OK)
        st = lm__record(op, dropout_add_norm_backward, 4, (lm_tensor *[]){h, x, weight, bias},
                        2, made, &n);
    if (st == LM_OK) st = save(n, layer, made[0], &with);
    if (st == LM_OK) st = lm__save(n, MASK, mask);
    if (n) n->f[0] = p;
    lm_tensor_release(dh), lm_tensor_release(dx), lm_tensor_release(ids);
    lm_tensor_release(mask), release(&with);
    st = lm__finish(st, made[0], out_sum);
    return lm__finish(st, made[1], out);
}

int lm_dropout_add_layer_norm(lm_tensor *h, lm_tensor *x, lm_tensor *weight, lm_tensor *bias,
                              double eps, double p, double stream_high, double stream_low,
                              lm_tensor *rows, lm_tensor **sum, lm_tensor **out) {
    return dropout_add_norm("dropout_add_layer_norm", true, h, x, weight, bias, eps, p,
                            stream_high, stream_low, rows, sum, out);
}
int lm_dropout_add_rms_norm(lm_tensor *h, lm_tensor *x, lm_tensor *weight, double eps, double p,
                            double stream_high, double stream_low, lm_tensor *rows,
                            lm_tensor **sum, lm_tensor **out) {
    return dropout_add_norm("dropout_add_rms_norm", false, h, x, weight, NULL, eps, p,
                            stream_high, stream_low, rows, sum, out);
}
