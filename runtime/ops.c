/* ops.c - the list of operations as text, and what several of them share. */
#include "runtime/ops/op.h"

#include <string.h>

static const char *const signature[] = {
#define OP(name, params) #name #params,
#include "runtime/ops.def"
#undef OP
    NULL,
};

const char *lm_op_signature(int i) {
    int count = (int)(sizeof signature / sizeof *signature);
    return i >= 0 && i < count ? signature[i] : NULL;
}

int lm__kernel_failed(const char *op, int st) {
    switch (st) {
    case LM_KERNEL_EARG: return lm_fail(LM_EARG, "%s: an argument is out of range", op);
    case LM_KERNEL_EDTYPE: return lm_fail(LM_EDTYPE, "%s: not for tensors of this dtype", op);
    case LM_KERNEL_EOOM: return lm_fail(LM_EOOM, "%s: no memory for scratch", op);
    default: return lm_fail(LM_EINTERNAL, "%s: the matrix library refused (%d)", op, st);
    }
}

int lm__promote(const lm_tensor *a, const lm_tensor *b) {
    int x = a->dtype, y = b->dtype;
    if (x == y) return x;
    bool fx = lm__is_float(x), fy = lm__is_float(y);
    if (fx != fy) return fx ? x : y;
    if (a->ndim == 0 && b->ndim > 0) return y; /* a lone number follows the tensor */
    if (b->ndim == 0 && a->ndim > 0) return x;
    if (fx) return LM_F32;
    return x == LM_I64 || y == LM_I64 ? LM_I64 : LM_I32;
}

int lm__broadcast(const char *op, const lm_tensor *a, const lm_tensor *b, int *ndim,
                  int64_t *shape) {
    char as[96], bs[96];
    int n = a->ndim > b->ndim ? a->ndim : b->ndim;
    for (int d = 1; d <= n; d++) {
        int64_t x = d <= a->ndim ? a->shape[a->ndim - d] : 1;
        int64_t y = d <= b->ndim ? b->shape[b->ndim - d] : 1;
        if (x != y && x != 1 && y != 1)
            return lm_fail(
                LM_ESHAPE, "%s: %s and %s do not broadcast: sizes %lld and %lld in dim %d", op,
                lm__describe(a, as), lm__describe(b, bs), (long long)x, (long long)y, -d);
        shape[n - d] = x == 1 ? y : x;
    }
    *ndim = n;
    return LM_OK;
}

int lm__floating(const char *op, const lm_tensor *x) {
    int st = lm__usable(op, x);
    if (st == LM_OK && !lm__is_float(x->dtype))
        st = lm_fail(LM_EDTYPE, "%s: wants f32 or bf16, not %s", op, lm_dtype_name(x->dtype));
    return st;
}

void lm__around(const lm_tensor *x, int dim, int64_t *outer, int64_t *n, int64_t *inner) {
    *outer = *inner = 1;
    *n = x->ndim ? x->shape[dim] : 1;
    for (int d = 0; d < dim; d++) *outer *= x->shape[d];
    for (int d = dim + 1; d < x->ndim; d++) *inner *= x->shape[d];
}

int64_t lm__rows(const lm_tensor *x) {
    int64_t rows = 1;
    for (int d = 0; d < x->ndim - 1; d++) rows *= x->shape[d];
    return rows;
}

int lm__reduced_shape(const lm_tensor *x, int dim, int keepdim, int64_t *shape) {
    int n = 0;
    for (int d = 0; d < x->ndim; d++)
        if (d != dim) shape[n++] = x->shape[d];
        else if (keepdim) shape[n++] = 1;
    return n;
}

int lm__ids(const char *op, const lm_tensor *ids) {
    int st = lm__usable(op, ids);
    if (st == LM_OK && ids->dtype != LM_I32 && ids->dtype != LM_I64)
        st = lm_fail(LM_EDTYPE, "%s: ids are %s; wants i32 or i64", op,
                     lm_dtype_name(ids->dtype));
    return st;
}

int lm__id_out_of_range(const char *op, const lm_tensor *ids, int64_t position, int64_t n) {
    double id = 0;
    int st = lm_tensor_get(ids, position, &id);
    if (st != LM_OK) return st;
    return lm_fail(LM_EARG, "%s: id %.0f at position %lld is not in 0 to %lld", op, id,
                   (long long)position, (long long)n - 1);
}

int lm__give_result(int st, lm_node *n, int input, lm_tensor *grad) {
    if (st == LM_OK) return lm__give(n, input, grad);
    lm_tensor_release(grad);
    return st;
}

int lm__finish(int st, lm_tensor *result, lm_tensor **out) {
    if (st == LM_OK) *out = result;
    else lm_tensor_release(result);
    return st;
}
