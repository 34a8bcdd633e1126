/* optim_test.c - a few steps of each optimizer against its formula in double. */
#include "tests/kernels/check.h"

static void adamw_case(int g_dtype, int64_t n) {
    float *p = random_array(LM_F32, n), *m = array(LM_F32, n), *v = array(LM_F32, n);
    double *rp = calloc((size_t)n + 1, 8), *rm = calloc((size_t)n + 1, 8),
           *rv = calloc((size_t)n + 1, 8);
    uint16_t *copy = array(LM_BF16, n);
    for (int64_t i = 0; i < n; i++) rp[i] = (double)p[i];
    for (int step = 1; step <= 4; step++) {
        void *g = random_array(g_dtype, n);
        ok(lm_cpu_adamw(n, p, copy, g, g_dtype, m, v, 0.01, 0.9, 0.98, 1e-8, 0.1, step, 0.5));
        for (int64_t i = 0; i < n; i++) {
            double d = get(g_dtype, g, i) * 0.5;
            rm[i] = 0.9 * rm[i] + 0.1 * d, rv[i] = 0.98 * rv[i] + 0.02 * d * d;
            rp[i] -= 0.01 * 0.1 * rp[i];
            rp[i] -= 0.01 * (rm[i] / (1 - pow(0.9, step))) /
                     (sqrt(rv[i] / (1 - pow(0.98, step))) + 1e-8);
            near((double)p[i], rp[i], 1e-5);
            near((double)lm_bf16_to_f32(copy[i]), (double)lm_bf16_to_f32(lm_f32_to_bf16(p[i])),
                 0);
        }
        free(g);
    }
    free(p), free(m), free(v), free(rp), free(rm), free(rv), free(copy);
}

static void sgd_case(int g_dtype, int64_t n, int momentum, int nesterov) {
    float *p = random_array(LM_F32, n), *b = array(LM_F32, n);
    double *rp = calloc((size_t)n + 1, 8), *rb = calloc((size_t)n + 1, 8);
    for (int64_t i = 0; i < n; i++) rp[i] = (double)p[i];
    for (int step = 0; step < 3; step++) {
        void *g = random_array(g_dtype, n);
        ok(lm_cpu_sgd(n, p, NULL, g, g_dtype, momentum ? b : NULL, 0.1, 0.9, 0.01, nesterov,
                      1));
        for (int64_t i = 0; i < n; i++) {
            double d = get(g_dtype, g, i) + 0.01 * rp[i];
            rb[i] = 0.9 * rb[i] + d;
            rp[i] -= 0.1 * (!momentum ? d : nesterov ? d + 0.9 * rb[i] : rb[i]);
            near((double)p[i], rp[i], 1e-5);
        }
        free(g);
    }
    free(p), free(b), free(rp), free(rb);
}

static void adafactor_case(int g_dtype, int64_t rows, int64_t cols) {
    int64_t width = cols ? cols : 1;
    float *p = random_array(LM_F32, rows * width), *row = array(LM_F32, rows),
          *col = array(LM_F32, cols);
    double *rr = calloc((size_t)rows + 1, 8), *rc = calloc((size_t)width + 1, 8),
           *u = calloc((size_t)(rows * width) + 1, 8);
    double *rp = calloc((size_t)(rows * width) + 1, 8);
    for (int64_t i = 0; i < rows * width; i++) rp[i] = (double)p[i];
    for (int step = 0; step < 3; step++) {
        void *g = random_array(g_dtype, rows * width);
        ok(lm_cpu_adafactor_stats(rows, cols, row, col, g, g_dtype, 0.8, 1e-10, 1));
        ok(lm_cpu_adafactor_update(rows, cols, p, NULL, g, g_dtype, row, col, 0.05, 1, 0.01,
                                   1));
        for (int64_t i = 0; i < rows; i++) rr[i] *= 0.8;
        for (int64_t j = 0; j < width; j++) rc[j] *= 0.8;
        for (int64_t i = 0; i < rows * width; i++) {
            double q = 0.2 * (pow(get(g_dtype, g, i), 2) + 1e-10);
            rr[i / width] += q / (double)width, rc[i % width] += q / (double)rows;
        }
        double mean = 0, squares = 0;
        for (int64_t i = 0; i < rows; i++) mean += rr[i] / (double)rows;
        for (int64_t i = 0; i < rows * width; i++) {
            double v = cols ? rr[i / width] * rc[i % width] / mean : rr[i];
            u[i] = get(g_dtype, g, i) / sqrt(v);
            squares += u[i] * u[i] / (double)(rows * width);
        }
        for (int64_t i = 0; i < rows * width; i++) {
            rp[i] -= 0.05 * 0.01 * rp[i] + 0.05 * u[i] / fmax(1, sqrt(squares));
            near((double)p[i], rp[i], 1e-4);
        }
        free(g);
    }
    free(p), free(row), free(col), free(rr), free(rc), free(u), free(rp);
}

TEST(test_optim) {
    for (int dtype = LM_F32; dtype <= LM_BF16; dtype++) {
        for (int s = 0; s < NSIZES; s++) {
            adamw_case(dtype, sizes[s]);
            for (int f = 0; f < 4; f++) sgd_case(dtype, sizes[s], f & 1, f >> 1);
            adafactor_case(dtype, sizes[s], 0);
            adafactor_case(dtype, sizes[s], 7);
            adafactor_case(dtype, 5, sizes[s] + 1);
        }
        adamw_case(dtype, 40001);
    }
}
