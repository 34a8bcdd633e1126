/* ffn_test.c - the experts' networks, forward and backward, against loops in double: every
 * activation, biases, empty experts, one that has all rows, sizes that fill nothing. */
#include "tests/kernels/check.h"

#include <omp.h>

typedef struct {
    int dtype, activation, bias, gathered, scaled, recompute, add;
    int64_t experts, counts[5], dim, hidden;
} ffn_case;

static double normal_cdf(double x) { return 0.5 * erfc(-x * 0.70710678118654752); }

static double value_of(int activation, double g) {
    double t = tanh(0.79788456080286536 * (g + 0.044715 * g * g * g));
    switch (activation) {
    case LM_RELU: return g > 0 ? g : 0;
    case LM_GELU: return g * normal_cdf(g);
    case LM_GELU_TANH: return 0.5 * g * (1 + t);
    default: return g / (1 + exp(-g)); /* silu, swiglu's gate */
    }
}
static double slope_of(int activation, double g) {
    double e = 1e-5;
    if (activation == LM_RELU) return g > 0;
    return (value_of(activation, g + e) - value_of(activation, g - e)) / (2 * e);
}
static double rounded(int dtype, double x) {
    return dtype == LM_BF16 ? (double)lm_bf16_to_f32(lm_f32_to_bf16((float)x)) : x;
}

typedef struct { /* one arrival, in double; off: a tenth of the terms that dpre is made of */
    double *x, *dy, *pre, *h, *dh, *dpre, *off;
} row;

/* Checks y, dx and dscale of a row, as exactly as the size of the terms allows; keeps what the
 * weights' gradients need. */
static void check_row(const ffn_case *c, const lm_ffn *f, int64_t e, row *r, int64_t at,
                      const void *y, const void *dx, const float *dscale, double scale) {
    int64_t dim = c->dim, hidden = c->hidden,
            wide = c->activation == LM_SWIGLU ? 2 * hidden : hidden;
    double eps = c->dtype == LM_BF16 ? 8e-3 : 1e-5, dot = 0, size = 0;
    for (int64_t n = 0; n < wide; n++) {
        double sum = c->bias ? get(c->dtype, f->up_bias, e * wide + n) : 0;
        r->off[n] = 0;
        for (int64_t d = 0; d < dim; d++) {
            double v = r->x[d] * get(c->dtype, f->up, (e * wide + n) * dim + d);
            sum += v, r->off[n] += fabs(v) / 10;
        }
        r->pre[n] = rounded(c->dtype, sum);
    }
    for (int64_t n = 0; n < hidden; n++)
        r->h[n] = rounded(c->dtype, value_of(c->activation, r->pre[n]) *
                                        (wide > hidden ? r->pre[hidden + n] : 1));
    for (int64_t d = 0; d < dim; d++) {
        double sum = c->bias ? get(c->dtype, f->down_bias, e * dim + d) : 0;
        double terms = 0;
        dot += sum * r->dy[d];
        for (int64_t n = 0; n < hidden; n++) {
            double v = r->h[n] * get(c->dtype, f->down, (e * dim + d) * hidden + n);
            sum += v, terms += fabs(v);
        }
        near(get(c->dtype, y, at * dim + d), sum, eps * (1 + terms));
    }
    for (int64_t n = 0; n < hidden; n++) {
        double dh = 0, off = 0, g = r->pre[n], u = wide > hidden ? r->pre[hidden + n] : 1;
        for (int64_t d = 0; d < dim; d++) {
            double v = r->dy[d] * get(c->dtype, f->down, (e * dim + d) * hidden + n);
            dh += v, off += fabs(v) / 10;
        }
        dot += dh * r->h[n], size += fabs(dh * r->h[n]);
        r->dpre[n] = rounded(c->dtype, scale * dh * u * slope_of(c->activation, g));
        if (wide > hidden)
            r->dpre[hidden + n] = rounded(c->dtype, scale * dh * value_of(c->activation, g));
        /* what g, u and dh are off by, the slope's own slope being less than 1 */
        double off_g = r->off[n], off_u = wide > hidden ? r->off[hidden + n] : 0;
        double slope = fabs(slope_of(c->activation, g)),
               value = fabs(value_of(c->activation, g));
        r->off[n] = fabs(scale) *
                    (off * fabs(u) * slope + fabs(dh) * (off_u * slope + off_g * fabs(u)));
        if (wide > hidden)
            r->off[hidden + n] = fabs(scale) * (off * value + fabs(dh) * off_g * slope);
    }
    near((double)dscale[at], dot, eps * (1 + size));
    for (int64_t d = 0; d < dim; d++) {
        double sum = 0, terms = 0;
        for (int64_t n = 0; n < wide; n++) {
            double w = get(c->dtype, f->up, (e * wide + n) * dim + d), v = r->dpre[n] * w;
            sum += v, terms += fabs(v) + fabs(r->off[n] * w);
        }
        near(get(c->dtype, dx, at * dim + d), sum, eps * (1 + terms));
    }
}

static float *gradient(int64_t n, float **was) { /* where a line of the cache begins */
    float *g = aligned_alloc(64, ((size_t)n * sizeof *g + 64) / 64 * 64);
    for (int64_t i = 0; i < n; i++) g[i] = (float)random_uniform() - 0.5f;
    *was = array(LM_F32, n);
    memcpy(*was, g, (size_t)n * sizeof *g);
    return g;
}

/* Gradients of the weights in bf16 are those in f32, rounded once. */
static void rounded_once(const lm_ffn *f, const lm_ffn_gradients *f32, const void *dy,
                         const void *x, const void *pre, const float *scale, void *room,
                         int64_t ups, int64_t downs) {
    int64_t n[2] = {ups, downs};
    const float *want[2] = {f32->up, f32->down};
    lm_ffn_gradients g = {.dx = f32->dx, .up_dtype = LM_BF16, .down_dtype = LM_BF16};
    uint16_t *got[2];
    for (int i = 0; i < 2; i++) {
        got[i] = aligned_alloc(64, ((size_t)n[i] * sizeof *got[i] + 64) / 64 * 64);
        for (int64_t q = 0; q < n[i]; q++) got[i][q] = 0x7fc0; /* NaN */
    }
    g.up = got[0], g.down = got[1];
    ok(lm_cpu_ffn_bwd(f, &g, dy, x, pre, scale, room));
    for (int i = 0; i < 2; i++) {
        int64_t other = 0;
        for (int64_t q = 0; q < n[i]; q++) other += got[i][q] != lm_f32_to_bf16(want[i][q]);
        check_count++;
        check_failures += other > 0;
        if (other) check_case("%s in bf16: %d differ", i ? "ddown" : "dup", (int)other);
        free(got[i]);
    }
}

static void run(const ffn_case *c) {
    int64_t offset[6] = {0}, rows = 0, dim = c->dim, hidden = c->hidden, bad = check_failures;
    for (int e = 0; e < c->experts; e++) offset[e + 1] = rows += c->counts[e];
    int64_t wide = c->activation == LM_SWIGLU ? 2 * hidden : hidden, E = c->experts;
    int64_t sources = c->gathered ? rows / 2 + 1 : rows;
    int32_t *from = array(LM_I32, rows);
    for (int64_t a = 0; a < rows; a++)
        from[a] = (int32_t)(c->gathered ? (a * 7 + 3) % sources : a);
    void *x = random_array(c->dtype, sources * dim),
         *dy = random_array(c->dtype, sources * dim);
    void *up = random_array(c->dtype, E * wide * dim);
    void *down = random_array(c->dtype, E * dim * hidden);
    for (int64_t i = 0; i < E * wide * dim; i++) /* sums of about 1 */
        set(c->dtype, up, i, get(c->dtype, up, i) / sqrt((double)dim));
    for (int64_t i = 0; i < E * dim * hidden; i++)
        set(c->dtype, down, i, get(c->dtype, down, i) / sqrt((double)hidden));
    void *up_bias = random_array(c->dtype, E * wide),
         *down_bias = random_array(c->dtype, E * dim);
    float *scale = random_array(LM_F32, rows), *dscale = array(LM_F32, rows);
    void *y = array(c->dtype, rows * dim), *dx = array(c->dtype, rows * dim);
    void *pre = array(c->dtype, rows * wide);
    lm_ffn f = {.dtype = c->dtype,
                .activation = c->activation,
                .experts = E,
                .dim = dim,
                .hidden = hidden,
                .offset = offset,
                .row = c->gathered ? from : NULL,
                .up = up,
                .down = down,
                .up_bias = c->bias ? up_bias : NULL,
                .down_bias = c->bias ? down_bias : NULL,
                .bias_dtype = c->dtype};
    float *was[4];
    lm_ffn_gradients g = {.dx = dx,
                          .dscale = dscale,
                          .add_up = c->add,
                          .add_down = c->add,
                          .add_up_bias = c->add,
                          .add_down_bias = c->add};
    g.up = gradient(E * wide * dim, &was[0]), g.down = gradient(E * dim * hidden, &was[1]);
    g.up_bias = gradient(E * wide, &was[2]), g.down_bias = gradient(E * dim, &was[3]);
    int64_t bytes = 0;
    ok(lm_cpu_ffn_fwd(&f, y, c->recompute ? NULL : pre, x));
    ok(lm_cpu_ffn_room(&f, &bytes));
    void *room = malloc((size_t)bytes + 1);
    ok(lm_cpu_ffn_bwd(&f, &g, dy, x, c->recompute ? NULL : pre, c->scaled ? scale : NULL,
                      room));

    if (!c->add)
        rounded_once(&f, &g, dy, x, c->recompute ? NULL : pre, c->scaled ? scale : NULL, room,
                     E * wide * dim, E * dim * hidden);

    size_t n = (size_t)(dim + dim + 2 * hidden + hidden + hidden + 2 * hidden + 2 * hidden);
    double *space = calloc(n, sizeof *space);
    row r = {space, space + dim, space + 2 * dim, 0, 0, 0, 0};
    r.h = r.pre + 2 * hidden, r.dh = r.h + hidden, r.dpre = r.dh + hidden;
    r.off = r.dpre + 2 * hidden;
    double *want[4],
        *size[4]; /* size: of the terms, by which sums of rounded ones may be off */
    const int64_t sizes_of[4] = {wide * dim, dim * hidden, wide, dim};
    float *const got[4] = {g.up, g.down, g.up_bias, g.down_bias};
    for (int i = 0; i < 4; i++) {
        want[i] = calloc((size_t)sizes_of[i], sizeof(double));
        size[i] = calloc((size_t)sizes_of[i], sizeof(double));
    }
#define ADD(i, at, term, off) (want[i][at] += (term), size[i][at] += fabs(term) + fabs(off))
    for (int64_t e = 0; e < E; e++) {
        for (int i = 0; i < 4; i++)
            for (int64_t q = 0; q < sizes_of[i]; q++)
                want[i][q] = c->add ? (double)was[i][e * sizes_of[i] + q] : 0, size[i][q] = 0;
        for (int64_t a = offset[e]; a < offset[e + 1]; a++) {
            double s = c->scaled ? (double)scale[a] : 1;
            for (int64_t d = 0; d < dim; d++) {
                r.x[d] = get(c->dtype, x, from[a] * dim + d);
                r.dy[d] = get(c->dtype, dy, from[a] * dim + d);
            }
            check_row(c, &f, e, &r, a, y, dx, dscale, s);
            for (int64_t m = 0; m < wide; m++)
                for (int64_t d = 0; d < dim; d++)
                    ADD(0, m * dim + d, r.dpre[m] * r.x[d], r.off[m] * r.x[d]);
            for (int64_t d = 0; d < dim; d++)
                for (int64_t m = 0; m < hidden; m++)
                    ADD(1, d * hidden + m, r.dy[d] * r.h[m] * s, 0.0);
            for (int64_t m = 0; m < wide; m++) ADD(2, m, r.dpre[m], r.off[m]);
            for (int64_t d = 0; d < dim; d++) ADD(3, d, s * r.dy[d], 0.0);
        }
        for (int i = 0; i < 4; i++)
            for (int64_t q = 0; q < sizes_of[i]; q++)
                near((double)got[i][e * sizes_of[i] + q], want[i][q],
                     (c->dtype == LM_BF16 ? 8e-3 : 1e-5) * (1 + size[i][q]));
    }
    if (check_failures > bad)
        check_case("^ dtype %d activation %d bias %d gathered %d scaled %d recompute %d add %d "
                   "rows %d dim %d hidden %d",
                   c->dtype, c->activation, c->bias, c->gathered, c->scaled, c->recompute,
                   c->add, (int)rows, (int)dim, (int)hidden);
    for (int i = 0; i < 4; i++) free(want[i]), free(size[i]), free(was[i]), free(got[i]);
    free(space), free(room), free(pre), free(dx), free(y), free(dscale), free(scale),
        free(from);
    free(down_bias), free(up_bias), free(down), free(up), free(dy), free(x);
}

/* dx of x's first rows, if there were only these */
static void find_dx(const lm_ffn *f, const void *dy, const void *x, void *dx) {
    int64_t bytes = 0;
    lm_ffn_gradients g = {.dx = dx};
    ok(lm_cpu_ffn_room(f, &bytes));
    void *room = aligned_alloc(64, (size_t)(bytes + 63) / 64 * 64);
    ok(lm_cpu_ffn_bwd(f, &g, dy, x, NULL, NULL, room));
    free(room);
}

/* Few rows go other ways (ffn_few.c, across.c), to the same bits: what a row becomes does not
 * depend on how many there are, nor on the threads. */
static void few_as_many(int dtype, int activation, int64_t dim, int64_t hidden) {
    enum { ROWS = 40 };
    int64_t wide = activation == LM_SWIGLU ? 2 * hidden : hidden, offset[3] = {0, ROWS, ROWS};
    void *up = random_array(dtype, 2 * wide * dim), *x = random_array(dtype, ROWS * dim);
    void *down = random_array(dtype, 2 * dim * hidden),
         *bias = random_array(LM_F32, 2 * (wide + dim));
    void *y = array(dtype, ROWS * dim), *some = array(dtype, ROWS * dim);
    void *dx = array(dtype, ROWS * dim), *pre = array(dtype, ROWS * wide),
         *some_pre = array(dtype, ROWS * wide);
    int threads = omp_get_max_threads(), other = 0;
    lm_ffn f = {.dtype = dtype,
                .activation = activation,
                .experts = 2,
                .dim = dim,
                .hidden = hidden,
                .offset = offset,
                .up = up,
                .down = down,
                .up_bias = bias,
                .down_bias = bias,
                .bias_dtype = LM_F32};
    ok(lm_cpu_ffn_fwd(&f, y, pre, x));
    find_dx(&f, y, x, dx);
    for (int64_t rows = 1; rows <= 33; rows++) {
        omp_set_num_threads(1 + (int)rows % 3);
        offset[1] = offset[2] = rows;
        ok(lm_cpu_ffn_fwd(&f, some, rows % 2 ? some_pre : NULL, x));
        other += memcmp(y, some, (size_t)(rows * dim) * size_of(dtype)) != 0;
        for (int64_t i = 0; rows % 2 && i < wide * rows; i++)
            other += get(dtype, some_pre, i) != get(dtype, pre, i / rows * ROWS + i % rows);
        find_dx(&f, y, x, some);
        other += memcmp(dx, some, (size_t)(rows * dim) * size_of(dtype)) != 0;
    }
    omp_set_num_threads(threads);
    check_count++;
    check_failures += other > 0;
    if (other)
        check_case("few rows: dtype %d activation %d dim %d hidden %d: %d differ", dtype,
                   activation, (int)dim, (int)hidden, other);
    free(some_pre), free(pre), free(dx), free(some), free(y), free(bias), free(down), free(x),
        free(up);
}

TEST(test_ffn) {
    const int64_t counts[][5] = {{0, 0, 0, 0, 0},
                                 {1, 0, 3, 0, 17},
                                 {150, 0, 0, 0, 0},
                                 {30, 31, 29, 33, 32},
                                 {5, 140, 2, 0, 16}};
    const int64_t size[][2] = {{24, 17}, {7, 5}, {1, 1}, {33, 70}, {64, 132}};
    const int f[] = {LM_RELU, LM_GELU, LM_GELU_TANH, LM_SILU, LM_SWIGLU};
    for (int dtype = LM_F32; dtype <= LM_BF16; dtype++)
        for (int a = 0; a < 5; a++)
            for (int i = 0; i < 5; i++) {
                int v = a + i; /* so that each option meets each activation and size */
                ffn_case c = {dtype,      f[a], v & 1, v >> 1 & 1, i & 1,     a & 1,
                              v % 3 == 0, 5,    {0},   size[i][0], size[i][1]};
                memcpy(c.counts, counts[(a + 2 * i) % 5], sizeof c.counts);
                run(&c);
                c.recompute = !c.recompute, c.bias = !c.bias, c.add = !c.add;
                c.scaled = !c.scaled;
                memcpy(c.counts, counts[(a + 2 * i + 1) % 5], sizeof c.counts);
                run(&c);
            }
    /* longer than what is taken at a time */
    ffn_case c = {LM_F32, LM_SWIGLU, 1, 1, 1, 0, 1, 2, {20, 3}, 600, 140};
    run(&c);
    c.dtype = LM_BF16, c.dim = 1100, c.hidden = 270;
    run(&c);
    for (int dtype = LM_F32; dtype <= LM_BF16; dtype++)
        for (int a = 0; a < 5; a++) {
            few_as_many(dtype, f[a], size[a][0], size[a][1]);
            few_as_many(dtype, f[a], 600 + 531 * a, 300 - 23 * a);
        }
    /* rows of several sums */
    ffn_case hot = {LM_F32, LM_SWIGLU, 1, 1, 1, 0, 0, 2, {1100, 3}, 20, 70};
    run(&hot);
    hot.dtype = LM_BF16, hot.add = 1, hot.recompute = 1;
    run(&hot);
    hot.add = 0, hot.counts[0] = 513, hot.dim = 140, hot.hidden = 33;
    run(&hot);
    hot.dtype = LM_F32;
    run(&hot);
    /* gradients that are larger than caches */
    ffn_case large = {LM_F32, LM_SWIGLU, 0, 0, 0, 0, 0, 2, {0, 2}, 1024, 1040};
    run(&large);
    large.dtype = LM_BF16;
    run(&large);
    ffn_case none = {LM_F32, LM_RELU, 0, 0, 0, 0, 0, 0, {0}, 8, 8};
    run(&none);
}
