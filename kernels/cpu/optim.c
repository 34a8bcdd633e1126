/* optim.c - optimizer steps, each one pass over its arrays.
 *
 * The arithmetic is on f32 parameters; `copy` receives them in bf16 in the same pass. Without
 * f32 ones (p NULL) `copy` is all there is, and is rounded up or down at random: to a step much
 * smaller than the distance of two bf16 numbers, rounding to the nearest would never move.
 *
 * Nor would it move AdamW's v where that is kept in bf16: beta2 = 0.999 changes it by a part in
 * a thousand, and half a last place is one in 256 to 512. m would move, its beta1 being coarse,
 * but stop a few parts in a hundred before the mean; at random it takes no more work.
 *
 * An element has 16 random bits a step, as many as are cut off, and rounds all three of its
 * numbers with them: times an odd constant they are another permutation of all that 16 bits
 * can be, so each number is right in the mean exactly; and whether one goes up tells of another
 * less than 10^-4 (the discrepancy of the lattice of their pairs, measured). */
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <string.h>

/* --- parameters */

typedef struct {
    float *p;
    uint16_t *copy;
    const lm_dither *dither;
} target;

/* Up with the probability that what is cut off has of the last place; a NaN stays one. */
LM_INLINE uint16_t rounded(float x, uint32_t bits) {
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    b = x != x ? b | 0x400000u : b + bits;
    return (uint16_t)(b >> 16);
}

LM_CLONES static void round_randomly(uint16_t *restrict to, const float *restrict x,
                                     const uint16_t *restrict bits, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) to[i] = rounded(x[i], bits[i]);
}

/* The number in the whole tensor of element `at` of the array; *n, how many are asked about,
 * becomes how many of them follow one another there. */
static int64_t place(const lm_dither *d, int64_t at, int64_t *n) {
    int64_t e = d->first + at;
    if (!d->blocks) return e;
    *n = lm__min(*n, d->unit - e % d->unit);
    return d->blocks[e / d->unit] * d->unit + e % d->unit;
}

/* The 16 bits of each element: two share a word of the sequence. */
static void bits_of(const lm_dither *d, int64_t at, int64_t n, uint16_t *bits) {
    for (int64_t done = 0, len; done < n; done += len) {
        uint32_t buf[LM_CHUNK + 8];
        len = n - done;
        int64_t e = place(d, at + done, &len), odd = e % 2;
        const uint32_t *words =
            lm__random_words(buf, d->seed, d->stream, (uint64_t)(e / 2), (odd + len + 1) / 2);
        memcpy(bits + done, (const char *)words + (size_t)odd * sizeof *bits,
               (size_t)len * sizeof *bits);
    }
}

/* Elements `at` to at + n - 1 as floats, to change; and the end of changing them. */
static float *open_at(const target *t, int64_t at, int64_t n, float *buf) {
    if (t->p) return t->p + at;
    lm__from_bf16(buf, t->copy + at, n);
    return buf;
}
static void close_at(const target *t, int64_t at, int64_t n, const float *x) {
    if (t->p) {
        if (t->copy) lm__to_bf16(t->copy + at, x, n);
        return;
    }
    uint16_t bits[LM_CHUNK];
    bits_of(t->dither, at, n, bits);
    round_randomly(t->copy + at, x, bits, n);
}

static int can_do(const target *t, int g_dtype) {
    return lm__is_float(g_dtype) && (t->p || (t->copy && t->dither));
}

/* --- AdamW */

typedef struct {
    float beta1, beta2, rate, root_bias2, eps, keep, grad_scale;
} adamw_step;

LM_INLINE float adamw_one(const adamw_step *s, float p, float g, float *m, float *v) {
    float d = g * s->grad_scale;
    *m = s->beta1 * *m + (1.0f - s->beta1) * d;
    *v = s->beta2 * *v + (1.0f - s->beta2) * d * d;
    return p * s->keep - s->rate * *m / (sqrtf(*v) * s->root_bias2 + s->eps);
}

LM_CLONES static void adamw_chunk(float *restrict p, const float *restrict g, float *restrict m,
                                  float *restrict v, const adamw_step *step, int64_t n) {
    const adamw_step s = *step;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) p[i] = adamw_one(&s, p[i], g[i], &m[i], &v[i]);
}

/* Multipliers whose lattices are even: the second is the square of the first, and neither has a
 * partial quotient over 4 to 2^16. */
LM_INLINE uint16_t bits_for_v(uint16_t bits) { return (uint16_t)(bits * 40193u); }
LM_INLINE uint16_t bits_for_m(uint16_t bits) { return (uint16_t)(bits * 14849u); }

/* With moments in bf16: they are read, and rounded. */
LM_INLINE float adamw_narrow_one(const adamw_step *s, float p, float g, uint16_t *m,
                                 uint16_t *v, uint16_t bits) {
    float mf = lm_bf16_to_f32(*m), vf = lm_bf16_to_f32(*v);
    p = adamw_one(s, p, g, &mf, &vf);
    *m = rounded(mf, bits_for_m(bits)), *v = rounded(vf, bits_for_v(bits));
    return p;
}

LM_CLONES static void adamw_chunk_moments(float *restrict p, const float *restrict g,
                                          uint16_t *restrict m, uint16_t *restrict v,
                                          const uint16_t *restrict bits, const adamw_step *step,
                                          int64_t n) {
    const adamw_step s = *step;
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        p[i] = adamw_narrow_one(&s, p[i], g[i], &m[i], &v[i], bits[i]);
}

LM_CLONES static void adamw_chunk_all(uint16_t *restrict p, const float *restrict g,
                                      uint16_t *restrict m, uint16_t *restrict v,
                                      const uint16_t *restrict bits, const adamw_step *step,
                                      int64_t n) {
    const adamw_step s = *step;
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        p[i] = rounded(adamw_narrow_one(&s, lm_bf16_to_f32(p[i]), g[i], &m[i], &v[i], bits[i]),
                       bits[i]);
}

/* Elements `at` to at + n - 1, with moments in bf16. */
static void adamw_narrow(const target *t, int64_t at, int64_t n, const float *g, uint16_t *m,
                         uint16_t *v, const adamw_step *s) {
    uint16_t bits[LM_CHUNK];
    bits_of(t->dither, at, n, bits);
    if (!t->p) {
        adamw_chunk_all(t->copy + at, g, m + at, v + at, bits, s, n);
        return;
    }
    adamw_chunk_moments(t->p + at, g, m + at, v + at, bits, s, n);
    close_at(t, at, n, t->p + at);
}

int lm_cpu_adamw(int64_t n, float *p, uint16_t *copy, const lm_dither *dither, const void *g,
                 int g_dtype, void *m, void *v, int moments, double lr, double beta1,
                 double beta2, double eps, double weight_decay, int64_t step,
                 double grad_scale) {
    const target t = {p, copy, dither};
    if (!can_do(&t, g_dtype) || !(moments == LM_F32 || (moments == LM_BF16 && dither)))
        return LM_KERNEL_EDTYPE;
    double bias1 = 1 - pow(beta1, (double)step), bias2 = 1 - pow(beta2, (double)step);
    adamw_step s = {(float)beta1,        (float)beta2,
                    (float)(lr / bias1), (float)(1 / sqrt(bias2)),
                    (float)eps,          (float)(1 - lr * weight_decay),
                    (float)grad_scale};
#pragma omp parallel for schedule(static) num_threads(lm__threads(4 * n))
    for (int64_t at = 0; at < n; at += LM_CHUNK) {
        float buf[LM_CHUNK], pbuf[LM_CHUNK];
        int64_t len = lm__min(LM_CHUNK, n - at);
        const float *d = lm__load(g_dtype, g, at, len, buf);
        if (moments == LM_BF16) {
            adamw_narrow(&t, at, len, d, m, v, &s);
            continue;
        }
        float *x = open_at(&t, at, len, pbuf);
        adamw_chunk(x, d, (float *)m + at, (float *)v + at, &s, len);
        close_at(&t, at, len, x);
    }
    return LM_KERNEL_OK;
}

/* --- SGD: b is the momentum, or NULL */
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

int lm_cpu_sgd(int64_t n, float *p, uint16_t *copy, const lm_dither *dither, const void *g,
               int g_dtype, float *momentum, double lr, double factor, double weight_decay,
               int nesterov, double grad_scale) {
    const target t = {p, copy, dither};
    if (!can_do(&t, g_dtype)) return LM_KERNEL_EDTYPE;
#pragma omp parallel for schedule(static) num_threads(lm__threads(2 * n))
    for (int64_t at = 0; at < n; at += LM_CHUNK) {
        float buf[LM_CHUNK], pbuf[LM_CHUNK];
        int64_t len = lm__min(LM_CHUNK, n - at);
        float *x = open_at(&t, at, len, pbuf);
        sgd_chunk(x, lm__load(g_dtype, g, at, len, buf), momentum ? momentum + at : NULL,
                  (float)lr, (float)factor, (float)weight_decay, nesterov, (float)grad_scale,
                  len);
        close_at(&t, at, len, x);
    }
    return LM_KERNEL_OK;
}

/* --- Adafactor (Shazeer & Stern 2018): the second moment of a matrix as row times column
 *
 * Rows go by blocks whose number depends on the matrix alone, and what blocks gather is added
 * in their order: any number of threads gives the same bits. */

enum { BLOCKS = 64, LEAST_ROWS = 16 };

static int64_t rows_of_block(int64_t rows) {
    return lm__max(LEAST_ROWS, lm__ceil_div(rows, BLOCKS));
}

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

LM_CLONES static void mix_squares(float *v, const float *g, float scale, float eps, float beta,
                                  int64_t n) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        float q = g[j] * scale * g[j] * scale + eps;
        v[j] = beta * v[j] + (1.0f - beta) * q;
    }
}

/* col = beta col + by (sum over blocks of part) */
LM_CLONES static void mix_sums(float *restrict col, const float *part, int64_t blocks,
                               int64_t stride, float beta, float by, int64_t n) {
    for (int64_t j = 0; j < n; j++) col[j] *= beta;
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t j = 0; j < n; j++) col[j] += by * part[b * stride + j];
}

int lm_cpu_adafactor_stats(int64_t rows, int64_t cols, float *row, float *col, const void *g,
                           int g_dtype, double beta2, double eps, double grad_scale) {
    if (!lm__is_float(g_dtype)) return LM_KERNEL_EDTYPE;
    float beta = (float)beta2, scale = (float)grad_scale, least = (float)eps;
    if (cols == 0) {
#pragma omp parallel for schedule(static) num_threads(lm__threads(rows))
        for (int64_t at = 0; at < rows; at += LM_CHUNK) {
            float buf[LM_CHUNK];
            int64_t len = lm__min(LM_CHUNK, rows - at);
            mix_squares(row + at, lm__load(g_dtype, g, at, len, buf), scale, least, beta, len);
        }
        return LM_KERNEL_OK;
    }
    int64_t height = rows_of_block(rows), blocks = lm__ceil_div(rows, height);
    float *part = lm__scratch(LM_SCRATCH_PARTIAL, (size_t)(blocks * cols) * sizeof(float));
    if (!part) return LM_KERNEL_EOOM;
#pragma omp parallel for schedule(static) num_threads(lm__threads(rows *cols))
    for (int64_t b = 0; b < blocks; b++) {
        float buf[LM_CHUNK], *sums = part + b * cols;
        for (int64_t j = 0; j < cols; j++) sums[j] = 0;
        for (int64_t i = b * height; i < lm__min(rows, (b + 1) * height); i++) {
            double q = 0;
            for (int64_t j = 0; j < cols; j += LM_CHUNK) {
                int64_t len = lm__min(LM_CHUNK, cols - j);
                const float *d = lm__load(g_dtype, g, i * cols + j, len, buf);
                q += (double)square_both(sums + j, d, scale, least, len);
            }
            row[i] = beta * row[i] + (1.0f - beta) * (float)(q / (double)cols);
        }
    }
    float by = (1.0f - beta) / (float)lm__max(1, rows);
#pragma omp parallel for schedule(static) num_threads(lm__threads(blocks *cols))
    for (int64_t j = 0; j < cols; j += LM_CHUNK)
        mix_sums(col + j, part + j, blocks, cols, beta, by, lm__min(LM_CHUNK, cols - j));
    return LM_KERNEL_OK;
}

/* sum of (by g root)^2, the update being by g root */
LM_CLONES static float update_squares(const float *g, const float *root, float by, int64_t n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) {
        float u = by * g[j] * root[j];
        sum += u * u;
    }
    return sum;
}

LM_CLONES static void update_row(float *p, const float *g, const float *root, float by,
                                 float keep, int64_t n) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) p[j] = p[j] * keep - by * g[j] * root[j];
}

static double inverse_root(double v) { return v > 0 ? 1 / sqrt(v) : 0; }

/* The update of a matrix is g times 1 / sqrt of a number of its row times that of a number of
 * its column. What has no factors is one row of all, whose own number is 1. */
int lm_cpu_adafactor_update(int64_t rows, int64_t cols, float *p, uint16_t *copy,
                            const lm_dither *dither, const void *g, int g_dtype,
                            const float *row, const float *col, double lr, double clip,
                            double weight_decay, double grad_scale) {
    const target t = {p, copy, dither};
    if (!can_do(&t, g_dtype)) return LM_KERNEL_EDTYPE;
    if (cols == 0) col = row, row = NULL, cols = rows, rows = 1;
    double mean = 0, squares[BLOCKS] = {0}, all = 0;
    for (int64_t i = 0; i < rows && row; i++) mean += (double)row[i];
    mean /= (double)lm__max(1, rows);
    float *root = lm__scratch(LM_SCRATCH_ROW, (size_t)cols * sizeof(float));
    if (!root) return LM_KERNEL_EOOM;
    for (int64_t j = 0; j < cols; j++) root[j] = (float)inverse_root((double)col[j]);

    /* first how large the update would be, then the update */
    int64_t height = rows_of_block(rows), blocks = lm__ceil_div(rows, height);
    float keep = (float)(1 - lr * weight_decay);
    for (int pass = 0; pass < 2; pass++) {
        double rms = sqrt(all / (double)lm__max(1, rows * cols));
        double rate = pass == 0 ? 1 : lr / (rms > clip ? rms / clip : 1);
#pragma omp parallel for schedule(static) num_threads(lm__threads(rows *cols))
        for (int64_t b = 0; b < blocks; b++)
            for (int64_t i = b * height; i < lm__min(rows, (b + 1) * height); i++) {
                double own = row ? sqrt(mean) * inverse_root((double)row[i]) : 1;
                float by = (float)(rate * own * grad_scale);
                for (int64_t j = 0; j < cols; j += LM_CHUNK) {
                    float buf[LM_CHUNK], pbuf[LM_CHUNK];
                    int64_t at = i * cols + j, len = lm__min(LM_CHUNK, cols - j);
                    const float *d = lm__load(g_dtype, g, at, len, buf);
                    if (pass == 0) {
                        squares[b] += (double)update_squares(d, root + j, by, len);
                        continue;
                    }
                    float *x = open_at(&t, at, len, pbuf);
                    update_row(x, d, root + j, by, keep, len);
                    close_at(&t, at, len, x);
                }
            }
        for (int64_t b = 0; b < blocks && pass == 0; b++) all += squares[b];
    }
    return LM_KERNEL_OK;
}
