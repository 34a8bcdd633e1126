/* parallel.c - what parallel.h says, on the tape: backward is C from end to end. */
#include "runtime/ops/op.h"
#include "runtime/parallel.h"

#include <stdlib.h>

static void drop_group(void *g) { lm_group_release(g); }

/* y = f(x), whose backward goes through the group and may want a row. Takes y. */
static int record(const char *op, lm_backward_fn backward, lm_group *g, int64_t row,
                  lm_tensor *x, lm_tensor *y, lm_tensor **out) {
    lm_node *n = NULL;
    int st = lm__is_float(y->dtype) ? lm__record(op, backward, 1, &x, 1, &y, &n) : LM_OK;
    if (n) {
        lm_group_retain(g);
        n->extra = g, n->free_extra = drop_group;
        n->i[0] = row;
    }
    return lm__finish(st, y, out);
}

/* A new tensor: the sum of x over the ranks. */
static int sum_over(lm_group *g, lm_tensor *x, lm_tensor **out) {
    lm_tensor *y = NULL;
    int st = lm__tensor_like(x, x->dtype, &y);
    if (st == LM_OK) st = lm_tensor_copy(y, x);
    if (st == LM_OK) st = lm_all_reduce(g, y->data, y->numel, y->dtype, LM_REDUCE_SUM);
    return lm__finish(st, y, out);
}

/* ---- copy_to, reduce_from ---- */

static int copy_to_backward(lm_node *n) {
    lm_tensor *dx = NULL;
    int st = sum_over(n->extra, lm__grad(n, 0), &dx);
    return lm__give_result(st, n, 0, dx);
}

int lm_copy_to(lm_group *g, lm_tensor *x, lm_tensor **out) {
    lm_tensor *y = NULL;
    int st = lm__floating("copy_to", x);
    if (st == LM_OK) st = lm_detach(x, &y);
    return st == LM_OK ? record("copy_to", copy_to_backward, g, 0, x, y, out) : st;
}

static int reduce_from_backward(lm_node *n) {
    lm_tensor *dx = lm__grad(n, 0);
    lm_tensor_retain(dx);
    return lm__give(n, 0, dx);
}

int lm_reduce_from(lm_group *g, lm_tensor *x, lm_tensor **out) {
    lm_tensor *y = NULL;
    int st = lm__floating("reduce_from", x);
    if (st == LM_OK) st = sum_over(g, x, &y);
    return st == LM_OK ? record("reduce_from", reduce_from_backward, g, 0, x, y, out) : st;
}

/* ---- slice_rows, gather_rows ---- */

static int64_t first_row(int64_t rows, int rank, int size) { return rows * rank / size; }

/* All ranks' x [rows[r], ..] one after the other. */
static int gather(lm_group *g, lm_tensor *x, const int64_t *rows, lm_tensor **out) {
    int size = lm_group_size(g);
    int64_t shape[LM_MAX_DIMS], row = lm_dtype_size(x->dtype);
    for (int d = 1; d < x->ndim; d++) row *= shape[d] = x->shape[d];
    shape[0] = 0;
    int64_t *bytes = malloc((size_t)size * sizeof *bytes);
    lm_tensor *dense = NULL, *y = NULL;
    int st = bytes ? lm__tensor_dense(x, x->dtype, &dense)
                   : lm_fail(LM_EOOM, "gather_rows: no memory for the sizes of %d ranks", size);
    for (int r = 0; st == LM_OK && r < size; r++) {
        shape[0] += rows[r];
        bytes[r] = rows[r] * row;
    }
    if (st == LM_OK) st = lm_tensor_new(x->dtype, x->ndim, shape, &y);
    if (st == LM_OK) st = lm_all_gather_v(g, dense->data, bytes, y->data);
    lm_tensor_release(dense);
    free(bytes);
    return lm__finish(st, y, out);
}

static int slice_backward(lm_node *n) {
    lm_group *g = n->extra;
    int size = lm_group_size(g);
    int64_t rows = n->edge[0].shape[0];
    lm_tensor *dx = NULL;
    int64_t *share = malloc((size_t)size * sizeof *share);
    if (!share)
        return lm_fail(LM_EOOM, "slice_rows: no memory for the sizes of %d ranks", size);
    for (int r = 0; r < size; r++)
        share[r] = first_row(rows, r + 1, size) - first_row(rows, r, size);
    int st = gather(g, lm__grad(n, 0), share, &dx);
    free(share);
    return lm__give_result(st, n, 0, dx);
}

static int check_rows(const char *op, const lm_tensor *x) {
    int st = lm__usable(op, x);
    if (st == LM_OK && x->ndim == 0)
        st = lm_fail(LM_ESHAPE, "%s: wants rows, not a single number", op);
    return st;
}

int lm_slice_rows(lm_group *g, lm_tensor *x, lm_tensor **out) {
    lm_tensor *whole = NULL, *y = NULL;
    int rank = lm_group_rank(g), size = lm_group_size(g);
    int st = check_rows("slice_rows", x);
    if (st != LM_OK) return st;
    int64_t first = first_row(x->shape[0], rank, size);
    st = lm_detach(x, &whole);
    if (st == LM_OK)
        st = lm_narrow(whole, 0, first, first_row(x->shape[0], rank + 1, size) - first, &y);
    lm_tensor_release(whole);
    return st == LM_OK ? record("slice_rows", slice_backward, g, 0, x, y, out) : st;
}

static int gather_backward(lm_node *n) { /* i[0]: this rank's first row */
    lm_tensor *dx = NULL;
    int st = lm_narrow(lm__grad(n, 0), 0, n->i[0], n->edge[0].shape[0], &dx);
    return lm__give_result(st, n, 0, dx);
}

int lm_gather_rows(lm_group *g, lm_tensor *x, const int64_t *rows, lm_tensor **out) {
    char xs[96];
    int rank = lm_group_rank(g);
    int64_t first = 0;
    lm_tensor *y = NULL;
    int st = check_rows("gather_rows", x);
    if (st == LM_OK && x->shape[0] != rows[rank])
        st = lm_fail(LM_ESHAPE, "gather_rows: x is %s, but %lld rows were said to be here",
                     lm__describe(x, xs), (long long)rows[rank]);
    if (st == LM_OK) st = gather(g, x, rows, &y);
    for (int r = 0; r < rank; r++) first += rows[r];
    return st == LM_OK ? record("gather_rows", gather_backward, g, first, x, y, out) : st;
}
