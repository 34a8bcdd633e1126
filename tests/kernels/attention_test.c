/* attention_test.c - against the T x T formula in double: causal, padded, cached, grouped
 * heads, any strides; gradients from the formula's own derivative. */
#include "tests/kernels/check.h"

typedef struct {
    int dtype, causal, mask;
    int64_t b, h, kvh, tq, tk, d;
} shape;

/* [batch, time, heads, dim] */
static lm_heads layout(int64_t time, int64_t heads, int64_t dim) {
    return (lm_heads){time * heads * dim, dim, heads * dim};
}
static int64_t where(lm_heads s, int64_t b, int64_t h, int64_t t) {
    return b * s.batch + h * s.head + t * s.time;
}

static void attention_case(shape s) {
    int64_t nq = s.b * s.tq * s.h * s.d, nk = s.b * s.tk * s.kvh * s.d;
    void *q = random_array(s.dtype, nq), *k = random_array(s.dtype, nk),
         *v = random_array(s.dtype, nk);
    void *o = array(s.dtype, nq), *d_o = random_array(s.dtype, nq);
    void *dq = random_array(s.dtype, nq), *dk = random_array(s.dtype, nk),
         *dv = random_array(s.dtype, nk);
    float *lse = array(LM_F32, s.b * s.h * s.tq);
    uint8_t *mask = array(LM_U8, s.b * s.tk);
    for (int64_t i = 0; i < s.b * s.tk;
         i++) /* padding at the end, and one hole; b = 1: nothing */
        mask[i] = i % s.tk < s.tk - (i / s.tk) * 2 && i % s.tk != 1 && i / s.tk != 1;
    lm_heads lq = layout(s.tq, s.h, s.d), lk = layout(s.tk, s.kvh, s.d);
    lm_attention p = {.dtype = s.dtype,
                      .causal = s.causal,
                      .batch = s.b,
                      .heads = s.h,
                      .tq = s.tq,
                      .tk = s.tk,
                      .kv_heads = s.kvh,
                      .dim = s.d,
                      .scale = 0.4,
                      .key_mask = s.mask ? mask : NULL,
                      .q = lq,
                      .k = lk,
                      .v = lk,
                      .o = lq,
                      .dq = lq,
                      .dk = lk,
                      .dv = lk,
                      .d_o = lq};
    int failed = check_failures;
    ok(lm_cpu_attention_fwd(&p, o, lse, q, k, v));
    ok(lm_cpu_attention_bwd(&p, dq, dk, dv, d_o, q, k, v, o, lse));
    void *alone = array(s.dtype, nq); /* nobody asks for backward: the same bits */
    ok(lm_cpu_attention_fwd(&p, alone, NULL, q, k, v));
    check_count++;
    check_failures += memcmp(o, alone, (size_t)nq * size_of(s.dtype)) != 0;
    double *wk = calloc((size_t)nk + 1, 8), *wv = calloc((size_t)nk + 1, 8);
    double *pr = calloc((size_t)s.tk + 1, 8), *dp = calloc((size_t)s.tk + 1, 8);
    double *wq = calloc((size_t)s.d + 1, 8);
    for (int64_t b = 0; b < s.b; b++)
        for (int64_t h = 0; h < s.h; h++)
            for (int64_t i = 0; i < s.tq; i++) {
                int64_t at = where(lq, b, h, i), kh = h / (s.h / s.kvh);
                double sum = 0, delta = 0;
                for (int64_t j = 0; j < s.tk; j++) {
                    double dot = 0;
                    for (int64_t c = 0; c < s.d; c++)
                        dot +=
                            get(s.dtype, q, at + c) * get(s.dtype, k, where(lk, b, kh, j) + c);
                    int seen =
                        (!s.causal || j <= i + s.tk - s.tq) && (!s.mask || mask[b * s.tk + j]);
                    pr[j] = seen ? exp(p.scale * dot) : 0;
                    sum += pr[j];
                }
                near((double)lse[(b * s.h + h) * s.tq + i], log(sum), 1e-5);
                for (int64_t j = 0; j < s.tk && sum > 0; j++) pr[j] /= sum;
                for (int64_t c = 0; c < s.d; c++) {
                    double want = 0;
                    for (int64_t j = 0; j < s.tk; j++)
                        want += pr[j] * get(s.dtype, v, where(lk, b, kh, j) + c);
                    near(get(s.dtype, o, at + c), want, 2 * epsilon(s.dtype));
                    delta += get(s.dtype, o, at + c) * get(s.dtype, d_o, at + c);
                    wq[c] = 0;
                }
                for (int64_t j = 0; j < s.tk; j++) {
                    int64_t kj = where(lk, b, kh, j);
                    dp[j] = 0;
                    for (int64_t c = 0; c < s.d; c++)
                        dp[j] += get(s.dtype, d_o, at + c) * get(s.dtype, v, kj + c);
                    double ds = pr[j] * (dp[j] - delta) * p.scale;
                    for (int64_t c = 0; c < s.d; c++) {
                        wq[c] += ds * get(s.dtype, k, kj + c);
                        wk[kj + c] += ds * get(s.dtype, q, at + c);
                        wv[kj + c] += pr[j] * get(s.dtype, d_o, at + c);
                    }
                }
                for (int64_t c = 0; c < s.d; c++)
                    near(get(s.dtype, dq, at + c), wq[c], 10 * epsilon(s.dtype));
            }
    for (int64_t i = 0; i < nk; i++) {
        near(get(s.dtype, dk, i), wk[i], 20 * epsilon(s.dtype));
        near(get(s.dtype, dv, i), wv[i], 20 * epsilon(s.dtype));
    }
    if (check_failures > failed)
        check_case("^ dtype %d causal %d mask %d b %d h %d/%d tq %d tk %d d %d", s.dtype,
                   s.causal, s.mask, (int)s.b, (int)s.h, (int)s.kvh, (int)s.tq, (int)s.tk,
                   (int)s.d);
    free(q), free(k), free(v), free(o), free(d_o), free(dq), free(dk), free(dv), free(lse);
    free(mask), free(wk), free(wv), free(pr), free(dp), free(wq), free(alone);
}

/* Rotary positions on the way are those of rope.c before, and turned back after. */
static void rotary_case(int dtype, int64_t t, int64_t d) {
    enum { B = 2, H = 3 };
    int64_t n = B * t * H * d;
    void *x[3], *turned[2], *d_o = random_array(dtype, n), *o[2], *g[2][3];
    float *lse = array(LM_F32, B * H * t), *cos_table = array(LM_F32, t * d / 2);
    float *sin_table = array(LM_F32, t * d / 2);
    int32_t *position = array(LM_I32, B * t);
    for (int64_t i = 0; i < B * t; i++) position[i] = (int32_t)(i % t);
    for (int i = 0; i < 3; i++) x[i] = random_array(dtype, n);
    for (int i = 0; i < 2; i++) turned[i] = array(dtype, n), o[i] = array(dtype, n);
    for (int i = 0; i < 6; i++) g[i / 3][i % 3] = array(dtype, n);
    ok(lm_cpu_rope_table(cos_table, sin_table, t, d, 100));
    for (int i = 0; i < 2; i++)
        ok(lm_cpu_rope(dtype, B * t, H, d, turned[i], x[i], cos_table, sin_table, position, 0,
                       0));
    lm_heads l = layout(t, H, d);
    for (int on_the_way = 0; on_the_way < 2; on_the_way++) {
        void **at = g[on_the_way], *q = on_the_way ? x[0] : turned[0];
        void *k = on_the_way ? x[1] : turned[1], *y = o[on_the_way];
        lm_attention p = {dtype, 1, B, H, t, t, H, d, 0.3, NULL, NULL,
                          NULL,  l, l, l, l, l, l, l, l,   NULL, 0};
        if (on_the_way) p.cos = cos_table, p.sin = sin_table;
        ok(lm_cpu_attention_fwd(&p, y, lse, q, k, x[2]));
        ok(lm_cpu_attention_bwd(&p, at[0], at[1], at[2], d_o, q, k, x[2], y, lse));
    }
    for (int i = 0; i < 2; i++)
        ok(lm_cpu_rope(dtype, B * t, H, d, g[0][i], g[0][i], cos_table, sin_table, position, 0,
                       1));
    for (int64_t i = 0; i < n; i++) {
        near(get(dtype, o[1], i), get(dtype, o[0], i), 10 * epsilon(dtype));
        for (int j = 0; j < 3; j++)
            near(get(dtype, g[1][j], i), get(dtype, g[0][j], i), 20 * epsilon(dtype));
    }
    for (int i = 0; i < 3; i++) free(x[i]), free(g[0][i]), free(g[1][i]);
    for (int i = 0; i < 2; i++) free(turned[i]), free(o[i]);
    free(d_o), free(lse), free(cos_table), free(sin_table), free(position);
}

TEST(test_attention) {
    for (int dtype = LM_F32; dtype <= LM_BF16; dtype++) {
        rotary_case(dtype, 1, 2), rotary_case(dtype, 33, 10), rotary_case(dtype, 70, 48);
        rotary_case(dtype, 130, 16);
    }
    const int64_t lengths[][2] = {{1, 1},   {3, 3},     {17, 17}, {33, 20}, {64, 64}, {1, 70},
                                  {5, 130}, {100, 100}, {40, 7},  {0, 5},   {5, 0}};
    for (int dtype = LM_F32; dtype <= LM_BF16; dtype++)
        for (int flags = 0; flags < 4; flags++)
            for (size_t l = 0; l < sizeof lengths / sizeof lengths[0]; l++) {
                shape s = {dtype, flags & 1,     flags >> 1,    3, 4,
                           4,     lengths[l][0], lengths[l][1], 8};
                attention_case(s);
                s.kvh = 2, s.d = 40, s.b = 2;
                attention_case(s);
                s.h = s.kvh = s.b = 1, s.d = 17;
                attention_case(s);
            }
}
