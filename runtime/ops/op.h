/* op.h - what the files of this room share. */
#ifndef LM_OPS_OP_H
#define LM_OPS_OP_H

#include "kernels/kernels.h"
#include "runtime/ops.h"
#include "runtime/tape.h"
#include "runtime/tensor_impl.h"

/* The backend of a tensor's device. There is one so far. */
static inline const lm_kernels *lm__kernels(const lm_tensor *x) {
    (void)x;
    return &lm_cpu_kernels;
}

/* What a kernel of `op` returned, with a sentence when it failed. */
int lm__kernel_failed(const char *op, int st);
static inline int lm__ran(const char *op, int st) {
    return st == LM_OK ? st : lm__kernel_failed(op, st);
}

/* The dtype of a op b, as in PyTorch: floats win over integers, wide over narrow, f32 over
 * bf16; a tensor without dims does not widen one with dims. */
int lm__promote(const lm_tensor *a, const lm_tensor *b);
int lm__broadcast(const char *op, const lm_tensor *a, const lm_tensor *b, int *ndim,
                  int64_t *shape);
/* lm__usable, and f32 or bf16. */
int lm__floating(const char *op, const lm_tensor *x);
/* x as [outer, n, inner] around dim. */
void lm__around(const lm_tensor *x, int dim, int64_t *outer, int64_t *n, int64_t *inner);
/* x as rows of its last dim; a number is one row of one. */
static inline int64_t lm__width(const lm_tensor *x) {
    return x->ndim ? x->shape[x->ndim - 1] : 1;
}
int64_t lm__rows(const lm_tensor *x);
/* x's shape with dim made 1 (keepdim) or left out; returns the number of dims. */
int lm__reduced_shape(const lm_tensor *x, int dim, int keepdim, int64_t *shape);
/* lm__usable, and i32 or i64; and the error for one of them that is not in 0 .. n - 1. */
int lm__ids(const char *op, const lm_tensor *ids);
int lm__id_out_of_range(const char *op, const lm_tensor *ids, int64_t position, int64_t n);
/* lm__give when all went well so far, else only drops the gradient (which may be NULL). */
int lm__give_result(int st, lm_node *n, int input, lm_tensor *grad);
/* The common end: hands the result over on success, drops it on failure. */
int lm__finish(int st, lm_tensor *result, lm_tensor **out);

#endif
