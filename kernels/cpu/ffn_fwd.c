/* ffn_fwd.c - y = down(f(up(x))), a block of an expert's rows at a time (ffn.h). */
#include "kernels/cpu/ffn.h"

#include <string.h>

enum { STRETCH = 256 }; /* hidden units, in words, that are between the products at a time */

typedef struct {
    uint32_t *x, *h, *left, *lines;
    float *pre, *y, *value, *bias;
} places;

static places places_in(const lm_ffn_job *j, lm_ffn_room *room) {
    int64_t d = j->d_words, k = lm__max(LM_FFN_INNER, STRETCH);
    places p;
    p.x = lm__ffn_take(room, LM_FFN_ROWS * d, sizeof *p.x);
    p.lines = lm__ffn_take(room, LM_STRIP_COLS * lm__max(d + 1, LM_FFN_ROWS), sizeof *p.lines);
    p.pre = lm__ffn_take(room, (j->halves * j->stretch + LM_STRIP_TALL) * LM_FFN_ROWS,
                         sizeof *p.pre);
    int64_t one_slab = lm__words_of(j->w, j->f->hidden) * LM_STRIP_COLS;
    p.h = lm__ffn_take(room, lm__max(STRETCH * LM_FFN_ROWS, one_slab), sizeof *p.h);
    p.value = lm__ffn_take(room, 3 * LM_FFN_ROWS, sizeof *p.value);
    p.y = lm__ffn_take(room, (j->f->dim + LM_STRIP_TALL) * LM_FFN_ROWS, sizeof *p.y);
    p.left = lm__ffn_take(room, LM_STRIP_TALL * (k + 1), sizeof *p.left);
    p.bias = lm__ffn_take(room, j->f->dim, sizeof *p.bias);
    return p;
}

/* What backward reads: [wide, rows] of each block. */
static void keep(const lm_ffn_job *j, const lm_ffn_block *b, int64_t unit, const float *line,
                 void *pre) {
    int64_t at = b->first * j->wide + unit * b->rows;
    if (j->f->dtype == LM_F32) memcpy((float *)pre + at, line, (size_t)b->rows * sizeof *line);
    else lm__to_bf16((uint16_t *)pre + at, line, b->rows);
}

/* The activations of n units as words, slab by slab. */
static void activate(const lm_ffn_job *j, int64_t n, int64_t ldc, const places *p,
                     uint32_t *h) {
    int64_t words = lm__words_of(j->w, n);
    float *even = p->value, *odd = even + LM_FFN_ROWS;
    uint32_t *line = (uint32_t *)(void *)(odd + LM_FFN_ROWS);
    for (int64_t k = 0; k < words; k++) {
        int64_t i = j->w.pairs ? 2 * k : k;
        const float *g = p->pre + i * ldc, *u = g + j->stretch * ldc;
        lm__ffn_activate(j->f->activation, even, g, u, ldc);
        if (j->w.pairs && i + 1 < n)
            lm__ffn_activate(j->f->activation, odd, g + ldc, u + ldc, ldc);
        else memset(odd, 0, (size_t)ldc * sizeof *odd);
        if (!j->w.pairs) lm__ffn_settle(j->f->dtype, even, 0, ldc);
        lm__pair_floats(j->w, even, odd, ldc, line);
        for (int64_t s = 0; s < ldc / LM_STRIP_COLS; s++)
            memcpy(h + (s * words + k) * LM_STRIP_COLS, line + s * LM_STRIP_COLS,
                   LM_STRIP_COLS * sizeof *line);
    }
}

/* h of n units from `first` on, as words; after up, `next` will be read. */
static void up(const lm_ffn_job *j, const lm_ffn_block *b, int64_t first, int64_t n,
               lm_part next, int64_t ldc, places *p, void *pre, uint32_t *h) {
    lm__ffn_up(j, b, first, n, next, p->x, p->pre, ldc, p->left);
    for (int half = 0; half < j->halves && pre; half++)
        for (int64_t i = 0; i < n; i++)
            keep(j, b, half * j->f->hidden + first + i, p->pre + (half * j->stretch + i) * ldc,
                 pre);
    activate(j, n, ldc, p, h);
}

/* A stretch after the other goes through both products; or, of one slab, all units through the
 * first: then down's rows are read whole, as they follow one another. */
static void block(const lm_ffn_job *j, const lm_ffn_block *b, places *p, void *y, void *pre,
                  const void *x) {
    const lm_ffn *f = j->f;
    int64_t slabs = lm__ffn_slabs(b->rows), ldc = slabs * LM_STRIP_COLS;
    int64_t span = slabs == 1 ? f->hidden : j->stretch;
    lm__ffn_turn_rows(j, b, x, p->x, p->lines);
    for (int64_t first = 0; first < f->hidden; first += span) {
        int64_t n = lm__min(span, f->hidden - first), end = first + n;
        lm_part down = lm__ffn_down_part(j, b->expert, 0, f->dim, first, n), next = {0};
        for (int64_t u = first, m; u < end; u += m) {
            m = lm__min(j->stretch, end - u);
            lm_part then = down;
            if (u + m < end)
                then = lm__ffn_up_part(j, b->expert, u + m, LM_STRIP_TALL, 0, f->dim);
            up(j, b, u, m, then, ldc, p, pre,
               p->h + lm__words_of(j->w, u - first) * LM_STRIP_COLS);
        }
        if (end < f->hidden)
            next = lm__ffn_up_part(j, b->expert, end, LM_STRIP_ROWS, 0, f->dim);
        lm__ffn_product(j, down, j->stretch, next, p->h, lm__words_of(j->w, n) * LM_STRIP_COLS,
                        b->rows, p->y, ldc, first > 0, p->left);
    }
    lm__ffn_turn_back(j, b, p->y, ldc, 0, f->dim,
                      lm__ffn_bias(j, f->down_bias, b->expert, f->dim, p->bias), y, p->lines);
}

int lm_cpu_ffn_fwd(const lm_ffn *f, void *y, void *pre, const void *x) {
    if (!lm__ffn_known(f)) return LM_KERNEL_EDTYPE;
    lm_ffn_job j = lm__ffn_job(f, STRETCH);
    int64_t arrivals = f->experts ? f->offset[f->experts] - f->offset[0] : 0, n = 0;
    int64_t most =
        arrivals / 16 + f->experts; /* a block has 16 rows, or is its expert's last */
    int64_t *order = lm__scratch(LM_SCRATCH_PARTIAL, (size_t)f->experts * sizeof *order +
                                                         (size_t)most * sizeof(lm_ffn_block));
    if (!order) return LM_KERNEL_EOOM;
    lm_ffn_block *blocks = (lm_ffn_block *)(void *)(order + f->experts);
    int64_t experts = lm__ffn_order(f, order);
    if (experts < 0) return LM_KERNEL_EOOM;
    int64_t many = experts; /* the others have few rows */
    while (many && f->offset[order[many - 1] + 1] - f->offset[order[many - 1]] <= LM_FEW)
        many--;
    int st = many < experts ? lm__ffn_few(&j, order + many, experts - many, y, pre, x)
                            : LM_KERNEL_OK;
    if (many == 0 || st != LM_KERNEL_OK) return st;
    for (int64_t i = 0; i < many; i++) n += lm__ffn_cut(f, order[i], blocks + n);
    int threads = lm__threads(arrivals * f->dim * f->hidden);
    lm_ffn_room size = {NULL, 0};
    places_in(&j, &size);
#pragma omp parallel num_threads(threads) reduction(min : st)
    {
        lm_ffn_room room = {lm__scratch(LM_SCRATCH_A, size.used), 0};
        places p = places_in(&j, &room);
        if (!room.at) st = LM_KERNEL_EOOM;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < n; i++)
            if (room.at) block(&j, &blocks[i], &p, y, pre, x);
    }
    return st;
}
