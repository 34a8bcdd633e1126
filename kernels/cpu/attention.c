/* attention.c - softmax(scale q k^T + mask) v, tile by tile, as in FlashAttention (Dao et al.
 * 2022): scores exist for QUERIES by KEYS positions at a time, and forward keeps of them only
 * lse, the log of each row's sum. Backward makes the probabilities again from lse:
 *
 *   p = exp(s - lse),  delta = sum(do o),  ds = p (do v^T - delta)
 *   dv += p^T do,  dk += scale ds^T q,  dq += scale ds k
 *
 * A thread owns a head (in backward: a head of k and v, with all the query heads that share
 * it), so every sum has one order. All arithmetic is f32 on padded tiles; bf16 is converted,
 * and rotary positions are applied, as rows are read and written. A query that may see no key
 * gets 0, and lse = -inf. */
#include "kernels/cpu/attention_few.h"
#include "kernels/cpu/tile.h"
#include "kernels/cpu/vecmath.h"

#include <string.h>

enum { QUERIES = 32, KEYS = 64, LANES = 16 };

/* Keys that query i may see, of those before `keys`. */
static int64_t visible(const lm_attention *p, int64_t i, int64_t keys) {
    if (!p->causal) return keys;
    return lm__max(0, lm__min(keys, i + p->tk - p->tq + 1));
}

/* Keys of sequence b up to its last unmasked one. */
static int64_t last_key(const lm_attention *p, int64_t b) {
    int64_t n = p->tk;
    if (p->key_mask)
        while (n > 0 && !p->key_mask[b * p->tk + n - 1]) n--;
    return n;
}

LM_CLONES static void read_f32(float *tile, int64_t ld, const float *x, int64_t step,
                               int64_t rows, int64_t dim, float by) {
    for (int64_t r = 0; r < rows; r++, tile += ld, x += step) {
#pragma omp simd
        for (int64_t j = 0; j < dim; j++) tile[j] = x[j] * by;
        for (int64_t j = dim; j < ld; j++) tile[j] = 0;
    }
}

LM_CLONES static void read_bf16(float *tile, int64_t ld, const uint16_t *x, int64_t step,
                                int64_t rows, int64_t dim, float by) {
    for (int64_t r = 0; r < rows; r++, tile += ld, x += step) {
#pragma omp simd
        for (int64_t j = 0; j < dim; j++) tile[j] = lm_bf16_to_f32(x[j]) * by;
        for (int64_t j = dim; j < ld; j++) tile[j] = 0;
    }
}

LM_CLONES static void turn_rows(float *tile, int64_t ld, const float *c, const float *s,
                                float sign, int64_t rows, int64_t half) {
    for (int64_t r = 0; r < rows; r++, tile += ld, c += half, s += half) {
        float *front = tile, *back = tile + half;
#pragma omp simd
        for (int64_t i = 0; i < half; i++) {
            float a = front[i], b = back[i], w = sign * s[i];
            front[i] = a * c[i] - b * w;
            back[i] = b * c[i] + a * w;
        }
    }
}

/* The pairs of each row turn by its position, which counts from `first`; sign -1: back. */
static void turn(const lm_attention *p, float *tile, int64_t ld, int64_t first, int64_t rows,
                 float sign) {
    if (!p->cos) return;
    int64_t half = p->dim / 2;
    turn_rows(tile, ld, p->cos + first * half, p->sin + first * half, sign, rows, half);
}

/* rows x [rows, dim] of one head as a padded tile, times `by` */
static void read_tile(const lm_attention *p, float *tile, int64_t ld, int64_t padded,
                      const void *x, int64_t at, int64_t step, int64_t rows, float by) {
    if (p->dtype == LM_F32) read_f32(tile, ld, (const float *)x + at, step, rows, p->dim, by);
    else read_bf16(tile, ld, (const uint16_t *)x + at, step, rows, p->dim, by);
    if (padded > rows)
        memset(tile + rows * ld, 0, (size_t)((padded - rows) * ld) * sizeof *tile);
}

static void write_row(const lm_attention *p, void *x, int64_t at, const float *row) {
    if (p->dtype == LM_F32) memcpy((float *)x + at, row, (size_t)p->dim * sizeof *row);
    else lm__to_bf16((uint16_t *)x + at, row, p->dim);
}

/* 0 for a key that may be seen, -inf for a masked one and for padding */
static void key_bias(const lm_attention *p, float *bias, int64_t b, int64_t keys,
                     int64_t padded) {
    for (int64_t j = 0; j < padded; j++)
        bias[j] = j < keys && (!p->key_mask || p->key_mask[b * p->tk + j]) ? 0.0f : -INFINITY;
}

/* One row of scores, n of them, a multiple of LANES, of which the first `seen` count: s becomes
 * exp(s - max), the row's maximum and sum move on, and what was summed before must be
 * multiplied by the result. */
LM_CLONES static float softmax_step(float *s, const float *bias, int32_t seen, int32_t n,
                                    float *max, float *sum) {
    float most[LANES], total[LANES], m = *max, added = 0;
    for (int l = 0; l < LANES; l++) most[l] = m, total[l] = 0;
    for (int32_t j = 0; j < n; j += LANES)
#pragma omp simd
        for (int32_t l = 0; l < LANES; l++) {
            float v = j + l < seen ? s[j + l] + bias[j + l] : -INFINITY;
            s[j + l] = v;
            most[l] = v > most[l] ? v : most[l];
        }
    for (int l = 0; l < LANES; l++) m = most[l] > m ? most[l] : m;
    float shift = m == -INFINITY ? 0.0f : m; /* nothing seen yet: every exp is 0 */
    for (int32_t j = 0; j < n; j += LANES)
#pragma omp simd
        for (int32_t l = 0; l < LANES; l++) {
            float e = lm__exp(s[j + l] - shift);
            e = s[j + l] == -INFINITY ? 0.0f : e;
            s[j + l] = e;
            total[l] += e;
        }
    for (int l = 0; l < LANES; l++) added += total[l];
    float scale = *max == -INFINITY ? 0.0f : *max == m ? 1.0f : expf(*max - shift);
    *sum = *sum * scale + added;
    *max = m;
    return scale;
}

LM_CLONES static void scale_row(float *x, float by, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) x[i] *= by;
}

/* --- forward */

typedef struct {
    int64_t ld, keys, padded; /* padded dim; keys of this sequence, and padded to tiles */
    float *k, *kt, *v, *vt;   /* k, v [padded, ld]; kt, vt by tiles [ld, KEYS] */
    float *bias;              /* [padded] */
} context;

/* Reads k and v of one head; kt (and, in backward, vt) are their transposes. */
static void read_keys(const lm_attention *p, context *c, int64_t b, int64_t h, const void *k,
                      const void *v) {
    int64_t kb = b * p->k.batch + h * p->k.head, vb = b * p->v.batch + h * p->v.head;
    read_tile(p, c->k, c->ld, c->padded, k, kb, p->k.time, c->keys, 1);
    read_tile(p, c->v, c->ld, c->padded, v, vb, p->v.time, c->keys, 1);
    turn(p, c->k, c->ld, 0, c->keys, 1);
    key_bias(p, c->bias, b, c->keys, c->padded);
    for (int64_t j = 0; j < c->padded; j += KEYS) {
        int64_t n = lm__min(KEYS, c->padded - j);
        lm__tile_transpose(c->kt + j * c->ld, KEYS, c->k + j * c->ld, c->ld, n, c->ld);
        if (c->vt)
            lm__tile_transpose(c->vt + j * c->ld, KEYS, c->v + j * c->ld, c->ld, n, c->ld);
    }
}

static void forward_queries(const lm_attention *p, const context *c, float *work, int64_t b,
                            int64_t h, int64_t i0, const void *q, void *o, float *lse) {
    int64_t rows = lm__min(QUERIES, p->tq - i0), m = lm__pad_rows(rows), ld = c->ld;
    float *qt = work, *acc = qt + QUERIES * ld, *s = acc + QUERIES * ld;
    float max[QUERIES], sum[QUERIES];
    read_tile(p, qt, ld, m, q, b * p->q.batch + h * p->q.head + i0 * p->q.time, p->q.time, rows,
              (float)p->scale);
    turn(p, qt, ld, i0, rows, 1);
    memset(acc, 0, (size_t)(m * ld) * sizeof *acc);
    for (int64_t r = 0; r < rows; r++) max[r] = -INFINITY, sum[r] = 0;

    int64_t end = visible(p, i0 + rows - 1, c->keys);
    for (int64_t j = 0; j < end; j += KEYS) {
        int64_t n = lm__min(KEYS, c->padded - j);
        lm__tile_product(s, KEYS, (lm_tile){qt, ld, 1}, c->kt + j * ld, KEYS, m, n, p->dim, 0);
        for (int64_t r = 0; r < rows; r++) {
            int64_t seen = lm__min(n, visible(p, i0 + r, c->keys) - j);
            float by = softmax_step(s + r * KEYS, c->bias + j, (int32_t)lm__max(0, seen),
                                    (int32_t)n, &max[r], &sum[r]);
            if (j > 0 && by != 1.0f) scale_row(acc + r * ld, by, ld);
        }
        lm__tile_product(acc, ld, (lm_tile){s, KEYS, 1}, c->v + j * ld, ld, m, ld, n, 1);
    }
    for (int64_t r = 0; r < rows; r++) {
        float by = sum[r] > 0 ? 1.0f / sum[r] : 0.0f;
        scale_row(acc + r * ld, by, ld);
        write_row(p, o, b * p->o.batch + h * p->o.head + (i0 + r) * p->o.time, acc + r * ld);
        if (lse)
            lse[(b * p->heads + h) * p->tq + i0 + r] =
                sum[r] > 0 ? max[r] + logf(sum[r]) : -INFINITY;
    }
}

/* Threads for all heads: a product of tq tk dim is far more than its elements. */
static int threads_for(const lm_attention *p) {
    return lm__threads(p->batch * p->heads * lm__max(1, p->tq * p->tk / 8) * p->dim);
}

/* Scratch of one thread: tiles of work, then k, kt, v, (vt,) bias. */
static float *lay_out(const lm_attention *p, context *c, int64_t work, int64_t copies) {
    c->ld = lm__pad_cols(p->dim);
    int64_t most = lm__pad_cols(p->tk);
    int64_t whole = lm__ceil_div(most, KEYS) * KEYS; /* transposed tiles are KEYS wide */
    float *buf = lm__scratch(LM_SCRATCH_A,
                             (size_t)(work + copies * whole * c->ld + whole) * sizeof *buf);
    if (!buf) return NULL;
    c->k = buf + work;
    c->kt = c->k + whole * c->ld;
    c->v = c->kt + whole * c->ld;
    c->vt = copies > 3 ? c->v + whole * c->ld : NULL;
    c->bias = c->k + copies * whole * c->ld;
    return buf;
}

int lm_cpu_attention_fwd(const lm_attention *p, void *o, float *lse, const void *q,
                         const void *k, const void *v) {
    if (!lm__is_float(p->dtype)) return LM_KERNEL_EDTYPE;
    if (p->batch * p->heads * p->tq == 0) return LM_KERNEL_OK;
    if (p->rows || (p->tq <= LM_ATTENTION_FEW && !p->cos))
        return lm__attention_few(p, o, lse, q, k, v);
    int threads = threads_for(p), failed = 0;
    int64_t blocks = lm__ceil_div(p->tq, QUERIES), heads = p->batch * p->heads;
    int64_t parts = heads >= 2 * threads ? 1 : blocks; /* few heads: share out their queries */
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        context c;
        int64_t ld = lm__pad_cols(p->dim);
        float *work = lay_out(p, &c, QUERIES * (2 * ld + KEYS), 3);
        failed = !work;
#pragma omp for schedule(dynamic, 1)
        for (int64_t t = 0; t < heads * parts; t++) {
            int64_t b = t / parts / p->heads, h = t / parts % p->heads;
            if (!work) continue;
            c.keys = last_key(p, b);
            c.padded = lm__pad_cols(c.keys);
            read_keys(p, &c, b, h / (p->heads / p->kv_heads), k, v);
            for (int64_t i = t % parts; i < blocks; i += parts)
                forward_queries(p, &c, work, b, h, i * QUERIES, q, o, lse);
        }
    }
    return failed ? LM_KERNEL_EOOM : LM_KERNEL_OK;
}

/* --- backward */

/* s and dp [.., KEYS] become p and ds for the first `seen` columns, 0 beyond */
LM_CLONES static void backward_row(float *s, float *dp, const float *bias, float lse,
                                   float delta, int32_t seen, int32_t n) {
    for (int32_t j = 0; j < n; j += LANES)
#pragma omp simd
        for (int32_t l = 0; l < LANES; l++) {
            float e = lm__exp(s[j + l] - lse);
            int sees = (j + l < seen) & (bias[j + l] == 0.0f);
            s[j + l] = sees ? e : 0.0f;
            dp[j + l] = sees ? e * (dp[j + l] - delta) : 0.0f;
        }
}

LM_CLONES static float dot_row(const float *x, const float *y, int64_t n) {
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += x[i] * y[i];
    return s;
}

typedef struct {
    const void *q, *o, *d_o;
    const float *lse;
    void *dq;
    float *dk, *dv; /* [padded, ld] of this head */
} gradients;

static void backward_queries(const lm_attention *p, const context *c, const gradients *g,
                             float *work, int64_t b, int64_t h, int64_t i0) {
    int64_t rows = lm__min(QUERIES, p->tq - i0), m = lm__pad_rows(rows), ld = c->ld;
    float *q = work, *d_o = q + QUERIES * ld, *dq = d_o + QUERIES * ld, *o = dq;
    float *s = dq + QUERIES * ld, *ds = s + QUERIES * KEYS, lse[QUERIES], delta[QUERIES];
    read_tile(p, q, ld, m, g->q, b * p->q.batch + h * p->q.head + i0 * p->q.time, p->q.time,
              rows, (float)p->scale);
    turn(p, q, ld, i0, rows, 1);
    read_tile(p, d_o, ld, m, g->d_o, b * p->d_o.batch + h * p->d_o.head + i0 * p->d_o.time,
              p->d_o.time, rows, 1);
    read_tile(p, o, ld, m, g->o, b * p->o.batch + h * p->o.head + i0 * p->o.time, p->o.time,
              rows, 1);
    for (int64_t r = 0; r < rows; r++) {
        delta[r] = dot_row(d_o + r * ld, o + r * ld, ld);
        lse[r] = g->lse[(b * p->heads + h) * p->tq + i0 + r];
    }
    memset(dq, 0, (size_t)(m * ld) * sizeof *dq); /* o has been used */

    int64_t end = visible(p, i0 + rows - 1, c->keys);
    for (int64_t j = 0; j < end; j += KEYS) {
        int64_t n = lm__min(KEYS, c->padded - j);
        lm__tile_product(s, KEYS, (lm_tile){q, ld, 1}, c->kt + j * ld, KEYS, m, n, p->dim, 0);
        lm__tile_product(ds, KEYS, (lm_tile){d_o, ld, 1}, c->vt + j * ld, KEYS, m, n, p->dim,
                         0);
        for (int64_t r = 0; r < m; r++) {
            int64_t seen = r < rows ? lm__min(n, visible(p, i0 + r, c->keys) - j) : 0;
            if (r < rows && lse[r] == -INFINITY) seen = 0;
            backward_row(s + r * KEYS, ds + r * KEYS, c->bias + j, r < rows ? lse[r] : 0,
                         r < rows ? delta[r] : 0, (int32_t)lm__max(0, seen), (int32_t)n);
        }
        lm__tile_product(g->dv + j * ld, ld, (lm_tile){s, 1, KEYS}, d_o, ld, n, ld, rows, 1);
        lm__tile_product(g->dk + j * ld, ld, (lm_tile){ds, 1, KEYS}, q, ld, n, ld, rows, 1);
        lm__tile_product(dq, ld, (lm_tile){ds, KEYS, 1}, c->k + j * ld, ld, m, ld, n, 1);
    }
    turn(p, dq, ld, i0, rows, -1);
    for (int64_t r = 0; r < rows; r++) {
        scale_row(dq + r * ld, (float)p->scale, ld);
        write_row(p, g->dq, b * p->dq.batch + h * p->dq.head + (i0 + r) * p->dq.time,
                  dq + r * ld);
    }
}

int lm_cpu_attention_bwd(const lm_attention *p, void *dq, void *dk, void *dv, const void *d_o,
                         const void *q, const void *k, const void *v, const void *o,
                         const float *lse) {
    if (!lm__is_float(p->dtype)) return LM_KERNEL_EDTYPE;
    if (p->batch * p->heads == 0) return LM_KERNEL_OK;
    int failed = 0;
#pragma omp parallel num_threads(threads_for(p)) reduction(| : failed)
    {
        context c;
        int64_t ld = lm__pad_cols(p->dim), sums = lm__pad_cols(p->tk) * ld;
        int64_t tiles = QUERIES * (3 * ld + 2 * KEYS);
        float *work = lay_out(p, &c, tiles + 2 * sums, 4);
        gradients g = {
            q, o, d_o, lse, dq, work ? work + tiles : NULL, work ? work + tiles + sums : NULL};
        failed = !work;
#pragma omp for schedule(dynamic, 1)
        for (int64_t t = 0; t < p->batch * p->kv_heads; t++) {
            int64_t b = t / p->kv_heads, kh = t % p->kv_heads, group = p->heads / p->kv_heads;
            if (!work) continue;
            c.keys = last_key(p, b);
            c.padded = lm__pad_cols(c.keys);
            read_keys(p, &c, b, kh, k, v);
            memset(g.dk, 0, (size_t)(2 * sums) * sizeof *g.dk);
            for (int64_t h = kh * group; h < (kh + 1) * group; h++)
                for (int64_t i = 0; i < p->tq; i += QUERIES)
                    backward_queries(p, &c, &g, work, b, h, i);
            turn(p, g.dk, ld, 0, c.keys, -1);
            for (int64_t j = 0; j < p->tk; j++) { /* beyond the last key: zeros */
                write_row(p, dk, b * p->dk.batch + kh * p->dk.head + j * p->dk.time,
                          g.dk + j * ld);
                write_row(p, dv, b * p->dv.batch + kh * p->dv.head + j * p->dv.time,
                          g.dv + j * ld);
            }
        }
    }
    return failed ? LM_KERNEL_EOOM : LM_KERNEL_OK;
}
