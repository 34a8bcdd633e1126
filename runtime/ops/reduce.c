/* reduce.c - sums, means, extremes and running sums over one dim, or over all. */
#include "runtime/ops/op.h"

#include <string.h>

/* g, of the reduced shape, seen as a view of the shape before: stride 0 along dim. */
static int spread(lm_tensor *g, int keepdim, int dim, int64_t size, lm_tensor **out) {
    int64_t shape[LM_MAX_DIMS], stride[LM_MAX_DIMS];
    int ndim = g->ndim + (keepdim ? 0 : 1);
    for (int d = 0, from = 0; d < ndim; d++)
        if (d == dim) {
            shape[d] = size, stride[d] = 0;
            from += keepdim ? 1 : 0;
        } else shape[d] = g->shape[from], stride[d] = g->stride[from], from++;
    return lm__tensor_view(g, ndim, shape, stride, 0, out);
}

static int sum_backward(lm_node *n) { /* i: dim, keepdim, size; f[0]: factor */
    lm_tensor *dy = lm__grad(n, 0), *scaled = NULL, *g = NULL;
    int st = n->f[0] == 1 ? (lm_tensor_retain(scaled = dy), LM_OK)
                          : lm_mul_scalar(dy, n->f[0], &scaled);
    if (st == LM_OK && n->edge[0].ndim == 0) return lm__give(n, 0, scaled);
    if (st == LM_OK) st = spread(scaled, (int)n->i[1], (int)n->i[0], n->i[2], &g);
    lm_tensor_release(scaled);
    return st == LM_OK ? lm__give(n, 0, g) : st;
}

static int sum_or_mean(const char *name, int op, lm_tensor *x, int64_t dim, int keepdim,
                       bool wide, lm_tensor **out) {
    int d = 0, st = lm__usable(name, x);
    if (st == LM_OK) st = lm__dim(name, x, dim, &d);
    if (st != LM_OK) return st;
    bool floats = lm__is_float(x->dtype);
    lm_tensor *dense = NULL, *y = NULL;
    lm_node *n = NULL;
    int64_t shape[LM_MAX_DIMS], outer, size, inner;
    int ndim = lm__reduced_shape(x, d, keepdim, shape);
    lm__around(x, d, &outer, &size, &inner);
    int result = wide ? LM_F32 : floats ? x->dtype : op == LM_MEAN ? LM_F32 : LM_I64;
    st = lm__tensor_dense(x, op == LM_MEAN && !floats ? LM_F32 : x->dtype, &dense);
    if (st == LM_OK) st = lm_tensor_new(result, ndim, shape, &y);
    if (st == LM_OK)
        st = lm__ran(name, lm__kernels(x)->reduce(op, dense->dtype, outer, size, inner, y->data,
                                                  result, dense->data));
    if (st == LM_OK && floats) st = lm__record(name, sum_backward, 1, &x, 1, &y, &n);
    if (st == LM_OK && n) {
        n->i[0] = d, n->i[1] = keepdim, n->i[2] = size;
        n->f[0] = op == LM_MEAN ? 1.0 / (double)size : 1.0;
    }
    lm_tensor_release(dense);
    return lm__finish(st, y, out);
}

int lm_sum(lm_tensor *x, int64_t dim, int keepdim, lm_tensor **out) {
    return sum_or_mean("sum", LM_SUM, x, dim, keepdim, false, out);
}
int lm__sum_f32(lm_tensor *x, int64_t dim, int keepdim, lm_tensor **out) {
    return sum_or_mean("sum", LM_SUM, x, dim, keepdim, true, out);
}
int lm_mean(lm_tensor *x, int64_t dim, int keepdim, lm_tensor **out) {
    return sum_or_mean("mean", LM_MEAN, x, dim, keepdim, false, out);
}

/* ---- over everything ---- */

static int sum_all_backward(lm_node *n) {
    lm_tensor *dy = lm__grad(n, 0), *scaled = NULL, *g = NULL;
    int64_t stride[LM_MAX_DIMS] = {0};
    int st = n->f[0] == 1 ? (lm_tensor_retain(scaled = dy), LM_OK)
                          : lm_mul_scalar(dy, n->f[0], &scaled);
    if (st == LM_OK)
        st = lm__tensor_view(scaled, n->edge[0].ndim, n->edge[0].shape, stride, 0, &g);
    lm_tensor_release(scaled);
    return st == LM_OK ? lm__give(n, 0, g) : st;
}

static int all(const char *name, lm_tensor *x, bool mean, lm_tensor **out) {
    int st = lm__usable(name, x);
    if (st != LM_OK) return st;
    bool floats = lm__is_float(x->dtype);
    double total = 0;
    lm_tensor *dense = NULL, *y = NULL;
    lm_node *n = NULL;
    st = lm__tensor_dense(x, x->dtype, &dense);
    if (st == LM_OK)
        st = lm__ran(name,
                     lm__kernels(x)->sum_all(dense->dtype, dense->numel, dense->data, &total));
    double factor = mean ? 1.0 / (double)x->numel : 1.0;
    if (st == LM_OK)
        st = lm_tensor_full(floats || mean ? LM_F32 : LM_I64, 0, NULL,
                            mean ? total * factor : total, &y);
    if (st == LM_OK && floats) st = lm__record(name, sum_all_backward, 1, &x, 1, &y, &n);
    if (st == LM_OK && n) n->f[0] = factor;
    lm_tensor_release(dense);
    return lm__finish(st, y, out);
}

int lm_sum_all(lm_tensor *x, lm_tensor **out) { return all("sum", x, false, out); }
int lm_mean_all(lm_tensor *x, lm_tensor **out) { return all("mean", x, true, out); }

/* ---- extremes ---- */

static int arg(const char *name, int op, lm_tensor *x, int64_t dim, int keepdim, int *d,
               lm_tensor **out) {
    char xs[96];
    int st = lm__usable(name, x);
    if (st == LM_OK) st = lm__dim(name, x, dim, d);
    if (st != LM_OK) return st;
    lm_tensor *dense = NULL, *ids = NULL;
    int64_t shape[LM_MAX_DIMS], outer, size, inner;
    int ndim = lm__reduced_shape(x, *d, keepdim, shape);
    lm__around(x, *d, &outer, &size, &inner);
    if (size == 0 && outer * inner > 0)
        return lm_fail(LM_ESHAPE, "%s: %s has nothing in dim %d", name, lm__describe(x, xs),
                       *d);
    st = lm__tensor_dense(x, x->dtype, &dense);
    if (st == LM_OK) st = lm_tensor_new(LM_I64, ndim, shape, &ids);
    if (st == LM_OK)
        st =
            lm__ran(name, lm__kernels(x)->argreduce(op, dense->dtype, outer, size, inner,
                                                    (int64_t *)(void *)ids->data, dense->data));
    lm_tensor_release(dense);
    return lm__finish(st, ids, out);
}

int lm_argmax(lm_tensor *x, int64_t dim, int keepdim, lm_tensor **ids) {
    int d;
    return arg("argmax", LM_MAX, x, dim, keepdim, &d, ids);
}
int lm_argmin(lm_tensor *x, int64_t dim, int keepdim, lm_tensor **ids) {
    int d;
    return arg("argmin", LM_MIN, x, dim, keepdim, &d, ids);
}

/* The extreme is what its position holds: gather gives the values and their gradient. */
static int extreme(const char *name, int op, lm_tensor *x, int64_t dim, int keepdim,
                   lm_tensor **values, lm_tensor **ids) {
    int d = 0;
    lm_tensor *kept = NULL, *at = NULL, *v = NULL;
    int st = arg(name, op, x, dim, 1, &d, &kept);
    if (st == LM_OK && x->ndim == 0) { /* the extreme of a number is the number */
        lm_tensor_release(kept), kept = NULL;
        st = arg(name, op, x, dim, 0, &d, &at);
        if (st == LM_OK) st = lm_clone(x, &v);
    } else {
        if (st == LM_OK) st = lm_gather(x, d, kept, &v);
        if (st == LM_OK && !keepdim) {
            lm_tensor *w = NULL;
            st = lm_squeeze(v, d, &w);
            lm_tensor_release(v);
            v = w;
            if (st == LM_OK) st = lm_squeeze(kept, d, &at);
        } else if (st == LM_OK) lm_tensor_retain(at = kept);
    }
    lm_tensor_release(kept);
    if (st == LM_OK) *values = v, *ids = at;
    else lm_tensor_release(v), lm_tensor_release(at);
    return st;
}

int lm_max(lm_tensor *x, int64_t dim, int keepdim, lm_tensor **values, lm_tensor **ids) {
    return extreme("max", LM_MAX, x, dim, keepdim, values, ids);
}
int lm_min(lm_tensor *x, int64_t dim, int keepdim, lm_tensor **values, lm_tensor **ids) {
    return extreme("min", LM_MIN, x, dim, keepdim, values, ids);
}

/* ---- running sums ---- */

static int cumsum_backward(lm_node *n) { /* from the end: total - running + own */
    lm_tensor *dy = lm__grad(n, 0), *run = NULL, *total = NULL, *rest = NULL, *g = NULL;
    int st = lm_cumsum(dy, n->i[0], &run);
    if (st == LM_OK) st = lm_sum(dy, n->i[0], 1, &total);
    if (st == LM_OK) st = lm_sub(total, run, &rest);
    if (st == LM_OK) st = lm_add(rest, dy, &g);
    lm_tensor_release(run), lm_tensor_release(total), lm_tensor_release(rest);
    return st == LM_OK ? lm__give(n, 0, g) : st;
}

int lm_cumsum(lm_tensor *x, int64_t dim, lm_tensor **out) {
    int d = 0, st = lm__usable("cumsum", x);
    if (st == LM_OK) st = lm__dim("cumsum", x, dim, &d);
    if (st != LM_OK) return st;
    lm_tensor *dense = NULL, *y = NULL;
    lm_node *n = NULL;
    int64_t outer, size, inner;
    lm__around(x, d, &outer, &size, &inner);
    int dtype = lm__is_float(x->dtype) ? x->dtype : LM_I64;
    st = lm__tensor_dense(x, dtype, &dense);
    if (st == LM_OK) st = lm__tensor_like(dense, dtype, &y);
    if (st == LM_OK)
        st = lm__ran("cumsum",
                     lm__kernels(x)->cumsum(dtype, outer, size, inner, y->data, dense->data));
    if (st == LM_OK && lm__is_float(dtype))
        st = lm__record("cumsum", cumsum_backward, 1, &x, 1, &y, &n);
    if (st == LM_OK && n) n->i[0] = d;
    lm_tensor_release(dense);
    return lm__finish(st, y, out);
}
