/* ffn_bwd_columns.c - backward, third pass: dx, some columns of a chunk; and dscale. */
#include "kernels/cpu/ffn_bwd.h"

#include <string.h>

/* Part i of up in the order in which it is read: panel by panel of each depth of each half. */
typedef struct {
    lm_part w;
    int64_t panel; /* the first of its columns, among the item's */
    int64_t at;    /* the first of its words, among those of wide */
} up_part;

static up_part up_part_of(const bwd_task *t, const bwd_item *s, int64_t wide, int64_t i) {
    int64_t panels = lm__ceil_div(s->n, wide), per_half = lm__ceil_div(t->f->hidden, t->depth);
    int64_t half = i / panels / per_half, from = i / panels % per_half * t->depth;
    up_part u = {.panel = i % panels * wide};
    if (half == t->j.halves) return u;
    u.at = half * t->half + lm__words_of(t->j.w, from);
    u.w = lm__ffn_up_part(&t->j, s->l->expert, half * t->f->hidden + from,
                          lm__min(t->depth, t->f->hidden - from), s->first + u.panel,
                          lm__min(wide, s->n - u.panel));
    return u;
}

/* dx = dpre up */
void lm__bwd_columns(const bwd_task *t, const bwd_item *s, bwd_places *p) {
    const lm_ffn_job *j = &t->j;
    const bwd_leavings *l = s->l;
    if (lm__bwd_across(j, l)) {
        lm__bwd_few_dx(t, l, p);
        return;
    }
    bwd_chunk c = lm__bwd_chunk_of(t, l, s->chunk);
    int64_t words = j->halves * t->half, step = l->slabs * LM_STRIP_COLS, ldc = c.n * step;
    up_part u = up_part_of(t, s, LM_BWD_PANEL, 0), next;
    for (int64_t i = 1; u.w.x; u = next, i++) {
        int64_t k = lm__words_of(j->w, u.w.rows);
        next = up_part_of(t, s, LM_BWD_PANEL, i);
        lm_ahead ahead = lm__ahead(j->w, next.w, k * lm__bwd_turns_of(l, &c, u.w.n));
        lm__left_turned(j->w, u.w.x, u.w.ld, u.w.rows, u.w.n, p->left, lm__bwd_step_of(k));
        for (int64_t b = 0; b < c.n; b++)
            lm__bwd_turned_product(j, p->left, k, u.w.n,
                                   l->dpre + ((c.first + b) * l->slabs * words + u.at) *
                                                 LM_STRIP_COLS,
                                   words * LM_STRIP_COLS, lm__bwd_block_of(l, c.first + b).rows,
                                   p->dx + u.panel * ldc + b * step, ldc, u.at > 0, &ahead);
    }
    for (int64_t i = 0; i < c.n; i++) {
        lm_ffn_block b = lm__bwd_block_of(l, c.first + i);
        lm__ffn_turn_back(j, &b, p->dx + i * step, ldc, s->first, s->n, NULL, t->g->dx,
                          p->lines);
    }
}

static float dot_row(const bwd_task *t, const float *bias, int64_t arrival) {
    const lm_ffn *f = t->f;
    float sum = 0, buf[64];
    for (int64_t d = 0; d < f->dim; d += 64) {
        int64_t n = lm__min(64, f->dim - d);
        const float *dy =
            lm__load(f->dtype, t->dy, lm__bwd_row_of(f, arrival) * f->dim + d, n, buf);
        for (int64_t i = 0; i < n; i++) sum += dy[i] * bias[d + i];
    }
    return sum;
}

void lm__bwd_scales(const bwd_task *t, const bwd_leavings *l, int64_t i, const bwd_places *p) {
    lm_ffn_block b = lm__bwd_block_of(l, i);
    const float *bias = lm__ffn_bias(&t->j, t->f->down_bias, l->expert, t->f->dim, p->bias);
    for (int64_t r = 0; r < b.rows; r++) {
        const float *part = l->dscale + i * l->each + r;
        float sum = 0;
        for (int64_t k = 0; k < t->stretches; k++) sum += part[k * l->rows];
        t->g->dscale[b.first + r] = sum + (bias ? dot_row(t, bias, b.first + r) : 0);
    }
}
