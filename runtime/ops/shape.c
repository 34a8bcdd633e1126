/* shape.c - the same elements in another shape: views where strides can say it, copies where
 * they cannot. Gradients flow back as views too. */
#include "runtime/ops/op.h"

#include <stdlib.h>
#include <string.h>

/* ---- reshape ---- */

static int reshape_backward(lm_node *n) {
    lm_tensor *g;
    int st = lm_reshape(lm__grad(n, 0), n->edge[0].ndim, n->edge[0].shape, &g);
    return st == LM_OK ? lm__give(n, 0, g) : st;
}

/* Strides under which x reads as `shape` without moving a byte, or false. Walks groups of
 * dims that lie behind each other in memory. */
static bool view_strides(const lm_tensor *x, int ndim, const int64_t *shape, int64_t *stride) {
    if (x->numel == 0 || lm_tensor_is_contiguous(x)) {
        lm__contiguous_strides(ndim, shape, stride);
        return true;
    }
    int to = ndim - 1;
    int64_t group = 1, filled = 1, base = 1;
    bool start = true;
    for (int d = x->ndim - 1; d >= 0; d--) {
        if (x->shape[d] == 1) continue;
        if (start) base = x->stride[d], start = false;
        group *= x->shape[d];
        int before = d - 1;
        while (before >= 0 && x->shape[before] == 1) before--;
        if (before >= 0 && x->stride[before] == base * group) continue; /* still in one piece */
        while (to >= 0 && filled < group) {
            if (group % (filled * (shape[to] ? shape[to] : 1))) return false;
            stride[to] = base * filled;
            filled *= shape[to--];
        }
        if (filled != group) return false;
        group = filled = 1, start = true;
    }
    while (to >= 0) stride[to--] = 1; /* what is left are ones */
    return true;
}

int lm_reshape(lm_tensor *x, int ndim, const int64_t *shape, lm_tensor **out) {
    char xs[96], ys[96];
    int64_t size[LM_MAX_DIMS], stride[LM_MAX_DIMS], known = 1;
    int st = lm__usable("reshape", x), open = -1;
    if (st != LM_OK) return st;
    if (ndim < 0 || ndim > LM_MAX_DIMS)
        return lm_fail(LM_ESHAPE, "reshape: at most %d dims, not %d", LM_MAX_DIMS, ndim);
    for (int d = 0; d < ndim; d++) {
        size[d] = shape[d];
        if (shape[d] == -1 && open < 0) open = d;
        else known *= shape[d];
    }
    if (open >= 0 && known > 0 && x->numel % known == 0) size[open] = x->numel / known;
    int64_t numel = 1;
    for (int d = 0; d < ndim; d++) numel *= size[d];
    if (numel != x->numel || (open >= 0 && size[open] < 0))
        return lm_fail(LM_ESHAPE, "reshape: %s cannot become %s", lm__describe(x, xs),
                       lm__shape_text(ndim, shape, ys));
    lm_tensor *from = NULL, *y = NULL;
    lm_node *n;
    if (view_strides(x, ndim, size, stride)) lm_tensor_retain(from = x);
    else {
        st = lm__tensor_dense(x, x->dtype, &from);
        lm__contiguous_strides(ndim, size, stride);
    }
    if (st == LM_OK) st = lm__tensor_view(from, ndim, size, stride, 0, &y);
    if (st == LM_OK) st = lm__record("reshape", reshape_backward, 1, &x, 1, &y, &n);
    lm_tensor_release(from);
    return lm__finish(st, y, out);
}

/* ---- permute, transpose ---- */

static int permute_backward(lm_node *n) { /* i: the inverse order */
    lm_tensor *g;
    int st = lm_permute(lm__grad(n, 0), n->edge[0].ndim, n->i, &g);
    return st == LM_OK ? lm__give(n, 0, g) : st;
}

int lm_permute(lm_tensor *x, int ndim, const int64_t *dims, lm_tensor **out) {
    int64_t shape[LM_MAX_DIMS], stride[LM_MAX_DIMS], inverse[LM_MAX_DIMS];
    unsigned seen = 0;
    int st = lm__usable("permute", x);
    if (st != LM_OK) return st;
    if (ndim != x->ndim)
        return lm_fail(LM_EARG, "permute: %d dims named, the tensor has %d", ndim, x->ndim);
    for (int d = 0; d < ndim; d++) {
        int from = 0;
        st = lm__dim("permute", x, dims[d], &from);
        if (st != LM_OK) return st;
        if (seen >> from & 1) return lm_fail(LM_EARG, "permute: dim %d is named twice", from);
        seen |= 1u << from;
        shape[d] = x->shape[from], stride[d] = x->stride[from], inverse[from] = d;
    }
    lm_tensor *y = NULL;
    lm_node *n = NULL;
    st = lm__tensor_view(x, ndim, shape, stride, 0, &y);
    if (st == LM_OK) st = lm__record("permute", permute_backward, 1, &x, 1, &y, &n);
    if (st == LM_OK && n) memcpy(n->i, inverse, (size_t)ndim * sizeof *inverse);
    return lm__finish(st, y, out);
}

int lm_transpose(lm_tensor *x, int64_t dim0, int64_t dim1, lm_tensor **out) {
    int a = 0, b = 0, st = lm__usable("transpose", x);
    int64_t dims[LM_MAX_DIMS];
    if (st == LM_OK) st = lm__dim("transpose", x, dim0, &a);
    if (st == LM_OK) st = lm__dim("transpose", x, dim1, &b);
    if (st != LM_OK) return st;
    for (int d = 0; d < x->ndim; d++) dims[d] = d == a ? b : d == b ? a : d;
    return lm_permute(x, x->ndim, dims, out);
}

/* ---- expand ---- */

static int expand_backward(lm_node *n) { /* the tape sums over what was broadcast */
    lm_tensor_retain(lm__grad(n, 0));
    return lm__give(n, 0, lm__grad(n, 0));
}

int lm_expand(lm_tensor *x, int ndim, const int64_t *shape, lm_tensor **out) {
    char xs[96], ys[96];
    int64_t size[LM_MAX_DIMS], stride[LM_MAX_DIMS];
    int st = lm__usable("expand", x), lead = ndim - x->ndim;
    if (st != LM_OK) return st;
    bool fits = lead >= 0 && ndim <= LM_MAX_DIMS;
    for (int d = 0; fits && d < ndim; d++) {
        size[d] = shape[d] == -1 && d >= lead ? x->shape[d - lead] : shape[d];
        fits = size[d] >= 0;
    }
    if (!fits || lm__broadcast_strides(x, ndim, size, stride) != LM_OK)
        return lm_fail(LM_ESHAPE, "expand: %s cannot become %s", lm__describe(x, xs),
                       lm__shape_text(ndim > LM_MAX_DIMS ? LM_MAX_DIMS : ndim, shape, ys));
    lm_tensor *y = NULL;
    lm_node *n;
    st = lm__tensor_view(x, ndim, size, stride, 0, &y);
    if (st == LM_OK) st = lm__record("expand", expand_backward, 1, &x, 1, &y, &n);
    return lm__finish(st, y, out);
}

/* ---- narrow, select ---- */

static int narrow_backward(lm_node *n) { /* i: dim, start, selected */
    const lm_edge *e = &n->edge[0];
    int64_t whole[LM_MAX_DIMS], stride[LM_MAX_DIMS];
    int dim = (int)n->i[0], ndim = 0;
    lm__contiguous_strides(e->ndim, e->shape, whole);
    for (int d = 0; d < e->ndim; d++)
        if (d != dim || !n->i[2]) stride[ndim++] = whole[d];
    return lm__give_part(n, 0, lm__grad(n, 0), stride, n->i[1] * whole[dim]);
}

static int cut(const char *name, lm_tensor *x, int dim, int64_t start, int64_t length,
               bool selected, lm_tensor **out) {
    int64_t shape[LM_MAX_DIMS], stride[LM_MAX_DIMS];
    int ndim = 0;
    for (int d = 0; d < x->ndim; d++) {
        if (d == dim && selected) continue;
        shape[ndim] = d == dim ? length : x->shape[d];
        stride[ndim++] = x->stride[d];
    }
    lm_tensor *y = NULL;
    lm_node *n = NULL;
    int st = lm__tensor_view(x, ndim, shape, stride, x->numel ? start * x->stride[dim] : 0, &y);
    if (st == LM_OK) st = lm__record(name, narrow_backward, 1, &x, 1, &y, &n);
    if (st == LM_OK && n) n->i[0] = dim, n->i[1] = start, n->i[2] = selected;
    return lm__finish(st, y, out);
}

int lm_narrow(lm_tensor *x, int64_t dim, int64_t start, int64_t length, lm_tensor **out) {
    char xs[96];
    int d = 0, st = lm__usable("narrow", x);
    if (st == LM_OK) st = lm__dim("narrow", x, dim, &d);
    if (st != LM_OK) return st;
    int64_t size = x->ndim ? x->shape[d] : 0, from = start < 0 ? start + size : start;
    if (x->ndim == 0 || from < 0 || length < 0 || from + length > size)
        return lm_fail(LM_EARG, "narrow: start %lld, length %lld in dim %d of %s",
                       (long long)start, (long long)length, d, lm__describe(x, xs));
    return cut("narrow", x, d, from, length, false, out);
}

int lm_select(lm_tensor *x, int64_t dim, int64_t index, lm_tensor **out) {
    char xs[96];
    int d = 0, st = lm__usable("index", x);
    if (st == LM_OK) st = lm__dim("index", x, dim, &d);
    if (st != LM_OK) return st;
    int64_t size = x->ndim ? x->shape[d] : 0, at = index < 0 ? index + size : index;
    if (at < 0 || at >= size)
        return lm_fail(LM_EARG, "index %lld is out of range in dim %d of %s (counted from 0)",
                       (long long)index, d, lm__describe(x, xs));
    return cut("select", x, d, at, 1, true, out);
}

/* ---- ones that come and go ---- */

int lm_unsqueeze(lm_tensor *x, int64_t dim, lm_tensor **out) {
    int64_t shape[LM_MAX_DIMS + 1];
    int st = lm__usable("unsqueeze", x), at = (int)(dim < 0 ? dim + x->ndim + 1 : dim);
    if (st != LM_OK) return st;
    if (at < 0 || at > x->ndim)
        return lm_fail(LM_EARG, "unsqueeze: dim %lld of a tensor with %d", (long long)dim,
                       x->ndim);
    for (int d = 0; d <= x->ndim; d++) shape[d] = d == at ? 1 : x->shape[d - (d > at)];
    return lm_reshape(x, x->ndim + 1, shape, out);
}

int lm_squeeze(lm_tensor *x, int64_t dim, lm_tensor **out) {
    int64_t shape[LM_MAX_DIMS];
    int d = 0, ndim = 0, st = lm__usable("squeeze", x);
    if (st == LM_OK) st = lm__dim("squeeze", x, dim, &d);
    if (st != LM_OK) return st;
    for (int i = 0; i < x->ndim; i++)
        if (i != d || x->shape[i] != 1) shape[ndim++] = x->shape[i];
    return lm_reshape(x, ndim, shape, out);
}

/* ---- copies ---- */

static int copy_backward(lm_node *n) { /* lm__give converts the dtype */
    lm_tensor_retain(lm__grad(n, 0));
    return lm__give(n, 0, lm__grad(n, 0));
}

static int copy_of(const char *name, lm_tensor *x, int dtype, lm_tensor **out) {
    lm_tensor *y = NULL;
    lm_node *n;
    int st = lm__tensor_like(x, dtype, &y);
    if (st == LM_OK)
        st = lm__ran(name,
                     lm__kernels(x)->copy_strided(y->data, dtype, x->data, x->dtype, x->ndim,
                                                  x->shape, y->stride, x->stride));
    if (st == LM_OK && lm__is_float(dtype))
        st = lm__record(name, copy_backward, 1, &x, 1, &y, &n);
    return lm__finish(st, y, out);
}

int lm_contiguous(lm_tensor *x, lm_tensor **out) {
    int st = lm__usable("contiguous", x);
    if (st != LM_OK) return st;
    if (!lm_tensor_is_contiguous(x)) return copy_of("contiguous", x, x->dtype, out);
    lm_tensor_retain(*out = x);
    return LM_OK;
}

int lm_clone(lm_tensor *x, lm_tensor **out) {
    int st = lm__usable("clone", x);
    return st == LM_OK ? copy_of("clone", x, x->dtype, out) : st;
}

int lm_to_dtype(lm_tensor *x, int dtype, lm_tensor **out) {
    int st = lm__usable("to", x);
    if (st != LM_OK) return st;
    if (dtype < 0 || dtype >= LM_DTYPES)
        return lm_fail(LM_EDTYPE, "to: no dtype has number %d", dtype);
    if (x->dtype != dtype) return copy_of("to", x, dtype, out);
    lm_tensor_retain(*out = x);
    return LM_OK;
}

int lm_detach(lm_tensor *x, lm_tensor **out) {
    int st = lm__usable("detach", x);
    return st == LM_OK ? lm__tensor_alias(x, out) : st;
}

/* ---- cat ---- */

static int cat_backward(lm_node *n) {
    int dim = (int)n->i[0], st = LM_OK;
    int64_t start = 0;
    for (int i = 0; i < n->inputs && st == LM_OK; i++) {
        int64_t size = ((int64_t *)n->extra)[i];
        if (lm__wants(n, i)) {
            lm_tensor *g;
            st = lm_narrow(lm__grad(n, 0), dim, start, size, &g);
            if (st == LM_OK) st = lm__give(n, i, g);
        }
        start += size;
    }
    return st;
}

int lm_cat(lm_tensor **list, int count, int64_t dim, lm_tensor **out) {
    char as[96], bs[96];
    int d = 0, st = count > 0 ? LM_OK : lm_fail(LM_EARG, "cat: nothing to join");
    for (int i = 0; i < count && st == LM_OK; i++) st = lm__usable("cat", list[i]);
    if (st == LM_OK) st = lm__dim("cat", list[0], dim, &d);
    if (st != LM_OK) return st;
    if (list[0]->ndim == 0)
        return lm_fail(LM_ESHAPE, "cat: numbers have no dim to join; use stack");

    int64_t shape[LM_MAX_DIMS], *size = calloc((size_t)count, sizeof *size);
    if (!size) return lm_fail(LM_EOOM, "cat: no memory");
    memcpy(shape, list[0]->shape, sizeof shape);
    shape[d] = 0;
    int dtype = list[0]->dtype;
    for (int i = 0; i < count && st == LM_OK; i++) {
        bool fits = list[i]->ndim == list[0]->ndim;
        for (int k = 0; fits && k < list[i]->ndim; k++)
            fits = k == d || list[i]->shape[k] == shape[k];
        if (!fits)
            st = lm_fail(LM_ESHAPE, "cat: %s does not join %s along dim %d",
                         lm__describe(list[i], as), lm__describe(list[0], bs), d);
        else shape[d] += size[i] = list[i]->shape[d];
        if (dtype != list[i]->dtype) dtype = lm__promote(list[0], list[i]);
    }
    lm_tensor *y = NULL;
    lm_node *n = NULL;
    if (st == LM_OK) st = lm_tensor_new(dtype, list[0]->ndim, shape, &y);
    char *at = y ? y->data : NULL;
    for (int i = 0; i < count && st == LM_OK; i++) {
        st = lm__ran("cat", lm__kernels(y)->copy_strided(
                                at, dtype, list[i]->data, list[i]->dtype, list[i]->ndim,
                                list[i]->shape, y->stride, list[i]->stride));
        at += size[i] * y->stride[d] * lm_dtype_size(dtype);
    }
    if (st == LM_OK && lm__is_float(dtype))
        st = lm__record("cat", cat_backward, count, list, 1, &y, &n);
    if (st == LM_OK && n) n->i[0] = d, n->extra = size, n->free_extra = free, size = NULL;
    free(size);
    return lm__finish(st, y, out);
}
