/* norm.c - layer norm and RMS norm over rows; and the same after a residual, where
 * x = a + dropout(h) is made, kept and normalised while its row is in the cache.
 *
 *   layer: y = xhat w + b, xhat = (x - mean) rstd, rstd = 1 / sqrt(mean((x - mean)^2) + eps)
 *   rms:   y = xhat w,     xhat = x rstd,          rstd = 1 / sqrt(mean(x^2) + eps)
 *   with g = dy w:  dx = rstd (g - [mean(g)] - xhat mean(g xhat)),  [..] for layer norm alone
 *   dw = sum over rows of dy xhat,  db = sum over rows of dy
 *
 * The sums over rows go by blocks of ROWS rows, whose partial sums are added in order: any
 * number of threads gives the same bits. */
#include "kernels/cpu/dropout.h"

#include <math.h>
#include <string.h>

enum { ROWS = 64, NARROW = 16 }; /* NARROW: rows that vectors only slow down are shorter */

LM_CLONES static float sum_row(const float *x, int64_t n) {
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += x[i];
    return s;
}

LM_CLONES static float square_sum(const float *x, float mean, int64_t n) {
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += (x[i] - mean) * (x[i] - mean);
    return s;
}

/* w and b may be NULL */
LM_CLONES static void affine(float *y, const float *x, float mean, float rstd, const float *w,
                             const float *b, int64_t n) {
    if (w && b) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * rstd * w[i] + b[i];
    } else if (w) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * rstd * w[i];
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * rstd + (b ? b[i] : 0.0f);
    }
}

/* All three, of a narrow row. */
static void narrow_row(float *y, float *mean, float *rstd, const float *x, const float *w,
                       const float *b, float eps, int64_t n) {
    float sum = 0, squares = 0, m = 0;
    if (mean) {
        for (int64_t i = 0; i < n; i++) sum += x[i];
        *mean = m = sum / (float)n;
    }
    for (int64_t i = 0; i < n; i++) squares += (x[i] - m) * (x[i] - m);
    float s = *rstd = 1.0f / sqrtf(squares / (float)n + eps);
    for (int64_t i = 0; i < n; i++)
        y[i] = (x[i] - m) * s * (w ? w[i] : 1.0f) + (b ? b[i] : 0.0f);
}

/* dx of one row; dw and db gather when not NULL. centred: layer norm */
LM_CLONES static void backward_row(float *dx, float *dw, float *db, const float *dy,
                                   const float *x, float mean, float rstd, const float *w,
                                   int centred, int64_t n) {
    float g_sum = 0, gx_sum = 0;
    if (w) {
#pragma omp simd reduction(+ : g_sum, gx_sum)
        for (int64_t i = 0; i < n; i++) {
            float g = dy[i] * w[i];
            g_sum += g;
            gx_sum += g * (x[i] - mean);
        }
    } else {
#pragma omp simd reduction(+ : g_sum, gx_sum)
        for (int64_t i = 0; i < n; i++) {
            g_sum += dy[i];
            gx_sum += dy[i] * (x[i] - mean);
        }
    }
    if (dw) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) dw[i] += dy[i] * (x[i] - mean) * rstd;
    }
    if (db) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) db[i] += dy[i];
    }
    float c1 = centred ? g_sum / (float)n : 0.0f, c2 = gx_sum / (float)n * rstd * rstd;
    if (w) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) dx[i] = rstd * (dy[i] * w[i] - c1 - (x[i] - mean) * c2);
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) dx[i] = rstd * (dy[i] - c1 - (x[i] - mean) * c2);
    }
}

LM_CLONES static void add_row(float *y, const float *a, const float *b, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = a[i] + b[i];
}

/* What comes before a norm of x = a + dropout(h), and after its backward. */
typedef struct {
    const void *a, *h;
    uint8_t *mask; /* NULL: p is 0, or nobody asks which were kept */
    double p;
    const lm_draw *draw;
} residual;

enum { W, B, IN, OUT, EXTRA, BUFFERS }; /* of a thread, n floats each; then a mask's row */

static float *buffers(int64_t n) {
    return lm__scratch(LM_SCRATCH_ROW,
                       (size_t)(BUFFERS * n) * sizeof(float) + (size_t)lm__mask_row(n));
}

/* Row r of x, made; as it is stored, which in bf16 is rounded. */
static const float *sum_of_row(const residual *add, int dtype, void *x, int64_t r, int64_t n,
                               float *buf) {
    const float *a = lm__load(dtype, add->a, r * n, n, buf + IN * n);
    const float *h = lm__load(dtype, add->h, r * n, n, buf + EXTRA * n);
    float *sum = lm__open(dtype, x, r * n, buf + OUT * n);
    if (add->p > 0) {
        uint8_t *bits = (uint8_t *)(buf + BUFFERS * n);
        if (add->mask) bits = add->mask + r * lm__mask_row(n);
        lm__keep_bits(bits, add->draw, lm__draw_at(add->draw, r, n), n, lm__drop_below(add->p));
        lm__drop_row(buf + EXTRA * n, h, bits, lm__drop_scale(add->p), n);
        h = buf + EXTRA * n;
    }
    add_row(sum, a, h, n);
    lm__close(dtype, x, r * n, n, sum);
    return lm__load(dtype, x, r * n, n, buf + IN * n);
}

/* mean NULL: RMS norm. add NULL: x is there. y NULL: no norm */
static int forward(int dtype, int64_t rows, int64_t n, void *y, float *mean, float *rstd,
                   const residual *add, void *x, const void *weight, const void *bias,
                   int w_dtype, double eps) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
    int failed = 0;
#pragma omp parallel num_threads(lm__threads((add ? 4 : 2) * rows * n)) reduction(| : failed)
    {
        int64_t r, end;
        lm__share(rows, &r, &end);
        float *buf = buffers(n);
        failed = !buf;
        if (buf) {
            const float *w = weight ? lm__load(w_dtype, weight, 0, n, buf + W * n) : NULL;
            const float *b = bias ? lm__load(w_dtype, bias, 0, n, buf + B * n) : NULL;
            for (; r < end; r++) {
                const float *v = add ? sum_of_row(add, dtype, x, r, n, buf)
                                     : lm__load(dtype, x, r * n, n, buf + IN * n);
                if (!y) continue;
                float *out = lm__open(dtype, y, r * n, buf + OUT * n);
                if (n < NARROW) {
                    narrow_row(out, mean ? mean + r : NULL, rstd + r, v, w, b, (float)eps, n);
                    lm__close(dtype, y, r * n, n, out);
                    continue;
                }
                float m = mean ? sum_row(v, n) / (float)n : 0.0f;
                float s = 1.0f / sqrtf(square_sum(v, m, n) / (float)n + (float)eps);
                affine(out, v, m, s, w, b, n);
                lm__close(dtype, y, r * n, n, out);
                if (mean) mean[r] = m;
                rstd[r] = s;
            }
        }
    }
    return failed ? LM_KERNEL_EOOM : LM_KERNEL_OK;
}

/* dx is the norm's gradient, and dsum's when there is one; dh, when asked for, is dx where the
 * mask has kept h. */
static int backward(int dtype, int64_t rows, int64_t n, void *dx, float *dweight, float *dbias,
                    const void *dy, const void *x, const float *mean, const float *rstd,
                    const void *weight, int w_dtype, const void *dsum, void *dh,
                    const uint8_t *mask, double p) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
    int64_t blocks = lm__ceil_div(rows, ROWS);
    float *part = lm__scratch(LM_SCRATCH_PARTIAL, (size_t)(2 * blocks * n) * sizeof(float));
    if (!part && blocks * n > 0) return LM_KERNEL_EOOM;
    int failed = 0;
#pragma omp parallel num_threads(lm__threads(4 * rows * n)) reduction(| : failed)
    {
        int64_t block, end;
        lm__share(blocks, &block, &end);
        float *buf = buffers(n);
        failed = !buf;
        const float *w = buf && weight ? lm__load(w_dtype, weight, 0, n, buf + W * n) : NULL;
        for (; block < end && buf; block++) {
            float *dw = dweight ? part + 2 * block * n : NULL;
            float *db = dbias ? part + (2 * block + 1) * n : NULL;
            if (dw) memset(dw, 0, (size_t)n * sizeof *dw);
            if (db) memset(db, 0, (size_t)n * sizeof *db);
            for (int64_t r = block * ROWS; r < lm__min(rows, (block + 1) * ROWS); r++) {
                const float *g = lm__load(dtype, dy, r * n, n, buf + B * n);
                const float *v = lm__load(dtype, x, r * n, n, buf + IN * n);
                float *out = dsum ? buf + OUT * n : lm__open(dtype, dx, r * n, buf + OUT * n);
                backward_row(out, dw, db, g, v, mean ? mean[r] : 0.0f, rstd[r], w, mean != NULL,
                             n);
                if (dsum) { /* which may be dx */
                    const float *ds = lm__load(dtype, dsum, r * n, n, buf + EXTRA * n);
                    float *sum = lm__open(dtype, dx, r * n, buf + OUT * n);
                    add_row(sum, ds, out, n);
                    out = sum;
                }
                lm__close(dtype, dx, r * n, n, out);
                if (!dh) continue;
                float *kept = lm__open(dtype, dh, r * n, buf + EXTRA * n);
                lm__drop_row(kept, out, mask + r * lm__mask_row(n), lm__drop_scale(p), n);
                lm__close(dtype, dh, r * n, n, kept);
            }
        }
    }
    if (failed) return LM_KERNEL_EOOM;
    for (int which = 0; which < 2; which++) {
        float *sum = which ? dbias : dweight;
        if (!sum) continue;
        memset(sum, 0, (size_t)n * sizeof *sum);
        for (int64_t b = 0; b < blocks; b++)
            for (int64_t i = 0; i < n; i++) sum[i] += part[(2 * b + which) * n + i];
    }
    return LM_KERNEL_OK;
}

int lm_cpu_norm_fwd(int dtype, int64_t rows, int64_t n, void *y, float *mean, float *rstd,
                    const void *x, const void *weight, const void *bias, int w_dtype,
                    double eps) {
    return forward(dtype, rows, n, y, mean, rstd, NULL, (void *)x, weight, bias, w_dtype, eps);
}

int lm_cpu_norm_bwd(int dtype, int64_t rows, int64_t n, void *dx, float *dweight, float *dbias,
                    const void *dy, const void *x, const float *mean, const float *rstd,
                    const void *weight, int w_dtype, const void *dsum, void *dh,
                    const uint8_t *mask, double p) {
    return backward(dtype, rows, n, dx, dweight, dbias, dy, x, mean, rstd, weight, w_dtype,
                    dsum, dh, mask, p);
}

int lm_cpu_dropout_add_norm_fwd(int dtype, int64_t rows, int64_t n, void *sum, uint8_t *mask,
                                void *y, float *mean, float *rstd, const void *x, const void *h,
                                double p, const lm_draw *draw, const void *weight,
                                const void *bias, int w_dtype, double eps) {
    residual add = {x, h, mask, p, draw};
    return forward(dtype, rows, n, y, mean, rstd, &add, sum, weight, bias, w_dtype, eps);
}
