/* ffn_bwd.c - the gradients of ffn_fwd.c, in three passes over some experts:
 *
 *   rows:    x and dy of each block are laid out as the products want them;
 *   units:   a stretch of an expert's hidden units, over all its rows, four blocks at a time:
 *            dh = dy down, dpre = f'(pre) dh scale, and from these, while they are in the
 *            second-level cache, dup = dpre^T x and ddown = dy^T (h scale);
 *   columns: dx = dpre up, some columns of four blocks at a time.
 *
 * So a weight is read, and its gradient written, once for 512 rows; and neither pass needs
 * another's rows or units. dscale = <dh, h> (+ <dy, bias of down>), a stretch after the other.
 * Of experts with few rows the second pass finds sums of dx too (ffn_bwd_few.c). Experts go
 * through all three in waves, so that what lies in between is small enough for the last cache.
 */
#include "kernels/cpu/ffn_bwd.h"

enum {
    STRETCH = 64,    /* hidden units, in words, at a time */
    WAVE = 16 << 20, /* bytes of room that a wave should not exceed */
    ITEMS = 8,       /* that a thread should have, of experts with few rows */
    LINES = 6        /* lists of numbers: h, dg, du, dh, dscale, scale */
};

/* ---- room ---- */

static bwd_places places_in(const bwd_task *t, lm_ffn_room *room) {
    const lm_ffn_job *j = &t->j;
    int64_t R = LM_FFN_ROWS, S = lm__round_up(j->stretch, LM_STRIP_COLS);
    int64_t words = lm__words_of(j->w, LM_BWD_ROWS);
    bwd_places p;
    int64_t left = lm__max(S * lm__bwd_step_of(LM_FFN_INNER),
                           LM_BWD_PANEL * lm__bwd_step_of(LM_BWD_DEPTH));
    p.left = lm__ffn_take(room, left / LM_STRIP_ROWS, sizeof *p.left);
    p.lines = lm__ffn_take(room, LM_STRIP_COLS * lm__max(t->f->dim + 1, R), sizeof *p.lines);
    p.dpre = lm__ffn_take(room, j->halves * S * words, sizeof *p.dpre);
    p.h = lm__ffn_take(room, S * R, sizeof *p.h);
    p.turned_h = lm__ffn_take(room, S * words, sizeof *p.turned_h);
    p.dh = lm__ffn_take(room, S * LM_BWD_ROWS, sizeof *p.dh);
    p.pre = lm__ffn_take(room, (j->halves * j->stretch + LM_STRIP_TALL) * R, sizeof *p.pre);
    p.dx = lm__ffn_take(room, lm__max(LM_BWD_PANEL * LM_BWD_ROWS, t->f->dim), sizeof *p.dx);
    p.line = lm__ffn_take(room, LINES * LM_BWD_LINES, sizeof *p.line);
    p.dscale = lm__ffn_take(room, R, sizeof *p.dscale);
    p.bias = lm__ffn_take(room, t->f->dim, sizeof *p.bias);
    p.sums = lm__ffn_take(room, j->halves * S, sizeof *p.sums);
    int64_t several = t->most > LM_BWD_ROWS ? j->stretch * t->f->dim : 0;
    p.up_sums = lm__ffn_take(room, t->g->up_dtype == LM_BF16 ? j->halves * several : 0,
                             sizeof *p.up_sums);
    p.down_sums =
        lm__ffn_take(room, t->g->down_dtype == LM_BF16 ? several : 0, sizeof *p.down_sums);
    return p;
}

/* Its parts of the room from `at` on; returns how many words they take. */
static int64_t leave_at(const bwd_task *t, int64_t e, uint32_t *at, bwd_leavings *l) {
    const lm_ffn *f = t->f;
    int64_t used = 0;
    *l = (bwd_leavings){
        .expert = e, .first = f->offset[e], .rows = f->offset[e + 1] - f->offset[e]};
    l->words = lm__words_of(t->j.w, l->rows);
    l->blocks = lm__ffn_blocks_of(l->rows);
    if (l->rows == 0) return 0;
    l->each = lm__ffn_rows_of(l->rows);
    l->slabs = lm__ffn_slabs(l->each);
    int64_t slabs = l->blocks * l->slabs * LM_STRIP_COLS;
#define TAKE(member, count) l->member = at ? (void *)(at + used) : NULL, used += count
    TAKE(x, lm__round_up(f->dim, LM_STRIP_COLS) * l->words);
    TAKE(turned_x, slabs * t->j.d_words);
    TAKE(turned_dy, slabs * t->j.d_words);
    TAKE(dpre, slabs * t->j.halves * t->half);
    TAKE(dy, lm__round_up(f->dim * l->words, 16));
    TAKE(dscale, lm__round_up(t->stretches * l->rows, 16));
    if (lm__bwd_across(&t->j, l)) TAKE(parts, lm__bwd_parts_of(t) * lm__bwd_part_of(t, l));
#undef TAKE
    return used;
}

/* ---- what two passes need ---- */

void lm__bwd_turned_product(const lm_ffn_job *j, const uint32_t *left, int64_t k, int64_t high,
                            const uint32_t *b, int64_t slab_step, int64_t cols, float *c,
                            int64_t ldc, int add, lm_ahead *next) {
    int64_t turns = lm__ceil_div(high, 2 * LM_STRIP_ROWS);
    for (int64_t s = 0; s < lm__ffn_slabs(cols); s++, b += slab_step) {
        lm_ahead slab = lm__bwd_soon(b + slab_step, k * LM_STRIP_COLS, k * turns);
        for (int64_t i = 0; i < high; i += LM_STRIP_ROWS)
            j->w.strip(
                k, (lm_left){left + i / LM_STRIP_ROWS * lm__bwd_step_of(k), 1, LM_STRIP_ROWS},
                LM_STRIP_ROWS, b, c + i * ldc + s * LM_STRIP_COLS, ldc,
                lm__strip_width(cols - s * LM_STRIP_COLS), add,
                i / LM_STRIP_ROWS % 2 ? next : &slab);
    }
}

/* ---- waves ---- */

typedef struct { /* lists, for the largest wave there can be */
    int64_t *order;
    bwd_leavings *left;                 /* of each expert of the wave */
    bwd_item *blocks, *units, *columns; /* of a block only `first`, its number */
    int64_t few_units;                  /* of an expert with few rows, in an item */
} lists;

static int lists_new(const bwd_task *t, lists *s) {
    const lm_ffn *f = t->f;
    int64_t arrivals = f->experts ? f->offset[f->experts] - f->offset[0] : 0;
    int64_t blocks = arrivals / LM_FFN_ROWS + f->experts;
    int64_t columns = blocks * lm__ceil_div(f->dim, LM_BWD_PANEL),
            units = f->experts * t->stretches;
    size_t bytes = (size_t)f->experts * (sizeof *s->order + sizeof *s->left) +
                   (size_t)(blocks + columns + units) * sizeof *s->blocks;
    s->order = lm__scratch(LM_SCRATCH_PARTIAL, bytes);
    if (!s->order) return LM_KERNEL_EOOM;
    s->left = (bwd_leavings *)(void *)(s->order + f->experts);
    s->blocks = (bwd_item *)(void *)(s->left + f->experts);
    s->columns = s->blocks + blocks;
    s->units = s->columns + columns;
    return LM_KERNEL_OK;
}

typedef struct {
    int64_t blocks, units, columns;
} counts;

static void add_expert(const bwd_task *t, const lists *s, bwd_leavings *l, counts *n) {
    const lm_ffn *f = t->f;
    for (int64_t i = 0; i < l->blocks; i++) s->blocks[n->blocks++] = (bwd_item){l, i, 0, 0};
    int few = lm__bwd_across(&t->j, l);
    int64_t units = few ? s->few_units : t->j.stretch;
    for (int64_t u = 0; u < f->hidden; u += units)
        s->units[n->units++] = (bwd_item){l, u, lm__min(units, f->hidden - u), 0};
    for (int64_t c = 0; c < lm__bwd_chunks_of(l); c++) {
        /* of few rows more columns: up lies row by row */
        int64_t ldc = lm__bwd_chunk_of(t, l, c).n * l->slabs * LM_STRIP_COLS;
        int64_t most = few ? f->dim : LM_BWD_ROWS / ldc * LM_BWD_PANEL;
        for (int64_t d = 0; d < f->dim; d += most)
            s->columns[n->columns++] = (bwd_item){l, d, lm__min(most, f->dim - d), c};
    }
}

/* Where there are many experts an item is more units of one: what goes on beside the writing
 * of gradients goes on for longer (ffn_bwd_few.c). */
static int64_t few_units_of(const bwd_task *t, int64_t experts) {
    int64_t depths = lm__ceil_div(t->f->hidden, t->depth);
    int64_t each = experts * depths / (ITEMS * omp_get_max_threads());
    return t->depth * lm__max(1, lm__min(each, depths));
}

/* Experts first .. end - 1 of the order. */
static int wave(const bwd_task *t, lists *s, int64_t first, int64_t end, uint32_t *room) {
    counts n = {0};
    s->few_units = few_units_of(t, end - first);
    for (int64_t i = first; i < end; i++) {
        room += leave_at(t, s->order[i], room, &s->left[i - first]);
        add_expert(t, s, &s->left[i - first], &n);
    }
    int st = LM_KERNEL_OK;
    int threads = n.blocks ? lm__threads(n.blocks * t->f->dim * t->f->hidden) : 1;
    lm_ffn_room size = {NULL, 0};
    places_in(t, &size);
#pragma omp parallel num_threads(threads) reduction(min : st)
    {
        lm_ffn_room mine = {lm__scratch(LM_SCRATCH_A, size.used), 0};
        bwd_places p = places_in(t, &mine);
        int64_t team = omp_get_num_threads(); /* likely that far apart are a thread's items */
        if (!mine.at) st = LM_KERNEL_EOOM;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < n.blocks; i++)
            if (mine.at) lm__bwd_rows(t, s->blocks[i].l, s->blocks[i].first, &p);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < n.units; i++) {
            if (!mine.at) continue;
            const bwd_item *item = &s->units[i];
            const bwd_item *next = i + team < n.units ? item + team : NULL;
            if (lm__bwd_across(&t->j, item->l)) lm__bwd_few(t, item, next, &p);
            else lm__bwd_units(t, item, next, &p);
        }
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t i = 0; i < (t->g->dx ? n.columns : 0); i++)
            if (mine.at) lm__bwd_columns(t, &s->columns[i], &p);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < (t->g->dscale ? n.blocks : 0); i++)
            if (mine.at) lm__bwd_scales(t, s->blocks[i].l, s->blocks[i].first, &p);
        lm__strip_settle();
    }
    return st;
}

/* As many as have less room than a wave should, but columns for each thread. */
static int64_t wave_end(const bwd_task *t, const lists *s, int64_t first, int64_t experts,
                        int64_t *words) {
    int64_t end = first, columns = 0, threads = omp_get_max_threads();
    bwd_leavings l;
    *words = 0;
    for (; end < experts; end++) {
        int64_t more = leave_at(t, s->order[end], NULL, &l);
        if (columns >= threads && (*words + more) * (int64_t)sizeof(uint32_t) > WAVE) break;
        *words += more;
        columns += lm__bwd_chunks_of(&l) * lm__ceil_div(t->f->dim, LM_BWD_PANEL);
    }
    return end;
}

static bwd_task task_of(const lm_ffn *f) {
    bwd_task t = {.f = f, .j = lm__ffn_job(f, STRETCH)};
    t.half = lm__words_of(t.j.w, f->hidden);
    t.stretches = lm__ceil_div(f->hidden, t.j.stretch);
    t.depth = t.j.w.pairs ? 2 * LM_BWD_DEPTH : LM_BWD_DEPTH;
    return t;
}

int lm_cpu_ffn_room(const lm_ffn *f, int64_t *bytes) {
    bwd_task t = task_of(f);
    lists s;
    int st = lm__ffn_known(f) ? lists_new(&t, &s) : LM_KERNEL_EDTYPE;
    if (st != LM_KERNEL_OK) return st;
    int64_t experts = lm__ffn_order(f, s.order), words = 0, most = 0;
    for (int64_t i = 0; i < experts;) {
        i = wave_end(&t, &s, i, experts, &words);
        most = lm__max(most, words);
    }
    *bytes = most * (int64_t)sizeof(uint32_t);
    return experts < 0 ? LM_KERNEL_EOOM : LM_KERNEL_OK;
}

/* Gradients that are written, not added to, of experts without rows. */
static int idle_experts(const bwd_task *t, lists *s, int64_t experts) {
    const lm_ffn *f = t->f;
    int64_t n = 0;
    for (int64_t e = 0; e < f->experts; e++)
        if (f->offset[e + 1] == f->offset[e]) s->order[experts + n++] = e;
    return wave(t, s, experts, experts + n, NULL);
}

int lm_cpu_ffn_bwd(const lm_ffn *f, const lm_ffn_gradients *g, const void *dy, const void *x,
                   const void *pre, const float *scale, void *room) {
    bwd_task t = task_of(f);
    t.g = g, t.dy = dy, t.x = x, t.pre = pre, t.scale = scale;
    t.weights = g->up || g->down || g->up_bias || g->down_bias;
    lists s;
    int st = lm__ffn_known(f) ? lists_new(&t, &s) : LM_KERNEL_EDTYPE;
    if (st != LM_KERNEL_OK) return st;
    int64_t experts = lm__ffn_order(f, s.order), words;
    if (experts < 0) return LM_KERNEL_EOOM;
    if (experts) t.most = f->offset[s.order[0] + 1] - f->offset[s.order[0]];
    for (int64_t i = 0; i < experts && st == LM_KERNEL_OK;) {
        int64_t end = wave_end(&t, &s, i, experts, &words);
        st = wave(&t, &s, i, end, room);
        i = end;
    }
    if (st == LM_KERNEL_OK && t.weights) st = idle_experts(&t, &s, experts);
    return st;
}
