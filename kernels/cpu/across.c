/* across.c - products of a few rows with a weight whose rows are the inner dimension: its
 * columns are the vectors, so it is read where it lies, row by row. */
#include "kernels/cpu/strip.h"

#include <string.h>

/* Less than 32 columns, with zeros after them. */
static const void *brought(lm_words w, const char *x, int64_t ld, int64_t n, int64_t cols,
                           uint32_t *room) {
    size_t size = lm__size(w.dtype);
    memset(room, 0, (size_t)(n * LM_STRIP_COLS) * size);
    for (int64_t i = 0; i < n; i++)
        memcpy((char *)room + (size_t)(i * LM_STRIP_COLS) * size, x + (size_t)(i * ld) * size,
               (size_t)cols * size);
    return room;
}

static int64_t tall(const lm_across *x) { return x->words.pairs ? 2 * LM_TALL : LM_TALL; }

int64_t lm__across_steps(const lm_across *x) {
    return lm__ceil_div(x->w.rows, tall(x)) * lm__ceil_div(x->w.n, LM_STRIP_COLS);
}

int64_t lm__across_turns(const lm_across *x) {
    return lm__across_steps(x) * (LM_TALL / LM_TURN) * lm__ceil_div(x->rows, LM_STRIP_ROWS);
}

/* What was summed of a panel after the first cut. */
static void add_part(const lm_across *x, int64_t end) {
    for (int64_t i = 0; i < x->rows; i++)
        for (int64_t d = x->at; d < end; d++) x->c[i * x->ldc + d] += x->part[i * x->ldc + d];
}

int lm__across_step(lm_across *x, lm_ahead *ahead) {
    lm_part w = x->w;
    if (x->q >= w.rows || x->at >= w.n) return 0;
    int64_t since = x->q % x->cut, end = lm__min(w.n, x->at + x->panel), d = x->at + x->d;
    int64_t n = lm__min(tall(x), lm__min(w.rows - x->q, x->cut - since));
    uint32_t room[2 * LM_TALL * LM_STRIP_COLS];
    const void *at = lm__element(x->words.dtype, w.x, x->q * w.ld + d);
    int64_t cols = w.n - d, ld = w.ld;
    if (cols < LM_STRIP_COLS) at = brought(x->words, at, ld, n, cols, room), ld = LM_STRIP_COLS;
    x->words.across(n, x->a + lm__words_of(x->words, x->q) * LM_STRIP_COLS,
                    lm__round_up(x->rows, LM_STRIP_ROWS), at, ld,
                    (x->q < x->cut ? x->c : x->part) + d, x->ldc,
                    since > 0 || (x->q == 0 && x->go_on), ahead);
    if (d + LM_STRIP_COLS < end) {
        x->d += LM_STRIP_COLS;
        return 1;
    }
    x->d = 0, x->q += n;
    if (x->q > x->cut && (x->q % x->cut == 0 || x->q == w.rows)) add_part(x, end);
    if (x->q == w.rows) x->q = 0, x->at = end;
    return 1;
}
