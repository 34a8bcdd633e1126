/* copy_test.c - strided copies between every pair of dtypes, in every order of three dims. */
#include "tests/kernels/check.h"

static double convert(int to, int from, double v) {
    int to_float = to <= LM_BF16, from_float = from <= LM_BF16;
    if (to == LM_U8 && from_float) return v != 0;
    if (!to_float && from_float) return trunc(v);
    if (to == LM_U8) return (uint8_t)(int64_t)v;
    if (to == LM_BF16) return (double)lm_bf16_to_f32(lm_f32_to_bf16((float)v));
    return v;
}

static void copy_case(int to, int from, const int64_t shape[3], const int order_to[3],
                      const int order_from[3]) {
    int64_t st[3], sf[3], nt = 1, nf = 1, total = shape[0] * shape[1] * shape[2];
    for (int i = 2; i >= 0; i--) {
        st[order_to[i]] = nt, nt *= shape[order_to[i]] + 1; /* gaps between rows */
        sf[order_from[i]] = nf, nf *= shape[order_from[i]];
    }
    void *dst = array(to, nt), *src = random_array(from, nf);
    ok(lm_cpu_copy_strided(dst, to, src, from, 3, shape, st, sf));
    for (int64_t i = 0; i < total; i++) {
        int64_t k = i % shape[2], j = i / shape[2] % shape[1], h = i / shape[2] / shape[1];
        near(get(to, dst, h * st[0] + j * st[1] + k * st[2]),
             convert(to, from, get(from, src, h * sf[0] + j * sf[1] + k * sf[2])), 0);
    }
    free(dst), free(src);
}

TEST(test_copy) {
    const int orders[][3] = {{0, 1, 2}, {0, 2, 1}, {2, 1, 0}, {1, 0, 2}, {1, 2, 0}};
    const int64_t shapes[][3] = {{2, 3, 4}, {1, 37, 41}, {3, 70, 33},
                                 {0, 2, 2}, {5, 1, 1},   {2, 130, 140}};
    for (int to = 0; to < LM_DTYPES; to++)
        for (int from = 0; from < LM_DTYPES; from++)
            for (int s = 0; s < 6; s++)
                for (int o = 0; o < 5; o++)
                    copy_case(to, from, shapes[s], orders[0], orders[o]);
    copy_case(LM_F32, LM_F32, shapes[5], orders[2], orders[1]);
    const int64_t shape[2] = {300, 170}, to[2] = {170, 1}, row[2] = {0, 1}, column[2] = {1, 0};
    float *src = random_array(LM_F32, 300), *dst = array(LM_F32, 300 * 170);
    ok(lm_cpu_copy_strided(dst, LM_F32, src, LM_F32, 2, shape, to, row));
    for (int i = 0; i < 300 * 170; i++) near((double)dst[i], (double)src[i % 170], 0);
    ok(lm_cpu_copy_strided(dst, LM_F32, src, LM_F32, 2, shape, to, column));
    for (int i = 0; i < 300 * 170; i++) near((double)dst[i], (double)src[i / 170], 0);
    free(src), free(dst);
    for (int dtype = 0; dtype < LM_DTYPES; dtype++)
        for (int64_t n = 0; n < 70000; n = n * 7 + 1) {
            void *x = random_array(dtype, n + 1);
            double last = get(dtype, x, n);
            ok(lm_cpu_fill(x, dtype, n, 3));
            for (int64_t i = 0; i < n; i++) near(get(dtype, x, i), 3, 0);
            near(get(dtype, x, n), last, 0);
            free(x);
        }
}
