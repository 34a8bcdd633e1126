/* index.c - picking by ids: rows (embedding, index_select) and elements (gather), the way
 * back (scatter_add), and one_hot. Gradients are added up in f32, in the order of the ids. */
#include "runtime/ops/op.h"

#include <string.h>

static int64_t id_at(const lm_tensor *ids, int64_t i) { /* of dense ids */
    const void *p = ids->data;
    return ids->dtype == LM_I32 ? ((const int32_t *)p)[i] : ((const int64_t *)p)[i];
}

/* ---- rows ---- */

static int
rows_backward(lm_node *n) { /* saved 0: ids; into a leaf's gradient if there is one */
    lm_tensor *ids, *dy = NULL, *dw, *own = NULL;
    bool fresh;
    int64_t rows = n->edge[0].shape[0], width = 1;
    for (int d = 1; d < n->edge[0].ndim; d++) width *= n->edge[0].shape[d];
    int st = lm__saved(n, 0, &ids);
    if (st == LM_OK) st = lm__tensor_dense(lm__grad(n, 0), lm__grad(n, 0)->dtype, &dy);
    if (st == LM_OK) st = lm__leaf_grad(n, 0, false, &dw, &fresh);
    if (st == LM_OK && fresh)
        st = lm__ran(n->op, lm__kernels(dy)->fill(dw->data, LM_F32, dw->numel, 0));
    if (st == LM_OK && !dw) {
        st = lm_tensor_full(LM_F32, n->edge[0].ndim, n->edge[0].shape, 0, &own);
        dw = own;
    }
    if (st == LM_OK)
        st = lm__ran(n->op, lm__kernels(dy)->scatter_add_rows(dy->dtype, ids->numel, width,
                                                              rows, (float *)(void *)dw->data,
                                                              dy->data, ids->dtype, ids->data));
    lm_tensor_release(dy);
    if (own && st == LM_OK) return lm__give(n, 0, own);
    lm_tensor_release(own);
    return st;
}

/* ids that are rows of x, of `rows` from `first` on; to the kernel -1 is a row of zeros. */
static int local_ids(const char *op, lm_tensor *ids, const lm_tensor *x, int64_t first,
                     int64_t rows, lm_tensor **out) {
    lm_tensor *dense = NULL, *at = NULL;
    int64_t here = x->shape[0];
    int st = lm__tensor_dense(ids, ids->dtype, &dense);
    if (st == LM_OK && (first > 0 || here < rows)) st = lm__tensor_like(ids, LM_I64, &at);
    for (int64_t i = 0; st == LM_OK && i < dense->numel; i++) {
        int64_t id = id_at(dense, i);
        if (id < 0 || id >= rows) st = lm__id_out_of_range(op, dense, i, rows);
        else if (at)
            ((int64_t *)(void *)at->data)[i] =
                id >= first && id < first + here ? id - first : -1;
    }
    if (!at) return lm__finish(st, dense, out);
    lm_tensor_release(dense);
    return lm__finish(st, at, out);
}

/* out [ids.., x's dims after the first]; x is rows first, first + 1, .. of `rows`. at: the ids
 * as the kernel had them. */
static int pick_rows(const char *op, lm_tensor *x, lm_tensor *ids, int64_t first, int64_t rows,
                     lm_tensor **at, lm_tensor **out) {
    char xs[96];
    int64_t shape[2 * LM_MAX_DIMS], width = 1, bad = 0;
    if (ids->ndim + x->ndim - 1 > LM_MAX_DIMS)
        return lm_fail(LM_ESHAPE, "%s: cannot take rows of %s by ids with %d dims", op,
                       lm__describe(x, xs), ids->ndim);
    memcpy(shape, ids->shape, sizeof ids->shape);
    for (int d = 1; d < x->ndim; d++) width *= shape[ids->ndim + d - 1] = x->shape[d];
    lm_tensor *dense = NULL, *y = NULL;
    int st = lm__tensor_dense(x, x->dtype, &dense);
    if (st == LM_OK) st = local_ids(op, ids, x, first, rows, at);
    if (st == LM_OK) st = lm_tensor_new(x->dtype, ids->ndim + x->ndim - 1, shape, &y);
    if (st == LM_OK)
        st = lm__ran(op, lm__kernels(x)->gather_rows(x->dtype, (*at)->numel, width, x->shape[0],
                                                     y->data, dense->data, (*at)->dtype,
                                                     (*at)->data, &bad));
    lm_tensor_release(dense);
    return lm__finish(st, y, out);
}

static int rows_of(const char *op, lm_tensor *x, lm_tensor *ids, int64_t first, int64_t rows,
                   lm_tensor **out) {
    lm_tensor *at = NULL, *y = NULL;
    lm_node *n = NULL;
    int st = pick_rows(op, x, ids, first, rows, &at, &y);
    if (st == LM_OK && lm__is_float(x->dtype))
        st = lm__record(op, rows_backward, 1, &x, 1, &y, &n);
    if (st == LM_OK) st = lm__save(n, 0, at);
    lm_tensor_release(at);
    return lm__finish(st, y, out);
}

static int check_rows_of(const char *op, const lm_tensor *x, const lm_tensor *ids) {
    char xs[96];
    int st = lm__usable(op, x);
    if (st == LM_OK) st = lm__ids(op, ids);
    if (st == LM_OK && x->ndim == 0)
        st = lm_fail(LM_ESHAPE, "%s: cannot take rows of %s by ids with %d dims", op,
                     lm__describe(x, xs), ids->ndim);
    return st;
}

int lm_embedding(lm_tensor *weight, lm_tensor *ids, lm_tensor **out) {
    int st = check_rows_of("embedding", weight, ids);
    return st == LM_OK ? rows_of("embedding", weight, ids, 0, weight->shape[0], out) : st;
}

int lm_embedding_part(lm_tensor *weight, lm_tensor *ids, int64_t first, int64_t rows,
                      lm_tensor **out) {
    char ws[96];
    int st = check_rows_of("embedding", weight, ids);
    if (st == LM_OK && (first < 0 || first + weight->shape[0] > rows))
        st =
            lm_fail(LM_ESHAPE, "embedding: weight is %s, but stands for rows from %lld of %lld",
                    lm__describe(weight, ws), (long long)first, (long long)rows);
    return st == LM_OK ? rows_of("embedding", weight, ids, first, rows, out) : st;
}

/* A view in which dims 0 and d changed places. */
static int turned(lm_tensor *x, int d, lm_tensor **out) {
    int64_t shape[LM_MAX_DIMS], stride[LM_MAX_DIMS];
    for (int i = 0; i < x->ndim; i++) {
        int from = i == 0 ? d : i == d ? 0 : i;
        shape[i] = x->shape[from], stride[i] = x->stride[from];
    }
    return lm__tensor_view(x, x->ndim, shape, stride, 0, out);
}

static int select_backward(lm_node *n) { /* i[0]: the dim, not the first */
    int64_t shape[LM_MAX_DIMS];
    const lm_edge *e = &n->edge[0];
    int d = (int)n->i[0];
    lm_tensor *ids, *rows = NULL, *dy = NULL, *sum = NULL, *dx = NULL;
    int st = lm__saved(n, 0, &ids);
    if (st == LM_OK) st = turned(lm__grad(n, 0), d, &rows);
    if (st == LM_OK) st = lm__tensor_dense(rows, rows->dtype, &dy);
    memcpy(shape, e->shape, sizeof shape);
    shape[0] = e->shape[d], shape[d] = e->shape[0];
    if (st == LM_OK) st = lm_tensor_full(LM_F32, e->ndim, shape, 0, &sum);
    if (st == LM_OK)
        st = lm__ran(n->op,
                     lm__kernels(dy)->scatter_add_rows(
                         dy->dtype, ids->numel, shape[0] ? sum->numel / shape[0] : 0, shape[0],
                         (float *)(void *)sum->data, dy->data, ids->dtype, ids->data));
    if (st == LM_OK) st = turned(sum, d, &dx);
    lm_tensor_release(rows), lm_tensor_release(dy), lm_tensor_release(sum);
    return lm__give_result(st, n, 0, dx);
}

int lm_index_select(lm_tensor *x, int64_t dim, lm_tensor *ids, lm_tensor **out) {
    char is[96];
    int d = 0, st = lm__usable("index_select", x);
    if (st == LM_OK) st = lm__ids("index_select", ids);
    if (st == LM_OK) st = lm__dim("index_select", x, dim, &d);
    if (st != LM_OK) return st;
    if (ids->ndim != 1)
        return lm_fail(LM_ESHAPE, "index_select: ids are %s, wants one dim",
                       lm__describe(ids, is));
    if (d == 0) return rows_of("index_select", x, ids, 0, x->shape[0], out);
    lm_tensor *dense = NULL, *at = NULL, *y = NULL;
    lm_node *n = NULL;
    int64_t shape[LM_MAX_DIMS], outer, size, inner, bad = 0;
    memcpy(shape, x->shape, sizeof shape);
    shape[d] = ids->shape[0];
    lm__around(x, d, &outer, &size, &inner);
    st = lm__tensor_dense(x, x->dtype, &dense);
    if (st == LM_OK) st = lm__tensor_dense(ids, ids->dtype, &at);
    if (st == LM_OK) st = lm_tensor_new(x->dtype, x->ndim, shape, &y);
    if (st == LM_OK) {
        st = lm__kernels(x)->index_select(x->dtype, outer, size, inner, shape[d], y->data,
                                          dense->data, at->dtype, at->data, &bad);
        st = st == LM_KERNEL_EARG ? lm__id_out_of_range("index_select", at, bad, size)
                                  : lm__ran("index_select", st);
    }
    if (st == LM_OK && lm__is_float(x->dtype))
        st = lm__record("index_select", select_backward, 1, &x, 1, &y, &n);
    if (st == LM_OK && n) n->i[0] = d, st = lm__save(n, 0, at);
    lm_tensor_release(dense), lm_tensor_release(at);
    return lm__finish(st, y, out);
}

/* ---- elements ---- */

/* torch.gather's rule: ids has x's dims, and no more of them than x outside dim; x is cut to
 * fit. */
static int cut_to(const char *op, lm_tensor *x, lm_tensor *ids, int dim, lm_tensor **out) {
    char xs[96], is[96];
    bool fits = x->ndim == ids->ndim && x->ndim > 0;
    for (int d = 0; fits && d < x->ndim; d++) fits = d == dim || ids->shape[d] <= x->shape[d];
    if (!fits)
        return lm_fail(LM_ESHAPE, "%s: ids are %s, but x is %s", op, lm__describe(ids, is),
                       lm__describe(x, xs));
    int64_t shape[LM_MAX_DIMS];
    memcpy(shape, ids->shape, sizeof shape);
    shape[dim] = x->shape[dim];
    return lm__tensor_view(x, x->ndim, shape, x->stride, 0, out);
}

/* g += elements of src at ids along dim; g is dense f32 and at least as large as ids. */
static int add_at(const char *op, lm_tensor *g, int dim, lm_tensor *ids, lm_tensor *src) {
    lm_tensor *part = NULL, *sum = NULL, *at = NULL, *dense = NULL;
    int64_t outer, n, inner, bad = 0;
    int st = cut_to(op, g, ids, dim, &part);
    if (st == LM_OK)
        st = lm__tensor_dense(part, LM_F32, &sum); /* g itself when nothing is cut */
    if (st == LM_OK) st = lm__tensor_dense(ids, ids->dtype, &at);
    if (st == LM_OK) st = lm__tensor_dense(src, src->dtype, &dense);
    if (st == LM_OK) {
        lm__around(sum, dim, &outer, &n, &inner);
        st =
            lm__ran(op, lm__kernels(g)->scatter_add(dense->dtype, outer, n, inner,
                                                    ids->shape[dim], (float *)(void *)sum->data,
                                                    dense->data, at->dtype, at->data, &bad));
        if (st == LM_EARG) st = lm__id_out_of_range(op, at, bad, n);
        if (st == LM_OK && sum->storage != part->storage) st = lm_tensor_copy(part, sum);
    }
    lm_tensor_release(part), lm_tensor_release(sum), lm_tensor_release(at),
        lm_tensor_release(dense);
    return st;
}

static int gather_backward(lm_node *n) {
    lm_tensor *ids, *g = NULL;
    int st = lm__saved(n, 0, &ids);
    if (st == LM_OK) st = lm_tensor_full(LM_F32, n->edge[0].ndim, n->edge[0].shape, 0, &g);
    if (st == LM_OK) st = add_at("gather", g, (int)n->i[0], ids, lm__grad(n, 0));
    if (st == LM_OK) return lm__give(n, 0, g);
    lm_tensor_release(g);
    return st;
}

int lm_gather(lm_tensor *x, int64_t dim, lm_tensor *ids, lm_tensor **out) {
    int d = 0, st = lm__usable("gather", x);
    if (st == LM_OK) st = lm__ids("gather", ids);
    if (st == LM_OK) st = lm__dim("gather", x, dim, &d);
    if (st != LM_OK) return st;
    lm_tensor *part = NULL, *dense = NULL, *at = NULL, *y = NULL;
    lm_node *n = NULL;
    int64_t outer, size, inner, bad = 0;
    st = cut_to("gather", x, ids, d, &part);
    if (st == LM_OK) st = lm__tensor_dense(part, x->dtype, &dense);
    if (st == LM_OK) st = lm__tensor_dense(ids, ids->dtype, &at);
    if (st == LM_OK) st = lm__tensor_like(ids, x->dtype, &y);
    if (st == LM_OK) {
        lm__around(dense, d, &outer, &size, &inner);
        st = lm__ran("gather",
                     lm__kernels(x)->gather(x->dtype, outer, size, inner, ids->shape[d],
                                            y->data, dense->data, at->dtype, at->data, &bad));
        if (st == LM_EARG) st = lm__id_out_of_range("gather", at, bad, size);
    }
    if (st == LM_OK && lm__is_float(x->dtype))
        st = lm__record("gather", gather_backward, 1, &x, 1, &y, &n);
    if (st == LM_OK && n) n->i[0] = d, st = lm__save(n, 0, at);
    lm_tensor_release(part), lm_tensor_release(dense), lm_tensor_release(at);
    return lm__finish(st, y, out);
}

static int scatter_add_backward(lm_node *n) { /* dx = dy, dsrc = dy gathered */
    lm_tensor *ids, *g, *dy = lm__grad(n, 0);
    int st = lm__saved(n, 0, &ids);
    if (st == LM_OK && lm__wants(n, 1)) {
        st = lm_gather(dy, n->i[0], ids, &g);
        if (st == LM_OK) st = lm__give(n, 1, g);
    }
    if (st != LM_OK) return st;
    lm_tensor_retain(dy);
    return lm__give(n, 0, dy);
}

int lm_scatter_add(lm_tensor *x, int64_t dim, lm_tensor *ids, lm_tensor *src, lm_tensor **out) {
    char is[96], ss[96];
    int d = 0, st = lm__floating("scatter_add", x);
    if (st == LM_OK) st = lm__floating("scatter_add", src);
    if (st == LM_OK) st = lm__ids("scatter_add", ids);
    if (st == LM_OK) st = lm__dim("scatter_add", x, dim, &d);
    if (st != LM_OK) return st;
    if (!lm__same_shape(ids, src))
        return lm_fail(LM_ESHAPE, "scatter_add: ids are %s, but src is %s",
                       lm__describe(ids, is), lm__describe(src, ss));
    lm_tensor *sum = NULL, *y = NULL;
    lm_node *n = NULL;
    st = lm__tensor_like(x, LM_F32, &sum);
    if (st == LM_OK) st = lm_tensor_copy(sum, x);
    if (st == LM_OK) st = add_at("scatter_add", sum, d, ids, src);
    if (st == LM_OK) st = lm__tensor_dense(sum, x->dtype, &y);
    if (st == LM_OK)
        st = lm__record("scatter_add", scatter_add_backward, 2, (lm_tensor *[]){x, src}, 1, &y,
                        &n);
    if (st == LM_OK && n) n->i[0] = d, st = lm__save(n, 0, ids);
    lm_tensor_release(sum);
    return lm__finish(st, y, out);
}

int lm_one_hot(lm_tensor *ids, int64_t classes, lm_tensor **out) {
    char is[96];
    int st = lm__ids("one_hot", ids);
    if (st != LM_OK) return st;
    if (ids->ndim == LM_MAX_DIMS || classes < 0)
        return lm_fail(LM_ESHAPE, "one_hot: %lld classes for %s", (long long)classes,
                       lm__describe(ids, is));
    int64_t shape[LM_MAX_DIMS];
    memcpy(shape, ids->shape, sizeof shape);
    shape[ids->ndim] = classes;
    lm_tensor *y = NULL, *at = NULL, *ones = NULL;
    int before = lm_grad_set_enabled(0);
    st = lm_tensor_full(LM_F32, ids->ndim + 1, shape, 0, &y);
    if (st == LM_OK) st = lm_unsqueeze(ids, -1, &at);
    if (st == LM_OK) st = lm_tensor_full(LM_F32, at->ndim, at->shape, 1, &ones);
    if (st == LM_OK) st = add_at("one_hot", y, ids->ndim, at, ones);
    lm_grad_set_enabled(before);
    lm_tensor_release(at), lm_tensor_release(ones);
    return lm__finish(st, y, out);
}
