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

/* The dtype of a op b, as in PyTorch: floats win over integers, wide over narrow, f32 over
 * bf16; a tensor without dims does not widen one with dims. */
int lm__promote(const lm_tensor *a, const lm_tensor *b);
int lm__broadcast(const char *op, const lm_tensor *a, const lm_tensor *b, int *ndim,
                  int64_t *shape);
/* lm__usable, and f32 or bf16. */
int lm__floating(const char *op, const lm_tensor *x);
/* x as [outer, n, inner] around dim. */
void lm__around(const lm_tensor *x, int dim, int64_t *outer, int64_t *n, int64_t *inner);
/* The common end: hands the result over on success, drops it on failure. */
int lm__finish(int st, lm_tensor *result, lm_tensor **out);

#endif
