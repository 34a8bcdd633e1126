/* ffn_bwd.h - what the passes of backward (ffn_bwd.c) hand on to each other. */
#ifndef LM_FFN_BWD_H
#define LM_FFN_BWD_H

#include "kernels/cpu/ffn.h"

enum {
    LM_BWD_CHUNK = 4,                         /* blocks whose rows one sum goes over */
    LM_BWD_ROWS = LM_BWD_CHUNK * LM_FFN_ROWS, /* and their rows */
    LM_BWD_FEW = LM_STRIP_COLS,               /* rows that weights are not turned for */
    LM_BWD_PANEL = 128,                       /* columns of dx at a time */
    LM_BWD_DEPTH = 256,                       /* words of wide, against them, at a time */
    LM_BWD_LINES = 1024                       /* numbers that are activated at a time */
};

typedef struct { /* an expert's rows, and what its passes leave for the next, in words */
    int64_t expert, first, rows, words; /* words: along its rows */
    int64_t blocks, each, slabs;        /* rows and slabs of a block; the last may have less */
    uint32_t *x;                        /* [dim / 32 up][words][32] */
    uint32_t *dy;                       /* [dim][words] */
    uint32_t *turned_x, *turned_dy;     /* [blocks][slabs][words of dim][32] */
    uint32_t *dpre;                     /* [blocks][slabs][words of wide][32] */
    float *dscale;                      /* [stretches][rows] */
    float *parts; /* of dx, of few rows: [depths of wide][rows][dim], up to eights and 32s */
} bwd_leavings;

typedef struct {
    const lm_ffn *f;
    lm_ffn_job j;
    const lm_ffn_gradients *g;
    const void *dy, *x, *pre;
    const float *scale;
    int weights;       /* any gradient of them wanted */
    int64_t most;      /* rows of an expert */
    int64_t half;      /* words of hidden */
    int64_t stretches; /* of hidden */
    int64_t depth;     /* hidden units that one sum of dx goes over */
} bwd_task;

typedef struct { /* a stretch of units of an expert, or columns of a chunk of its blocks */
    bwd_leavings *l;
    int64_t first, n, chunk;
} bwd_item;

typedef struct { /* blocks first .. first + n - 1 of an expert */
    int64_t first, n;
    int64_t before, words; /* along the rows: before it, and its own */
} bwd_chunk;

typedef struct {
    uint32_t *left, *lines, *dpre, *h, *turned_h;
    float *dh, *pre, *dx, *line, *dscale, *bias, *sums;
    float *up_sums, *down_sums; /* of bf16 gradients that several chunks make */
} bwd_places;

/* Words from 8 rows of left, k of each, to the next 8: not a power of two, or they would all
 * have the same place in the cache. */
static inline int64_t lm__bwd_step_of(int64_t k) { return LM_STRIP_ROWS * k + 16; }

static inline int64_t lm__bwd_row_of(const lm_ffn *f, int64_t arrival) {
    return f->row ? f->row[arrival] : arrival;
}

static inline lm_ffn_block lm__bwd_block_of(const bwd_leavings *l, int64_t i) {
    return (lm_ffn_block){l->expert, l->first + i * l->each,
                          lm__min(l->each, l->rows - i * l->each)};
}
static inline int64_t lm__bwd_chunks_of(const bwd_leavings *l) {
    return lm__ceil_div(l->blocks, LM_BWD_CHUNK);
}

static inline bwd_chunk lm__bwd_chunk_of(const bwd_task *t, const bwd_leavings *l, int64_t i) {
    int64_t each = lm__ceil_div(l->blocks, lm__bwd_chunks_of(l));
    bwd_chunk c = {.first = i * each};
    c.n = lm__min(each, l->blocks - c.first);
    c.before = lm__words_of(t->j.w, c.first * l->each);
    int64_t end = lm__min(l->rows, (c.first + c.n) * l->each);
    c.words = lm__words_of(t->j.w, end) - c.before;
    return c;
}

/* Of a block: its first word among its expert's, for blocks but the last have whole ones, and
 * how many it has. */
static inline int64_t lm__bwd_words_before(const bwd_task *t, const lm_ffn_block *b) {
    return lm__words_of(t->j.w, b->first - t->f->offset[b->expert]);
}
static inline int64_t lm__bwd_words_in(const bwd_task *t, const lm_ffn_block *b) {
    return lm__words_of(t->j.w, b->rows);
}

/* So few rows that weights are read where they lie (across.c). */
static inline int lm__bwd_across(const lm_ffn_job *j, const bwd_leavings *l) {
    return j->w.across && l->rows > 0 && l->rows <= LM_BWD_FEW;
}

/* Of few rows: how many parts dx has, and numbers of each. */
static inline int64_t lm__bwd_parts_of(const bwd_task *t) {
    return t->j.halves * lm__ceil_div(t->f->hidden, t->depth);
}
static inline int64_t lm__bwd_part_of(const bwd_task *t, const bwd_leavings *l) {
    return lm__round_up(l->rows, LM_STRIP_ROWS) * lm__round_up(t->f->dim, LM_STRIP_COLS);
}

/* Numbers of dim at a time, against the hidden units. */
static inline int64_t lm__bwd_inner(const lm_ffn_job *j) {
    return j->w.pairs ? 2 * LM_FFN_INNER : LM_FFN_INNER;
}

/* What goes on while a gradient is written, which waits for memory. */
typedef struct {
    lm_ahead ahead;   /* comes nearer */
    lm_across across; /* is summed, from weights that are near */
} bwd_meanwhile;

static inline lm_ahead lm__bwd_soon(const uint32_t *x, int64_t words, int64_t within) {
    return lm__ahead((lm_words){.dtype = LM_F32}, (lm_part){x, 0, 1, words}, within);
}

/* ffn_bwd.c: c [rows of left, slabs] = left b: parts of a weight turned, k words to a row,
 * against a block's slabs. A slab stays near while all of left goes over it; meanwhile the slab
 * after it comes nearer, and in turns with it, strip by strip, what will be read `next`. */
void lm__bwd_turned_product(const lm_ffn_job *j, const uint32_t *left, int64_t k, int64_t high,
                            const uint32_t *b, int64_t slab_step, int64_t cols, float *c,
                            int64_t ldc, int add, lm_ahead *next);
/* Strips of a product that go by while what is next comes nearer. */
static inline int64_t lm__bwd_turns_of(const bwd_leavings *l, const bwd_chunk *c,
                                       int64_t high) {
    return lm__max(1, c->n * l->slabs * (lm__ceil_div(high, LM_STRIP_ROWS) / 2));
}

/* ffn_bwd_rows.c: block i of an expert */
void lm__bwd_rows(const bwd_task *t, const bwd_leavings *l, int64_t i, bwd_places *p);

/* ffn_bwd_units.c. next: the item after this one, or NULL */
void lm__bwd_units(const bwd_task *t, const bwd_item *s, const bwd_item *next, bwd_places *p);
/* dh of block i of a chunk: [units][rows of a block] */
float *lm__bwd_dh_of(const bwd_task *t, int64_t i, const bwd_places *p);
/* From dh of block i: what its gradients are made of. */
void lm__bwd_activate(const bwd_task *t, const bwd_item *s, const bwd_chunk *c, int64_t i,
                      bwd_places *p);

/* ffn_bwd_few.c: both passes, of an expert whose rows are few */
void lm__bwd_few(const bwd_task *t, const bwd_item *s, const bwd_item *next, bwd_places *p);
void lm__bwd_few_dx(const bwd_task *t, const bwd_leavings *l, bwd_places *p);

/* ffn_bwd_weights.c: the gradients of the units, from chunk i; of up's halves, and of down */
void lm__bwd_weigh_up(const bwd_task *t, const bwd_item *s, const bwd_chunk *c, int64_t i,
                      int half, const bwd_places *p, bwd_meanwhile *m);
void lm__bwd_weigh_down(const bwd_task *t, const bwd_item *s, const bwd_chunk *c, int64_t i,
                        const bwd_places *p, bwd_meanwhile *m);
/* Of an expert without rows: gradients that are written, not added to. */
void lm__bwd_clear(const bwd_task *t, const bwd_item *s, const bwd_places *p);
/* Sums of rows, of dy by their scale; once all chunks are weighed. */
void lm__bwd_biases(const bwd_task *t, const bwd_item *s, const bwd_places *p);

/* ffn_bwd_columns.c: dx of some columns; dscale of block i */
void lm__bwd_columns(const bwd_task *t, const bwd_item *s, bwd_places *p);
void lm__bwd_scales(const bwd_task *t, const bwd_leavings *l, int64_t i, const bwd_places *p);

#endif
