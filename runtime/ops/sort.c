/* sort.c - positions in order of their values, along a dim: sort and topk. Ties keep their
 * order, NaN is the greatest. Values are gathered by the positions, which is also how gradients
 * find back. */
#include "runtime/ops/op.h"

/* The k first positions of each row in the order; i64 in the shape of x with k in dim. */
static int order(lm_tensor *x, int dim, int64_t k, bool all, int descending, lm_tensor **out) {
    lm_tensor *turned = NULL, *dense = NULL, *ids = NULL;
    int64_t shape[LM_MAX_DIMS];
    int before = lm_grad_set_enabled(0);
    int st = lm_transpose(x, dim, -1, &turned);
    if (st == LM_OK) st = lm__tensor_dense(turned, x->dtype, &dense);
    if (st == LM_OK) {
        for (int d = 0; d < x->ndim; d++) shape[d] = turned->shape[d];
        shape[x->ndim - 1] = k;
        st = lm_tensor_new(LM_I64, x->ndim, shape, &ids);
    }
    if (st == LM_OK) {
        int64_t rows = lm__rows(dense), width = lm__width(dense), *at = (void *)ids->data;
        st = all ? lm__ran("sort", lm__kernels(x)->sort(x->dtype, rows, width, descending, NULL,
                                                        at, dense->data))
                 : lm__ran("topk", lm__kernels(x)->topk(x->dtype, rows, width, k, NULL, at,
                                                        dense->data));
    }
    if (st == LM_OK) st = lm_transpose(ids, dim, -1, out);
    lm_grad_set_enabled(before);
    lm_tensor_release(turned), lm_tensor_release(dense), lm_tensor_release(ids);
    return st;
}

static int pick(lm_tensor *x, int dim, int64_t k, bool all, int descending, lm_tensor **values,
                lm_tensor **ids) {
    lm_tensor *row = NULL, *at = NULL, *flat_ids = NULL, *v = NULL, *flat_values = NULL;
    int st = x->ndim ? (lm_tensor_retain(row = x), LM_OK) : lm_unsqueeze(x, 0, &row);
    if (st == LM_OK) st = order(row, dim, k, all, descending, &at);
    if (st == LM_OK) st = lm_gather(row, dim, at, &v);
    if (st == LM_OK && x->ndim == 0 && k == 1) { /* a number again */
        st = lm_squeeze(at, 0, &flat_ids);
        if (st == LM_OK) st = lm_squeeze(v, 0, &flat_values);
        lm_tensor_release(at), lm_tensor_release(v);
        at = flat_ids, v = flat_values;
    }
    lm_tensor_release(row);
    if (st == LM_OK) *values = v, *ids = at;
    else lm_tensor_release(v), lm_tensor_release(at);
    return st;
}

int lm_sort(lm_tensor *x, int64_t dim, int descending, lm_tensor **values, lm_tensor **ids) {
    int d = 0, st = lm__usable("sort", x);
    if (st == LM_OK) st = lm__dim("sort", x, dim, &d);
    if (st != LM_OK) return st;
    return pick(x, d, x->ndim ? x->shape[d] : 1, true, descending, values, ids);
}

int lm_topk(lm_tensor *x, int64_t k, int64_t dim, lm_tensor **values, lm_tensor **ids) {
    char xs[96];
    int d = 0, st = lm__usable("topk", x);
    if (st == LM_OK) st = lm__dim("topk", x, dim, &d);
    if (st != LM_OK) return st;
    int64_t size = x->ndim ? x->shape[d] : 1;
    if (k < 0 || k > size)
        return lm_fail(LM_EARG, "topk: k is %lld, but dim %d of %s has %lld", (long long)k, d,
                       lm__describe(x, xs), (long long)size);
    return pick(x, d, k, false, 1, values, ids);
}
