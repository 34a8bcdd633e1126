/* ffn_bwd_rows.c - backward, first pass: x and dy of a block as the products want them. */
#include "kernels/cpu/ffn_bwd.h"

#include <string.h>

/* Rows 2i and 2i + 1 of the block as a line of pairs, or row i. */
static void line_of_rows(const bwd_task *t, const lm_ffn_block *b, const void *x, int64_t i,
                         uint32_t *line) {
    const lm_ffn *f = t->f;
    int64_t r = t->j.w.pairs ? 2 * i : i, a = b->first + r;
    const void *odd = NULL;
    if (t->j.w.pairs && r + 1 < b->rows)
        odd = lm__element(f->dtype, x, lm__bwd_row_of(f, a + 1) * f->dim);
    lm__pair(t->j.w, lm__element(f->dtype, x, lm__bwd_row_of(f, a) * f->dim), odd, f->dim,
             line);
}

static void leave_x(const bwd_task *t, const lm_ffn_block *b, const bwd_leavings *l,
                    uint32_t *line) {
    int64_t dim = t->f->dim, before = lm__bwd_words_before(t, b),
            words = lm__bwd_words_in(t, b);
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

static void leave_dy(const bwd_task *t, const lm_ffn_block *b, const bwd_leavings *l,
                     uint32_t *lines) {
    int64_t dim = t->f->dim, before = lm__bwd_words_before(t, b),
            words = lm__bwd_words_in(t, b);
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

void lm__bwd_rows(const bwd_task *t, const bwd_leavings *l, int64_t i, bwd_places *p) {
    lm_ffn_block b = lm__bwd_block_of(l, i);
    int64_t at = i * l->slabs * t->j.d_words * LM_STRIP_COLS;
    lm__ffn_turn_rows(&t->j, &b, t->dy, l->turned_dy + at, p->lines);
    if (!t->pre) lm__ffn_turn_rows(&t->j, &b, t->x, l->turned_x + at, p->lines);
    if (!t->weights) return;
    leave_x(t, &b, l, p->lines);
    leave_dy(t, &b, l, p->lines);
}
