/* optim.c - optimizer steps, each one pass over its arrays. Parameters are f32 masters; `copy`
 * receives them in bf16 in the same pass. */
#include "kernels/cpu/cpu.h"

#include <math.h>

typedef struct {
    float beta1, beta2, rate, root_bias2, eps, keep, grad_scale;
} adamw_step;

LM_CLONES static void adamw_chunk(float *p, const float *g, float *m, float *v,
                                  const adamw_step *s, int64_t n) {
    float beta1 = s->beta1, beta2 = s->beta2, rate = s->rate, root = s->root_bias2;
    float eps = s->eps, keep = s->keep, scale = s->grad_scale;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float d = g[i] * scale;
        m[i] = beta1 * m[i] + (1.0f - beta1) * d;
        v[i] = beta2 * v[i] + (1.0f - beta2) * d * d;
        p[i] = p[i] * keep - rate * m[i] / (sqrtf(v[i]) * root + eps);
    }
}

int lm_cpu_adamw(int64_t n, float *p, uint16_t *copy, const void *g, int g_dtype, float *m,
                 float *v, double lr, double beta1, double beta2, double eps,
                 double weight_decay, int64_t step, double grad_scale) {
    if (!lm__is_float(g_dtype)) return LM_KERNEL_EDTYPE;
    double bias1 = 1 - pow(beta1, (double)step), bias2 = 1 - pow(beta2, (double)step);
    adamw_step s = {(float)beta1,        (float)beta2,
                    (float)(lr / bias1), (float)(1 / sqrt(bias2)),
                    (float)eps,          (float)(1 - lr * weight_decay),
                    (float)grad_scale};
#pragma omp parallel for schedule(static) num_threads(lm__threads(4 * n))
    for (int64_t at = 0; at < n; at += LM_CHUNK) {
        float buf[LM_CHUNK];
        int64_t len = lm__min(LM_CHUNK, n - at);
        adamw_chunk(p + at, lm__load(g_dtype, g, at, len, buf), m + at, v + at, &s, len);
        if (copy) lm__to_bf16(copy + at, p + at, len);
    }
    return LM_KERNEL_OK;
}

/* b is the momentum, or NULL */
LM_CLONES static void sgd_chunk(float *p, const float *g, float *b, float lr, float factor,
                                float decay, int nesterov, float scale, int64_t n) {
    if (!b) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) p[i] -= lr * (g[i] * scale + decay * p[i]);
    } else {
        float ahead = nesterov ? factor : 1.0f, now = nesterov ? 1.0f : 0.0f;
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            float d = g[i] * scale + decay * p[i];
            b[i] = factor * b[i] + d;
            p[i] -= lr * (now * d + ahead * b[i]);
        }
    }
}

int lm_cpu_sgd(int64_t n, float *p, uint16_t *copy, const void *g, int g_dtype, float *momentum,
               double lr, double factor, double weight_decay, int nesterov, double grad_scale) {
    if (!lm__is_float(g_dtype)) return LM_KERNEL_EDTYPE;
#pragma omp parallel for schedule(static) num_threads(lm__threads(2 * n))
    for (int64_t at = 0; at < n; at += LM_CHUNK) {
        float buf[LM_CHUNK];
        int64_t len = lm__min(LM_CHUNK, n - at);
        sgd_chunk(p + at, lm__load(g_dtype, g, at, len, buf), momentum ? momentum + at : NULL,
                  (float)lr, (float)factor, (float)weight_decay, nesterov, (float)grad_scale,
                  len);
        if (copy) lm__to_bf16(copy + at, p + at, len);
    }
    return LM_KERNEL_OK;
}

/* --- Adafactor (Shazeer & Stern 2018): the second moment of a matrix as row times column */

LM_CLONES static float square_both(float *col, const float *g, float scale, float eps,
                                   int64_t n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) {
        float q = g[j] * scale * g[j] * scale + eps;
        col[j] += q;
        sum += q;
    }
    return sum;
}

/* Columns gather over rows in order, so one thread does a matrix; cols == 0: no factors. */
int lm_cpu_adafactor_stats(int64_t rows, int64_t cols, float *row, float *col, const void *g,
                           int g_dtype, double beta2, double eps, double grad_scale) {
    if (!lm__is_float(g_dtype)) return LM_KERNEL_EDTYPE;
    float b = (float)beta2, scale = (float)grad_scale;
    if (cols == 0) {
        for (int64_t at = 0; at < rows; at += LM_CHUNK) {
            float buf[LM_CHUNK];
            int64_t len = lm__min(LM_CHUNK, rows - at);
            const float *d = lm__load(g_dtype, g, at, len, buf);
            for (int64_t i = 0; i < len; i++) {
                float q = d[i] * scale * d[i] * scale + (float)eps;
                row[at + i] = b * row[at + i] + (1.0f - b) * q;
            }
        }
        return LM_KERNEL_OK;
    }
    float *buf = lm__scratch(LM_SCRATCH_ROW, (size_t)(2 * cols) * sizeof(float));
    if (!buf) return LM_KERNEL_EOOM;
    float *sums = buf + cols;
    for (int64_t j = 0; j < cols; j++) sums[j] = 0;
    for (int64_t i = 0; i < rows; i++) {
        const float *d = lm__load(g_dtype, g, i * cols, cols, buf);
        float q = square_both(sums, d, scale, (float)eps, cols);
        row[i] = b * row[i] + (1.0f - b) * q / (float)cols;
    }
    for (int64_t j = 0; j < cols; j++)
        col[j] = b * col[j] + (1.0f - b) * sums[j] / (float)lm__max(1, rows);
    return LM_KERNEL_OK;
}

int lm_cpu_adafactor_update(int64_t rows, int64_t cols, float *p, uint16_t *copy, const void *g,
                            int g_dtype, const float *row, const float *col, double lr,
                            double clip, double weight_decay, double grad_scale) {
    if (!lm__is_float(g_dtype)) return LM_KERNEL_EDTYPE;
    int64_t width = cols == 0 ? 1 : cols;
    double row_mean = 0, squares = 0;
    for (int64_t i = 0; i < rows && cols > 0; i++) row_mean += (double)row[i];
    row_mean /= (double)lm__max(1, rows);
    /* first how large the update would be, then the update */
    for (int pass = 0; pass < 2; pass++) {
        double rms = sqrt(squares / (double)lm__max(1, rows * width));
        double by = lr / (rms > clip ? rms / clip : 1);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < width; j++) {
                int64_t at = i * width + j;
                double d =
                    (g_dtype == LM_F32 ? (double)((const float *)g)[at]
                                       : (double)lm_bf16_to_f32(((const uint16_t *)g)[at])) *
                    grad_scale;
                double v =
                    cols == 0 ? (double)row[i] : (double)row[i] * (double)col[j] / row_mean;
                double u = v > 0 ? d / sqrt(v) : 0;
                if (pass == 0) {
                    squares += u * u;
                    continue;
                }
                p[at] = (float)((double)p[at] * (1 - lr * weight_decay) - by * u);
                if (copy) copy[at] = lm_f32_to_bf16(p[at]);
            }
    }
    return LM_KERNEL_OK;
}
