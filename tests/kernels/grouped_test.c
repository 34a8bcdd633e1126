/* grouped_test.c - the experts' products against loops, with empty, single and uneven groups.
 */
#include "tests/kernels/check.h"

static void grouped_case(int dtype, int groups, const int64_t *counts, int64_t n, int64_t k,
                         int turned, int accumulate) {
    int64_t offset[16] = {0};
    for (int g = 0; g < groups; g++) offset[g + 1] = offset[g] + counts[g];
    int64_t rows = offset[groups];
    void *x = random_array(dtype, rows * k), *w = random_array(dtype, groups * k * n);
    void *y = array(dtype, rows * n), *dx = array(dtype, rows * k),
         *bias = random_array(dtype, groups * n);
    float *dw = random_array(LM_F32, groups * k * n), *was = array(LM_F32, groups * k * n);
    float *db = random_array(LM_F32, groups * n), *db_was = array(LM_F32, groups * n);
    memcpy(was, dw, (size_t)(groups * k * n) * 4);
    memcpy(db_was, db, (size_t)(groups * n) * 4);
    ok(lm_cpu_grouped_gemm(groups, offset, n, k, y, dtype, x, dtype, w, dtype, turned, bias,
                           dtype));
    ok(lm_cpu_grouped_gemm(groups, offset, k, n, dx, dtype, y, dtype, w, dtype, !turned, NULL,
                           0));
    ok(lm_cpu_grouped_gemm_dw(groups, offset, n, k, dw, LM_F32, x, dtype, y, dtype, turned,
                              accumulate));
    ok(lm_cpu_grouped_sum(groups, offset, n, db, y, dtype, accumulate));
#define W(g, p, j) get(dtype, w, turned ? ((g)*n + (j)) * k + (p) : ((g)*k + (p)) * n + (j))
    for (int64_t g = 0; g < groups; g++) {
        for (int64_t r = offset[g]; r < offset[g + 1]; r++) {
            for (int64_t j = 0; j < n; j++) {
                double want = get(dtype, bias, g * n + j);
                for (int64_t p = 0; p < k; p++) want += get(dtype, x, r * k + p) * W(g, p, j);
                near(get(dtype, y, r * n + j), want, 5 * epsilon(dtype));
            }
            for (int64_t p = 0; p < k; p++) {
                double want = 0, size = 0;
                for (int64_t j = 0; j < n; j++) {
                    double v = get(dtype, y, r * n + j) * W(g, p, j);
                    want += v, size += fabs(v);
                }
                near(get(dtype, dx, r * k + p), want, epsilon(dtype) * (1 + size));
            }
        }
        for (int64_t j = 0; j < n; j++) {
            double sum = accumulate ? (double)db_was[g * n + j] : 0;
            for (int64_t r = offset[g]; r < offset[g + 1]; r++) sum += get(dtype, y, r * n + j);
            near((double)db[g * n + j], sum, 1e-4);
            for (int64_t p = 0; p < k; p++) {
                int64_t at = turned ? (g * n + j) * k + p : (g * k + p) * n + j;
                double want = accumulate ? (double)was[at] : 0, size = 0;
                for (int64_t r = offset[g]; r < offset[g + 1]; r++) {
                    double v = get(dtype, x, r * k + p) * get(dtype, y, r * n + j);
                    want += v, size += fabs(v);
                }
                near((double)dw[at], want, 2e-6 * (1 + size));
            }
        }
    }
    free(x), free(w), free(y), free(dx), free(dw), free(was), free(db), free(db_was),
        free(bias);
}

TEST(test_grouped) {
    const int64_t counts[][5] = {{0, 0, 0, 0, 0},
                                 {1, 0, 3, 0, 17},
                                 {70, 0, 0, 0, 0},
                                 {30, 31, 29, 33, 32},
                                 {5, 200, 9, 0, 77}};
    for (int dtype = LM_F32; dtype <= LM_BF16; dtype++)
        for (int c = 0; c < 5; c++)
            for (int flags = 0; flags < 4; flags++) {
                grouped_case(dtype, 5, counts[c], 24, 17, flags & 1, flags >> 1);
                grouped_case(dtype, 1, counts[c] + 1, 8, 5, flags & 1, flags >> 1);
            }
    grouped_case(LM_F32, 0, counts[0], 8, 8, 0, 0);
}
