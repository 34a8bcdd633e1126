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

/* The units' pre, from what forward kept or computed again: [halves][units][wide]. */
static void find_pre(const bwd_task *t, const bwd_item *s, int64_t i, const lm_ffn_block *b,
                     int64_t wide, bwd_places *p) {
    const lm_ffn_job *j = &t->j;
    if (!t->pre) {
        const uint32_t *x = s->l->turned_x + i * s->l->slabs * j->d_words * LM_STRIP_COLS;
        lm__ffn_up(j, b, s->first, s->n, (lm_part){NULL, 0, 0, 0}, x, p->pre, wide, p->left);
        return;
    }
    int64_t each = b->rows == wide ? s->n : 1; /* units that lie as they should */
    for (int half = 0; half < j->halves; half++)
        for (int64_t u = 0; u < s->n; u += each) {
            int64_t unit = half * t->f->hidden + s->first + u, n = each * b->rows;
            float *to = p->pre + (half * j->stretch + u) * wide;
            const float *from =
                lm__load(t->f->dtype, t->pre, b->first * j->wide + unit * b->rows, n, to);
            if (from != to) memcpy(to, from, (size_t)n * sizeof *to);
            if (b->rows < wide) memset(to + n, 0, (size_t)(wide - n) * sizeof *to);
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

/* What units u .. u + n - 1 leave for dx: a line of a half of them, of all the block's rows, as
 * words of two units, or of one. */
static void leave_dpre(const bwd_task *t, const bwd_item *s, int64_t i, int half, int64_t u,
                       int64_t n, const float *d, int64_t wide) {
    int pairs = t->j.w.pairs;
    int64_t words = t->j.halves * t->half, first = lm__words_of(t->j.w, s->first + u);
    uint32_t *at =
        s->l->dpre + (i * s->l->slabs * words + half * t->half + first) * LM_STRIP_COLS;
    for (int64_t k = 0; k < n; k += 1 + pairs, d += (1 + pairs) * wide, at += LM_STRIP_COLS) {
        uint32_t *to = at;
        for (int64_t r = 0; r < wide; r += LM_STRIP_COLS, to += words * LM_STRIP_COLS) {
            __builtin_prefetch(to + SOON * LM_STRIP_COLS, 1);
            __builtin_prefetch(to + SOON * LM_STRIP_COLS + 16, 1);
            lm__pair_floats(t->j.w, d + r, d + wide + r, lm__min(LM_STRIP_COLS, wide - r), to);
        }
    }
}

/* Lines of n units as words along the rows, `step` apart. */
static void lines_to_words(const bwd_task *t, const float *x, int64_t n, int64_t rows,
                           int64_t wide, uint32_t *to, int64_t step) {
    if (rows == wide && step == lm__words_of(t->j.w, rows)) {
        line_to_words(t, x, n * rows, to);
        return;
    }
    for (int64_t u = 0; u < n; u++) line_to_words(t, x + u * wide, rows, to + u * step);
}

typedef struct { /* lines of some units, one after the other: [units][wide] */
    float *h, *d[2], *dh, *dscale, *scale;
} unit_lines;

static unit_lines lines_in(const bwd_places *p) {
    float *at = p->line;
    return (unit_lines){at,
                        {at + LM_BWD_LINES, at + 2 * LM_BWD_LINES},
                        at + 3 * LM_BWD_LINES,
                        at + 4 * LM_BWD_LINES,
                        at + 5 * LM_BWD_LINES};
}

/* From dh and pre: h and dpre of block i, for the weights and, as words of the units, for dx.
 * wide: the block's rows, and what is no row: the products use no more of a slab. */
static void activate_back(const bwd_task *t, const bwd_item *s, const bwd_chunk *c, int64_t i,
                          const lm_ffn_block *b, int64_t ldc, int64_t wide, bwd_places *p) {
    const lm_ffn_job *j = &t->j;
    unit_lines l = lines_in(p);
    int64_t before = lm__bwd_words_before(t, b) - c->before, mine = lm__bwd_words_in(t, b);
    int64_t most = LM_BWD_LINES / wide / 2 * 2;
    const float *dh = lm__bwd_dh_of(t, i - c->first, p);
    for (int64_t u = 0; u < s->n; u += most, dh += most * ldc) {
        int64_t units = lm__min(most, s->n - u), n = units * wide;
        const float *g = p->pre + u * wide;
        for (int64_t k = 0; k < units && ldc > wide; k++)
            memcpy(l.dh + k * wide, dh + k * ldc, (size_t)wide * sizeof *dh);
        memset(l.dscale, 0, (size_t)n * sizeof *l.dscale);
        lm__ffn_activate_back(t->f->activation, l.h, l.d[0], l.d[1], l.dscale,
                              ldc > wide ? l.dh : dh, g, g + j->stretch * wide, l.scale, n);
        for (int64_t k = 0; k < units; k++)
            for (int64_t r = 0; r < wide; r++) p->dscale[r] += l.dscale[k * wide + r];
        for (int half = 0; half < j->halves && !j->w.pairs; half++)
            lm__ffn_settle(t->f->dtype, l.d[half], 0, n);
        for (int half = 0; half < j->halves && t->g->dx; half++) {
            if (units % 2) memset(l.d[half] + n, 0, (size_t)wide * sizeof *l.h);
            leave_dpre(t, s, i, half, u, units, l.d[half], wide);
        }
        if (!t->weights) continue;
        if (!j->w.pairs) lm__ffn_settle(t->f->dtype, l.h, 0, n);
        lines_to_words(t, l.h, units, b->rows, wide, p->h + u * mine, mine);
        for (int half = 0; half < j->halves; half++)
            lines_to_words(t, l.d[half], units, b->rows, wide,
                           p->dpre + (half * j->stretch + u) * c->words + before, c->words);
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
    int64_t wide = lm__round_up(b.rows, 16);
    float *scale = lines_in(p).scale;
    memset(p->dscale, 0, LM_FFN_ROWS * sizeof *p->dscale);
    for (int64_t r = 0; r < wide; r++)
        scale[r] = r >= b.rows ? 0 : t->scale ? t->scale[b.first + r] : 1;
    for (int64_t n = wide; n + wide <= LM_BWD_LINES; n += wide)
        memcpy(scale + n, scale, (size_t)wide * sizeof *scale);
    find_pre(t, s, i, &b, wide, p);
    activate_back(t, s, c, i, &b, ldc, wide, p);
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
    if (s->l->rows == 0) lm__bwd_clear(t, s, p);
    if (t->weights) lm__bwd_biases(t, s, p);
}
