/* attention_few.c - softmax(scale q k^T + mask) v for a few queries, as when tokens are
 * decoded.
 *
 * There is little to compute: what takes time is that keys and values arrive. They are read
 * where they lie, once for all queries of a sequence, and no tile is made of them. A thread
 * owns a head; arithmetic is f32, and a query that may see no key gets 0, and lse = -inf. */
#include "kernels/cpu/attention_few.h"
#include "kernels/cpu/vecmath.h"

#include <string.h>

enum { LANES = 16, TOGETHER = 4 }; /* values that are added at a time */

typedef struct {
    const lm_attention *p;
    int64_t b, head, keys; /* head: of k and v; keys up to the last that may be seen */
} view;

/* Where key j of the sequence begins. */
LM_INLINE int64_t place(const view *w, lm_heads x, int64_t j) {
    const lm_attention *p = w->p;
    int64_t row = p->rows ? p->rows[w->b * p->rows_step + j] : w->b;
    return row * x.batch + w->head * x.head + j * x.time;
}

LM_INLINE float number(int bf16, const void *x, int64_t i) {
    return bf16 ? lm_bf16_to_f32(((const uint16_t *)x)[i]) : ((const float *)x)[i];
}

/* s [queries, keys] = q k'; rows of s are `step` apart, those of q p->dim. */
LM_INLINE void dots(int bf16, const view *w, float *s, int64_t step, const float *q,
                    int64_t queries, const void *k) {
    int64_t dim = w->p->dim;
    for (int64_t j = 0; j < w->keys; j++) {
        int64_t at = place(w, w->p->k, j);
        for (int64_t r = 0; r < queries; r++) {
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t d = 0; d < dim; d++) sum += q[r * dim + d] * number(bf16, k, at + d);
            s[r * step + j] = sum;
        }
    }
}
LM_CLONES static void dots_f32(const view *w, float *s, int64_t step, const float *q,
                               int64_t queries, const void *k) {
    dots(0, w, s, step, q, queries, k);
}
LM_CLONES static void dots_bf16(const view *w, float *s, int64_t step, const float *q,
                                int64_t queries, const void *k) {
    dots(1, w, s, step, q, queries, k);
}

/* y += the values of keys, each by its weight */
LM_INLINE void mix(int bf16, const view *w, float *restrict y, const float *weight,
                   int64_t keys, const void *v) {
    int64_t dim = w->p->dim, j = 0;
    for (; j + TOGETHER <= keys; j += TOGETHER) {
        int64_t at[TOGETHER];
        for (int i = 0; i < TOGETHER; i++) at[i] = place(w, w->p->v, j + i);
#pragma omp simd
        for (int64_t d = 0; d < dim; d++)
            y[d] += (weight[j] * number(bf16, v, at[0] + d) +
                     weight[j + 1] * number(bf16, v, at[1] + d)) +
                    (weight[j + 2] * number(bf16, v, at[2] + d) +
                     weight[j + 3] * number(bf16, v, at[3] + d));
    }
    for (; j < keys; j++) {
        int64_t at = place(w, w->p->v, j);
#pragma omp simd
        for (int64_t d = 0; d < dim; d++) y[d] += weight[j] * number(bf16, v, at + d);
    }
}
LM_CLONES static void mix_f32(const view *w, float *y, const float *weight, int64_t keys,
                              const void *v) {
    mix(0, w, y, weight, keys, v);
}
LM_CLONES static void mix_bf16(const view *w, float *y, const float *weight, int64_t keys,
                               const void *v) {
    mix(1, w, y, weight, keys, v);
}

/* s becomes exp(s - max) / sum, 0 where mask is; returns the log of the sum. */
LM_CLONES static float softmax_row(float *s, const uint8_t *mask, int64_t n) {
    float most[LANES], total[LANES], max = -INFINITY, sum = 0;
    for (int l = 0; l < LANES; l++) most[l] = -INFINITY, total[l] = 0;
    for (int64_t j = 0; mask && j < n; j++) s[j] = mask[j] ? s[j] : -INFINITY;
    int64_t whole = n / LANES * LANES;
    for (int64_t j = 0; j < whole; j += LANES)
#pragma omp simd
        for (int l = 0; l < LANES; l++) most[l] = s[j + l] > most[l] ? s[j + l] : most[l];
    for (int l = 0; l < LANES; l++) max = most[l] > max ? most[l] : max;
    for (int64_t j = whole; j < n; j++) max = s[j] > max ? s[j] : max;
    float shift = max == -INFINITY ? 0.0f : max; /* nothing is seen: every exp is 0 */
    for (int64_t j = 0; j < whole; j += LANES)
#pragma omp simd
        for (int l = 0; l < LANES; l++) {
            float e = lm__exp(s[j + l] - shift);
            e = s[j + l] == -INFINITY ? 0.0f : e;
            s[j + l] = e;
            total[l] += e;
        }
    for (int64_t j = whole; j < n; j++) {
        s[j] = s[j] == -INFINITY ? 0.0f : lm__exp(s[j] - shift);
        sum += s[j];
    }
    for (int l = 0; l < LANES; l++) sum += total[l];
    float by = sum > 0 ? 1.0f / sum : 0.0f;
#pragma omp simd
    for (int64_t j = 0; j < n; j++) s[j] *= by;
    return sum > 0 ? max + logf(sum) : -INFINITY;
}

/* Queries i0 .. i0 + n - 1 of head h. room: q and y of each, then scores. */
static void queries(const view *w, int64_t h, int64_t i0, int64_t n, float *room, void *o,
                    float *lse, const void *q, const void *k, const void *v) {
    const lm_attention *p = w->p;
    int bf16 = p->dtype == LM_BF16;
    float *in = room, *y = in + n * p->dim, *s = y + p->dim;
    for (int64_t r = 0; r < n; r++) {
        int64_t at = w->b * p->q.batch + h * p->q.head + (i0 + r) * p->q.time;
        const float *x = lm__load(p->dtype, q, at, p->dim, y);
        for (int64_t d = 0; d < p->dim; d++) in[r * p->dim + d] = x[d] * (float)p->scale;
    }
    (bf16 ? dots_bf16 : dots_f32)(w, s, p->tk, in, n, k);
    for (int64_t r = 0; r < n; r++) {
        float *line = s + r * p->tk;
        int64_t seen = p->causal ? lm__min(w->keys, i0 + r + p->tk - p->tq + 1) : w->keys;
        seen = lm__max(seen, 0);
        float log_sum =
            softmax_row(line, p->key_mask ? p->key_mask + w->b * p->tk : NULL, seen);
        if (lse) lse[(w->b * p->heads + h) * p->tq + i0 + r] = log_sum;
        memset(y, 0, (size_t)p->dim * sizeof *y);
        (bf16 ? mix_bf16 : mix_f32)(w, y, line, seen, v);
        int64_t to = w->b * p->o.batch + h * p->o.head + (i0 + r) * p->o.time;
        if (bf16) lm__to_bf16((uint16_t *)o + to, y, p->dim);
        else memcpy((float *)o + to, y, (size_t)p->dim * sizeof *y);
    }
}

int lm__attention_few(const lm_attention *p, void *o, float *lse, const void *q, const void *k,
                      const void *v) {
    int64_t heads = p->batch * p->heads, most = lm__min(p->tq, LM_ATTENTION_FEW);
    int threads = lm__threads(heads * p->tq * p->tk * p->dim / 4), failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        size_t size = (size_t)(most * (p->dim + p->tk) + p->dim) * sizeof(float);
        float *room = lm__scratch(LM_SCRATCH_A, size);
        failed = !room;
#pragma omp for schedule(static)
        for (int64_t t = 0; t < heads; t++) {
            int64_t h = t % p->heads;
            view w = {p, t / p->heads, h / (p->heads / p->kv_heads), p->tk};
            if (p->key_mask)
                while (w.keys > 0 && !p->key_mask[w.b * p->tk + w.keys - 1]) w.keys--;
            for (int64_t i = 0; i < p->tq && room; i += most)
                queries(&w, h, i, lm__min(most, p->tq - i), room, o, lse, q, k, v);
        }
    }
    return failed ? LM_KERNEL_EOOM : LM_KERNEL_OK;
}

/* ---- what has just been computed joins the cache ---- */

/* One head of a token to its place; cos and sin NULL: as it is. */
LM_CLONES static void turned(float *restrict y, const float *x, const float *c, const float *s,
                             int64_t dim) {
    int64_t half = dim / 2;
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        y[i] = x[i] * c[i] - x[half + i] * s[i];
        y[half + i] = x[half + i] * c[i] + x[i] * s[i];
    }
}

static void move_head(const lm_attention *p, void *to, int64_t at, const void *from, int64_t x,
                      const float *c, const float *s, float *room) {
    size_t size = lm__size(p->dtype);
    if (!c) {
        memcpy((char *)to + (size_t)at * size, (const char *)from + (size_t)x * size,
               (size_t)p->dim * size);
        return;
    }
    float *y = lm__open(p->dtype, to, at, room);
    turned(y, lm__load(p->dtype, from, x, p->dim, room + p->dim), c, s, p->dim);
    lm__close(p->dtype, to, at, p->dim, y);
}

int lm_cpu_attention_append(const lm_attention *p, int64_t first, void *q, void *k, void *v,
                            int32_t *rows, const void *qkv) {
    if (!lm__is_float(p->dtype)) return LM_KERNEL_EDTYPE;
    int64_t tokens = p->batch * p->tq, wide = p->heads * p->dim, half = p->dim / 2;
    int failed = 0;
#pragma omp parallel num_threads(lm__threads(3 * tokens * wide)) reduction(| : failed)
    {
        float *room = lm__scratch(LM_SCRATCH_A, (size_t)(2 * p->dim) * sizeof *room + 1);
        failed = !room;
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tokens; t++) {
            int64_t b = t / p->tq, i = t % p->tq, at = first + i;
            const float *c = p->cos ? p->cos + at * half : NULL;
            const float *s = p->cos ? p->sin + at * half : NULL;
            if (rows) rows[b * p->rows_step + at] = (int32_t)b;
            for (int64_t h = 0; h < p->heads && room; h++) {
                int64_t from = 3 * t * wide + h * p->dim;
                move_head(p, q, b * p->q.batch + h * p->q.head + i * p->q.time, qkv, from, c, s,
                          room);
                move_head(p, k, b * p->k.batch + h * p->k.head + at * p->k.time, qkv,
                          from + wide, c, s, room);
                move_head(p, v, b * p->v.batch + h * p->v.head + at * p->v.time, qkv,
                          from + 2 * wide, NULL, NULL, room);
            }
        }
    }
    return failed ? LM_KERNEL_EOOM : LM_KERNEL_OK;
}
