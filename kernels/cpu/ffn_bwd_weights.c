/* ffn_bwd_weights.c - the gradients of the experts' weights and biases. */
#include "kernels/cpu/ffn_bwd.h"

#include <string.h>

enum { NEAR = 32 }; /* words along the rows of which all of x stays in the caches */

typedef struct { /* a gradient: where it goes, how wide its rows are, and how it is stored */
    float *c;
    int64_t ld;
    int store;
} place;

/* Up to 8 rows by 32 columns of a gradient; less than that through a tile that has them. */
static void tile(const bwd_task *t, int64_t k, lm_left a, int64_t rows, const uint32_t *b,
                 int64_t cols, float *c, const place *to, lm_ahead *ahead) {
    if (rows >= LM_STRIP_ROWS && cols >= LM_STRIP_COLS) {
        t->j.w.strip(k, a, LM_STRIP_ROWS, b, c, to->ld, LM_STRIP_COLS, to->store, ahead);
        return;
    }
    float whole[LM_STRIP_ROWS * LM_STRIP_COLS];
    rows = lm__min(rows, LM_STRIP_ROWS), cols = lm__min(cols, LM_STRIP_COLS);
    t->j.w.strip(k, a, (int)rows, b, whole, LM_STRIP_COLS, LM_STRIP_COLS, LM_STRIP_WRITE,
                 ahead);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t q = 0; q < cols; q++)
            c[i * to->ld + q] = whole[i * LM_STRIP_COLS + q] +
                                (to->store == LM_STRIP_ADD ? c[i * to->ld + q] : 0.0f);
}

/* Rows u .. of dup by columns d .. */
static void up_tile(const bwd_task *t, const bwd_item *s, const bwd_chunk *c,
                    const uint32_t *left, int64_t u, int64_t d, const place *to,
                    lm_ahead *ahead) {
    const bwd_leavings *l = s->l;
    tile(t, c->words, (lm_left){left + u * c->words, c->words, 1}, s->n - u,
         l->x + d * l->words + c->before * LM_STRIP_COLS, t->f->dim - d, to->c + u * to->ld + d,
         to, ahead);
}

/* dup = dpre^T x: of one half of the units, while what will be read `next` comes nearer. The
 * gradient is written row by row, which memory takes best, where all of x is near enough. */
static void weigh_up(const bwd_task *t, const bwd_item *s, const bwd_chunk *c, int half,
                     place to, const bwd_places *p, lm_ahead *next) {
    const bwd_leavings *l = s->l;
    const uint32_t *left = p->dpre + half * t->j.stretch * c->words;
    int64_t dim = t->f->dim;
    if (c->words <= NEAR) {
        lm_ahead none = {0};
        for (int64_t u = 0; u < s->n; u += LM_STRIP_ROWS)
            for (int64_t d = 0; d < dim; d += LM_STRIP_COLS)
                up_tile(t, s, c, left, u, d, &to, d / LM_STRIP_COLS % 2 ? next : &none);
        return;
    }
    for (int64_t d = 0; d < dim; d += LM_STRIP_COLS) {
        const uint32_t *x = l->x + d * l->words + c->before * LM_STRIP_COLS;
        lm_ahead ahead = lm__bwd_soon(
            d + LM_STRIP_COLS < dim ? x + l->words * LM_STRIP_COLS : x,
            c->words * LM_STRIP_COLS, c->words * lm__ceil_div(s->n, 2 * LM_STRIP_ROWS));
        for (int64_t u = 0; u < s->n; u += LM_STRIP_ROWS)
            up_tile(t, s, c, left, u, d, &to, u / LM_STRIP_ROWS % 2 ? next : &ahead);
    }
}

/* ddown = dy^T (h scale) */
static void weigh_down(const bwd_task *t, const bwd_item *s, const bwd_chunk *c, place to,
                       const bwd_places *p) {
    const bwd_leavings *l = s->l;
    for (int64_t d = 0; d < t->f->dim; d += LM_STRIP_ROWS) {
        const uint32_t *dy = l->dy + d * l->words + c->before;
        lm_ahead ahead = lm__ahead(
            (lm_words){.dtype = LM_F32},
            (lm_part){dy + LM_STRIP_ROWS * l->words, l->words,
                      lm__min(LM_STRIP_ROWS, t->f->dim - d - LM_STRIP_ROWS), c->words},
            c->words * lm__ceil_div(s->n, LM_STRIP_COLS));
        for (int64_t u = 0; u < s->n; u += LM_STRIP_COLS)
            tile(t, c->words, (lm_left){dy, l->words, 1}, t->f->dim - d,
                 p->turned_h + u * c->words, s->n - u, to.c + d * to.ld + u, &to, &ahead);
    }
}

static float number(const bwd_task *t, const uint32_t *line, int64_t i) {
    if (t->j.w.pairs) return lm_bf16_to_f32(((const uint16_t *)(const void *)line)[i]);
    return ((const float *)(const void *)line)[i];
}

/* How a gradient is stored: what is written once and is larger than caches goes past them. */
static place place_of(const bwd_task *t, float *c, int64_t ld, const bwd_leavings *l, int64_t i,
                      int add) {
    place to = {c, ld, add || i > 0 ? LM_STRIP_ADD : LM_STRIP_WRITE};
    if (to.store == LM_STRIP_WRITE && lm__bwd_chunks_of(l) == 1 && (uintptr_t)c % 64 == 0 &&
        ld % 16 == 0 && t->f->experts * t->j.wide * t->f->dim > LM_FFN_STREAM)
        to.store = LM_STRIP_STREAM;
    return to;
}

static float *up_gradient(const bwd_task *t, const bwd_item *s, int half) {
    return t->g->up + (s->l->expert * t->j.wide + half * t->f->hidden + s->first) * t->f->dim;
}
static float *down_gradient(const bwd_task *t, const bwd_item *s) {
    return t->g->down + s->l->expert * t->f->dim * t->f->hidden + s->first;
}

/* The first that the item after this one will read. */
static lm_ahead after(const bwd_task *t, const bwd_item *next, const bwd_chunk *c,
                      int64_t turns) {
    lm_part w = {0};
    if (next && next->l->rows)
        w = lm__ffn_down_part(&t->j, next->l->expert, 0,
                              lm__min(t->f->dim, lm__bwd_inner(&t->j)), next->first, next->n);
    return lm__ahead(t->j.w, w, c->words * lm__max(1, turns));
}

void lm__bwd_weigh(const bwd_task *t, const bwd_item *s, const bwd_item *next,
                   const bwd_chunk *c, int64_t i, bwd_places *p) {
    const lm_ffn *f = t->f;
    lm_ahead ahead = after(t, next, c,
                           t->j.halves * lm__ceil_div(f->dim, LM_STRIP_COLS) *
                               (lm__ceil_div(s->n, LM_STRIP_ROWS) / 2));
    for (int half = 0; half < t->j.halves; half++) {
        if (t->g->up)
            weigh_up(t, s, c, half,
                     place_of(t, up_gradient(t, s, half), f->dim, s->l, i, t->g->add_up), p,
                     &ahead);
        for (int64_t u = 0; u < s->n && t->g->up_bias; u++) {
            float *sum = p->sums + half * t->j.stretch + u;
            const uint32_t *line = p->dpre + (half * t->j.stretch + u) * c->words;
            int64_t end = lm__min(s->l->rows, (c->first + c->n) * s->l->each);
            if (i == 0) *sum = 0;
            for (int64_t r = c->first * s->l->each, q = 0; r < end; r++, q++)
                *sum += number(t, line, q);
        }
    }
    if (t->g->down)
        weigh_down(t, s, c,
                   place_of(t, down_gradient(t, s), f->hidden, s->l, i, t->g->add_down), p);
}
void lm__bwd_clear(const bwd_task *t, const bwd_item *s) {
    int64_t dim = t->f->dim;
    for (int half = 0; half < t->j.halves && t->g->up && !t->g->add_up; half++)
        memset(up_gradient(t, s, half), 0, (size_t)(s->n * dim) * sizeof(float));
    for (int64_t d = 0; d < dim && t->g->down && !t->g->add_down; d++)
        memset(down_gradient(t, s) + d * t->f->hidden, 0, (size_t)s->n * sizeof(float));
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
