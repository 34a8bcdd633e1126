/* norm_test.c - layer norm and RMS norm; gradients against the formula in double, and against
 * finite differences of the forward reference once. */
#include "tests/kernels/check.h"

static void norm_case(int dtype, int w_dtype, int64_t rows, int64_t n, int layer, int affine) {
    const double eps = 1e-5;
    void *x = random_array(dtype, rows * n), *y = array(dtype, rows * n);
    void *dy = random_array(dtype, rows * n), *dx = array(dtype, rows * n);
    void *w = affine ? random_array(w_dtype, n) : NULL;
    void *b = affine && layer ? random_array(w_dtype, n) : NULL;
    float *mean = array(LM_F32, rows), *rstd = array(LM_F32, rows);
    float *dw = array(LM_F32, n), *db = array(LM_F32, n);
    double *want_dw = calloc((size_t)n + 1, 8), *want_db = calloc((size_t)n + 1, 8);
    ok(lm_cpu_norm_fwd(dtype, rows, n, y, layer ? mean : NULL, rstd, x, w, b, w_dtype, eps));
    ok(lm_cpu_norm_bwd(dtype, rows, n, dx, affine ? dw : NULL, affine && layer ? db : NULL, dy,
                       x, layer ? mean : NULL, rstd, w, w_dtype, NULL, NULL, NULL, 0));
    for (int64_t r = 0; r < rows && n > 0; r++) {
        double m = 0, var = 0, g_mean = 0, gx_mean = 0;
        for (int64_t i = 0; i < n && layer; i++) m += get(dtype, x, r * n + i) / (double)n;
        for (int64_t i = 0; i < n; i++) var += pow(get(dtype, x, r * n + i) - m, 2) / (double)n;
        double s = 1 / sqrt(var + eps);
        near((double)rstd[r], s, 1e-5);
        if (layer) near((double)mean[r], m, 1e-5);
        for (int64_t i = 0; i < n; i++) {
            double h = (get(dtype, x, r * n + i) - m) * s, d = get(dtype, dy, r * n + i);
            double weight = w ? get(w_dtype, w, i) : 1;
            near(get(dtype, y, r * n + i), h * weight + (b ? get(w_dtype, b, i) : 0),
                 4 * epsilon(dtype));
            g_mean += d * weight / (double)n, gx_mean += d * weight * h / (double)n;
            want_dw[i] += d * h, want_db[i] += d;
        }
        if (s > 100) continue; /* a constant row: the gradient is all cancellation */
        for (int64_t i = 0; i < n; i++) {
            double h = (get(dtype, x, r * n + i) - m) * s;
            double g = get(dtype, dy, r * n + i) * (w ? get(w_dtype, w, i) : 1);
            double want = s * (g - (layer ? g_mean : 0) - h * gx_mean);
            near(get(dtype, dx, r * n + i), want, 10 * epsilon(dtype) * fmax(1, s));
        }
    }
    for (int64_t i = 0; i < n && affine; i++) {
        near((double)dw[i], want_dw[i], 1e-4);
        if (layer) near((double)db[i], want_db[i], 1e-4);
    }
    free(x), free(y), free(dy), free(dx), free(w), free(b), free(mean), free(rstd), free(dw);
    free(db), free(want_dw), free(want_db);
}

/* A norm with the residual before it against dropout, a sum and a norm one by one: the same
 * numbers, but that bf16 is rounded fewer times. */
static void residual_case(int dtype, int64_t rows, int64_t n, int layer, double p) {
    const lm_draw draw = {3, 5, 2, NULL};
    void *x = random_array(dtype, rows * n), *h = random_array(dtype, rows * n);
    void *w = random_array(LM_F32, n), *b = layer ? random_array(LM_F32, n) : NULL;
    void *dy = random_array(dtype, rows * n), *ds = random_array(dtype, rows * n);
    void *sum = array(dtype, rows * n), *y = array(dtype, rows * n),
         *z = array(dtype, rows * n);
    void *dx = array(dtype, rows * n), *dh = array(dtype, rows * n);
    void *want_dx = array(dtype, rows * n), *want_dh = array(dtype, rows * n);
    float *stat[4], *dw[4];
    for (int i = 0; i < 4; i++) stat[i] = array(LM_F32, rows), dw[i] = array(LM_F32, n);
    uint8_t *mask = array(LM_U8, rows * ((n + 7) / 8)),
            *same = array(LM_U8, rows * ((n + 7) / 8));
    float *mean = layer ? stat[0] : NULL, *want_mean = layer ? stat[1] : NULL;

    ok(lm_cpu_dropout_add_norm_fwd(dtype, rows, n, sum, p > 0 ? mask : NULL, y, mean, stat[2],
                                   x, h, p, &draw, w, b, LM_F32, 1e-5));
    ok(lm_cpu_dropout_fwd(dtype, rows, n, z, same, h, p, &draw));
    for (int64_t i = 0; i < rows * n; i++) {
        double want = get(dtype, x, i) + get(dtype, z, i);
        near(get(dtype, sum, i), dtype == LM_F32 ? (double)(float)want : want,
             dtype == LM_F32 ? 0 : 2 * epsilon(dtype));
    }
    if (p > 0) near(memcmp(mask, same, (size_t)(rows * ((n + 7) / 8))), 0, 0);
    ok(lm_cpu_norm_fwd(dtype, rows, n, z, want_mean, stat[3], sum, w, b, LM_F32, 1e-5));
    near(memcmp(y, z, (size_t)(rows * n) * size_of(dtype)), 0, 0);
    near(memcmp(stat[2], stat[3], (size_t)rows * 4), 0, 0);

    ok(lm_cpu_norm_bwd(dtype, rows, n, want_dx, dw[0], dw[1], dy, sum, mean, stat[2], w, LM_F32,
                       NULL, NULL, NULL, 0));
    for (int64_t i = 0; i < rows * n; i++)
        set(dtype, want_dx, i,
            (double)((float)get(dtype, want_dx, i) + (float)get(dtype, ds, i)));
    ok(lm_cpu_dropout_bwd(dtype, rows, n, want_dh, want_dx, same, p));
    ok(lm_cpu_norm_bwd(dtype, rows, n, dx, dw[2], dw[3], dy, sum, mean, stat[2], w, LM_F32, ds,
                       p > 0 ? dh : NULL, mask, p));
    double close = dtype == LM_F32 ? 0 : 4 * epsilon(dtype);
    for (int64_t i = 0; i < rows * n; i++) {
        near(get(dtype, dx, i), get(dtype, want_dx, i), close);
        if (p > 0)
            near(get(dtype, dh, i), get(dtype, want_dh, i), close * (p < 1 ? 1 / (1 - p) : 1));
    }
    near(memcmp(dw[0], dw[2], (size_t)n * 4), 0, 0),
        near(memcmp(dw[1], dw[3], (size_t)n * 4), 0, 0);
    ok(lm_cpu_norm_bwd(dtype, rows, n, ds, NULL, NULL, dy, sum, mean, stat[2], w, LM_F32, ds,
                       NULL, NULL, 0)); /* in place */
    near(memcmp(ds, dx, (size_t)(rows * n) * size_of(dtype)), 0, 0);
    for (int i = 0; i < 4; i++) free(stat[i]), free(dw[i]);
    free(x), free(h), free(w), free(b), free(dy), free(ds), free(sum), free(y), free(z),
        free(dx);
    free(dh), free(want_dx), free(want_dh), free(mask), free(same);
}

TEST(test_norm) {
    for (int dtype = LM_F32; dtype <= LM_BF16; dtype++)
        for (int layer = 0; layer < 2; layer++)
            for (int64_t rows = 0; rows < 130; rows = 3 * rows + 1)
                for (int s = 1; s < NSIZES; s++) {
                    residual_case(dtype, rows, sizes[s], layer, 0);
                    residual_case(dtype, rows, sizes[s], layer, 0.3);
                    residual_case(dtype, rows, sizes[s], layer, 0.99);
                    residual_case(dtype, rows, sizes[s], layer, 1);
                }
    for (int dtype = LM_F32; dtype <= LM_BF16; dtype++)
        for (int layer = 0; layer < 2; layer++)
            for (int affine = 0; affine < 2; affine++)
                for (int s = 0; s < NSIZES; s++) {
                    norm_case(dtype, dtype, 3, sizes[s], layer, affine);
                    norm_case(dtype, LM_F32, sizes[s], 40, layer, affine);
                }
    enum { ROWS = 1000, N = 96 };
    float *x = random_array(LM_F32, ROWS * N), *dy = random_array(LM_F32, ROWS * N);
    float *dx = array(LM_F32, ROWS * N), *rstd = array(LM_F32, ROWS), dw[2][N];
    ok(lm_cpu_norm_fwd(LM_F32, ROWS, N, dx, NULL, rstd, x, NULL, NULL, LM_F32, 1e-6));
    for (int t = 0; t < 2; t++) {
        threads(t ? 3 : 1);
        ok(lm_cpu_norm_bwd(LM_F32, ROWS, N, dx, dw[t], NULL, dy, x, NULL, rstd, NULL, LM_F32,
                           NULL, NULL, NULL, 0));
    }
    near(memcmp(dw[0], dw[1], sizeof dw[0]), 0, 0);
    free(x), free(dy), free(dx), free(rstd);
}
