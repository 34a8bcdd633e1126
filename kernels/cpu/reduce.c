/* reduce.c - sums, extrema and running sums over one dimension, and scalars over everything.
 *
 * Sums go by blocks whose bounds depend on the sizes alone; a block is added up in f32, in a
 * fixed order, and the blocks' results in double, in order. Threads only choose blocks, so any
 * number of them gives the same bits. */
#include "kernels/cpu/cpu.h"

#include <math.h>

enum { LANES = 64 }; /* a contiguous row folds into this many columns first */

/* acc[j] = acc[j] op x[i][j] for `rows` rows of n, `ld` apart */
typedef void fold_fn(float *acc, const float *x, int64_t rows, int64_t ld, int64_t n);

#define FOLD(name, EXPR)                                                                       \
    LM_CLONES static void name(float *restrict acc, const float *restrict xs, int64_t rows,    \
                               int64_t ld, int64_t n) {                                        \
        for (int64_t r = 0; r < rows; r++)                                                     \
            for (int64_t j = 0; j < n; j++) {                                                  \
                float a = acc[j], x = xs[r * ld + j];                                          \
                acc[j] = EXPR;                                                                 \
            }                                                                                  \
    }
FOLD(fold_sum, a + x)
FOLD(fold_max, (x > a || x != x ? x : a))
FOLD(fold_min, (x < a || x != x ? x : a))

static fold_fn *fold_of(int op) {
    return op == LM_MAX ? fold_max : op == LM_MIN ? fold_min : fold_sum;
}
static float identity(int op) {
    return op == LM_MAX ? -INFINITY : op == LM_MIN ? INFINITY : 0.0f;
}
static double merge(int op, double a, double x) {
    if (op == LM_MAX) return x > a || x != x ? x : a;
    if (op == LM_MIN) return x < a || x != x ? x : a;
    return a + x;
}

/* n contiguous elements from `at` on, n at most LM_BLOCK */
static double block(fold_fn *fold, int op, int dtype, const void *x, int64_t at, int64_t n) {
    LM_BUFFER float acc[LANES], buf[LM_CHUNK];
    int64_t lanes = lm__min(LANES, n);
    for (int64_t j = 0; j < lanes; j++) acc[j] = identity(op);
    for (int64_t i = 0; i < n; i += LM_CHUNK) {
        int64_t len = lm__min(LM_CHUNK, n - i);
        const float *v = lm__load(dtype, x, at + i, len, buf);
        fold(acc, v, len / LANES, LANES, LANES);
        fold(acc, v + len / LANES * LANES, 1, LANES, len % LANES);
    }
    double all = identity(op);
    for (int64_t j = 0; j < lanes; j++) all = merge(op, all, acc[j]);
    return all;
}

/* n contiguous elements, by at most 1024 spans of whole blocks */
static double long_row(fold_fn *fold, int op, int dtype, const void *x, int64_t at, int64_t n) {
    if (n <= LM_BLOCK) return block(fold, op, dtype, x, at, n);
    enum { SPANS = 1024 };
    double part[SPANS], all = identity(op);
    int64_t span = lm__ceil_div(lm__ceil_div(n, LM_BLOCK), SPANS) * LM_BLOCK;
    int64_t spans = span > 0 ? lm__ceil_div(n, span) : 0;
#pragma omp parallel for schedule(static) num_threads(lm__threads(n))
    for (int64_t s = 0; s < spans; s++) {
        double sum = identity(op);
        int64_t end = lm__min(n, (s + 1) * span);
        for (int64_t i = s * span; i < end; i += LM_BLOCK)
            sum = merge(op, sum, block(fold, op, dtype, x, at + i, lm__min(LM_BLOCK, end - i)));
        part[s] = sum;
    }
    for (int64_t s = 0; s < spans; s++) all = merge(op, all, part[s]);
    return all;
}

static void put(int dtype, void *out, int64_t i, double v) {
    if (dtype == LM_F32) ((float *)out)[i] = (float)v;
    else ((uint16_t *)out)[i] = lm_f32_to_bf16((float)v);
}

/* inner == 1 */
static void reduce_rows(int op, int dtype, int64_t outer, int64_t n, void *out, int out_dtype,
                        const void *x) {
    double by = op == LM_MEAN ? 1.0 / (double)n : 1.0;
    fold_fn *fold = fold_of(op);
    if (outer < 8) { /* few long rows: threads share each */
        for (int64_t r = 0; r < outer; r++)
            put(out_dtype, out, r, long_row(fold, op, dtype, x, r * n, n) * by);
        return;
    }
#pragma omp parallel for schedule(static) num_threads(lm__threads(outer *n))
    for (int64_t r = 0; r < outer; r++)
        put(out_dtype, out, r, long_row(fold, op, dtype, x, r * n, n) * by);
}

/* inner > 1: blocks of rows fold into columns */
static int reduce_columns(int op, int dtype, int64_t outer, int64_t n, int64_t inner, void *out,
                          int out_dtype, const void *x) {
    enum { ROWS = 128 };
    double by = op == LM_MEAN ? 1.0 / (double)n : 1.0;
    fold_fn *fold = fold_of(op);
    int64_t blocks = lm__max(1, lm__ceil_div(n, ROWS));
    float *part =
        lm__scratch(LM_SCRATCH_PARTIAL, (size_t)(outer * blocks * inner) * sizeof(float));
    if (!part) return LM_KERNEL_EOOM;
#pragma omp parallel for schedule(static) num_threads(lm__threads(outer *n *inner))
    for (int64_t t = 0; t < outer * blocks; t++) {
        int64_t first = t % blocks * ROWS, rows = lm__min(ROWS, n - first);
        float *acc = part + t * inner;
        LM_BUFFER float buf[LM_CHUNK];
        for (int64_t j = 0; j < inner; j++) acc[j] = identity(op);
        int64_t at = (t / blocks * n + first) * inner;
        if (dtype == LM_F32) {
            fold(acc, (const float *)x + at, rows, inner, inner);
            continue;
        }
        for (int64_t r = 0; r < rows; r++)
            for (int64_t j = 0; j < inner; j += LM_CHUNK) {
                int64_t len = lm__min(LM_CHUNK, inner - j);
                fold(acc + j, lm__load(dtype, x, at + r * inner + j, len, buf), 1, len, len);
            }
    }
#pragma omp parallel for schedule(static) num_threads(lm__threads(outer *blocks *inner))
    for (int64_t i = 0; i < outer * inner; i++) {
        const float *column = part + i / inner * blocks * inner + i % inner;
        double all = identity(op);
        for (int64_t b = 0; b < blocks; b++) all = merge(op, all, column[b * inner]);
        put(out_dtype, out, i, all * by);
    }
    return LM_KERNEL_OK;
}

static int64_t integer(int dtype, const void *x, int64_t i) {
    switch (dtype) {
    case LM_I32: return ((const int32_t *)x)[i];
    case LM_I64: return ((const int64_t *)x)[i];
    default: return ((const uint8_t *)x)[i];
    }
}

static int reduce_integers(int op, int dtype, int64_t outer, int64_t n, int64_t inner,
                           void *out, int out_dtype, const void *x) {
    if (op == LM_MEAN || lm__is_float(out_dtype)) return LM_KERNEL_EDTYPE;
#pragma omp parallel for schedule(static) num_threads(lm__threads(outer *n *inner))
    for (int64_t i = 0; i < outer * inner; i++) {
        int64_t at = i / inner * n * inner + i % inner;
        int64_t all = op == LM_MAX ? INT64_MIN : op == LM_MIN ? INT64_MAX : 0;
        for (int64_t r = 0; r < n; r++) {
            int64_t v = integer(dtype, x, at + r * inner);
            all = op == LM_MAX ? lm__max(all, v) : op == LM_MIN ? lm__min(all, v) : all + v;
        }
        if (out_dtype == LM_I64) ((int64_t *)out)[i] = all;
        else if (out_dtype == LM_I32) ((int32_t *)out)[i] = (int32_t)all;
        else ((uint8_t *)out)[i] = (uint8_t)all;
    }
    return LM_KERNEL_OK;
}

int lm_cpu_reduce(int op, int dtype, int64_t outer, int64_t n, int64_t inner, void *out,
                  int out_dtype, const void *x) {
    if (outer == 0 || inner == 0) return LM_KERNEL_OK;
    if (!lm__is_float(dtype))
        return reduce_integers(op, dtype, outer, n, inner, out, out_dtype, x);
    if (!lm__is_float(out_dtype)) return LM_KERNEL_EDTYPE;
    if (inner > 1) return reduce_columns(op, dtype, outer, n, inner, out, out_dtype, x);
    reduce_rows(op, dtype, outer, n, out, out_dtype, x);
    return LM_KERNEL_OK;
}

/* --- argmax, argmin */

static int64_t arg_float(int op, int dtype, const void *x, int64_t at, int64_t n, int64_t ld) {
    float best = 0;
    int64_t arg = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t p = at + i * ld;
        float v =
            dtype == LM_F32 ? ((const float *)x)[p] : lm_bf16_to_f32(((const uint16_t *)x)[p]);
        if (v != v) return i;
        if (i == 0 || (op == LM_MAX ? v > best : v < best)) best = v, arg = i;
    }
    return arg;
}

/* a contiguous row: its extreme first, at the speed of memory, then where that stands */
static int64_t arg_row(int op, int dtype, const void *x, int64_t at, int64_t n) {
    float best = (float)long_row(fold_of(op), op, dtype, x, at, n);
    LM_BUFFER float buf[LM_CHUNK];
    for (int64_t i = 0; i < n; i += LM_CHUNK) {
        int64_t len = lm__min(LM_CHUNK, n - i);
        const float *v = lm__load(dtype, x, at + i, len, buf);
        for (int64_t j = 0; j < len; j++)
            if (v[j] == best || v[j] != v[j]) return i + j;
    }
    return 0;
}

static int64_t arg_integer(int op, int dtype, const void *x, int64_t at, int64_t n,
                           int64_t ld) {
    int64_t best = 0, arg = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t v = integer(dtype, x, at + i * ld);
        if (i == 0 || (op == LM_MAX ? v > best : v < best)) best = v, arg = i;
    }
    return arg;
}

int lm_cpu_argreduce(int op, int dtype, int64_t outer, int64_t n, int64_t inner, int64_t *out,
                     const void *x) {
    if (op != LM_MAX && op != LM_MIN) return LM_KERNEL_EDTYPE;
#pragma omp parallel for schedule(static) num_threads(lm__threads(outer *n *inner))
    for (int64_t i = 0; i < outer * inner; i++) {
        int64_t at = i / inner * n * inner + i % inner;
        if (!lm__is_float(dtype)) out[i] = arg_integer(op, dtype, x, at, n, inner);
        else if (inner == 1 && n >= 128) out[i] = arg_row(op, dtype, x, at, n);
        else out[i] = arg_float(op, dtype, x, at, n, inner);
    }
    return LM_KERNEL_OK;
}

/* --- cumsum */

#define CUMSUM(T, ACC, LOAD, STORE)                                                            \
    {                                                                                          \
        const T *xs = (const T *)x + at;                                                       \
        T *ys = (T *)out + at;                                                                 \
        ACC sum = 0;                                                                           \
        for (int64_t r = 0; r < n; r++) {                                                      \
            sum += LOAD(xs[r * inner]);                                                        \
            ys[r * inner] = STORE(sum);                                                        \
        }                                                                                      \
    }
#define TO_F32(v) (float)(v)
#define TO_BF(v)  lm_f32_to_bf16((float)(v))
#define WIDE(v)   (uint64_t)(v)
#define TO_I32(v) (int32_t)(v)
#define TO_I64(v) (int64_t)(v)

int lm_cpu_cumsum(int dtype, int64_t outer, int64_t n, int64_t inner, void *out,
                  const void *x) {
    if (dtype == LM_U8) return LM_KERNEL_EDTYPE;
#pragma omp parallel for schedule(static) num_threads(lm__threads(outer *n *inner))
    for (int64_t i = 0; i < outer * inner; i++) {
        int64_t at = i / inner * n * inner + i % inner;
        switch (dtype) {
        case LM_F32: CUMSUM(float, double, , TO_F32) break;
        case LM_BF16: CUMSUM(uint16_t, double, lm_bf16_to_f32, TO_BF) break;
        case LM_I32: CUMSUM(int32_t, uint64_t, WIDE, TO_I32) break;
        default: CUMSUM(int64_t, uint64_t, WIDE, TO_I64)
        }
    }
    return LM_KERNEL_OK;
}

/* --- scalars */

int lm_cpu_sum_all(int dtype, int64_t n, const void *x, double *out) {
    if (lm__is_float(dtype)) *out = long_row(fold_sum, LM_SUM, dtype, x, 0, n);
    else {
        int64_t sum = 0;
        for (int64_t i = 0; i < n; i++) sum += integer(dtype, x, i);
        *out = (double)sum;
    }
    return LM_KERNEL_OK;
}

LM_CLONES static double squares(const float *x, int64_t n) {
    enum { SUMS = 64 }; /* at once, or each waits for the last */
    double acc[SUMS] = {0}, all = 0;
    for (int64_t i = 0; i + SUMS <= n; i += SUMS)
        for (int64_t j = 0; j < SUMS; j++) acc[j] += (double)x[i + j] * (double)x[i + j];
    for (int64_t j = 0; j < SUMS; j++) all += acc[j];
    for (int64_t i = n / SUMS * SUMS; i < n; i++) all += (double)x[i] * (double)x[i];
    return all;
}

/* In double: a norm is the same to the last digit of a float, however the elements are dealt to
 * ranks. */
int lm_cpu_sqsum(int dtype, int64_t n, const void *x, double *out) {
    enum { SPANS = 1024 };
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
    double part[SPANS], all = 0;
    int64_t span = lm__ceil_div(lm__ceil_div(n, LM_CHUNK), SPANS) * LM_CHUNK;
    int64_t spans = span > 0 ? lm__ceil_div(n, span) : 0;
#pragma omp parallel for schedule(static) num_threads(lm__threads(n))
    for (int64_t s = 0; s < spans; s++) {
        LM_BUFFER float buf[LM_CHUNK];
        part[s] = 0;
        for (int64_t at = s * span; at < lm__min(n, (s + 1) * span); at += LM_CHUNK) {
            int64_t len = lm__min(LM_CHUNK, n - at);
            part[s] += squares(lm__load(dtype, x, at, len, buf), len);
        }
    }
    for (int64_t s = 0; s < spans; s++) all += part[s];
    *out = all;
    return LM_KERNEL_OK;
}

/* x - x is 0 for a finite number and NaN for any other */
LM_CLONES static uint32_t not_finite(const float *x, int64_t n) {
    uint32_t bad = 0;
#pragma omp simd reduction(| : bad)
    for (int64_t i = 0; i < n; i++) bad |= x[i] - x[i] != 0.0f;
    return bad;
}

int lm_cpu_check_finite(int dtype, int64_t n, const void *x, int *finite) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
    uint32_t bad = 0;
#pragma omp parallel for schedule(static) reduction(| : bad) num_threads(lm__threads(n))
    for (int64_t at = 0; at < n; at += LM_CHUNK) {
        LM_BUFFER float buf[LM_CHUNK];
        int64_t len = lm__min(LM_CHUNK, n - at);
        bad |= not_finite(lm__load(dtype, x, at, len, buf), len);
    }
    *finite = !bad;
    return LM_KERNEL_OK;
}
