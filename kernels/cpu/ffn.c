/* ffn.c - how the experts' rows are cut, and the pieces of forward and backward (ffn.h). */
#include "kernels/cpu/ffn.h"

#include <stdlib.h>
#include <string.h>

int lm__ffn_known(const lm_ffn *f) {
    int a = f->activation;
    return lm__is_float(f->dtype) && lm__is_float(f->bias_dtype) &&
           (a == LM_RELU || a == LM_GELU || a == LM_GELU_TANH || a == LM_SILU ||
            a == LM_SWIGLU);
}

lm_ffn_job lm__ffn_job(const lm_ffn *f, int64_t stretch) {
    lm_ffn_job j = {f, lm__words(f->dtype), f->activation == LM_SWIGLU ? 2 : 1, 0, 0, 0};
    j.wide = j.halves * f->hidden;
    j.d_words = lm__words_of(j.w, f->dim);
    j.stretch = j.w.pairs ? 2 * stretch : stretch;
    return j;
}

/* ---- who does what ---- */

typedef struct {
    int64_t rows, expert;
} load;

static int larger_first(const void *a, const void *b) {
    const load *x = a, *y = b;
    if (x->rows != y->rows) return x->rows < y->rows ? 1 : -1;
    return x->expert < y->expert ? -1 : 1;
}

int64_t lm__ffn_order(const lm_ffn *f, int64_t *order) {
    load *loads = lm__scratch(LM_SCRATCH_ROW, (size_t)f->experts * sizeof *loads);
    int64_t n = 0;
    if (!loads) return -1;
    for (int64_t e = 0; e < f->experts; e++) {
        int64_t rows = f->offset[e + 1] - f->offset[e];
        if (rows > 0) loads[n++] = (load){rows, e};
    }
    qsort(loads, (size_t)n, sizeof *loads, larger_first);
    for (int64_t i = 0; i < n; i++) order[i] = loads[i].expert;
    return n;
}

int64_t lm__ffn_cut(const lm_ffn *f, int64_t e, lm_ffn_block *to) {
    int64_t first = f->offset[e], end = f->offset[e + 1], n = 0;
    int64_t each = lm__ffn_rows_of(end - first);
    for (; first < end; first += each)
        to[n++] = (lm_ffn_block){e, first, lm__min(each, end - first)};
    return n;
}

void *lm__ffn_take(lm_ffn_room *room, int64_t count, size_t size) {
    void *p = room->at ? room->at + room->used : NULL;
    room->used += ((size_t)count * size + 64 + 63) / 64 * 64; /* pieces do not share a line */
    return p;
}

/* ---- operands and results ---- */

void lm__ffn_turn_rows(const lm_ffn_job *j, const lm_ffn_block *b, const void *x, uint32_t *to,
                       uint32_t *lines) {
    const lm_ffn *f = j->f;
    for (int64_t at = 0; at < b->rows; at += LM_STRIP_COLS, to += j->d_words * LM_STRIP_COLS) {
        const uint32_t *rows[LM_STRIP_COLS] = {NULL};
        for (int64_t i = 0; i < LM_STRIP_COLS && at + i < b->rows; i++) {
            int64_t a = b->first + at + i;
            rows[i] =
                lm__row_words(j->w, lm__element(f->dtype, x, (f->row ? f->row[a] : a) * f->dim),
                              f->dim, lines + i * j->d_words);
        }
        lm__turn(rows, j->d_words, to);
    }
}

lm_part lm__ffn_up_part(const lm_ffn_job *j, int64_t expert, int64_t row, int64_t rows,
                        int64_t from, int64_t n) {
    int64_t ld = j->f->dim, at = (expert * j->wide + row) * ld + from;
    return (lm_part){lm__element(j->f->dtype, j->f->up, at), ld, rows, n};
}

lm_part lm__ffn_down_part(const lm_ffn_job *j, int64_t expert, int64_t row, int64_t rows,
                          int64_t from, int64_t n) {
    int64_t ld = j->f->hidden, at = (expert * j->f->dim + row) * ld + from;
    return (lm_part){lm__element(j->f->dtype, j->f->down, at), ld, rows, n};
}

/* 8 or 12 rows at a time, while as many after them come nearer. */
void lm__ffn_product(const lm_ffn_job *j, lm_part a, int64_t cut, lm_part next,
                     const uint32_t *b, int64_t slab_step, int64_t cols, float *c, int64_t ldc,
                     int add, uint32_t *room) {
    int64_t strips = lm__ffn_slabs(cols);
    int64_t most = cols <= 16 ? LM_STRIP_TALL : LM_STRIP_ROWS;
    for (int64_t i = 0, high; i < a.rows; i += high) {
        high = lm__min(most, a.rows - i);
        const char *rows = lm__element(j->w.dtype, a.x, i * a.ld);
        lm_part then = next;
        if (i + high < a.rows)
            then = (lm_part){lm__element(j->w.dtype, a.x, (i + high) * a.ld), a.ld,
                             a.rows - i - high, a.n};
        then.rows = lm__min(most, then.rows);
        lm_ahead ahead = lm__ahead(j->w, then, lm__words_of(j->w, a.n) * strips);
        for (int64_t q = 0; q < a.n; q += cut) {
            int64_t n = lm__min(cut, a.n - q), k = lm__words_of(j->w, n);
            lm_left left =
                lm__left_rows(j->w, lm__element(j->w.dtype, rows, q), a.ld, high, n, room);
            const uint32_t *words = b + lm__words_of(j->w, q) * LM_STRIP_COLS;
            for (int64_t s = 0; s < strips; s++)
                j->w.strip(k, left, (int)high, words + s * slab_step,
                           c + i * ldc + s * LM_STRIP_COLS, ldc,
                           lm__strip_width(cols - s * LM_STRIP_COLS), add || q > 0, &ahead);
        }
    }
}

void lm__ffn_up(const lm_ffn_job *j, const lm_ffn_block *b, int64_t first, int64_t n,
                lm_part next, const uint32_t *x, float *pre, int64_t ldc, uint32_t *room) {
    const lm_ffn *f = j->f;
    int64_t inner = j->w.pairs ? 2 * LM_FFN_INNER : LM_FFN_INNER;
    for (int half = 0; half < j->halves; half++) {
        int64_t unit = half * f->hidden + first, row = b->expert * j->wide + unit;
        float *c = pre + half * j->stretch * ldc;
        for (int64_t p = 0; p < f->dim; p += inner) {
            int64_t m = lm__min(inner, f->dim - p), q = p + m < f->dim ? p + m : 0;
            lm_part then = next;
            if (q || half + 1 < j->halves)
                then = lm__ffn_up_part(j, b->expert, q ? unit : unit + f->hidden, n, q,
                                       lm__min(inner, f->dim - q));
            lm__ffn_product(j, lm__ffn_up_part(j, b->expert, unit, n, p, m), m, then,
                            x + lm__words_of(j->w, p) * LM_STRIP_COLS,
                            j->d_words * LM_STRIP_COLS, b->rows, c, ldc, p > 0, room);
        }
        for (int64_t i = 0; i < n; i++) {
            float bias = 0, buf[1];
            if (f->up_bias) bias = *lm__load(f->bias_dtype, f->up_bias, row + i, 1, buf);
            lm__ffn_settle(f->dtype, c + i * ldc, bias, b->rows);
        }
    }
}

void lm__ffn_turn_back(const lm_ffn_job *j, const lm_ffn_block *b, const float *c, int64_t ldc,
                       int64_t first, int64_t cols, const float *bias, void *y,
                       uint32_t *lines) {
    const lm_ffn *f = j->f;
    float *turned = (float *)(void *)lines;
    for (int64_t q = 0; q < cols; q += LM_STRIP_COLS) {
        int64_t n = lm__min(LM_STRIP_COLS, cols - q), d = first + q;
        const uint32_t *rows[LM_STRIP_COLS] = {NULL};
        for (int64_t i = 0; i < n; i++)
            rows[i] = (const uint32_t *)(const void *)(c + (q + i) * ldc);
        lm__turn(rows, b->rows, lines);
        for (int64_t r = 0; r < b->rows; r++) {
            float *line = turned + r * LM_STRIP_COLS;
            int64_t at = (b->first + r) * f->dim + d;
            for (int64_t i = 0; bias && i < n; i++) line[i] += bias[d + i];
            if (f->dtype == LM_F32) memcpy((float *)y + at, line, (size_t)n * sizeof *line);
            else lm__to_bf16((uint16_t *)y + at, line, n);
        }
    }
}

const float *lm__ffn_bias(const lm_ffn_job *j, const void *bias, int64_t expert, int64_t n,
                          float *room) {
    return bias ? lm__load(j->f->bias_dtype, bias, expert * n, n, room) : NULL;
}
