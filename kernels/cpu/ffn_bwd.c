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
 * Experts go through all three in waves, so that what lies in between is small enough for the
 * last cache. */
#include "kernels/cpu/ffn.h"

#include <string.h>

enum {
    STRETCH = 64,               /* hidden units, in words, at a time */
    CHUNK = 4,                  /* blocks whose rows one sum goes over */
    ROWS = CHUNK * LM_FFN_ROWS, /* and their rows */
    PANEL = 128,                /* columns of dx at a time */
    DEPTH = 256,                /* words of wide, against them, at a time */
    SOON = 8,                   /* words of dpre whose place comes nearer meanwhile */
    WAVE = 16 << 20             /* bytes of room that a wave should not exceed */
};

typedef struct { /* an expert's rows, and what its passes leave for the next, in words */
    int64_t expert, first, rows, words; /* words: along its rows */
    int64_t blocks, each, slabs;        /* rows and slabs of a block; the last may have less */
    uint32_t *x;                        /* [dim / 32 up][words][32] */
    uint32_t *dy;                       /* [dim][words] */
    uint32_t *turned_x, *turned_dy;     /* [blocks][slabs][words of dim][32] */
    uint32_t *dpre;                     /* [blocks][slabs][words of wide][32] */
    float *dscale;                      /* [stretches][rows] */
} leavings;

typedef struct {
    const lm_ffn *f;
    lm_ffn_job j;
    const lm_ffn_gradients *g;
    const void *dy, *x, *pre;
    const float *scale;
    int weights;       /* any gradient of them wanted */
    int64_t half;      /* words of hidden */
    int64_t stretches; /* of hidden */
} task;

typedef struct { /* a stretch of units of an expert, or columns of a chunk of its blocks */
    leavings *l;
    int64_t first, n, chunk;
} item;

typedef struct { /* blocks first .. first + n - 1 of an expert */
    int64_t first, n;
    int64_t before, words; /* along the rows: before it, and its own */
} chunk;

typedef struct {
    uint32_t *left, *lines, *dpre, *h, *turned_h;
    float *dh, *pre, *dx, *line, *dscale, *bias, *sums;
} places;

enum { LINES = 8 }; /* of floats: h, two of dg, two of du, scale, and two of words */

/* Words from 8 rows of left, k of each, to the next 8: not a power of two, or they would all
 * have the same place in the cache. */
static int64_t step_of(int64_t k) { return LM_STRIP_ROWS * k + 16; }

static places places_in(const task *t, lm_ffn_room *room) {
    const lm_ffn_job *j = &t->j;
    int64_t R = LM_FFN_ROWS, S = lm__round_up(j->stretch, LM_STRIP_COLS);
    int64_t words = lm__words_of(j->w, ROWS);
    places p;
    int64_t left = lm__max(S * step_of(LM_FFN_INNER), PANEL * step_of(DEPTH));
    p.left = lm__ffn_take(room, left / LM_STRIP_ROWS, sizeof *p.left);
    p.lines = lm__ffn_take(room, LM_STRIP_COLS * lm__max(t->f->dim + 1, R), sizeof *p.lines);
    p.dpre = lm__ffn_take(room, j->halves * S * words, sizeof *p.dpre);
    p.h = lm__ffn_take(room, S * R, sizeof *p.h);
    p.turned_h = lm__ffn_take(room, S * words, sizeof *p.turned_h);
    p.dh = lm__ffn_take(room, S * ROWS, sizeof *p.dh);
    p.pre = lm__ffn_take(room, j->halves * j->stretch * R, sizeof *p.pre);
    p.dx = lm__ffn_take(room, PANEL * ROWS, sizeof *p.dx);
    p.line = lm__ffn_take(room, LINES * R, sizeof *p.line);
    p.dscale = lm__ffn_take(room, R, sizeof *p.dscale);
    p.bias = lm__ffn_take(room, t->f->dim, sizeof *p.bias);
    p.sums = lm__ffn_take(room, j->halves * S, sizeof *p.sums);
    return p;
}

static const void *element(const void *x, int dtype, int64_t i) {
    return (const char *)x + (size_t)i * lm__size(dtype);
}
static int64_t row_of(const lm_ffn *f, int64_t arrival) {
    return f->row ? f->row[arrival] : arrival;
}

/* ---- an expert's rows ---- */

/* Its parts of the room from `at` on; returns how many words they take. */
static int64_t leave_at(const task *t, int64_t e, uint32_t *at, leavings *l) {
    const lm_ffn *f = t->f;
    int64_t used = 0;
    *l =
        (leavings){.expert = e, .first = f->offset[e], .rows = f->offset[e + 1] - f->offset[e]};
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
#undef TAKE
    return used;
}

static lm_ffn_block block_of(const leavings *l, int64_t i) {
    return (lm_ffn_block){l->expert, l->first + i * l->each,
                          lm__min(l->each, l->rows - i * l->each)};
}
static int64_t chunks_of(const leavings *l) { return lm__ceil_div(l->blocks, CHUNK); }

static chunk chunk_of(const task *t, const leavings *l, int64_t i) {
    int64_t each = lm__ceil_div(l->blocks, chunks_of(l));
    chunk c = {.first = i * each};
    c.n = lm__min(each, l->blocks - c.first);
    c.before = lm__words_of(t->j.w, c.first * l->each);
    int64_t end = lm__min(l->rows, (c.first + c.n) * l->each);
    c.words = lm__words_of(t->j.w, end) - c.before;
    return c;
}

/* Of a block: its first word among its expert's, for blocks but the last have whole ones, and
 * how many it has. */
static int64_t words_before(const task *t, const lm_ffn_block *b) {
    return lm__words_of(t->j.w, b->first - t->f->offset[b->expert]);
}
static int64_t words_in(const task *t, const lm_ffn_block *b) {
    return lm__words_of(t->j.w, b->rows);
}

/* Rows 2i and 2i + 1 of the block as a line of pairs, or row i. */
static void line_of_rows(const task *t, const lm_ffn_block *b, const void *x, int64_t i,
                         uint32_t *line) {
    const lm_ffn *f = t->f;
    int64_t r = t->j.w.pairs ? 2 * i : i, a = b->first + r;
    const void *odd = NULL;
    if (t->j.w.pairs && r + 1 < b->rows) odd = element(x, f->dtype, row_of(f, a + 1) * f->dim);
    lm__pair(t->j.w, element(x, f->dtype, row_of(f, a) * f->dim), odd, f->dim, line);
}

static void leave_x(const task *t, const lm_ffn_block *b, const leavings *l, uint32_t *line) {
    int64_t dim = t->f->dim, before = words_before(t, b), words = words_in(t, b);
    for (int64_t i = 0; i < words; i++) {
        line_of_rows(t, b, t->x, i, line);
        for (int64_t d = 0; d < dim; d += LM_STRIP_COLS) {
            int64_t n = lm__min(LM_STRIP_COLS, dim - d);
            uint32_t *to = l->x + d * l->words + (before + i) * LM_STRIP_COLS;
            memcpy(to, line + d, (size_t)n * sizeof *to);
            memset(to + n, 0, (size_t)(LM_STRIP_COLS - n) * sizeof *to);
        }
    }
}

static void leave_dy(const task *t, const lm_ffn_block *b, const leavings *l, uint32_t *lines) {
    int64_t dim = t->f->dim, before = words_before(t, b), words = words_in(t, b);
    for (int64_t i = 0; i < words; i += LM_STRIP_COLS) {
        int64_t n = lm__min(LM_STRIP_COLS, words - i);
        const uint32_t *rows[LM_STRIP_COLS] = {NULL};
        for (int64_t r = 0; r < n; r++) {
            line_of_rows(t, b, t->dy, i + r, lines + r * dim);
            rows[r] = lines + r * dim;
        }
        uint32_t turned[LM_STRIP_COLS * LM_STRIP_COLS];
        for (int64_t d = 0; d < dim; d += LM_STRIP_COLS) {
            int64_t m = lm__min(LM_STRIP_COLS, dim - d);
            const uint32_t *from[LM_STRIP_COLS];
            for (int r = 0; r < LM_STRIP_COLS; r++) from[r] = rows[r] ? rows[r] + d : NULL;
            lm__turn(from, m, turned);
            for (int64_t k = 0; k < m; k++)
                memcpy(l->dy + (d + k) * l->words + before + i, turned + k * LM_STRIP_COLS,
                       (size_t)n * sizeof *turned);
        }
    }
}

/* ---- rows ---- */

static void rows(const task *t, const leavings *l, int64_t i, places *p) {
    lm_ffn_block b = block_of(l, i);
    int64_t at = i * l->slabs * t->j.d_words * LM_STRIP_COLS;
    lm__ffn_turn_rows(&t->j, &b, t->dy, l->turned_dy + at, p->lines);
    if (!t->pre) lm__ffn_turn_rows(&t->j, &b, t->x, l->turned_x + at, p->lines);
    if (!t->weights) return;
    leave_x(t, &b, l, p->lines);
    leave_dy(t, &b, l, p->lines);
}

/* ---- units ---- */

/* dh of the units: [blocks of the chunk][units][rows of a block] */
static float *dh_of(const task *t, int64_t i, const places *p) {
    return p->dh + i * lm__round_up(t->j.stretch, LM_STRIP_COLS) * LM_FFN_ROWS;
}

static lm_ahead soon(const uint32_t *x, int64_t words, int64_t within) {
    return lm__ahead((lm_words){LM_F32, 0, NULL, NULL}, (lm_part){x, 0, 1, words}, within);
}

/* c [rows of left, slabs] = left b: parts of a weight turned, k words to a row, against a
 * block's slabs. A slab stays near while all of left goes over it; meanwhile the slab after it
 * comes nearer, and in turns with it, strip by strip, what will be read `next`. */
static void turned_product(const lm_ffn_job *j, const uint32_t *left, int64_t k, int64_t high,
                           const uint32_t *b, int64_t slab_step, int64_t cols, float *c,
                           int64_t ldc, int add, lm_ahead *next) {
    int64_t turns = lm__ceil_div(high, 2 * LM_STRIP_ROWS);
    for (int64_t s = 0; s < lm__ffn_slabs(cols); s++, b += slab_step) {
        lm_ahead slab = soon(b + slab_step, k * LM_STRIP_COLS, k * turns);
        for (int64_t i = 0; i < high; i += LM_STRIP_ROWS)
            j->w.strip(k, (lm_left){left + i / LM_STRIP_ROWS * step_of(k), 1, LM_STRIP_ROWS},
                       LM_STRIP_ROWS, b, c + i * ldc + s * LM_STRIP_COLS, ldc,
                       cols - s * LM_STRIP_COLS <= 16 ? 16 : 32, add,
                       i / LM_STRIP_ROWS % 2 ? next : &slab);
    }
}

/* Strips of a product that go by while what is next comes nearer. */
static int64_t turns_of(const leavings *l, const chunk *c, int64_t high) {
    return lm__max(1, c->n * l->slabs * (lm__ceil_div(high, LM_STRIP_ROWS) / 2));
}

static int64_t inner(const lm_ffn_job *j) {
    return j->w.pairs ? 2 * LM_FFN_INNER : LM_FFN_INNER;
}

/* dh = dy down */
static void through_down(const task *t, const item *s, const chunk *c, places *p) {
    const lm_ffn_job *j = &t->j;
    const leavings *l = s->l;
    int64_t dim = t->f->dim, most = inner(j);
    for (int64_t q = 0; q < dim; q += most) {
        int64_t m = lm__min(most, dim - q), k = lm__words_of(j->w, m);
        lm_part w = lm__ffn_down_part(j, l->expert, q, m, s->first, s->n), next = {0};
        if (q + m < dim)
            next = lm__ffn_down_part(j, l->expert, q + m, lm__min(most, dim - q - m), s->first,
                                     s->n);
        lm_ahead ahead = lm__ahead(j->w, next, k * turns_of(l, c, s->n));
        lm__left_turned(j->w, w.x, w.ld, m, s->n, p->left, step_of(k));
        for (int64_t i = 0; i < c->n; i++) {
            lm_ffn_block b = block_of(l, c->first + i);
            const uint32_t *dy =
                l->turned_dy + (c->first + i) * l->slabs * j->d_words * LM_STRIP_COLS;
            turned_product(j, p->left, k, s->n, dy + lm__words_of(j->w, q) * LM_STRIP_COLS,
                           j->d_words * LM_STRIP_COLS, b.rows, dh_of(t, i, p),
                           lm__ffn_slabs(b.rows) * LM_STRIP_COLS, q > 0, &ahead);
        }
    }
}

/* The units' pre, from what forward kept or computed again. */
static void find_pre(const task *t, const item *s, int64_t i, const lm_ffn_block *b,
                     int64_t ldc, places *p) {
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
static void line_to_words(const task *t, const float *x, int64_t n, uint32_t *to) {
    if (!t->j.w.pairs) {
        memcpy(to, x, (size_t)n * sizeof *to);
        return;
    }
    if (n % 2) to[n / 2] = 0;
    lm__to_bf16((uint16_t *)(void *)to, x, n);
}

/* Word k of the units' half, of all the block's rows. */
static void leave_dpre(const task *t, const item *s, int64_t i, int half, int64_t k,
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
static void activate_back(const task *t, const item *s, const chunk *c, int64_t i,
                          const lm_ffn_block *b, int64_t ldc, places *p) {
    const lm_ffn_job *j = &t->j;
    int pairs = j->w.pairs;
    int64_t before = words_before(t, b) - c->before, mine = words_in(t, b);
    float *h = p->line, *d = h + LM_FFN_ROWS, *scale = d + 4 * LM_FFN_ROWS;
    const float *dh = dh_of(t, i - c->first, p);
    uint32_t *words = (uint32_t *)(void *)(scale + LM_FFN_ROWS);
    for (int64_t k = 0; k < lm__words_of(j->w, s->n); k++) {
        for (int o = 0; o <= pairs; o++) { /* d: dg even, odd, du even, odd */
            int64_t u = pairs ? 2 * k + o : k;
            float *dg = d + o * LM_FFN_ROWS, *du = dg + 2 * LM_FFN_ROWS;
            if (u >= s->n) {
                memset(dg, 0, (size_t)ldc * sizeof *dg);
                memset(du, 0, (size_t)ldc * sizeof *du);
                continue;
            }
            const float *g = p->pre + u * ldc;
            lm__ffn_activate_back(t->f->activation, h, dg, du, p->dscale, dh + u * ldc, g,
                                  g + j->stretch * ldc, scale, ldc);
            for (int half = 0; half < j->halves && !pairs; half++)
                lm__ffn_settle(t->f->dtype, half ? du : dg, 0, ldc);
            if (!t->weights) continue;
            if (!pairs) lm__ffn_settle(t->f->dtype, h, 0, ldc);
            line_to_words(t, h, b->rows, p->h + u * mine);
            for (int half = 0; half < j->halves; half++)
                line_to_words(t, half ? du : dg, b->rows,
                              p->dpre + (half * j->stretch + u) * c->words + before);
        }
        for (int half = 0; half < j->halves && t->g->dx; half++) {
            const float *even = d + 2 * half * LM_FFN_ROWS;
            lm__pair_floats(j->w, even, even + LM_FFN_ROWS, ldc, words);
            leave_dpre(t, s, i, half, k, words, ldc);
        }
    }
}

/* The block's lines of h, turned. */
static void turn_h(const task *t, const item *s, const chunk *c, const lm_ffn_block *b,
                   places *p) {
    int64_t before = words_before(t, b) - c->before, mine = words_in(t, b);
    for (int64_t u = 0; u < s->n; u += LM_STRIP_COLS) {
        const uint32_t *lines[LM_STRIP_COLS] = {NULL};
        for (int64_t k = 0; k < LM_STRIP_COLS && u + k < s->n; k++)
            lines[k] = p->h + (u + k) * mine;
        lm__turn(lines, mine, p->turned_h + u * c->words + before * LM_STRIP_COLS);
    }
}

static void through_activation(const task *t, const item *s, const chunk *c, int64_t i,
                               places *p) {
    lm_ffn_block b = block_of(s->l, i);
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

/* ---- the weights ---- */

typedef struct { /* a gradient: where it goes, how wide its rows are, and how it is stored */
    float *c;
    int64_t ld;
    int store;
} place;

/* Up to 8 rows by 32 columns of a gradient; less than that through a tile that has them. */
static void tile(const task *t, int64_t k, lm_left a, int64_t rows, const uint32_t *b,
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

/* dup = dpre^T x: of one half of the units, while what will be read `next` comes nearer */
static void weigh_up(const task *t, const item *s, const chunk *c, int half, place to,
                     const places *p, lm_ahead *next) {
    const leavings *l = s->l;
    const uint32_t *left = p->dpre + half * t->j.stretch * c->words;
    for (int64_t d = 0; d < t->f->dim; d += LM_STRIP_COLS) {
        const uint32_t *x = l->x + d * l->words + c->before * LM_STRIP_COLS;
        lm_ahead ahead =
            soon(d + LM_STRIP_COLS < t->f->dim ? x + l->words * LM_STRIP_COLS : x,
                 c->words * LM_STRIP_COLS, c->words * lm__ceil_div(s->n, 2 * LM_STRIP_ROWS));
        for (int64_t u = 0; u < s->n; u += LM_STRIP_ROWS)
            tile(t, c->words, (lm_left){left + u * c->words, c->words, 1}, s->n - u, x,
                 t->f->dim - d, to.c + u * to.ld + d, &to,
                 u / LM_STRIP_ROWS % 2 ? next : &ahead);
    }
}

/* ddown = dy^T (h scale) */
static void weigh_down(const task *t, const item *s, const chunk *c, place to,
                       const places *p) {
    const leavings *l = s->l;
    for (int64_t d = 0; d < t->f->dim; d += LM_STRIP_ROWS) {
        const uint32_t *dy = l->dy + d * l->words + c->before;
        lm_ahead ahead = lm__ahead(
            (lm_words){LM_F32, 0, NULL, NULL},
            (lm_part){dy + LM_STRIP_ROWS * l->words, l->words,
                      lm__min(LM_STRIP_ROWS, t->f->dim - d - LM_STRIP_ROWS), c->words},
            c->words * lm__ceil_div(s->n, LM_STRIP_COLS));
        for (int64_t u = 0; u < s->n; u += LM_STRIP_COLS)
            tile(t, c->words, (lm_left){dy, l->words, 1}, t->f->dim - d,
                 p->turned_h + u * c->words, s->n - u, to.c + d * to.ld + u, &to, &ahead);
    }
}

static float number(const task *t, const uint32_t *line, int64_t i) {
    if (t->j.w.pairs) return lm_bf16_to_f32(((const uint16_t *)(const void *)line)[i]);
    return ((const float *)(const void *)line)[i];
}

/* How a gradient is stored: what is written once and is larger than caches goes past them. */
static place place_of(const task *t, float *c, int64_t ld, const leavings *l, int64_t i,
                      int add) {
    place to = {c, ld, add || i > 0 ? LM_STRIP_ADD : LM_STRIP_WRITE};
    if (to.store == LM_STRIP_WRITE && chunks_of(l) == 1 && (uintptr_t)c % 64 == 0 &&
        ld % 16 == 0 && t->f->experts * t->j.wide * t->f->dim > LM_FFN_STREAM)
        to.store = LM_STRIP_STREAM;
    return to;
}

static float *up_gradient(const task *t, const item *s, int half) {
    return t->g->up + (s->l->expert * t->j.wide + half * t->f->hidden + s->first) * t->f->dim;
}
static float *down_gradient(const task *t, const item *s) {
    return t->g->down + s->l->expert * t->f->dim * t->f->hidden + s->first;
}

/* The first that the item after this one will read. */
static lm_ahead after(const task *t, const item *next, const chunk *c, int64_t turns) {
    lm_part w = {0};
    if (next && next->l->rows)
        w = lm__ffn_down_part(&t->j, next->l->expert, 0, lm__min(t->f->dim, inner(&t->j)),
                              next->first, next->n);
    return lm__ahead(t->j.w, w, c->words * lm__max(1, turns));
}

static void weigh(const task *t, const item *s, const item *next, const chunk *c, int64_t i,
                  places *p) {
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

/* Of an expert without rows: gradients that are written, not added to. */
static void clear(const task *t, const item *s) {
    int64_t dim = t->f->dim;
    for (int half = 0; half < t->j.halves && t->g->up && !t->g->add_up; half++)
        memset(up_gradient(t, s, half), 0, (size_t)(s->n * dim) * sizeof(float));
    for (int64_t d = 0; d < dim && t->g->down && !t->g->add_down; d++)
        memset(down_gradient(t, s) + d * t->f->hidden, 0, (size_t)s->n * sizeof(float));
}

/* Sums of rows, of dy by their scale. They are added as a whole, as products are, so that
 * gradients that are added up elsewhere have the same bits. */
static void biases(const task *t, const item *s, const places *p) {
    const leavings *l = s->l;
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

static void units(const task *t, const item *s, const item *next, places *p) {
    int64_t n = chunks_of(s->l);
    for (int64_t i = 0; i < n; i++) {
        chunk c = chunk_of(t, s->l, i);
        through_down(t, s, &c, p);
        for (int64_t b = 0; b < c.n; b++) through_activation(t, s, &c, c.first + b, p);
        if (t->weights) weigh(t, s, i + 1 < n ? s : next, &c, i, p);
    }
    if (s->l->rows == 0) clear(t, s);
    if (t->weights) biases(t, s, p);
}

/* ---- columns ---- */

/* Part i of up in the order in which it is read: panel by panel of each depth of each half. */
typedef struct {
    lm_part w;
    int64_t panel; /* the first of its columns, among the item's */
    int64_t at;    /* the first of its words, among those of wide */
} up_part;

static int64_t depth(const lm_ffn_job *j) { return j->w.pairs ? 2 * DEPTH : DEPTH; }

static up_part up_part_of(const task *t, const item *s, int64_t i) {
    int64_t panels = lm__ceil_div(s->n, PANEL),
            per_half = lm__ceil_div(t->f->hidden, depth(&t->j));
    int64_t half = i / panels / per_half, from = i / panels % per_half * depth(&t->j);
    up_part u = {.panel = i % panels * PANEL};
    if (half == t->j.halves) return u;
    u.at = half * t->half + lm__words_of(t->j.w, from);
    u.w = lm__ffn_up_part(&t->j, s->l->expert, half * t->f->hidden + from,
                          lm__min(depth(&t->j), t->f->hidden - from), s->first + u.panel,
                          lm__min(PANEL, s->n - u.panel));
    return u;
}

/* dx = dpre up */
static void columns(const task *t, const item *s, places *p) {
    const lm_ffn_job *j = &t->j;
    const leavings *l = s->l;
    chunk c = chunk_of(t, l, s->chunk);
    int64_t words = j->halves * t->half, step = l->slabs * LM_STRIP_COLS, ldc = c.n * step;
    up_part u = up_part_of(t, s, 0), next;
    for (int64_t i = 1; u.w.x; u = next, i++) {
        int64_t k = lm__words_of(j->w, u.w.rows);
        next = up_part_of(t, s, i);
        lm_ahead ahead = lm__ahead(j->w, next.w, k * turns_of(l, &c, u.w.n));
        lm__left_turned(j->w, u.w.x, u.w.ld, u.w.rows, u.w.n, p->left, step_of(k));
        for (int64_t b = 0; b < c.n; b++)
            turned_product(j, p->left, k, u.w.n,
                           l->dpre + ((c.first + b) * l->slabs * words + u.at) * LM_STRIP_COLS,
                           words * LM_STRIP_COLS, block_of(l, c.first + b).rows,
                           p->dx + u.panel * ldc + b * step, ldc, u.at > 0, &ahead);
    }
    for (int64_t i = 0; i < c.n; i++) {
        lm_ffn_block b = block_of(l, c.first + i);
        lm__ffn_turn_back(j, &b, p->dx + i * step, ldc, s->first, s->n, NULL, t->g->dx,
                          p->lines);
    }
}

static float dot_row(const task *t, const float *bias, int64_t arrival) {
    const lm_ffn *f = t->f;
    float sum = 0, buf[64];
    for (int64_t d = 0; d < f->dim; d += 64) {
        int64_t n = lm__min(64, f->dim - d);
        const float *dy = lm__load(f->dtype, t->dy, row_of(f, arrival) * f->dim + d, n, buf);
        for (int64_t i = 0; i < n; i++) sum += dy[i] * bias[d + i];
    }
    return sum;
}

static void scales(const task *t, const leavings *l, int64_t i, const places *p) {
    lm_ffn_block b = block_of(l, i);
    const float *bias = lm__ffn_bias(&t->j, t->f->down_bias, l->expert, t->f->dim, p->bias);
    for (int64_t r = 0; r < b.rows; r++) {
        const float *part = l->dscale + i * l->each + r;
        float sum = 0;
        for (int64_t k = 0; k < t->stretches; k++) sum += part[k * l->rows];
        t->g->dscale[b.first + r] = sum + (bias ? dot_row(t, bias, b.first + r) : 0);
    }
}

/* ---- waves ---- */

typedef struct { /* lists, for the largest wave there can be */
    int64_t *order;
    leavings *left;                 /* of each expert of the wave */
    item *blocks, *units, *columns; /* of a block only `first`, its number */
} lists;

static int lists_new(const task *t, lists *s) {
    const lm_ffn *f = t->f;
    int64_t arrivals = f->experts ? f->offset[f->experts] - f->offset[0] : 0;
    int64_t blocks = arrivals / LM_FFN_ROWS + f->experts;
    int64_t columns = blocks * lm__ceil_div(f->dim, PANEL), units = f->experts * t->stretches;
    size_t bytes = (size_t)f->experts * (sizeof *s->order + sizeof *s->left) +
                   (size_t)(blocks + columns + units) * sizeof *s->blocks;
    s->order = lm__scratch(LM_SCRATCH_PARTIAL, bytes);
    if (!s->order) return LM_KERNEL_EOOM;
    s->left = (leavings *)(void *)(s->order + f->experts);
    s->blocks = (item *)(void *)(s->left + f->experts);
    s->columns = s->blocks + blocks;
    s->units = s->columns + columns;
    return LM_KERNEL_OK;
}

typedef struct {
    int64_t blocks, units, columns;
} counts;

static void add_expert(const task *t, const lists *s, leavings *l, counts *n) {
    const lm_ffn *f = t->f;
    for (int64_t i = 0; i < l->blocks; i++) s->blocks[n->blocks++] = (item){l, i, 0, 0};
    for (int64_t u = 0; u < f->hidden; u += t->j.stretch)
        s->units[n->units++] = (item){l, u, lm__min(t->j.stretch, f->hidden - u), 0};
    for (int64_t c = 0; c < chunks_of(l);
         c++) { /* few rows: more columns, up lies row by row */
        int64_t ldc = chunk_of(t, l, c).n * l->slabs * LM_STRIP_COLS, most = ROWS / ldc * PANEL;
        for (int64_t d = 0; d < f->dim; d += most)
            s->columns[n->columns++] = (item){l, d, lm__min(most, f->dim - d), c};
    }
}

/* Experts first .. end - 1 of the order. */
static int wave(const task *t, const lists *s, int64_t first, int64_t end, uint32_t *room) {
    counts n = {0};
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
        places p = places_in(t, &mine);
        int64_t team = omp_get_num_threads(); /* likely that far apart are a thread's items */
        if (!mine.at) st = LM_KERNEL_EOOM;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < n.blocks; i++)
            if (mine.at) rows(t, s->blocks[i].l, s->blocks[i].first, &p);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < n.units; i++)
            if (mine.at)
                units(t, &s->units[i], i + team < n.units ? &s->units[i + team] : NULL, &p);
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t i = 0; i < (t->g->dx ? n.columns : 0); i++)
            if (mine.at) columns(t, &s->columns[i], &p);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < (t->g->dscale ? n.blocks : 0); i++)
            if (mine.at) scales(t, s->blocks[i].l, s->blocks[i].first, &p);
        lm__strip_settle();
    }
    return st;
}

/* As many as have less room than a wave should, but columns for each thread. */
static int64_t wave_end(const task *t, const lists *s, int64_t first, int64_t experts,
                        int64_t *words) {
    int64_t end = first, columns = 0, threads = omp_get_max_threads();
    leavings l;
    *words = 0;
    for (; end < experts; end++) {
        int64_t more = leave_at(t, s->order[end], NULL, &l);
        if (columns >= threads && (*words + more) * (int64_t)sizeof(uint32_t) > WAVE) break;
        *words += more;
        columns += chunks_of(&l) * lm__ceil_div(t->f->dim, PANEL);
    }
    return end;
}

static task task_of(const lm_ffn *f) {
    task t = {.f = f, .j = lm__ffn_job(f, STRETCH)};
    t.half = lm__words_of(t.j.w, f->hidden);
    t.stretches = lm__ceil_div(f->hidden, t.j.stretch);
    return t;
}

int lm_cpu_ffn_room(const lm_ffn *f, int64_t *bytes) {
    task t = task_of(f);
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
static int idle_experts(const task *t, const lists *s, int64_t experts) {
    const lm_ffn *f = t->f;
    int64_t n = 0;
    for (int64_t e = 0; e < f->experts; e++)
        if (f->offset[e + 1] == f->offset[e]) s->order[experts + n++] = e;
    return wave(t, s, experts, experts + n, NULL);
}

int lm_cpu_ffn_bwd(const lm_ffn *f, const lm_ffn_gradients *g, const void *dy, const void *x,
                   const void *pre, const float *scale, void *room) {
    task t = task_of(f);
    t.g = g, t.dy = dy, t.x = x, t.pre = pre, t.scale = scale;
    t.weights = g->up || g->down || g->up_bias || g->down_bias;
    lists s;
    int st = lm__ffn_known(f) ? lists_new(&t, &s) : LM_KERNEL_EDTYPE;
    if (st != LM_KERNEL_OK) return st;
    int64_t experts = lm__ffn_order(f, s.order), words;
    if (experts < 0) return LM_KERNEL_EOOM;
    for (int64_t i = 0; i < experts && st == LM_KERNEL_OK;) {
        int64_t end = wave_end(&t, &s, i, experts, &words);
        st = wave(&t, &s, i, end, room);
        i = end;
    }
    if (st == LM_KERNEL_OK && t.weights) st = idle_experts(&t, &s, experts);
    return st;
}
