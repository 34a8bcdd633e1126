/* ffn_bwd.c - the gradients of ffn_fwd.c.
 *
 * First blocks, as forward: with dh = dy down, of each stretch of the hidden size
 *
 *   dpre = f'(pre) dh scale,   dx += dpre up,   dscale = <dh, h> (+ <dy, bias of down>)
 *
 * and what the weights' gradients need is laid out on the way for their products: dpre, x, dy
 * and h scale. Then their panels, 64 rows of a weight of one expert each:
 *
 *   dup = dpre^T x,   ddown = dy^T (h scale)
 *
 * added up over the expert's rows in order. Experts go through both in waves, so that what
 * lies in between is small enough for the last cache. */
#include "kernels/cpu/ffn.h"

#include <string.h>

enum {
    STRETCH = 64, /* hidden units, in words, at a time */
    INNER = 256,  /* words of dim, against them, at a time */
    PANEL = 64,   /* rows of a weight's gradient */
    GROUP = 512,  /* columns of it at a time */
    WAVE =
        16 << 20 /* bytes of room that a wave with a block for each thread should not exceed */
};

typedef struct {    /* what an expert's blocks leave for its weights, in words along its rows */
    uint32_t *dpre; /* [wide][words] */
    uint32_t *dy;   /* [dim][words] */
    uint32_t *x;    /* [dim / 32 up][words][32] */
    uint32_t *h;    /* [hidden / 32 up][words][32] */
    int64_t words;
} leavings;

typedef struct {
    const lm_ffn *f;
    lm_ffn_job j;
    const lm_ffn_gradients *g;
    const void *dy, *x, *pre;
    const float *scale;
    int weights; /* any gradient of them wanted */
} task;

typedef struct {
    uint32_t *dy, *x, *left, *lines, *dpre;
    float *dh, *pre, *dx, *line, *dscale, *bias;
    char *h;
} places;

enum { LINES = 7 }; /* of floats: h, two of dg, two of du, scale, and words */

static places places_in(const task *t, lm_ffn_room *room) {
    const lm_ffn_job *j = &t->j;
    int64_t d = j->d_words, dim = lm__round_up(t->f->dim, LM_STRIP_ROWS), R = LM_FFN_ROWS;
    places p;
    p.dy = lm__ffn_take(room, R * d, sizeof *p.dy);
    p.x = lm__ffn_take(room, t->pre ? 0 : R * d, sizeof *p.x);
    p.lines = lm__ffn_take(room, LM_STRIP_COLS * lm__max(t->f->dim + 1, R), sizeof *p.lines);
    p.dpre = lm__ffn_take(room, 2 * STRETCH * R, sizeof *p.dpre);
    p.left = lm__ffn_take(room, j->stretch * lm__max(INNER, 2 * STRETCH) + 64, sizeof *p.left);
    p.dh = lm__ffn_take(room, j->stretch * R, sizeof *p.dh);
    p.pre = lm__ffn_take(room, j->halves * j->stretch * R, sizeof *p.pre);
    p.h = lm__ffn_take(room, j->stretch * R, sizeof(float));
    p.dx = lm__ffn_take(room, dim * R, sizeof *p.dx);
    p.line = lm__ffn_take(room, LINES * R, sizeof *p.line);
    p.dscale = lm__ffn_take(room, R, sizeof *p.dscale);
    p.bias = lm__ffn_take(room, t->f->dim, sizeof *p.bias);
    return p;
}

static const void *element(const void *x, int dtype, int64_t i) {
    return (const char *)x + (size_t)i * lm__size(dtype);
}
static int64_t row_of(const lm_ffn *f, int64_t arrival) {
    return f->row ? f->row[arrival] : arrival;
}

/* ---- what is left for the weights ---- */

static int64_t leave_words(const task *t, int64_t e) {
    int64_t up = lm__round_up(t->f->dim, LM_STRIP_COLS);
    return lm__words_of(t->j.w, t->f->offset[e + 1] - t->f->offset[e]) *
           (t->j.wide + t->f->dim + up + lm__round_up(t->f->hidden, LM_STRIP_COLS));
}

static leavings leave_at(const task *t, int64_t e, uint32_t *at) {
    leavings l = {.words = lm__words_of(t->j.w, t->f->offset[e + 1] - t->f->offset[e])};
    l.dpre = at;
    l.dy = l.dpre + l.words * t->j.wide;
    l.x = l.dy + l.words * t->f->dim;
    l.h = l.x + l.words * lm__round_up(t->f->dim, LM_STRIP_COLS);
    return l;
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

/* Units first .. first + n - 1, lines of words in p->h, turned. */
static void leave_h(const task *t, const lm_ffn_block *b, const leavings *l, int64_t first,
                    int64_t n, const places *p) {
    int64_t before = words_before(t, b), words = words_in(t, b);
    const uint32_t *line = (const uint32_t *)(const void *)p->h;
    for (int64_t i = 0; i < n; i += LM_STRIP_COLS) {
        const uint32_t *rows[LM_STRIP_COLS] = {NULL};
        for (int64_t k = 0; k < LM_STRIP_COLS && i + k < n; k++)
            rows[k] = line + (i + k) * words;
        lm__turn(rows, words, l->h + (first + i) * l->words + before * LM_STRIP_COLS);
    }
}

/* ---- a block ---- */

/* A line of floats as words along the rows. */
static void line_to_words(const task *t, const float *x, int64_t rows, uint32_t *to) {
    if (!t->j.w.pairs) {
        memcpy(to, x, (size_t)rows * sizeof *to);
        return;
    }
    if (rows % 2) to[rows / 2] = 0;
    lm__to_bf16((uint16_t *)(void *)to, x, rows);
}

/* The stretch of pre, from what forward kept or computed again. */
static void find_pre(const task *t, const lm_ffn_block *b, int64_t first, int64_t n,
                     int64_t ldc, places *p) {
    const lm_ffn_job *j = &t->j;
    if (!t->pre) {
        lm__ffn_up(j, b, first, n, (lm_part){NULL, 0, 0, 0}, p->x, p->pre, ldc, p->left);
        return;
    }
    for (int half = 0; half < j->halves; half++)
        for (int64_t i = 0; i < n; i++) {
            int64_t unit = half * t->f->hidden + first + i;
            int64_t at = b->first * j->wide + unit * b->rows;
            float *to = p->pre + (half * j->stretch + i) * ldc;
            const float *from = lm__load(t->f->dtype, t->pre, at, b->rows, to);
            if (from != to) memcpy(to, from, (size_t)b->rows * sizeof *to);
            memset(to + b->rows, 0, (size_t)(ldc - b->rows) * sizeof *to);
        }
}

static void to_slabs(const uint32_t *line, int64_t ldc, int64_t k, int64_t words,
                     uint32_t *to) {
    for (int64_t s = 0; s < ldc / LM_STRIP_COLS; s++)
        memcpy(to + (s * words + k) * LM_STRIP_COLS, line + s * LM_STRIP_COLS,
               LM_STRIP_COLS * sizeof *to);
}

/* From dh and pre: h and dpre, for the weights and, as words, for dx. */
static void activate_back(const task *t, const lm_ffn_block *b, int64_t first, int64_t n,
                          int64_t ldc, const leavings *l, places *p) {
    const lm_ffn_job *j = &t->j;
    int pairs = j->w.pairs;
    int64_t before = words_before(t, b), mine = words_in(t, b);
    int64_t words = lm__words_of(j->w, n), all = j->halves * words;
    float *h = p->line, *d = h + LM_FFN_ROWS, *scale = d + 4 * LM_FFN_ROWS;
    uint32_t *line = (uint32_t *)(void *)(scale + LM_FFN_ROWS);
    for (int64_t k = 0; k < words; k++) {
        for (int o = 0; o <= pairs; o++) { /* d: dg even, odd, du even, odd */
            int64_t i = pairs ? 2 * k + o : k;
            float *dg = d + o * LM_FFN_ROWS, *du = dg + 2 * LM_FFN_ROWS;
            if (i >= n) {
                memset(dg, 0, (size_t)ldc * sizeof *dg);
                memset(du, 0, (size_t)ldc * sizeof *du);
                continue;
            }
            const float *g = p->pre + i * ldc, *u = g + j->stretch * ldc;
            lm__ffn_activate_back(t->f->activation, h, dg, du, p->dscale, p->dh + i * ldc, g, u,
                                  scale, ldc);
            for (int half = 0; half < j->halves; half++)
                lm__ffn_settle(t->f->dtype, half ? du : dg, 0, ldc);
            if (!t->weights) continue;
            int64_t unit = first + i;
            if (!pairs) lm__ffn_settle(t->f->dtype, h, 0, ldc);
            line_to_words(t, h, b->rows, (uint32_t *)(void *)p->h + i * mine);
            for (int half = 0; half < j->halves; half++)
                line_to_words(t, half ? du : dg, b->rows,
                              l->dpre + (half * t->f->hidden + unit) * l->words + before);
        }
        for (int half = 0; half < j->halves && t->g->dx; half++) {
            const float *even = d + 2 * half * LM_FFN_ROWS;
            lm__pair_floats(j->w, even, even + LM_FFN_ROWS, ldc, line);
            to_slabs(line, ldc, half * words + k, all, p->dpre);
        }
    }
}

/* c [cols, slabs of b] = left b, left being a part of a weight turned, k words to a row. next
 * will be read after it, and another such part that begins at `also`, unless NULL. */
static void turned_product(const lm_ffn_job *j, const uint32_t *left, int64_t k, int64_t cols,
                           lm_part next, const void *also, const uint32_t *b, int64_t slab_step,
                           int64_t rows, float *c, int64_t ldc, int add) {
    int64_t strips = lm__ffn_slabs(rows);
    lm_ahead ahead = lm__ahead(j->w, next, k * strips * lm__ceil_div(cols, LM_STRIP_ROWS));
    if (also) {
        ahead.then = also, ahead.then_rows = ahead.rows;
        ahead.rate *= 2;
    }
    for (int64_t i = 0; i < cols; i += LM_STRIP_ROWS) {
        lm_left a = {left + i * k, 1, LM_STRIP_ROWS};
        for (int64_t s = 0; s < strips; s++)
            j->w.strip(k, a, LM_STRIP_ROWS, b + s * slab_step, c + i * ldc + s * LM_STRIP_COLS,
                       ldc, rows - s * LM_STRIP_COLS <= 16 ? 16 : 32, add, &ahead);
    }
}

static int64_t inner(const lm_ffn_job *j) { return j->w.pairs ? 2 * INNER : INNER; }

/* Parts of the weights in the order in which they are read. */
static lm_part part_of_down(const task *t, int64_t e, int64_t first, int64_t n, int64_t from) {
    return lm__ffn_down_part(&t->j, e, from, lm__min(inner(&t->j), t->f->dim - from), first, n);
}
static lm_part part_of_up(const task *t, int64_t e, int half, int64_t first, int64_t n,
                          int64_t d) {
    return lm__ffn_up_part(&t->j, e, half * t->f->hidden + first, n, d,
                           lm__min(PANEL, t->f->dim - d));
}
/* Where the part of up that goes with a part of gate is; NULL: there is one half. */
static const void *gate_to_up(const task *t, lm_part gate) {
    return t->j.halves == 2 ? element(gate.x, t->f->dtype, t->f->hidden * t->f->dim) : NULL;
}
static lm_part none(void) { return (lm_part){NULL, 0, 0, 0}; }

/* dh = dy down */
static void through_down(const task *t, const lm_ffn_block *b, int64_t first, int64_t n,
                         int64_t ldc, places *p) {
    const lm_ffn_job *j = &t->j;
    int64_t dim = t->f->dim, m;
    for (int64_t q = 0; q < dim; q += m) {
        lm_part w = part_of_down(t, b->expert, first, n, q), next = none();
        const void *also = NULL;
        m = w.rows;
        int64_t k = lm__words_of(j->w, m);
        if (q + m < dim) next = part_of_down(t, b->expert, first, n, q + m);
        else if (t->g->dx)
            next = part_of_up(t, b->expert, 0, first, n, 0), also = gate_to_up(t, next);
        lm__left_turned(j->w, w.x, w.ld, m, n, p->left, 8 * k);
        turned_product(j, p->left, k, n, next, also,
                       p->dy + lm__words_of(j->w, q) * LM_STRIP_COLS,
                       j->d_words * LM_STRIP_COLS, b->rows, p->dh, ldc, q > 0);
    }
}

/* dx += dpre up */
static void through_up(const task *t, const lm_ffn_block *b, int64_t first, int64_t n,
                       int64_t ldc, places *p) {
    const lm_ffn_job *j = &t->j;
    int64_t dim = t->f->dim, words = lm__words_of(j->w, n), k = j->halves * words;
    for (int64_t d = 0; d < dim; d += PANEL) {
        lm_part w = none(), next = none();
        const void *also = NULL;
        for (int half = 0; half < j->halves; half++) {
            w = part_of_up(t, b->expert, half, first, n, d);
            lm__left_turned(j->w, w.x, w.ld, n, w.n, p->left + half * words * 8, 8 * k);
        }
        if (d + PANEL < dim)
            next = part_of_up(t, b->expert, 0, first, n, d + PANEL), also = gate_to_up(t, next);
        else if (first + n < t->f->hidden)
            next = part_of_down(t, b->expert, first + n,
                                lm__min(j->stretch, t->f->hidden - first - n), 0);
        turned_product(j, p->left, k, w.n, next, also, p->dpre, k * LM_STRIP_COLS, b->rows,
                       p->dx + d * ldc, ldc, first > 0);
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

static void block(const task *t, const lm_ffn_block *b, const leavings *l, places *p) {
    const lm_ffn_job *j = &t->j;
    int64_t ldc = lm__ffn_slabs(b->rows) * LM_STRIP_COLS;
    float *scale = p->line + 5 * LM_FFN_ROWS;
    memset(p->dscale, 0, LM_FFN_ROWS * sizeof *p->dscale);
    for (int64_t r = 0; r < ldc; r++)
        scale[r] = r >= b->rows ? 0 : t->scale ? t->scale[b->first + r] : 1;
    lm__ffn_turn_rows(j, b, t->dy, p->dy, p->lines);
    if (!t->pre) lm__ffn_turn_rows(j, b, t->x, p->x, p->lines);
    if (t->weights) {
        leave_x(t, b, l, p->lines);
        leave_dy(t, b, l, p->lines);
    }
    for (int64_t first = 0; first < t->f->hidden; first += j->stretch) {
        int64_t n = lm__min(j->stretch, t->f->hidden - first);
        through_down(t, b, first, n, ldc, p);
        find_pre(t, b, first, n, ldc, p);
        activate_back(t, b, first, n, ldc, l, p);
        if (t->weights) leave_h(t, b, l, first, n, p);
        if (t->g->dx) through_up(t, b, first, n, ldc, p);
    }
    if (t->g->dx) lm__ffn_turn_back(j, b, p->dx, ldc, NULL, t->g->dx, p->lines);
    if (!t->g->dscale) return;
    const float *bias = lm__ffn_bias(j, t->f->down_bias, b->expert, t->f->dim, p->bias);
    for (int64_t r = 0; r < b->rows; r++)
        t->g->dscale[b->first + r] = p->dscale[r] + (bias ? dot_row(t, bias, b->first + r) : 0);
}

/* ---- the weights ---- */

typedef struct {
    int64_t expert, first, rows;
    int down; /* or up */
    const leavings *left;
} panel;

/* A tile that does not fill 8 rows by 32 columns, through one that does. */
static void edge(const task *t, int64_t k, lm_left a, int64_t rows, const uint32_t *b,
                 int64_t cols, float *c, int64_t ldc, int add) {
    float tile[LM_STRIP_ROWS * LM_STRIP_COLS];
    lm_ahead nothing = {0};
    t->j.w.strip(k, a, (int)rows, b, tile, LM_STRIP_COLS, LM_STRIP_COLS, 0, &nothing);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t q = 0; q < cols; q++)
            c[i * ldc + q] = tile[i * LM_STRIP_COLS + q] + (add ? c[i * ldc + q] : 0.0f);
}

/* k words of the expert's rows from word p on, columns first .. end - 1. */
static void panel_piece(const task *t, const panel *w, int64_t p, int64_t k, float *c,
                        int64_t cols, int64_t first, int64_t end, int add) {
    const leavings *l = w->left;
    const uint32_t *left = (w->down ? l->dy : l->dpre) + w->first * l->words + p;
    const uint32_t *right = (w->down ? l->h : l->x) + p * LM_STRIP_COLS;
    for (int64_t q = first; q < end; q += LM_STRIP_COLS) {
        const uint32_t *b = right + q * l->words;
        int64_t n = lm__min(LM_STRIP_COLS, cols - q),
                next = lm__min(q + LM_STRIP_COLS, end - 1);
        lm_part slab = {right + next / LM_STRIP_COLS * LM_STRIP_COLS * l->words, 0, 1,
                        k * LM_STRIP_COLS};
        lm_ahead ahead = lm__ahead((lm_words){LM_F32, 0, NULL, NULL}, slab,
                                   k * lm__ceil_div(w->rows, LM_STRIP_ROWS));
        for (int64_t r = 0; r < w->rows; r += LM_STRIP_ROWS) {
            int64_t rows = lm__min(LM_STRIP_ROWS, w->rows - r);
            lm_left a = {left + r * l->words, l->words, 1};
            float *to = c + (w->first + r) * cols + q;
            if (n == LM_STRIP_COLS && rows == LM_STRIP_ROWS)
                t->j.w.strip(k, a, LM_STRIP_ROWS, b, to, cols, LM_STRIP_COLS, add, &ahead);
            else edge(t, k, a, rows, b, n, to, cols, add);
        }
    }
}

static void panel_product(const task *t, const panel *w, float *c, int64_t cols, int add) {
    int64_t words = w->left->words;
    if (words == 0 && !add)
        memset(c + w->first * cols, 0, (size_t)(w->rows * cols) * sizeof *c);
    for (int64_t q = 0; q < cols; q += GROUP) /* what is summed up stays in the cache */
        for (int64_t p = 0; p < words; p += LM_FFN_INNER)
            panel_piece(t, w, p, lm__min(LM_FFN_INNER, words - p), c, cols, q,
                        lm__min(cols, q + GROUP), add || p > 0);
}

static float number(const task *t, const uint32_t *line, int64_t i) {
    if (t->j.w.pairs) return lm_bf16_to_f32(((const uint16_t *)(const void *)line)[i]);
    return ((const float *)(const void *)line)[i];
}

/* Of a bias: the sum of the rows, of dy by their scale. It is added as a whole, as products
 * are, so that gradients that are added up elsewhere have the same bits. */
static void panel_sums(const task *t, const panel *w, float *to, int add) {
    const leavings *l = w->left;
    int64_t first = t->f->offset[w->expert], rows = t->f->offset[w->expert + 1] - first;
    for (int64_t r = w->first; r < w->first + w->rows; r++) {
        float sum = 0;
        const uint32_t *line = (w->down ? l->dy : l->dpre) + r * l->words;
        for (int64_t q = 0; q < rows; q++)
            sum += number(t, line, q) * (w->down && t->scale ? t->scale[first + q] : 1.0f);
        to[r] = add ? to[r] + sum : sum;
    }
}

static void weigh(const task *t, const panel *w) {
    const lm_ffn_gradients *g = t->g;
    const lm_ffn *f = t->f;
    if (w->down) {
        if (g->down)
            panel_product(t, w, g->down + w->expert * f->dim * f->hidden, f->hidden,
                          g->add_down);
        if (g->down_bias) panel_sums(t, w, g->down_bias + w->expert * f->dim, g->add_down_bias);
        return;
    }
    if (g->up) panel_product(t, w, g->up + w->expert * t->j.wide * f->dim, f->dim, g->add_up);
    if (g->up_bias) panel_sums(t, w, g->up_bias + w->expert * t->j.wide, g->add_up_bias);
}

/* ---- waves ---- */

typedef struct { /* lists, for the largest wave there can be */
    int64_t *order;
    lm_ffn_block *blocks;
    leavings *left; /* by expert */
    panel *panels;
} lists;

static int64_t panels_of(const task *t) {
    return lm__ceil_div(t->j.wide, PANEL) + lm__ceil_div(t->f->dim, PANEL);
}

static int lists_new(const task *t, lists *s) {
    const lm_ffn *f = t->f;
    int64_t arrivals = f->experts ? f->offset[f->experts] - f->offset[0] : 0;
    int64_t blocks = arrivals / 16 + f->experts;
    size_t bytes = (size_t)f->experts * (sizeof *s->order + sizeof *s->left) +
                   (size_t)blocks * sizeof *s->blocks +
                   (size_t)(f->experts * panels_of(t)) * sizeof *s->panels;
    s->order = lm__scratch(LM_SCRATCH_PARTIAL, bytes);
    if (!s->order) return LM_KERNEL_EOOM;
    s->panels = (panel *)(void *)(s->order + f->experts);
    s->left = (leavings *)(void *)(s->panels + f->experts * panels_of(t));
    s->blocks = (lm_ffn_block *)(void *)(s->left + f->experts);
    return LM_KERNEL_OK;
}

static panel *add_panels(const task *t, panel *at, panel w) {
    for (w.down = 0; w.down < 2; w.down++) {
        int64_t rows = w.down ? t->f->dim : t->j.wide;
        for (w.first = 0; w.first < rows; w.first += PANEL) {
            w.rows = lm__min(PANEL, rows - w.first);
            *at++ = w;
        }
    }
    return at;
}

/* Experts first .. end - 1 of the order; those without rows have only panels. */
static int wave(const task *t, const lists *s, int64_t first, int64_t end, uint32_t *room) {
    int64_t blocks = 0;
    panel *panels = s->panels;
    for (int64_t i = first; i < end; i++) {
        int64_t e = s->order[i];
        s->left[e] = leave_at(t, e, room);
        if (t->weights) {
            room += leave_words(t, e);
            panels = add_panels(t, panels, (panel){.expert = e, .left = &s->left[e]});
        }
        blocks += lm__ffn_cut(t->f, e, s->blocks + blocks);
    }
    int st = LM_KERNEL_OK;
    int64_t n = panels - s->panels;
    int threads = blocks ? lm__threads(blocks * t->f->dim * t->f->hidden) : 1;
    lm_ffn_room size = {NULL, 0};
    places_in(t, &size);
#pragma omp parallel num_threads(threads) reduction(min : st)
    {
        lm_ffn_room mine = {lm__scratch(LM_SCRATCH_A, size.used), 0};
        places p = places_in(t, &mine);
        if (!mine.at) st = LM_KERNEL_EOOM;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < blocks; i++)
            if (mine.at) block(t, &s->blocks[i], &s->left[s->blocks[i].expert], &p);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < n; i++) weigh(t, &s->panels[i]);
    }
    return st;
}

static int64_t wave_end(const task *t, const lists *s, int64_t first, int64_t experts,
                        int64_t *words) {
    int64_t end = first, blocks = 0, threads = omp_get_max_threads();
    *words = 0;
    for (; end < experts; end++) {
        int64_t e = s->order[end], more = leave_words(t, e);
        if (blocks >= threads && (*words + more) * (int64_t)sizeof(uint32_t) > WAVE) break;
        *words += more;
        blocks += lm__ffn_blocks_of(t->f->offset[e + 1] - t->f->offset[e]);
    }
    return end;
}

int lm_cpu_ffn_room(const lm_ffn *f, int64_t *bytes) {
    task t = {.f = f, .j = lm__ffn_job(f, STRETCH)};
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
    task t = {.f = f,
              .j = lm__ffn_job(f, STRETCH),
              .g = g,
              .dy = dy,
              .x = x,
              .pre = pre,
              .scale = scale};
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
