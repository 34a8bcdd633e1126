/* strip_body.h - the strip of strip.h in the compiler's vectors, and that of few columns. Who
 * includes it defines STRIP and FEW, their names; LANES, floats in a register; HIGH, rows that
 * are summed at once, in two registers each; and, where words are not floats, MULTIPLY_ADD(sum,
 * word, b) with a vector b. */
#include "kernels/cpu/strip.h"

#include <string.h>
#if LANES > 4
#include <immintrin.h>
#endif

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t word __attribute__((aligned(2), may_alias));

#ifndef MULTIPLY_ADD
#define MULTIPLY_ADD(sum, word, b) sum += as_float(word) * (b)
static inline float as_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
#endif

/* HIGH rows by `wide` registers; `col` is a constant where this is expanded. */
LM_INLINE void piece(int64_t k, const word *const a[HIGH], int64_t col, const float *b,
                     float *c, int64_t ldc, int wide, int add, lm_ahead *ahead) {
    lanes sum[HIGH][2] = {{{0}}};
#pragma GCC unroll 8
    for (int i = 0; i < HIGH; i++) { /* where the sums will go */
        __builtin_prefetch(c + i * ldc, 1, 3);
        if (wide * LANES > 16) __builtin_prefetch(c + i * ldc + 16, 1, 3);
    }
    for (int64_t from = 0; from < k; from += 16) {
        int64_t to = lm__min(k, from + 16);
        lm__fetch(ahead);
        for (int64_t p = from; p < to; p++, b += LM_STRIP_COLS) {
            lanes b0 = *(const lanes *)b, b1 = {0};
            if (wide > 1) b1 = *(const lanes *)(b + LANES);
#pragma GCC unroll 8
            for (int i = 0; i < HIGH; i++) {
                word v = a[i][p * col];
                MULTIPLY_ADD(sum[i][0], v, b0);
                if (wide > 1) MULTIPLY_ADD(sum[i][1], v, b1);
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < HIGH; i++)
#pragma GCC unroll 2
        for (int j = 0; j < wide; j++) {
            lanes *to = (lanes *)(c + i * ldc + j * LANES);
            if (add) sum[i][j] += *to;
            *to = sum[i][j];
        }
}

LM_INLINE void pieces(int64_t k, lm_left a, int rows, int64_t col, const float *b, float *c,
                      int64_t ldc, int width, int add, lm_ahead *ahead) {
    for (int i = 0; i < LM_STRIP_ROWS; i += HIGH) {
        const word *at[HIGH];
#pragma GCC unroll 8
        for (int r = 0; r < HIGH; r++) /* what is no row repeats the last */
            at[r] = a.data + (i + r < rows || col != 1 ? i + r : rows - 1) * a.row;
        int j = 0;
        for (; j + 2 * LANES <= width; j += 2 * LANES)
            piece(k, at, col, b + j, c + i * ldc + j, ldc, 2, add, ahead);
        if (j < width) piece(k, at, col, b + j, c + i * ldc + j, ldc, 1, add, ahead);
    }
}

void STRIP(int64_t k, lm_left a, int rows, const uint32_t *b, float *c, int64_t ldc, int width,
           int add, lm_ahead *ahead) {
    const float *slab = (const float *)(const void *)b;
    if (a.col == 1) pieces(k, a, rows, 1, slab, c, ldc, width, add, ahead);
    else pieces(k, a, rows, LM_STRIP_ROWS, slab, c, ldc, width, add, ahead);
}

/* ---- few columns ---- */

typedef float quarter __attribute__((vector_size(16), aligned(2), may_alias));
typedef int32_t order __attribute__((vector_size(4 * LANES)));

/* The same of every four lanes, of two registers that follow one another. */
#define FOUR(g, a, b, c, d) (a) + 4 * (g), (b) + 4 * (g), (c) + 4 * (g), (d) + 4 * (g)
#if LANES == 4
#define EACH(a, b, c, d) ((order){FOUR(0, a, b, c, d)})
#elif LANES == 8
#define EACH(a, b, c, d) ((order){FOUR(0, a, b, c, d), FOUR(1, a, b, c, d)})
#else
#define EACH(a, b, c, d)                                                                       \
    ((order){FOUR(0, a, b, c, d), FOUR(1, a, b, c, d), FOUR(2, a, b, c, d),                    \
             FOUR(3, a, b, c, d)})
#endif

/* Four words of every fourth row, from one of the first four on. */
LM_INLINE lanes fourths(const word *a, int64_t ld) {
    lanes v;
#if LANES == 4
    (void)ld;
    v = *(const quarter *)(const void *)a;
#elif LANES == 8
    v = (lanes)_mm256_insertf128_ps(
        _mm256_castps128_ps256((__m128) * (const quarter *)(const void *)a),
        (__m128) * (const quarter *)(const void *)(a + 4 * ld), 1);
#else
    __m512 q = _mm512_castps128_ps512((__m128) * (const quarter *)(const void *)a);
    q = _mm512_insertf32x4(q, (__m128) * (const quarter *)(const void *)(a + 4 * ld), 1);
    q = _mm512_insertf32x4(q, (__m128) * (const quarter *)(const void *)(a + 8 * ld), 2);
    v = (lanes)_mm512_insertf32x4(q, (__m128) * (const quarter *)(const void *)(a + 12 * ld),
                                  3);
#endif
    return v;
}

/* `rows` is a constant where this is expanded. */
LM_INLINE void few(int64_t k, const word *a, int64_t ld, const uint32_t *const b[LM_FEW],
                   int rows, float *c, int64_t ldc, int add, int64_t then) {
    lanes sum[LM_FEW] = {{0}};
    int64_t p = 0;
    for (; p + 4 <= k; p += 4) {
        if (p % 16 == 0)
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                __builtin_prefetch((const char *)(a + i * ld + p) + then, 0, 2);
        lanes v0 = fourths(a + p, ld), v1 = fourths(a + ld + p, ld);
        lanes v2 = fourths(a + 2 * ld + p, ld), v3 = fourths(a + 3 * ld + p, ld);
        lanes low = __builtin_shuffle(v0, v1, EACH(0, LANES, 1, LANES + 1));
        lanes low2 = __builtin_shuffle(v2, v3, EACH(0, LANES, 1, LANES + 1));
        lanes high = __builtin_shuffle(v0, v1, EACH(2, LANES + 2, 3, LANES + 3));
        lanes high2 = __builtin_shuffle(v2, v3, EACH(2, LANES + 2, 3, LANES + 3));
        v0 = __builtin_shuffle(low, low2, EACH(0, 1, LANES, LANES + 1));
        v1 = __builtin_shuffle(low, low2, EACH(2, 3, LANES + 2, LANES + 3));
        v2 = __builtin_shuffle(high, high2, EACH(0, 1, LANES, LANES + 1));
        v3 = __builtin_shuffle(high, high2, EACH(2, 3, LANES + 2, LANES + 3));
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const word *x = b[r] + p;
            MULTIPLY_ADD(sum[r], x[0], v0);
            MULTIPLY_ADD(sum[r], x[1], v1);
            MULTIPLY_ADD(sum[r], x[2], v2);
            MULTIPLY_ADD(sum[r], x[3], v3);
        }
    }
    for (; p < k; p++) {
        uint32_t v[LANES];
        lanes one;
        for (int i = 0; i < LANES; i++) v[i] = a[i * ld + p];
        memcpy(&one, v, sizeof one);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const word *x = b[r] + p;
            MULTIPLY_ADD(sum[r], x[0], one);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        lanes *to = (lanes *)(c + r * ldc);
        if (add) sum[r] += *to;
        *to = sum[r];
    }
}

void FEW(int64_t k, const uint32_t *a, int64_t ld, const uint32_t *const b[LM_FEW], int rows,
         float *c, int64_t ldc, int add, int64_t then) {
    for (int i = 0; i < LM_FEW_OUT; i += LANES, a += LANES * ld, c += LANES) {
        if (rows == 1) few(k, a, ld, b, 1, c, ldc, add, then);
        else if (rows == 2) few(k, a, ld, b, 2, c, ldc, add, then);
        else if (rows == 4) few(k, a, ld, b, 4, c, ldc, add, then);
        else few(k, a, ld, b, 8, c, ldc, add, then);
    }
}
