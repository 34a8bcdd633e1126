/* ffn_bwd_weights.c - the gradients of the experts' weights and biases. */
#include "kernels/cpu/ffn_bwd.h"

#include <string.h>

enum {
    NEAR = 32,                /* words along the rows of which all of x stays in the caches */
    GROUP = 4 * LM_STRIP_COLS /* columns that are written before something else goes on */
};

typedef struct { /* a gradient: where it goes, how wide its rows are, and how it is stored */
    void *c;
    int dtype;
    int64_t ld;
    int store;
} place;

static void *at_of(const place *to, int64_t row, int64_t col) {
    return (char *)to->c + (row * to->ld + col) * (int64_t)lm__size(to->dtype);
}

/* Up to 8 rows by 32 columns of a gradient, as they come. */
static void keep(const float *tile, int64_t rows, int64_t cols, int64_t row, int64_t col,
                 const place *to) {
    for (int64_t i = 0; i < rows; i++, tile += LM_STRIP_COLS) {
        void *c = at_of(to, row + i, col);
        float *sum = c;
        if (to->dtype == LM_BF16) lm__to_bf16(c, tile, cols);
        else
            for (int64_t q = 0; q < cols; q++)
                sum[q] = tile[q] + (to->store == LM_STRIP_ADD ? sum[q] : 0.0f);
    }
}

/* Up to 8 rows by some columns of a gradient, from slabs of b `step` words apart; what is less
 * than 8 by 32 through a tile. (a is no lm_left: a copy of one would be
 * read from where it has just been written in parts, after all stores before it.) */
static void tiles(const bwd_task *t, int64_t k, const uint32_t *a, int64_t lda, int64_t rows,
                  const uint32_t *b, int64_t step, int64_t cols, int64_t row, int64_t col,
                  const place *to, lm_ahead *ahead) {
    rows = lm__min(rows, LM_STRIP_ROWS);
    int64_t slabs = rows == LM_STRIP_ROWS ? cols / LM_STRIP_COLS : 0;
    t->j.w.outer(k, a, lda, b, step, (int)slabs, at_of(to, row, col), to->dtype, to->ld,
                 to->store, ahead);
    for (int64_t d = slabs * LM_STRIP_COLS; d < cols; d += LM_STRIP_COLS) {
        float tile[LM_STRIP_ROWS * LM_STRIP_COLS];
        t->j.w.strip(k, (lm_left){a, lda, 1}, (int)rows, b + d / LM_STRIP_COLS * step, tile,
                     LM_STRIP_COLS, LM_STRIP_COLS, LM_STRIP_WRITE, ahead);
        keep(tile, rows, lm__min(cols - d, LM_STRIP_COLS), row, col + d, to);
    }
}

/* A step of what is summed meanwhile, after every so many groups of tiles; or nothing goes on
 * meanwhile, and all columns are a group. */
static void go_on(bwd_meanwhile *m, int64_t group, int64_t every) {
    if (every && group % every == 0) lm__across_step(&m->across, &m->ahead);
}
static int64_t every_of(const bwd_task *t, const bwd_meanwhile *m, int64_t groups) {
    int64_t steps = t->j.w.beside ? lm__across_steps(&m->across) : 0;
    return steps ? lm__max(1, groups / steps) : 0;
}
static int64_t group_of(const bwd_task *t, int64_t cols) {
    return t->j.w.beside ? GROUP : lm__max(GROUP, cols);
}

/* Rows u .. of dup by n columns from d on. */
static void up_tiles(const bwd_task *t, const bwd_item *s, const bwd_chunk *c,
                     const uint32_t *left, int64_t u, int64_t d, int64_t n, const place *to,
                     lm_ahead *ahead) {
    const bwd_leavings *l = s->l;
    tiles(t, c->words, left + u * c->words, c->words, s->n - u,
          l->x + d * l->words + c->before * LM_STRIP_COLS, l->words * LM_STRIP_COLS, n, u, d,
          to, ahead);
}

/* dup = dpre^T x: of one half of the units. The gradient is written row by row, which memory
 * takes best, where all of x is near enough. */
static void weigh_up(const bwd_task *t, const bwd_item *s, const bwd_chunk *c, int half,
                     place to, const bwd_places *p, bwd_meanwhile *m) {
    const bwd_leavings *l = s->l;
    const uint32_t *left = p->dpre + half * t->j.stretch * c->words;
    int64_t dim = t->f->dim;
    if (c->words <= NEAR) {
        int64_t group = 0, cols = group_of(t, dim);
        int64_t every =
            every_of(t, m, lm__ceil_div(s->n, LM_STRIP_ROWS) * lm__ceil_div(dim, cols));
        for (int64_t u = 0; u < s->n; u += LM_STRIP_ROWS)
            for (int64_t d = 0; d < dim; d += cols) {
                up_tiles(t, s, c, left, u, d, lm__min(cols, dim - d), &to, &m->ahead);
                go_on(m, group++, every);
            }
        return;
    }
    for (int64_t d = 0; d < dim; d += LM_STRIP_COLS) {
        const uint32_t *x = l->x + d * l->words + c->before * LM_STRIP_COLS;
        lm_ahead ahead =
            lm__bwd_soon(d + LM_STRIP_COLS < dim ? x + l->words * LM_STRIP_COLS : x,
                         c->words * LM_STRIP_COLS, 16 * lm__ceil_div(s->n, 2 * LM_STRIP_ROWS));
        for (int64_t u = 0; u < s->n; u += LM_STRIP_ROWS)
            up_tiles(t, s, c, left, u, d, lm__min(LM_STRIP_COLS, dim - d), &to,
                     u / LM_STRIP_ROWS % 2 ? &m->ahead : &ahead);
    }
}

/* ddown = dy^T (h scale) */
static void weigh_down(const bwd_task *t, const bwd_item *s, const bwd_chunk *c, place to,
                       const bwd_places *p, bwd_meanwhile *m) {
    const bwd_leavings *l = s->l;
    int64_t group = 0, dim = t->f->dim, ticks = 16 * lm__ceil_div(s->n, LM_STRIP_COLS);
    int64_t cols = group_of(t, s->n);
    int64_t every = every_of(t, m, lm__ceil_div(dim, LM_STRIP_ROWS) * lm__ceil_div(s->n, cols));
    for (int64_t d = 0; d < dim; d += LM_STRIP_ROWS) {
        const uint32_t *dy = l->dy + d * l->words + c->before;
        lm_ahead ahead =
            lm__ahead((lm_words){.dtype = LM_F32},
                      (lm_part){dy + LM_STRIP_ROWS * l->words, l->words,
                                lm__min(LM_STRIP_ROWS, dim - d - LM_STRIP_ROWS), c->words},
                      ticks);
        for (int64_t u = 0; u < s->n; u += cols) {
            tiles(t, c->words, dy, l->words, dim - d, p->turned_h + u * c->words,
                  c->words * LM_STRIP_COLS, lm__min(cols, s->n - u), d, u, &to,
                  m->ahead.rows ? &m->ahead : &ahead);
            go_on(m, group++, every);
        }
    }
}

static float number(const bwd_task *t, const uint32_t *line, int64_t i) {
    if (t->j.w.pairs) return lm_bf16_to_f32(((const uint16_t *)(const void *)line)[i]);
    return ((const float *)(const void *)line)[i];
}

typedef struct { /* the units' part of a gradient */
    char *at;
    int dtype, add;
    int64_t rows, cols, ld;
    float *sums; /* of bf16 that several chunks make: as large, sums_ld apart */
    int64_t sums_ld;
} part;

static part up_part(const bwd_task *t, const bwd_item *s, int half, const bwd_places *p) {
    const lm_ffn_gradients *g = t->g;
    int64_t dim = t->f->dim, row = s->l->expert * t->j.wide + half * t->f->hidden + s->first;
    return (part){.at = (char *)g->up + row * dim * (int64_t)lm__size(g->up_dtype),
                  .dtype = g->up_dtype,
                  .add = g->add_up,
                  .rows = s->n,
                  .cols = dim,
                  .ld = dim,
                  .sums = p->up_sums + half * t->j.stretch * dim,
                  .sums_ld = dim};
}

static part down_part(const bwd_task *t, const bwd_item *s, const bwd_places *p) {
    const lm_ffn_gradients *g = t->g;
    int64_t hidden = t->f->hidden, first = s->l->expert * t->f->dim * hidden + s->first;
    return (part){.at = (char *)g->down + first * (int64_t)lm__size(g->down_dtype),
                  .dtype = g->down_dtype,
                  .add = g->add_down,
                  .rows = t->f->dim,
                  .cols = s->n,
                  .ld = hidden,
                  .sums = p->down_sums,
                  .sums_ld = t->j.stretch};
}

/* Where chunk i of n goes: what is written once and is larger than caches goes past them. */
static place place_of(const bwd_task *t, const part *g, int64_t i, int64_t n) {
    place to = {g->at, g->dtype, g->ld, g->add || i > 0 ? LM_STRIP_ADD : LM_STRIP_WRITE};
    if (g->dtype == LM_BF16 && n > 1) return (place){g->sums, LM_F32, g->sums_ld, to.store};
    if (to.store == LM_STRIP_WRITE && n == 1 && (uintptr_t)g->at % 64 == 0 &&
        g->ld * (int64_t)lm__size(g->dtype) % 64 == 0 &&
        t->f->experts * t->j.wide * t->f->dim > LM_FFN_STREAM)
        to.store = LM_STRIP_STREAM;
    return to;
}

/* After the last of several chunks: bf16 from its sums. */
static void round_sums(const part *g, int64_t i, int64_t n) {
    if (g->dtype != LM_BF16 || n == 1 || i < n - 1) return;
    for (int64_t r = 0; r < g->rows; r++)
        lm__to_bf16((uint16_t *)(void *)g->at + r * g->ld, g->sums + r * g->sums_ld, g->cols);
}

void lm__bwd_weigh_up(const bwd_task *t, const bwd_item *s, const bwd_chunk *c, int64_t i,
                      int half, const bwd_places *p, bwd_meanwhile *m) {
    int64_t chunks = lm__bwd_chunks_of(s->l);
    if (t->g->up) {
        part g = up_part(t, s, half, p);
        weigh_up(t, s, c, half, place_of(t, &g, i, chunks), p, m);
        round_sums(&g, i, chunks);
    }
    while (lm__across_step(&m->across, &m->ahead)) {
    }
    for (int64_t u = 0; u < s->n && t->g->up_bias; u++) {
        float *sum = p->sums + half * t->j.stretch + u;
        const uint32_t *line = p->dpre + (half * t->j.stretch + u) * c->words;
        int64_t end = lm__min(s->l->rows, (c->first + c->n) * s->l->each);
        if (i == 0) *sum = 0;
        for (int64_t r = c->first * s->l->each, q = 0; r < end; r++, q++)
            *sum += number(t, line, q);
    }
}

void lm__bwd_weigh_down(const bwd_task *t, const bwd_item *s, const bwd_chunk *c, int64_t i,
                        const bwd_places *p, bwd_meanwhile *m) {
    int64_t chunks = lm__bwd_chunks_of(s->l);
    if (t->g->down) {
        part g = down_part(t, s, p);
        weigh_down(t, s, c, place_of(t, &g, i, chunks), p, m);
        round_sums(&g, i, chunks);
    }
    while (lm__across_step(&m->across, &m->ahead)) {
    }
}

static void clear(const part *g) {
    size_t size = lm__size(g->dtype);
    for (int64_t r = 0; r < g->rows && !g->add; r++)
        memset(g->at + (size_t)(r * g->ld) * size, 0, (size_t)g->cols * size);
}

void lm__bwd_clear(const bwd_task *t, const bwd_item *s, const bwd_places *p) {
    part g;
    for (int half = 0; half < t->j.halves && t->g->up; half++)
        g = up_part(t, s, half, p), clear(&g);
    if (t->g->down) g = down_part(t, s, p), clear(&g);
}

/* They are added as a whole, as products are, so that gradients that are added up elsewhere
 * have the same bits. */
void lm__bwd_biases(const bwd_task *t, const bwd_item *s, const bwd_places *p) {
    const bwd_leavings *l = s->l;
    const lm_ffn_gradients *g = t->g;
    for (int half = 0; half < t->j.halves && g->up_bias; half++)
        for (int64_t u = 0; u < s->n; u++) {
            float *to = g->up_bias + l->expert * t->j.wide + half * t->f->hidden + s->first + u;
            float sum = l->rows ? p->sums[half * t->j.stretch + u] : 0;
            *to = g->add_up_bias ? *to + sum : sum;
        }
    for (int64_t d = 0; d < t->f->dim && g->down_bias && s->first == 0; d++) {
        float *to = g->down_bias + l->expert * t->f->dim + d, sum = 0;
        for (int64_t r = 0; r < l->rows; r++)
            sum += number(t, l->dy + d * l->words, r) * (t->scale ? t->scale[l->first + r] : 1);
        *to = g->add_down_bias ? *to + sum : sum;
    }
}
