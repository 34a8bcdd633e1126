/* thin_gemm.h - a few rows times a weight (kernels/cpu/thin_gemm.c). */
#ifndef LM_THIN_GEMM_H
#define LM_THIN_GEMM_H

#include "kernels/kernels.h"

/* By sizes, types and strides alone. */
int lm__gemm_is_thin(int64_t batch, int64_t m, int64_t n, int64_t k, const lm_matrix *a,
                     const lm_matrix *b, const lm_matrix *c);
/* C = f(alpha A B + beta C + bias), as lm_cpu_gemm_act. */
int lm__gemm_thin(int64_t m, int64_t n, int64_t k, double alpha, const lm_matrix *a,
                  const lm_matrix *b, double beta, const lm_matrix *c, const void *bias,
                  int bias_dtype, int activation);

#endif
