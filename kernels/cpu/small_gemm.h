/* small_gemm.h - products so small that asking a library costs more (kernels/cpu/small_gemm.c).
 */
#ifndef LM_SMALL_GEMM_H
#define LM_SMALL_GEMM_H

#include "kernels/kernels.h"

/* By sizes alone, so that it is the same wherever the product is made. */
int lm__gemm_is_small(int64_t batch, int64_t m, int64_t n, int64_t k);
/* C = alpha A B + beta C + bias, as lm_cpu_gemm. */
void lm__gemm_small(int64_t batch, int64_t m, int64_t n, int64_t k, double alpha,
                    const lm_matrix *a, const lm_matrix *b, double beta, const lm_matrix *c,
                    const void *bias, int bias_dtype);

#endif
