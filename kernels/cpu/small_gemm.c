/* small_gemm.c - products so small that asking a library costs more than the sums.
 *
 * One thread. A row of C is a sum of rows of B, which are brought together as f32 first; where
 * B's columns are what lies together (the weight of a linear layer), each element is a dot
 * product instead, unless it is a short one. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/small_gemm.h"

enum { SUMS = 1024, SHORT = 16 };

int lm__gemm_is_small(int64_t batch, int64_t m, int64_t n, int64_t k) {
    return batch <= SUMS && m <= SUMS && n <= SUMS && k <= SUMS && batch * m * n * k <= SUMS &&
           k * n <= SUMS && n > 0;
}

static float get(const void *p, int dtype, int64_t i) {
    return dtype == LM_F32 ? ((const float *)p)[i] : lm_bf16_to_f32(((const uint16_t *)p)[i]);
}

/* y = a B, B [k, n] */
LM_CLONES static void row_times(float *restrict y, const float *a, const float *b, int64_t k,
                                int64_t n) {
    for (int64_t j = 0; j < n; j++) y[j] = 0;
    for (int64_t p = 0; p < k; p++) {
        float by = a[p];
#pragma omp simd
        for (int64_t j = 0; j < n; j++) y[j] += by * b[p * n + j];
    }
}

/* y = a B', B' [n, k] with rows `step` apart */
LM_CLONES static void row_dots(float *restrict y, const float *a, const float *b, int64_t k,
                               int64_t n, int64_t step) {
    for (int64_t j = 0; j < n; j++) {
        float s = 0;
#pragma omp simd reduction(+ : s)
        for (int64_t p = 0; p < k; p++) s += a[p] * b[j * step + p];
        y[j] = s;
    }
}

void lm__gemm_small(int64_t batch, int64_t m, int64_t n, int64_t k, double alpha,
                    const lm_matrix *a, const lm_matrix *b, double beta, const lm_matrix *c,
                    const void *bias, int bias_dtype) {
    float together[SUMS], abuf[SUMS], row[SUMS];
    int dots = k >= SHORT && b->dtype == LM_F32 && b->row_stride == 1;
    int as_is = dots || (b->dtype == LM_F32 && b->col_stride == 1 && b->row_stride == n);
    for (int64_t z = 0; z < batch; z++) {
        const float *bz = as_is ? (const float *)b->data + z * b->batch_stride : together;
        if (!as_is && (z == 0 || b->batch_stride != 0))
            for (int64_t p = 0; p < k; p++)
                for (int64_t j = 0; j < n; j++)
                    together[p * n + j] =
                        get(b->data, b->dtype,
                            z * b->batch_stride + p * b->row_stride + j * b->col_stride);
        for (int64_t i = 0; i < m; i++) {
            int64_t from = z * a->batch_stride + i * a->row_stride;
            const float *ai = (const float *)a->data + from;
            if (a->dtype != LM_F32 || a->col_stride != 1) {
                for (int64_t p = 0; p < k; p++)
                    abuf[p] = get(a->data, a->dtype, from + p * a->col_stride);
                ai = abuf;
            }
            if (dots) row_dots(row, ai, bz, k, n, b->col_stride);
            else row_times(row, ai, bz, k, n);
            for (int64_t j = 0; j < n; j++) {
                int64_t to = z * c->batch_stride + i * c->row_stride + j * c->col_stride;
                float v = (float)alpha * row[j];
                if (bias) v += get(bias, bias_dtype, j);
                if (beta != 0) v += (float)beta * get(c->data, c->dtype, to);
                if (c->dtype == LM_F32) ((float *)c->data)[to] = v;
                else ((uint16_t *)c->data)[to] = lm_f32_to_bf16(v);
            }
        }
    }
}
