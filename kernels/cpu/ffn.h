/* ffn.h - what forward and backward of the experts' networks share.
 *
 * An expert's rows are cut into blocks of at most 128, as even as can be. A block goes through
 * both products at once, a stretch of the hidden size after the other, so that what is between
 * them stays in the second-level cache; blocks of all experts, largest expert first, are one
 * queue for the threads. Rows lie along the vectors (slabs of 32, strip.h) and features below
 * one another: so a weight, [out, in], is the left operand and is read where it lies.
 *
 * How an expert's rows are cut depends on their number alone, and no row's result on the
 * others: results do not depend on other experts, nor on threads. */
#ifndef LM_FFN_H
#define LM_FFN_H

#include "kernels/cpu/strip.h"

enum {
    LM_FFN_ROWS = 128,  /* of a block */
    LM_FFN_INNER = 512, /* words of an inner dimension at a time */
    LM_FFN_STREAM =
        4 << 20 /* numbers of all gradients of up beyond which no cache holds them */
};

typedef struct lm_ffn_block {
    int64_t expert, first, rows; /* arrivals first .. first + rows - 1 */
} lm_ffn_block;

typedef struct lm_ffn_job {
    const lm_ffn *f;
    lm_words w;
    int halves;      /* 2: gate and up */
    int64_t wide;    /* rows of an expert's up: halves * hidden */
    int64_t d_words; /* of dim */
    int64_t stretch; /* hidden units at a time */
} lm_ffn_job;

/* stretch: in words */
lm_ffn_job lm__ffn_job(const lm_ffn *f, int64_t stretch);
int lm__ffn_known(const lm_ffn *f); /* its types and activation */

/* Experts by falling number of rows, those that have any; returns how many. */
int64_t lm__ffn_order(const lm_ffn *f, int64_t *order);
static inline int64_t lm__ffn_blocks_of(int64_t rows) {
    return lm__ceil_div(rows, LM_FFN_ROWS);
}
/* Rows of each of them but the last, which may have less. */
static inline int64_t lm__ffn_rows_of(int64_t rows) {
    int64_t blocks = lm__ffn_blocks_of(rows);
    return blocks ? lm__round_up(lm__ceil_div(rows, blocks), 16) : 0;
}
/* Those of expert e, in order; returns how many. */
int64_t lm__ffn_cut(const lm_ffn *f, int64_t e, lm_ffn_block *to);

static inline int64_t lm__ffn_slabs(int64_t rows) { return lm__ceil_div(rows, LM_STRIP_COLS); }

/* A thread's room, taken piece by piece. */
typedef struct lm_ffn_room {
    char *at;
    size_t used;
} lm_ffn_room;
void *lm__ffn_take(lm_ffn_room *room, int64_t count, size_t size); /* at NULL: only counts */

/* The block's rows of x, [slabs][d_words][32]; lines: place for 32 * d_words. */
void lm__ffn_turn_rows(const lm_ffn_job *j, const lm_ffn_block *b, const void *x, uint32_t *to,
                       uint32_t *lines);
/* c [rows of a, slabs of b] = A B, a part of a weight; cols of b. Sums begin anew after `cut`
 * numbers of a row, and are added up. next: what will be read after a. room: 12 * words of a
 * row */
void lm__ffn_product(const lm_ffn_job *j, lm_part a, int64_t cut, lm_part next,
                     const uint32_t *b, int64_t slab_step, int64_t cols, float *c, int64_t ldc,
                     int add, uint32_t *room);
/* Units first .. first + n - 1 of up(x), halves apart by stretch rows: with bias, rounded to
 * the dtype. x: turned rows. next: what will be read after up. */
void lm__ffn_up(const lm_ffn_job *j, const lm_ffn_block *b, int64_t first, int64_t n,
                lm_part next, const uint32_t *x, float *pre, int64_t ldc, uint32_t *room);
/* Parts of an expert's weights: rows and n numbers of each from some row and number on. */
lm_part lm__ffn_up_part(const lm_ffn_job *j, int64_t expert, int64_t row, int64_t rows,
                        int64_t from, int64_t n);
lm_part lm__ffn_down_part(const lm_ffn_job *j, int64_t expert, int64_t row, int64_t rows,
                          int64_t from, int64_t n);
/* c [n, ldc] to columns first .. first + n - 1 of the block's rows of y, [arrivals, dim]; bias
 * [dim] or NULL; lines: 128 * 32 */
void lm__ffn_turn_back(const lm_ffn_job *j, const lm_ffn_block *b, const float *c, int64_t ldc,
                       int64_t first, int64_t n, const float *bias, void *y, uint32_t *lines);
/* An expert's bias as floats, in room unless it is f32; NULL for none. */
const float *lm__ffn_bias(const lm_ffn_job *j, const void *bias, int64_t expert, int64_t n,
                          float *room);

/* ffn_few.c: forward of n experts with at most LM_FEW rows each */
int lm__ffn_few(const lm_ffn_job *j, const int64_t *experts, int64_t n, void *y, void *pre,
                const void *x);

/* ffn_rows.c: n numbers. u is for LM_SWIGLU */
void lm__ffn_activate(int activation, float *h, const float *g, const float *u, int64_t n);
/* With d = dh scale: dg, du; h scaled; dscale += dh h before that. */
void lm__ffn_activate_back(int activation, float *h, float *dg, float *du, float *dscale,
                           const float *dh, const float *g, const float *u, const float *scale,
                           int64_t n);
/* x + bias, rounded as dtype is */
void lm__ffn_settle(int dtype, float *x, float bias, int64_t n);

#endif
