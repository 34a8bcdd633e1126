/* ffn_few.c - forward for experts with a few rows each, as when tokens are decoded.
 *
 * Such a product takes as long as its weights take to arrive, so they are read once, in the
 * order in which they lie. All threads share every expert: first its hidden units, then, when
 * all of them are there, its results. Sums are cut as in ffn_fwd.c and so are the same
 * numbers. */
#include "kernels/cpu/ffn.h"

#include <string.h>

enum { GROUP = LM_FEW_OUT }; /* units, or results, of a task */

typedef struct {
    const lm_ffn_job *j;
    const int64_t *experts; /* [n] */
    const int64_t *start;   /* [n]: rows of those before, the place in h */
    int64_t n, h_words;
    uint32_t *h; /* [rows, h_words]: the activations */
} few_job;

/* Of each thread. */
typedef struct {
    uint32_t *x, *left; /* rows of words where they do not lie so */
    float *gate, *bias; /* [2 halves, LM_FEW, GROUP], [GROUP] */
} places;

static places places_in(const few_job *f, lm_ffn_room *room) {
    int64_t words = lm__max(f->j->d_words, f->h_words) + 1;
    places p;
    p.x = lm__ffn_take(room, LM_FEW * words, sizeof *p.x);
    p.left = lm__ffn_take(room, LM_FEW_OUT * words, sizeof *p.left);
    p.gate = lm__ffn_take(room, 2 * LM_FEW * GROUP, sizeof *p.gate);
    p.bias = lm__ffn_take(room, GROUP, sizeof *p.bias);
    return p;
}

/* x + bias as lm__ffn_settle does it for one of many */
static void settle(const lm_ffn *f, float *x, const float *bias, int64_t n) {
    if (!bias) lm__ffn_settle(f->dtype, x, 0, n);
    else
        for (int64_t i = 0; i < n; i++) lm__ffn_settle(f->dtype, x + i, bias[i], 1);
}

/* Activations as words of h, from an even unit on. */
static void keep_words(const lm_ffn_job *j, const float *value, int64_t n, uint32_t *to) {
    if (!j->w.pairs) {
        memcpy(to, value, (size_t)n * sizeof *to);
        return;
    }
    uint16_t line[GROUP] = {0};
    for (int64_t i = 0; i < n; i++) line[i] = lm_f32_to_bf16(value[i]);
    memcpy(to, line, (size_t)lm__words_of(j->w, n) * sizeof *to);
}

/* What backward reads (ffn_fwd.c): [wide, rows] of the expert. */
static void keep_pre(const lm_ffn *f, int64_t at, int64_t rows, const float *line, int64_t n,
                     void *pre) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < n; i++) {
            int64_t to = at + i * rows + r;
            if (f->dtype == LM_F32) ((float *)pre)[to] = line[r * GROUP + i];
            else ((uint16_t *)pre)[to] = lm_f32_to_bf16(line[r * GROUP + i]);
        }
}

/* Hidden units unit .. unit + n - 1 of expert number i. */
static void up(const few_job *f, int64_t i, int64_t unit, places *p, void *pre, const void *x) {
    const lm_ffn_job *j = f->j;
    const lm_ffn *of = j->f;
    int64_t e = f->experts[i], first = of->offset[e], n = lm__min(GROUP, of->hidden - unit);
    int64_t inner = j->w.pairs ? 2 * LM_FFN_INNER : LM_FFN_INNER;
    int rows = (int)(of->offset[e + 1] - first);
    const uint32_t *b[LM_FEW], *at[LM_FEW];
    for (int r = 0; r < rows; r++) {
        int64_t row = of->row ? of->row[first + r] : first + r;
        b[r] = lm__row_words(j->w, lm__element(of->dtype, x, row * of->dim), of->dim,
                             p->x + r * (j->d_words + 1));
    }
    int high = lm__few_rows(rows, b);
    if (n < GROUP) memset(p->gate, 0, 2 * LM_FEW * GROUP * sizeof(float)); /* what is no unit */
    for (int half = 0; half < j->halves; half++) {
        float *c = p->gate + half * LM_FEW * GROUP, room[GROUP];
        int64_t row = half * of->hidden + unit;
        for (int64_t q = 0; q < of->dim; q += inner) {
            for (int r = 0; r < high; r++) at[r] = b[r] + lm__words_of(j->w, q);
            lm__few_product(j->w, lm__ffn_up_part(j, e, row, n, q, lm__min(inner, of->dim - q)),
                            q, at, high, c, GROUP, q > 0, p->left);
        }
        const float *bias = NULL;
        if (of->up_bias)
            bias = lm__load(of->bias_dtype, of->up_bias, e * j->wide + row, n, room);
        for (int r = 0; r < rows; r++) settle(of, c + r * GROUP, bias, n);
        if (pre) keep_pre(of, first * j->wide + row * rows, rows, c, n, pre);
    }
    for (int r = 0; r < rows; r++) {
        float *gate = p->gate + r * GROUP, value[GROUP];
        lm__ffn_activate(of->activation, value, gate, gate + LM_FEW * GROUP, GROUP);
        if (!j->w.pairs) lm__ffn_settle(of->dtype, value, 0, n);
        keep_words(j, value, n,
                   f->h + (f->start[i] + r) * f->h_words + lm__words_of(j->w, unit));
    }
}

/* Numbers d .. d + n - 1 of the results of expert number i. */
static void down(const few_job *f, int64_t i, int64_t d, places *p, void *y) {
    const lm_ffn_job *j = f->j;
    const lm_ffn *of = j->f;
    int64_t e = f->experts[i], first = of->offset[e], n = lm__min(GROUP, of->dim - d);
    int rows = (int)(of->offset[e + 1] - first);
    const uint32_t *b[LM_FEW];
    float *c = p->gate;
    for (int64_t q = 0; q < of->hidden; q += j->stretch) {
        for (int r = 0; r < rows; r++)
            b[r] = f->h + (f->start[i] + r) * f->h_words + lm__words_of(j->w, q);
        lm_part part = lm__ffn_down_part(j, e, d, n, q, lm__min(j->stretch, of->hidden - q));
        lm__few_product(j->w, part, q, b, lm__few_rows(rows, b), c, GROUP, q > 0, p->left);
    }
    const float *bias = NULL;
    if (of->down_bias)
        bias = lm__load(of->bias_dtype, of->down_bias, e * of->dim + d, n, p->bias);
    for (int r = 0; r < rows; r++) {
        float *line = c + r * GROUP;
        int64_t to = (first + r) * of->dim + d;
        for (int64_t k = 0; bias && k < n; k++) line[k] += bias[k];
        if (of->dtype == LM_F32) memcpy((float *)y + to, line, (size_t)n * sizeof *line);
        else lm__to_bf16((uint16_t *)y + to, line, n);
    }
}

int lm__ffn_few(const lm_ffn_job *j, const int64_t *experts, int64_t n, void *y, void *pre,
                const void *x) {
    const lm_ffn *of = j->f;
    int64_t rows = 0, units = lm__ceil_div(of->hidden, GROUP);
    int64_t results = lm__ceil_div(of->dim, GROUP), *start;
    few_job f = {j, experts, NULL, n, lm__words_of(j->w, of->hidden) + GROUP, NULL};
    start = lm__scratch(LM_SCRATCH_ROW, (size_t)lm__max(n, 1) * sizeof *start);
    if (!start) return LM_KERNEL_EOOM;
    for (int64_t i = 0; i < n; i++) {
        start[i] = rows;
        rows += of->offset[experts[i] + 1] - of->offset[experts[i]];
    }
    f.start = start;
    f.h = lm__scratch(LM_SCRATCH_B, (size_t)(rows * f.h_words) * sizeof *f.h);
    if (!f.h) return LM_KERNEL_EOOM;
    int st = LM_KERNEL_OK;
    lm_ffn_room size = {NULL, 0};
    places_in(&f, &size);
#pragma omp parallel num_threads(lm__threads(rows * of->dim * of->hidden)) reduction(min : st)
    {
        lm_ffn_room room = {lm__scratch(LM_SCRATCH_A, size.used), 0};
        places p = places_in(&f, &room);
        if (!room.at) st = LM_KERNEL_EOOM;
#pragma omp for schedule(static)
        for (int64_t t = 0; t < n * units; t++)
            if (room.at) up(&f, t / units, t % units * GROUP, &p, pre, x);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < n * results; t++)
            if (room.at) down(&f, t / results, t % results * GROUP, &p, y);
    }
    return st;
}
