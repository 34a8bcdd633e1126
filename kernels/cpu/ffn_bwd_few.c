/* ffn_bwd_few.c - backward of an expert with few rows: then weights are what takes time, to
 * read them and to write their gradients. So each is read where it lies (across.c), once, and
 * while a gradient is written, which waits for memory, the products that read go on (where
 * memory does not keep up: `beside` of lm_words; else after it); and as much as they read comes
 * nearer:
 *
 *   written                  read                                   comes nearer
 *   dup of the gate's half   dx += dpre up, of that half            up's other half
 *   dup of the other half    the same of it                         the next gate, some of down
 *   ddown                    dh = dy down, of the next stretch      the rest of it
 *
 * An item is as many units as one sum of dx goes over, or some times that; those sums are left
 * for the third pass.
 */
#include "kernels/cpu/ffn_bwd.h"

#include <string.h>

/* The stretch of the item's units from `first` on. */
static bwd_item stretch_of(const bwd_task *t, const bwd_item *s, int64_t first) {
    bwd_item part = {s->l, first, lm__min(t->j.stretch, s->first + s->n - first), 0};
    return part;
}

/* dh = dy down, of its units; turn: of two places for it */
static lm_across down_of(const bwd_task *t, const bwd_item *s, const bwd_places *p, int turn) {
    const lm_ffn_job *j = &t->j;
    int64_t dim = t->f->dim;
    return (lm_across){.words = j->w,
                       .w = lm__ffn_down_part(j, s->l->expert, 0, dim, s->first, s->n),
                       .a = s->l->turned_dy,
                       .rows = s->l->rows,
                       .c = lm__bwd_dh_of(t, 1 + turn, p),
                       .ldc = lm__round_up(j->stretch, LM_STRIP_COLS),
                       .cut = lm__bwd_inner(j),
                       .part = lm__bwd_dh_of(t, 3, p),
                       .panel = s->n};
}

/* dx += dpre up, of one half of its units */
static lm_across dx_of(const bwd_task *t, const bwd_item *s, int half) {
    const lm_ffn_job *j = &t->j;
    const bwd_leavings *l = s->l;
    int64_t dim = t->f->dim, hidden = t->f->hidden, depth = s->first / t->depth;
    int64_t at = half * t->half + lm__words_of(j->w, s->first);
    if (!t->g->dx) return (lm_across){0};
    return (lm_across){
        .words = j->w,
        .w = lm__ffn_up_part(j, l->expert, half * hidden + s->first, s->n, 0, dim),
        .a = l->dpre + at * LM_STRIP_COLS,
        .rows = l->rows,
        .c = l->parts + (half * lm__ceil_div(hidden, t->depth) + depth) * lm__bwd_part_of(t, l),
        .ldc = lm__round_up(dim, LM_STRIP_COLS),
        .go_on = s->first % t->depth > 0,
        .cut = t->depth,
        .panel = LM_BWD_PANEL};
}

/* Rows of down that come nearer before they are read: more would not stay, being a power of two
 * apart. */
enum { SOON = 64 };

/* `rows` of w from `first` on, or as many as there are, in so many turns. */
static lm_ahead ahead_of(const bwd_task *t, lm_part w, int64_t first, int64_t rows,
                         int64_t turns) {
    w.rows = lm__max(0, lm__min(w.rows - first, rows));
    if (w.x) w.x = lm__element(t->j.w.dtype, w.x, first * w.ld);
    return lm__ahead(t->j.w, w, 16 * lm__max(1, turns));
}

static void turn_dh(const bwd_task *t, const bwd_item *s, const lm_across *down,
                    bwd_places *p) {
    const uint32_t *rows[LM_STRIP_COLS] = {NULL};
    for (int64_t r = 0; r < s->l->rows; r++)
        rows[r] = (const uint32_t *)(const void *)(down->c + r * down->ldc);
    lm__turn(rows, s->n, (uint32_t *)(void *)lm__bwd_dh_of(t, 0, p));
}

/* The first dh, while the rest of down and the gate's half of up come nearer. */
static void begin(const bwd_task *t, const bwd_item *s, lm_across *down) {
    int64_t turns = lm__across_turns(down);
    lm_ahead gate = ahead_of(t, dx_of(t, s, 0).w, 0, s->n, turns / 2);
    lm_ahead ahead = ahead_of(t, down->w, SOON, t->f->dim, turns / 2);
    if (ahead.rows) ahead.then = &gate;
    while (lm__across_step(down, &ahead)) {
    }
}

/* dup of both halves. */
static void weigh_halves(const bwd_task *t, const bwd_item *s, const bwd_item *after,
                         const bwd_chunk *c, lm_part down, bwd_places *p) {
    int64_t slabs = lm__ceil_div(s->n, LM_STRIP_ROWS) * lm__ceil_div(t->f->dim, LM_STRIP_COLS);
    for (int half = 0; half < t->j.halves; half++) {
        bwd_meanwhile m = {.across = dx_of(t, s, half)};
        int64_t turns = slabs + lm__across_turns(&m.across);
        lm_ahead soon = ahead_of(t, down, 0, SOON, turns / 8);
        if (half + 1 < t->j.halves)
            m.ahead = ahead_of(t, dx_of(t, s, half + 1).w, 0, s->n, turns);
        else if (after->n > 0) {
            m.ahead = ahead_of(t, dx_of(t, after, 0).w, 0, after->n, turns - turns / 8);
            if (m.ahead.rows) m.ahead.then = &soon;
        }
        lm__bwd_weigh_up(t, s, c, 0, half, p, &m);
    }
}

/* ddown, beside the dh after this one, if there is one; while what comes after that comes
 * nearer. */
static void weigh_down(const bwd_task *t, const bwd_item *s, const bwd_item *after,
                       const bwd_item *next, const bwd_chunk *c, const lm_across *down,
                       bwd_places *p) {
    int64_t slabs = lm__ceil_div(s->n, LM_STRIP_COLS) * lm__ceil_div(t->f->dim, LM_STRIP_ROWS);
    bwd_meanwhile m = {.across = *down};
    int64_t turns = slabs + lm__across_turns(down);
    if (after->n > 0) m.ahead = ahead_of(t, down->w, SOON, t->f->dim, turns);
    else if (next && lm__bwd_across(&t->j, next->l)) {
        bwd_item first = stretch_of(t, next, next->first);
        m.ahead = ahead_of(t, down_of(t, &first, p, 0).w, 0, SOON, slabs);
    }
    lm__bwd_weigh_down(t, s, c, 0, p, &m);
}

void lm__bwd_few(const bwd_task *t, const bwd_item *s, const bwd_item *next, bwd_places *p) {
    bwd_chunk c = lm__bwd_chunk_of(t, s->l, 0);
    bwd_item now = stretch_of(t, s, s->first);
    lm_across down = down_of(t, &now, p, 0);
    begin(t, &now, &down);
    for (int turn = 1; now.n > 0; turn ^= 1) {
        bwd_item after = stretch_of(t, s, now.first + now.n);
        turn_dh(t, &now, &down, p);
        lm__bwd_activate(t, &now, &c, 0, p);
        down = after.n > 0 ? down_of(t, &after, p, turn) : (lm_across){0};
        weigh_halves(t, &now, &after, &c, down.w, p);
        weigh_down(t, &now, &after, next, &c, &down, p);
        if (t->weights) lm__bwd_biases(t, &now, p);
        now = after;
    }
}

LM_CLONES static void add_line(float *restrict sum, const float *restrict x, int64_t n) {
    for (int64_t i = 0; i < n; i++) sum[i] += x[i];
}

/* The sums of the items, in order. */
void lm__bwd_few_dx(const bwd_task *t, const bwd_leavings *l, bwd_places *p) {
    int64_t dim = t->f->dim, ld = lm__round_up(dim, LM_STRIP_COLS);
    for (int64_t r = 0; r < l->rows; r++) {
        const float *part = l->parts + r * ld;
        memcpy(p->dx, part, (size_t)dim * sizeof *part);
        for (int64_t i = 1; i < lm__bwd_parts_of(t); i++)
            add_line(p->dx, part += lm__bwd_part_of(t, l), dim);
        int64_t at = (l->first + r) * dim;
        if (t->f->dtype == LM_F32)
            memcpy((float *)t->g->dx + at, p->dx, (size_t)dim * sizeof *part);
        else lm__to_bf16((uint16_t *)t->g->dx + at, p->dx, dim);
    }
}
