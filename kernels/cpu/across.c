/* across.c - products of a few rows with a weight whose rows are the inner dimension: its
 * columns are the vectors, so it is read where it lies, row by row. */
#include "kernels/cpu/strip.h"

#include <string.h>

enum {
    TALL = 16
}; /* words of the inner dimension at a time: of 32 columns, within a cache's
      sets though rows are a power of two apart */

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

static void sum_across(lm_words words, lm_part w, lm_part next, const uint32_t *a, int64_t rows,
                       float *c, int64_t ldc) {
    int64_t tall = words.pairs ? 2 * TALL : TALL;
    for (int64_t q = 0; q < w.rows; q += tall, a += TALL * LM_STRIP_COLS) {
        int64_t n = lm__min(tall, w.rows - q);
        const char *from = lm__element(words.dtype, w.x, q * w.ld);
        lm_part then = next;
        if (q + n < w.rows)
            then = (lm_part){lm__element(words.dtype, w.x, (q + n) * w.ld), w.ld,
                             lm__min(tall, w.rows - q - n), w.n};
        else then.rows = lm__min(tall, then.rows);
        lm_ahead ahead = lm__ahead(words, then,
                                   16 * lm__ceil_div(w.n, LM_STRIP_COLS) *
                                       lm__ceil_div(rows, LM_STRIP_ROWS));
        for (int64_t d = 0; d < w.n; d += LM_STRIP_COLS) {
            uint32_t room[2 * TALL * LM_STRIP_COLS];
            const void *at = lm__element(words.dtype, from, d);
            int64_t cols = w.n - d, ld = w.ld;
            if (cols < LM_STRIP_COLS)
                at = brought(words, at, ld, n, cols, room), ld = LM_STRIP_COLS;
            for (int64_t i = 0; i < rows; i += LM_STRIP_ROWS)
                words.across(n, a + i, at, ld, c + i * ldc + d, ldc, q > 0, &ahead);
        }
    }
}

void lm__across_product(lm_words words, lm_part w, lm_part next, const uint32_t *a,
                        int64_t rows, float *c, int64_t ldc, float *part) {
    sum_across(words, w, next, a, rows, part ? part : c, ldc);
    for (int64_t i = 0; i < rows && part; i++)
        for (int64_t d = 0; d < w.n; d++) c[i * ldc + d] += part[i * ldc + d];
}
