/* strip_body.h - the strip of strip.h in the compiler's vectors, that of few columns and that
 * across. Who includes it defines STRIP, FEW and ACROSS, their names; LANES, floats in a
 * register; HIGH, rows that are summed at once, in two registers each; where there is one
 * instruction for it, MULTIPLY_ADD(sum, word, b) with a vector b: a compiler that is free to
 * round the product may do so for one row and not for two; with 16 LANES, MULTIPLY_ADD_HALF,
 * the same of 8; where words are pairs, COLUMNS(v, row, below), two registers of words from two
 * rows; and, where there is a store past the caches, STREAM(to, sum), and with it NARROW(to,
 * low, high, stream), two registers as bf16. */
#include "kernels/cpu/strip.h"

#ifdef STREAM
#include <immintrin.h>
#endif
#include <string.h>

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t word __attribute__((aligned(2), may_alias));

#ifdef COLUMNS
typedef uint16_t number __attribute__((may_alias));
enum { NUMBERS = 2 }; /* of a word */
static const uint16_t no_row[2 * LANES];
#else
typedef float number __attribute__((may_alias));
enum { NUMBERS = 1 };
static const float *const no_row = NULL;
#define COLUMNS(v, row, below)                                                                 \
    ((v)[0] = *(const lanes *)(row), (v)[1] = *(const lanes *)((row) + LANES))
#endif

static inline float as_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
#ifndef MULTIPLY_ADD
#define MULTIPLY_ADD(sum, word, b) sum += as_float(word) * (b)
#endif

#ifndef STREAM
#define STREAM(to, sum) *(to) = (sum)
#endif

typedef float half_lanes __attribute__((vector_size(2 * LANES), aligned(4), may_alias));
#ifndef MULTIPLY_ADD_HALF /* of 8 lanes and less there are no halves */
#define MULTIPLY_ADD_HALF(sum, word, b) sum += as_float(word) * (b)
#endif

/* `high` rows by `wide` registers, and half of one more where `half`; these and `col` are
 * constants where this is expanded. */
LM_INLINE void piece(int64_t k, const word *const a[LM_STRIP_TALL], int high, int64_t col,
                     const float *b, float *c, int64_t ldc, int wide, int half, int store,
                     lm_ahead *ahead) {
    lanes sum[LM_STRIP_TALL][2] = {{{0}}};
    half_lanes rest[LM_STRIP_TALL] = {{0}};
#pragma GCC unroll 12
    for (int i = 0; i < high && store != LM_STRIP_STREAM; i++) { /* where the sums will go */
        __builtin_prefetch(c + i * ldc, 1, 3);
        if (wide * LANES + half > 16) __builtin_prefetch(c + i * ldc + 16, 1, 3);
    }
    for (int64_t from = 0; from < k; from += 16) {
        int64_t to = lm__min(k, from + 16);
        lm__fetch(ahead);
        for (int64_t p = from; p < to; p++, b += LM_STRIP_COLS) {
            lanes b0 = {0}, b1 = {0};
            half_lanes b2 = {0};
            if (wide > 0) b0 = *(const lanes *)b;
            if (wide > 1) b1 = *(const lanes *)(b + LANES);
            if (half) b2 = *(const half_lanes *)(b + wide * LANES);
#pragma GCC unroll 12
            for (int i = 0; i < high; i++) {
                word v = a[i][p * col];
                if (wide > 0) MULTIPLY_ADD(sum[i][0], v, b0);
                if (wide > 1) MULTIPLY_ADD(sum[i][1], v, b1);
                if (half) MULTIPLY_ADD_HALF(rest[i], v, b2);
            }
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < high; i++) {
        float *row = c + i * ldc;
#pragma GCC unroll 2
        for (int j = 0; j < wide; j++) {
            lanes *to = (lanes *)(row + j * LANES);
            if (store == LM_STRIP_ADD) sum[i][j] += *to;
            if (store == LM_STRIP_STREAM) STREAM(to, sum[i][j]);
            else *to = sum[i][j];
        }
        if (!half) continue;
        half_lanes *to = (half_lanes *)(row + wide * LANES);
        if (store == LM_STRIP_ADD) rest[i] += *to;
        *to = rest[i];
    }
}

/* Rows from `first` on. */
LM_INLINE void pieces(int64_t k, lm_left a, int rows, int first, int high, int64_t col,
                      const float *b, float *c, int64_t ldc, int width, int store,
                      lm_ahead *ahead) {
    const word *at[LM_STRIP_TALL];
#pragma GCC unroll 12
    for (int r = 0; r < high; r++) /* what is no row repeats the last */
        at[r] = a.data + (first + r < rows || col != 1 ? first + r : rows - 1) * a.row;
    c += first * ldc;
    for (; width >= 2 * LANES; width -= 2 * LANES, b += 2 * LANES, c += 2 * LANES)
        piece(k, at, high, col, b, c, ldc, 2, 0, store, ahead);
    if (width == LANES) piece(k, at, high, col, b, c, ldc, 1, 0, store, ahead);
    else if (LANES == 16 && width > LANES)
        piece(k, at, high, col, b, c, ldc, 1, 1, store, ahead);
    else if (LANES == 16 && width > 0) piece(k, at, high, col, b, c, ldc, 0, 1, store, ahead);
}

void STRIP(int64_t k, lm_left a, int rows, const uint32_t *b, float *c, int64_t ldc, int width,
           int store, lm_ahead *ahead) {
    const float *slab = (const float *)(const void *)b;
    if (rows > LM_STRIP_ROWS && LANES == 16) {
        pieces(k, a, rows, 0, LM_STRIP_TALL, 1, slab, c, ldc, 16, store, ahead);
        return;
    }
    for (int i = 0; i < (rows > LM_STRIP_ROWS ? LM_STRIP_TALL : LM_STRIP_ROWS); i += HIGH) {
        if (a.col == 1) pieces(k, a, rows, i, HIGH, 1, slab, c, ldc, width, store, ahead);
        else pieces(k, a, rows, i, HIGH, LM_STRIP_ROWS, slab, c, ldc, width, store, ahead);
    }
}

/* ---- many slabs ---- */

#ifndef NARROW /* two registers as bf16, which rounds as lm_f32_to_bf16 does */
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
LM_INLINE void round_off(uint16_t *to, lanes sum) {
    bits u = (bits)sum, nan = (bits)((u & 0x7fffffff) > 0x7f800000);
    bits rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    *(halves *)to = __builtin_convertvector((rounded & ~nan) | ((u >> 16 | 64) & nan), halves);
}
#define NARROW(to, low, high, stream) (round_off(to, low), round_off((to) + LANES, high))
#endif

/* A slab of HIGH rows by two registers; narrow and `store` are constants where this is
 * expanded. */
LM_INLINE void outer_slab(int64_t k, const word *a, int64_t row, const float *b, void *c,
                          int narrow, int64_t ldc, int store) {
    lanes sum[HIGH][2] = {{{0}}};
    for (int64_t p = 0; p < k; p++, a++, b += LM_STRIP_COLS) {
        lanes b0 = *(const lanes *)b, b1 = *(const lanes *)(b + LANES);
#pragma GCC unroll 8
        for (int i = 0; i < HIGH; i++) {
            word v = a[i * row];
            MULTIPLY_ADD(sum[i][0], v, b0);
            MULTIPLY_ADD(sum[i][1], v, b1);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < HIGH; i++) {
        if (narrow) {
            NARROW((uint16_t *)c + i * ldc, sum[i][0], sum[i][1], store == LM_STRIP_STREAM);
            continue;
        }
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            lanes *to = (lanes *)((float *)c + i * ldc + j * LANES);
            if (store == LM_STRIP_ADD) sum[i][j] += *to;
            if (store == LM_STRIP_STREAM) STREAM(to, sum[i][j]);
            else *to = sum[i][j];
        }
    }
}

LM_INLINE void outer(int64_t k, const word *a, int64_t row, const float *b, int64_t step,
                     int slabs, void *c, int narrow, int64_t ldc, int store, lm_ahead *ahead) {
    int64_t size = narrow ? sizeof(uint16_t) : sizeof(float);
    for (int s = 0; s < slabs; s++, b += step) {
        lm__fetch(ahead);
        for (int i = 0; i < LM_STRIP_ROWS; i += HIGH)
            for (int j = 0; j < LM_STRIP_COLS; j += 2 * LANES)
                outer_slab(k, a + i * row, row, b + j,
                           (char *)c + (i * ldc + s * LM_STRIP_COLS + j) * size, narrow, ldc,
                           store);
    }
}

void OUTER(int64_t k, const uint32_t *left, int64_t row, const uint32_t *b, int64_t step,
           int slabs, void *c, int c_dtype, int64_t ldc, int store, lm_ahead *ahead) {
    const word *a = (const word *)left;
    const float *slab = (const float *)(const void *)b;
    int narrow = c_dtype == LM_BF16;
    if (narrow && store == LM_STRIP_STREAM)
        outer(k, a, row, slab, step, slabs, c, 1, ldc, LM_STRIP_STREAM, ahead);
    else if (narrow) outer(k, a, row, slab, step, slabs, c, 1, ldc, LM_STRIP_WRITE, ahead);
    else if (store == LM_STRIP_STREAM)
        outer(k, a, row, slab, step, slabs, c, 0, ldc, LM_STRIP_STREAM, ahead);
    else if (store == LM_STRIP_ADD)
        outer(k, a, row, slab, step, slabs, c, 0, ldc, LM_STRIP_ADD, ahead);
    else outer(k, a, row, slab, step, slabs, c, 0, ldc, LM_STRIP_WRITE, ahead);
}

/* ---- few columns ---- */

typedef int32_t order __attribute__((vector_size(4 * LANES)));

/* Orders of two registers that follow one another: the same of every four lanes, or fours. */
#define FOUR(g, a, b, c, d) (a) + 4 * (g), (b) + 4 * (g), (c) + 4 * (g), (d) + 4 * (g)
#if LANES == 4
#define EACH(a, b, c, d) ((order){FOUR(0, a, b, c, d)})
#elif LANES == 8
#define EACH(a, b, c, d) ((order){FOUR(0, a, b, c, d), FOUR(1, a, b, c, d)})
#define FOURS(a, b)      ((order){FOUR(a, 0, 1, 2, 3), FOUR(b, 0, 1, 2, 3)})
#else
#define EACH(a, b, c, d)                                                                       \
    ((order){FOUR(0, a, b, c, d), FOUR(1, a, b, c, d), FOUR(2, a, b, c, d),                    \
             FOUR(3, a, b, c, d)})
#define FOURS(a, b, c, d)                                                                      \
    ((order){FOUR(a, 0, 1, 2, 3), FOUR(b, 0, 1, 2, 3), FOUR(c, 0, 1, 2, 3),                    \
             FOUR(d, 0, 1, 2, 3)})
#endif

/* LANES words of as many rows -> v[word]: first fours of rows within every four lanes, then the
 * fours. A row's words are read at once: rows a power of two apart share a place in the cache.
 */
LM_INLINE void turned(const word *a, int64_t ld, lanes v[LANES]) {
    lanes t[LANES / 4][4];
#pragma GCC unroll 4
    for (int g = 0; g < LANES / 4; g++) {
        const word *row = a + 4 * g * ld;
        lanes r0 = *(const lanes *)(const void *)row;
        lanes r1 = *(const lanes *)(const void *)(row + ld);
        lanes r2 = *(const lanes *)(const void *)(row + 2 * ld);
        lanes r3 = *(const lanes *)(const void *)(row + 3 * ld);
        lanes low = __builtin_shuffle(r0, r1, EACH(0, LANES, 1, LANES + 1));
        lanes low2 = __builtin_shuffle(r2, r3, EACH(0, LANES, 1, LANES + 1));
        lanes high = __builtin_shuffle(r0, r1, EACH(2, LANES + 2, 3, LANES + 3));
        lanes high2 = __builtin_shuffle(r2, r3, EACH(2, LANES + 2, 3, LANES + 3));
        t[g][0] = __builtin_shuffle(low, low2, EACH(0, 1, LANES, LANES + 1));
        t[g][1] = __builtin_shuffle(low, low2, EACH(2, 3, LANES + 2, LANES + 3));
        t[g][2] = __builtin_shuffle(high, high2, EACH(0, 1, LANES, LANES + 1));
        t[g][3] = __builtin_shuffle(high, high2, EACH(2, 3, LANES + 2, LANES + 3));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
#if LANES == 4
        v[i] = t[0][i];
#elif LANES == 8
        v[i] = __builtin_shuffle(t[0][i], t[1][i], FOURS(0, 2));
        v[4 + i] = __builtin_shuffle(t[0][i], t[1][i], FOURS(1, 3));
#else
        lanes even = __builtin_shuffle(t[0][i], t[1][i], FOURS(0, 2, 4, 6));
        lanes even2 = __builtin_shuffle(t[2][i], t[3][i], FOURS(0, 2, 4, 6));
        lanes odd = __builtin_shuffle(t[0][i], t[1][i], FOURS(1, 3, 5, 7));
        lanes odd2 = __builtin_shuffle(t[2][i], t[3][i], FOURS(1, 3, 5, 7));
        v[i] = __builtin_shuffle(even, even2, FOURS(0, 2, 4, 6));
        v[4 + i] = __builtin_shuffle(odd, odd2, FOURS(0, 2, 4, 6));
        v[8 + i] = __builtin_shuffle(even, even2, FOURS(1, 3, 5, 7));
        v[12 + i] = __builtin_shuffle(odd, odd2, FOURS(1, 3, 5, 7));
#endif
    }
}

/* Lines that will be read next, a row's after those of the row before: memory answers faster to
 * who asks in the order in which it lies. Rows a page apart share a place in the first cache,
 * so theirs come to the second. */
typedef struct {
    const char *row;
    int64_t stride; /* in bytes */
    int lines, line;
} coming;
enum { PAGE = 4096 };

LM_INLINE void come(coming *next) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES * LANES / 16; i++) {
        const char *at = next->row + 64 * next->line;
        if (next->stride % PAGE) __builtin_prefetch(at, 0, 3);
        else __builtin_prefetch(at, 0, 2);
        if (++next->line == next->lines) next->line = 0, next->row += next->stride;
    }
}

/* LANES rows of A; `rows` is a constant where this is expanded. */
LM_INLINE void few(int64_t k, const word *a, int64_t ld, const uint32_t *const b[LM_FEW],
                   int rows, float *c, int64_t ldc, int add, coming next) {
    lanes sum[LM_FEW] = {{0}};
    int64_t p = 0;
    for (; p + LANES <= k; p += LANES) {
        lanes v[LANES];
        come(&next);
        turned(a + p, ld, v);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const word *x = (const word *)b[r] + p;
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) MULTIPLY_ADD(sum[r], x[i], v[i]);
        }
    }
    if (p < k) { /* the rest, with what is no word zero */
        uint32_t rest[LANES][LANES] = {{0}};
        lanes v[LANES];
        for (int i = 0; i < LANES; i++)
            memcpy(rest[i], a + i * ld + p, (size_t)(k - p) * sizeof rest[0][0]);
        turned(rest[0], LANES, v);
        for (int r = 0; r < rows; r++) {
            const word *x = (const word *)b[r] + p;
            for (int i = 0; i < k - p; i++) MULTIPLY_ADD(sum[r], x[i], v[i]);
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
         float *c, int64_t ldc, int add, const char *then) {
    for (int i = 0; i < LM_FEW_OUT; i += LANES, a += LANES * ld, c += LANES) {
        coming next = {(const char *)(a + LANES * ld), 4 * ld, (int)((k + 15) / 16), 0};
        if (i + LANES == LM_FEW_OUT) next.row = then;
        if (rows == 1) few(k, a, ld, b, 1, c, ldc, add, next);
        else if (rows == 2) few(k, a, ld, b, 2, c, ldc, add, next);
        else if (rows == 4) few(k, a, ld, b, 4, c, ldc, add, next);
        else few(k, a, ld, b, 8, c, ldc, add, next);
    }
}

/* ---- columns of a weight that lies across ---- */

/* One word of HIGH rows times two registers of columns. */
LM_INLINE void add_word(lanes sum[HIGH][2], const uint32_t *a, const lanes v[2]) {
#pragma GCC unroll 8
    for (int i = 0; i < HIGH; i++) {
        MULTIPLY_ADD(sum[i][0], a[i], v[0]);
        MULTIPLY_ADD(sum[i][1], a[i], v[1]);
    }
}

/* keep: the columns' words go to `near` as well; otherwise they are read from there. ahead: or
 * NULL. */
LM_INLINE void across(int64_t n, const uint32_t *a, const number *w, int64_t ld, float *c,
                      int64_t ldc, int go_on, lanes *near, int keep, lm_ahead *ahead) {
    lanes sum[HIGH][2] = {{{0}}};
    int64_t words = keep ? n / NUMBERS : (n + NUMBERS - 1) / NUMBERS;
#pragma GCC unroll 8
    for (int i = 0; i < HIGH && go_on; i++)
        sum[i][0] = *(lanes *)(c + i * ldc), sum[i][1] = *(lanes *)(c + i * ldc + LANES);
    for (int64_t p = 0; p < words; p++, a += LM_STRIP_COLS, w += NUMBERS * ld, near += 2) {
        lanes v[2];
        if (ahead && p % LM_TURN == 0) lm__fetch(ahead);
        if (keep) {
            for (int i = 0; i < NUMBERS; i++)
                __builtin_prefetch(w + i * ld + LM_STRIP_COLS, 0, 3);
            COLUMNS(v, w, w + ld);
            near[0] = v[0], near[1] = v[1];
        } else v[0] = near[0], v[1] = near[1];
        add_word(sum, a, v);
    }
    if (keep && n % NUMBERS) { /* the last word is half full */
        lanes v[2];
        COLUMNS(v, w, no_row);
        near[0] = v[0], near[1] = v[1];
        add_word(sum, a, v);
    }
#pragma GCC unroll 8
    for (int i = 0; i < HIGH; i++)
        *(lanes *)(c + i * ldc) = sum[i][0], *(lanes *)(c + i * ldc + LANES) = sum[i][1];
}

void ACROSS(int64_t n, const uint32_t *a, int64_t rows, const void *w, int64_t ld, float *c,
            int64_t ldc, int go_on, lm_ahead *ahead) {
    lanes near[2 * LM_TALL];
    for (int j = 0; j < LM_STRIP_COLS; j += 2 * LANES) {
        const number *from = (const number *)w + j;
        across(n, a, from, ld, c + j, ldc, go_on, near, 1, j == 0 ? ahead : NULL);
        for (int64_t i = HIGH; i < rows; i += HIGH)
            across(n, a + i, from, ld, c + i * ldc + j, ldc, go_on, near, 0,
                   j == 0 && i % LM_STRIP_ROWS == 0 ? ahead : NULL);
    }
}
