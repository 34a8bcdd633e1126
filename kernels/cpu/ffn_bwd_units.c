/* ffn_bwd_units.c - backward, second pass: some hidden units of an expert, a chunk of its
 * blocks after the other. */
#include "kernels/cpu/ffn_bwd.h"

#include <string.h>

enum { SOON = 8 }; /* words of dpre whose place comes nearer meanwhile */

float *lm__bwd_dh_of(const bwd_task *t, int64_t i, const bwd_places *p) {
    return p->dh + i * lm__round_up(t->j.stretch, LM_STRIP_COLS) * LM_FFN_ROWS;
}

/* dh = dy down */
static void through_down(const bwd_task *t, const bwd_item *s, const bwd_chunk *c,
                         bwd_places *p) {
    const lm_ffn_job *j = &t->j;
    const bwd_leavings *l = s->l;
    int64_t dim = t->f->dim, most = lm__bwd_inner(j);
    for (int64_t q = 0; q < dim; q += most) {
        int64_t m = lm__min(most, dim - q), k = lm__words_of(j->w, m);
        lm_part w = lm__ffn_down_part(j, l->expert, q, m, s->first, s->n), next = {0};
        if (q + m < dim)
            next = lm__ffn_down_part(j, l->expert, q + m, lm__min(most, dim - q - m), s->first,
                                     s->n);
        lm_ahead ahead = lm__ahead(j->w, next, k * lm__bwd_turns_of(l, c, s->n));
        lm__left_turned(j->w, w.x, w.ld, m, s->n, p->left, lm__bwd_step_of(k));
        for (int64_t i = 0; i < c->n; i++) {
            lm_ffn_block b = lm__bwd_block_of(l, c->first + i);
            const uint32_t *dy =
                l->turned_dy + (c->first + i) * l->slabs * j->d_words * LM_STRIP_COLS;
            lm__bwd_turned_product(j, p->left, k, s->n,
                                   dy + lm__words_of(j->w, q) * LM_STRIP_COLS,
                                   j->d_words * LM_STRIP_COLS, b.rows, lm__bwd_dh_of(t, i, p),
                                   lm__ffn_slabs(b.rows) * LM_STRIP_COLS, q > 0, &ahead);
        }
    }
}

/* The units' pre, from what forward kept or computed again. */
static void find_pre(const bwd_task *t, const bwd_item *s, int64_t i, const lm_ffn_block *b,
                     int64_t ldc, bwd_places *p) {
    const lm_ffn_job *j = &t->j;
    if (!t->pre) {
        const uint32_t *x = s->l->turned_x + i * s->l->slabs * j->d_words * LM_STRIP_COLS;
        lm__ffn_up(j, b, s->first, s->n, (lm_part){NULL, 0, 0, 0}, x, p->pre, ldc, p->left);
        return;
    }
    for (int half = 0; half < j->halves; half++)
        for (int64_t u = 0; u < s->n; u++) {
            int64_t unit = half * t->f->hidden + s->first + u;
            int64_t at = b->first * j->wide + unit * b->rows;
            float *to = p->pre + (half * j->stretch + u) * ldc;
            const float *from = lm__load(t->f->dtype, t->pre, at, b->rows, to);
            if (from != to) memcpy(to, from, (size_t)b->rows * sizeof *to);
            memset(to + b->rows, 0, (size_t)(ldc - b->rows) * sizeof *to);
        }
}

/* A line of floats as words along the rows. */
static void line_to_words(const bwd_task *t, const float *x, int64_t n, uint32_t *to) {
    if (!t->j.w.pairs) {
        memcpy(to, x, (size_t)n * sizeof *to);
        return;
    }
    if (n % 2) to[n / 2] = 0;
    lm__to_bf16((uint16_t *)(void *)to, x, n);
}

/* Word k of the units' half, of all the block's rows. */
static void leave_dpre(const bwd_task *t, const bwd_item *s, int64_t i, int half, int64_t k,
                       const uint32_t *line, int64_t ldc) {
    int64_t words = t->j.halves * t->half;
    uint32_t *to = s->l->dpre + (i * s->l->slabs * words + half * t->half +
                                 lm__words_of(t->j.w, s->first) + k) *
                                    LM_STRIP_COLS;
    for (; ldc > 0; ldc -= LM_STRIP_COLS, line += LM_STRIP_COLS, to += words * LM_STRIP_COLS) {
        __builtin_prefetch(to + SOON * LM_STRIP_COLS, 1);
        __builtin_prefetch(to + SOON * LM_STRIP_COLS + 16, 1);
        memcpy(to, line, LM_STRIP_COLS * sizeof *to);
    }
}

/* From dh and pre: h and dpre of block i, for the weights and, as words of the units, for dx.
 */
static void activate_back(const bwd_task *t, const bwd_item *s, const bwd_chunk *c, int64_t i,
                          const lm_ffn_block *b, int64_t ldc, bwd_places *p) {
    const lm_ffn_job *j = &t->j;
    int pairs = j->w.pairs;
    int64_t before = lm__bwd_words_before(t, b) - c->before, mine = lm__bwd_words_in(t, b);
    int64_t wide = lm__round_up(b->rows, 16); /* the products use no more of a slab */
    float *h = p->line, *d = h + LM_FFN_ROWS, *scale = d + 4 * LM_FFN_ROWS;
    const float *dh = lm__bwd_dh_of(t, i - c->first, p);
    uint32_t *words = (uint32_t *)(void *)(scale + LM_FFN_ROWS);
    for (int64_t k = 0; k < lm__words_of(j->w, s->n); k++) {
        for (int o = 0; o <= pairs; o++) { /* d: dg even, odd, du even, odd */
            int64_t u = pairs ? 2 * k + o : k;
            float *dg = d + o * LM_FFN_ROWS, *du = dg + 2 * LM_FFN_ROWS;
            if (u >= s->n) {
                memset(dg, 0, (size_t)wide * sizeof *dg);
                memset(du, 0, (size_t)wide * sizeof *du);
                continue;
            }
            const float *g = p->pre + u * ldc;
            lm__ffn_activate_back(t->f->activation, h, dg, du, p->dscale, dh + u * ldc, g,
                                  g + j->stretch * ldc, scale, wide);
            for (int half = 0; half < j->halves && !pairs; half++)
                lm__ffn_settle(t->f->dtype, half ? du : dg, 0, wide);
            if (!t->weights) continue;
            if (!pairs) lm__ffn_settle(t->f->dtype, h, 0, ldc);
            line_to_words(t, h, b->rows, p->h + u * mine);
            for (int half = 0; half < j->halves; half++)
                line_to_words(t, half ? du : dg, b->rows,
                              p->dpre + (half * j->stretch + u) * c->words + before);
        }
        for (int half = 0; half < j->halves && t->g->dx; half++) {
            const float *even = d + 2 * half * LM_FFN_ROWS;
            lm__pair_floats(j->w, even, even + LM_FFN_ROWS, wide, words);
            leave_dpre(t, s, i, half, k, words, ldc);
        }
    }
}

/* The block's lines of h, turned. */
static void turn_h(const bwd_task *t, const bwd_item *s, const bwd_chunk *c,
                   const lm_ffn_block *b, bwd_places *p) {
    int64_t before = lm__bwd_words_before(t, b) - c->before, mine = lm__bwd_words_in(t, b);
    for (int64_t u = 0; u < s->n; u += LM_STRIP_COLS) {
        const uint32_t *lines[LM_STRIP_COLS] = {NULL};
        for (int64_t k = 0; k < LM_STRIP_COLS && u + k < s->n; k++)
            lines[k] = p->h + (u + k) * mine;
        lm__turn(lines, mine, p->turned_h + u * c->words + before * LM_STRIP_COLS);
    }
}

void lm__bwd_activate(const bwd_task *t, const bwd_item *s, const bwd_chunk *c, int64_t i,
                      bwd_places *p) {
    lm_ffn_block b = lm__bwd_block_of(s->l, i);
    int64_t ldc = lm__ffn_slabs(b.rows) * LM_STRIP_COLS, at = b.first - s->l->first;
    float *scale = p->line + 5 * LM_FFN_ROWS;
    memset(p->dscale, 0, LM_FFN_ROWS * sizeof *p->dscale);
    for (int64_t r = 0; r < ldc; r++)
        scale[r] = r >= b.rows ? 0 : t->scale ? t->scale[b.first + r] : 1;
    find_pre(t, s, i, &b, ldc, p);
    activate_back(t, s, c, i, &b, ldc, p);
    if (t->weights) turn_h(t, s, c, &b, p);
    memcpy(s->l->dscale + s->first / t->j.stretch * s->l->rows + at, p->dscale,
           (size_t)b.rows * sizeof *p->dscale);
}

/* The first that the item after this one will read. */
static bwd_meanwhile after(const bwd_task *t, const bwd_item *s, const bwd_item *next) {
    int64_t slabs = t->j.halves * lm__ceil_div(t->f->dim, LM_STRIP_COLS) *
                    (lm__ceil_div(s->n, LM_STRIP_ROWS) / 2);
    lm_part w = {0};
    if (next && next->l->rows)
        w = lm__ffn_down_part(&t->j, next->l->expert, 0,
                              lm__min(t->f->dim, lm__bwd_inner(&t->j)), next->first, next->n);
    return (bwd_meanwhile){.ahead = lm__ahead(t->j.w, w, 16 * lm__max(1, slabs))};
}

void lm__bwd_units(const bwd_task *t, const bwd_item *s, const bwd_item *next, bwd_places *p) {
    int64_t n = lm__bwd_chunks_of(s->l);
    for (int64_t i = 0; i < n; i++) {
        bwd_chunk c = lm__bwd_chunk_of(t, s->l, i);
        through_down(t, s, &c, p);
        for (int64_t b = 0; b < c.n; b++) lm__bwd_activate(t, s, &c, c.first + b, p);
        if (!t->weights) continue;
        bwd_meanwhile m = after(t, s, i + 1 < n ? s : next), none = {0};
        for (int half = 0; half < t->j.halves; half++)
            lm__bwd_weigh_up(t, s, &c, i, half, p, &m);
        lm__bwd_weigh_down(t, s, &c, i, p, &none);
    }
    if (s->l->rows == 0) lm__bwd_clear(t, s);
    if (t->weights) lm__bwd_biases(t, s, p);
}
