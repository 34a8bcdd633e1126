/* strip.h - the register block of the experts' products, and how operands come to it.
 *
 *   C [8, width] = A [8, k] B [k, width],   width 8, 16, 24 or 32, or added to C
 *
 * Everything is counted in words of 32 bits: an f32, or two bf16 that are neighbours along the
 * inner dimension, which CPUs with bf16 products multiply and add as one. Other CPUs get f32
 * words whatever the numbers are stored as.
 *
 * An element of A is spread over a register, so A may lie in any order: the rows of a weight
 * are read where they are (`rows`). B is the vectors: slabs of 32 columns, k after k.
 *
 * A sum goes over k in order, in one register: what comes out does not depend on the other
 * rows or columns, nor on the number of threads. */
#ifndef LM_STRIP_H
#define LM_STRIP_H

#include "kernels/cpu/cpu.h"

enum { LM_STRIP_ROWS = 8, LM_STRIP_COLS = 32, LM_STRIP_TALL = 12 };

/* What becomes of the sums: they take C's place, or are added to it; or take its place past the
 * caches, where C's rows begin lines of the cache: then lm__strip_settle before others read. */
enum { LM_STRIP_WRITE, LM_STRIP_ADD, LM_STRIP_STREAM };
void lm__strip_settle(void);

/* A few columns would leave most of a register empty. Then rows of A become the vectors, turned
 * on the way from memory, which is what such a product waits for:
 *
 *   C [rows, 32] = B [rows, k] A [32, k]',   rows <= 8
 *
 * Each sum is made of the same terms in the same order, so it is the same number. */
enum { LM_FEW = 8, LM_FEW_OUT = 32 };

typedef struct lm_left { /* 8 rows of A: (i, p) is word i * row + p * col */
    const uint32_t *data;
    int64_t row, col; /* col is 1, or 8 with row 1 */
} lm_left;

/* What will be read next and should come nearer meanwhile: `rate` lines of the cache every 16
 * words of k. */
typedef struct lm_ahead {
    const char *row;
    int64_t stride, rows;        /* in bytes; rows that are left */
    int lines, line, rate;       /* of a row; next */
    const struct lm_ahead *then; /* after that */
} lm_ahead;

/* rows: of A, up to 8; or, against 16 columns, up to 12, for one register of sums a row of 8
 * are too few to keep the units busy. Then as many rows of C are written, 8 or 12. */
typedef void lm_strip_fn(int64_t k, lm_left a, int rows, const uint32_t *b, float *c,
                         int64_t ldc, int width, int store, lm_ahead *ahead);

/* The same over several slabs, `step` words apart, of a few words of k: 8 rows of A, `row`
 * words apart. Of ahead one turn a slab. C may be bf16: then it is rounded, and not added to.
 */
typedef void lm_outer_fn(int64_t k, const uint32_t *a, int64_t row, const uint32_t *b,
                         int64_t step, int slabs, void *c, int c_dtype, int64_t ldc, int store,
                         lm_ahead *ahead);

/* a: 32 rows, `ld` words apart; b: as many rows as `rows`, a power of two; then: where rows
 * begin, as far apart, that will be read next and should come nearer meanwhile */
typedef void lm_few_fn(int64_t k, const uint32_t *a, int64_t ld,
                       const uint32_t *const b[LM_FEW], int rows, float *c, int64_t ldc,
                       int add, const char *then);

/* A weight whose rows are the inner dimension has its columns in a row, and so is the vectors
 * where it lies:
 *
 *   C [rows, 32] = A [rows, n] W [n, 32], or C goes on being summed
 *
 * rows: a multiple of 8 up to 32; n: at most LM_TALL words; a: word (i, p) is a[32 p + i], a
 * slab; w: rows `ld` numbers apart, of which the next 32 columns will be read after these.
 * Their words are made once for all rows of A. Of ahead a turn for every 8 rows of A and
 * LM_TURN words of n. */
enum { LM_TALL = 64, LM_TURN = 8 };
typedef void lm_across_fn(int64_t n, const uint32_t *a, int64_t rows, const void *w, int64_t ld,
                          float *c, int64_t ldc, int go_on, lm_ahead *ahead);

/* strip_avx512bf16.c, and strip_body.h for each instruction set; rows: those of A that exist */
lm_strip_fn lm__strip_baseline, lm__strip_avx2, lm__strip_avx512, lm__strip_avx512bf16;
lm_outer_fn lm__outer_baseline, lm__outer_avx2, lm__outer_avx512, lm__outer_avx512bf16;
lm_few_fn lm__few_baseline, lm__few_avx2, lm__few_avx512, lm__few_avx512bf16;
lm_across_fn lm__across_baseline, lm__across_avx2, lm__across_avx512, lm__across_avx512bf16;

typedef struct lm_words { /* how numbers of a dtype become words here */
    int dtype, pairs;     /* pairs: two bf16 to a word */
    lm_strip_fn *strip;
    lm_outer_fn *outer;
    lm_few_fn *few;
    lm_across_fn *across; /* NULL: words are not made of numbers where they lie */
    int beside; /* few rows wait for memory: while a gradient is written, products go on */
} lm_words;
lm_words lm__words(int dtype);

/* Which strips there are for x86-64; a CPU runs the last of those that it has. */
enum { LM_STRIPS_BASELINE, LM_STRIPS_AVX2, LM_STRIPS_AVX512, LM_STRIPS_PAIRS };
void lm__strips_at_most(int level); /* for tests: of all threads, from now on */

/* Words of n numbers. */
static inline int64_t lm__words_of(lm_words w, int64_t n) { return w.pairs ? (n + 1) / 2 : n; }
static inline int64_t lm__round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* A part of a matrix in memory: rows of n numbers, `ld` apart. */
typedef struct lm_part {
    const void *x;
    int64_t ld, rows, n;
} lm_part;

/* All of it within `words` of k. */
static inline lm_ahead lm__ahead(lm_words w, lm_part x, int64_t words) {
    int64_t size = (int64_t)lm__size(w.dtype), lines = (x.n * size + 63) / 64;
    lm_ahead a = {x.x, x.ld * size, x.x ? x.rows : 0, (int)lines, 0, 0, NULL};
    a.rate = (int)((lines * x.rows * 16 + words - 1) / lm__max(words, 1));
    return a;
}
static inline void lm__fetch(lm_ahead *a) {
    for (int left = a->rate; left > 0 && a->rows > 0;) {
        const char *at = a->row + 64 * a->line;
        int n = left < a->lines - a->line ? left : a->lines - a->line;
        for (int i = 0; i < n; i++) __builtin_prefetch(at + 64 * i, 0, 2);
        left -= n;
        if ((a->line += n) < a->lines) break;
        a->line = 0, a->rows--, a->row += a->stride;
        if (a->rows == 0 && a->then) *a = *a->then;
    }
}

/* Of so many columns that are left. */
static inline int lm__strip_width(int64_t cols) {
    return (int)lm__round_up(lm__min(cols, LM_STRIP_COLS), 8);
}

/* n numbers as words: where they lie, or else in room. */
const uint32_t *lm__row_words(lm_words w, const void *x, int64_t n, uint32_t *room);
/* Some rows of x, n numbers of each, `ld` apart: where they lie, or else in room, which has
 * place for rows * words_of(n). */
lm_left lm__left_rows(lm_words w, const void *x, int64_t ld, int64_t rows, int64_t n,
                      uint32_t *room);
/* x [n, cols], `ld` apart, as rows of its transpose: 8 of them every `step` words of room. */
void lm__left_turned(lm_words w, const void *x, int64_t ld, int64_t n, int64_t cols,
                     uint32_t *room, int64_t step);
/* Two rows of n numbers, the second perhaps NULL, as one of pairs; or the first as it is. */
void lm__pair(lm_words w, const void *even, const void *odd, int64_t n, uint32_t *to);
/* The same of floats. */
void lm__pair_floats(lm_words w, const float *even, const float *odd, int64_t n, uint32_t *to);
/* As many rows of b as a strip of few can have; those that are too many repeat the last. */
int lm__few_rows(int rows, const uint32_t *b[LM_FEW]);
/* c [rows, 32] = B A', of a's up to 32 rows, numbers p .. p + n - 1 of each; rows as of
 * lm__few_rows; room: 32 * words_of(n). What lies after these numbers of the rows comes nearer,
 * or after the rows. */
void lm__few_product(lm_words w, lm_part a, int64_t p, const uint32_t *const b[LM_FEW],
                     int rows, float *c, int64_t ldc, int add, uint32_t *room);

/* ---- across.c ---- */

/* c [rows, w.n] = A W, in steps, so that it can go on beside something else. A: a slab, whose
 * columns are rows and whose words are W's rows. */
typedef struct lm_across {
    lm_words words;
    lm_part w;
    const uint32_t *a;
    int64_t rows; /* up to 32; those of c are as many eights */
    float *c;
    int64_t ldc;      /* a multiple of 32 */
    int go_on;        /* c is what was summed before */
    int64_t cut;      /* of W's rows: sums begin anew after so many, and are added up */
    float *part;      /* as large as c, for those after the first; NULL if there are none */
    int64_t panel;    /* columns at a time, so that c is near meanwhile */
    int64_t at, q, d; /* the next: panel, row of W, column */
} lm_across;
/* One of 32 columns and some rows of W; 0 when there was nothing left. */
int lm__across_step(lm_across *x, lm_ahead *ahead);
int64_t lm__across_steps(const lm_across *x); /* of all of it */
int64_t lm__across_turns(const lm_across *x); /* and of ahead */

/* 32 rows of n words -> [n, 32]. Rows may be NULL: zeros. */
void lm__turn(const uint32_t *const rows[LM_STRIP_COLS], int64_t n, uint32_t *to);

#endif
