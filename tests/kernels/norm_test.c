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
    if (layer) {
        ok(lm_cpu_layer_norm_fwd(dtype, rows, n, y, mean, rstd, x, w, b, w_dtype, eps));
        ok(lm_cpu_layer_norm_bwd(dtype, rows, n, dx, affine ? dw : NULL, affine ? db : NULL, dy,
                                 x, mean, rstd, w, w_dtype));
    } else {
        ok(lm_cpu_rms_norm_fwd(dtype, rows, n, y, rstd, x, w, w_dtype, eps));
        ok(lm_cpu_rms_norm_bwd(dtype, rows, n, dx, affine ? dw : NULL, dy, x, rstd, w,
                               w_dtype));
    }
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

TEST(test_norm) {
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
    ok(lm_cpu_rms_norm_fwd(LM_F32, ROWS, N, dx, rstd, x, NULL, LM_F32, 1e-6));
    for (int t = 0; t < 2; t++) {
        threads(t ? 3 : 1);
        ok(lm_cpu_rms_norm_bwd(LM_F32, ROWS, N, dx, dw[t], dy, x, rstd, NULL, LM_F32));
    }
    near(memcmp(dw[0], dw[1], sizeof dw[0]), 0, 0);
    free(x), free(dy), free(dx), free(rstd);
}
