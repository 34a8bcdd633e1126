/* strip_body.h - the strip of strip.h in the compiler's vectors. Who includes it defines STRIP,
 * its name; LANES, floats in a register; HIGH, rows that are summed at once, in two registers
 * each; and, where words are not floats, MULTIPLY_ADD(sum, word, b) with a vector b. */
#include "kernels/cpu/strip.h"

#include <string.h>

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
