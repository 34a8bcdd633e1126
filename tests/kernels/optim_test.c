/* optim_test.c - a few steps of each optimizer against its formula in double. */
#include "tests/kernels/check.h"

static void adamw_case(int g_dtype, int64_t n) {
    float *p = random_array(LM_F32, n), *m = array(LM_F32, n), *v = array(LM_F32, n);
    double *rp = calloc((size_t)n + 1, 8), *rm = calloc((size_t)n + 1, 8),
           *rv = calloc((size_t)n + 1, 8);
    uint16_t *copy = array(LM_BF16, n);
    for (int64_t i = 0; i < n; i++) rp[i] = (double)p[i];
    for (int step = 1; step <= 4; step++) {
        void *g = random_array(g_dtype, n);
        ok(lm_cpu_adamw(n, p, copy, NULL, g, g_dtype, m, v, LM_F32, 0.01, 0.9, 0.98, 1e-8, 0.1,
                        step, 0.5));
        for (int64_t i = 0; i < n; i++) {
            double d = get(g_dtype, g, i) * 0.5;
            rm[i] = 0.9 * rm[i] + 0.1 * d, rv[i] = 0.98 * rv[i] + 0.02 * d * d;
            rp[i] -= 0.01 * 0.1 * rp[i];
            rp[i] -= 0.01 * (rm[i] / (1 - pow(0.9, step))) /
                     (sqrt(rv[i] / (1 - pow(0.98, step))) + 1e-8);
            near((double)p[i], rp[i], 1e-5);
            near((double)lm_bf16_to_f32(copy[i]), (double)lm_bf16_to_f32(lm_f32_to_bf16(p[i])),
                 0);
        }
        free(g);
    }
    free(p), free(m), free(v), free(rp), free(rm), free(rv), free(copy);
}

static void sgd_case(int g_dtype, int64_t n, int momentum, int nesterov) {
    float *p = random_array(LM_F32, n), *b = array(LM_F32, n);
    double *rp = calloc((size_t)n + 1, 8), *rb = calloc((size_t)n + 1, 8);
    for (int64_t i = 0; i < n; i++) rp[i] = (double)p[i];
    for (int step = 0; step < 3; step++) {
        void *g = random_array(g_dtype, n);
        ok(lm_cpu_sgd(n, p, NULL, NULL, g, g_dtype, momentum ? b : NULL, 0.1, 0.9, 0.01,
                      nesterov, 1));
        for (int64_t i = 0; i < n; i++) {
            double d = get(g_dtype, g, i) + 0.01 * rp[i];
            rb[i] = 0.9 * rb[i] + d;
            rp[i] -= 0.1 * (!momentum ? d : nesterov ? d + 0.9 * rb[i] : rb[i]);
            near((double)p[i], rp[i], 1e-5);
        }
        free(g);
    }
    free(p), free(b), free(rp), free(rb);
}

static void adafactor_case(int g_dtype, int64_t rows, int64_t cols) {
    int64_t width = cols ? cols : 1;
    float *p = random_array(LM_F32, rows * width), *row = array(LM_F32, rows),
          *col = array(LM_F32, cols);
    double *rr = calloc((size_t)rows + 1, 8), *rc = calloc((size_t)width + 1, 8),
           *u = calloc((size_t)(rows * width) + 1, 8);
    double *rp = calloc((size_t)(rows * width) + 1, 8);
    for (int64_t i = 0; i < rows * width; i++) rp[i] = (double)p[i];
    for (int step = 0; step < 3; step++) {
        void *g = random_array(g_dtype, rows * width);
        ok(lm_cpu_adafactor_stats(rows, cols, row, col, g, g_dtype, 0.8, 1e-10, 1));
        ok(lm_cpu_adafactor_update(rows, cols, p, NULL, NULL, g, g_dtype, row, col, 0.05, 1,
                                   0.01, 1));
        for (int64_t i = 0; i < rows; i++) rr[i] *= 0.8;
        for (int64_t j = 0; j < width; j++) rc[j] *= 0.8;
        for (int64_t i = 0; i < rows * width; i++) {
            double q = 0.2 * (pow(get(g_dtype, g, i), 2) + 1e-10);
            rr[i / width] += q / (double)width, rc[i % width] += q / (double)rows;
        }
        double mean = 0, squares = 0;
        for (int64_t i = 0; i < rows; i++) mean += rr[i] / (double)rows;
        for (int64_t i = 0; i < rows * width; i++) {
            double v = cols ? rr[i / width] * rc[i % width] / mean : rr[i];
            u[i] = get(g_dtype, g, i) / sqrt(v);
            squares += u[i] * u[i] / (double)(rows * width);
        }
        for (int64_t i = 0; i < rows * width; i++) {
            rp[i] -= 0.05 * 0.01 * rp[i] + 0.05 * u[i] / fmax(1, sqrt(squares));
            near((double)p[i], rp[i], 1e-4);
        }
        free(g);
    }
    free(p), free(row), free(col), free(rr), free(rc), free(u), free(rp);
}

/* Without masters: the same step on what bf16 holds, rounded to one of its two neighbours. */
static void dither_case(int64_t n, const lm_dither *d, uint16_t *out) {
    uint16_t *p = array(LM_BF16, n), *before = array(LM_BF16, n);
    float *x = array(LM_F32, n), *m = array(LM_F32, n), *v = array(LM_F32, n),
          *g = array(LM_F32, n);
    for (int64_t i = 0; i < n; i++) {
        before[i] = p[i] = lm_f32_to_bf16(1 + (float)(i % 7));
        x[i] = lm_bf16_to_f32(p[i]), g[i] = (float)(i % 5) - 2;
    }
    ok(lm_cpu_adamw(n, NULL, p, d, g, LM_F32, m, v, LM_F32, 1e-3, 0.9, 0.98, 1e-8, 0, 1, 1));
    memset(m, 0, (size_t)n * 4), memset(v, 0, (size_t)n * 4);
    ok(lm_cpu_adamw(n, x, NULL, NULL, g, LM_F32, m, v, LM_F32, 1e-3, 0.9, 0.98, 1e-8, 0, 1, 1));
    double off = 0, spread = 0; /* of the rounded sum, and what its variance may be */
    for (int64_t i = 0; i < n; i++) {
        double got = (double)lm_bf16_to_f32(p[i]), want = (double)x[i];
        double gap = (double)lm_bf16_to_f32((uint16_t)(before[i] + 1)) -
                     (double)lm_bf16_to_f32(before[i]);
        off += got - want, spread += gap * gap / 4;
        near(got, want, gap * (1 - 1e-9));
        if (i % 5 == 2) near(got, want, 0); /* no gradient: nothing moves */
    }
    near(off, 0, 6 * sqrt(spread));
    memcpy(out, p, (size_t)n * sizeof *p);
    free(p), free(before), free(x), free(m), free(v), free(g);
}

enum { OF_M = 14849, OF_V = 40193 }; /* times these an element's bits round m and v */

/* Of all that 16 bits can be, how many round both of two numbers down is what it would be with
 * bits of their own for each. */
static void lattice_case(uint32_t one, uint32_t other) {
    enum { SIDE = 256 };
    static int below[SIDE + 1][SIDE + 1]; /* points in cells before this one, in both dims */
    memset(below, 0, sizeof below);
    for (uint32_t u = 0; u < 65536; u++)
        below[1 + (u * one & 0xffff) / SIDE][1 + (u * other & 0xffff) / SIDE]++;
    for (int i = 1; i <= SIDE; i++)
        for (int j = 1; j <= SIDE; j++) {
            below[i][j] += below[i - 1][j] + below[i][j - 1] - below[i - 1][j - 1];
            near(below[i][j] / 65536.0, i * j / 65536.0, 1e-4);
        }
}

/* bf16 moments: what they, and p, would be in f32, rounded by the 16 bits that the element's
 * number in the whole has, times 1 and two odd numbers. Betas and decay of 1 - 2^-10 are exact
 * on ones. */
static void moments_case(int64_t n, const lm_dither *d, int alone, int g_dtype) {
    const double beta = 1 - 1.0 / 1024;
    uint16_t *p = array(LM_BF16, n), *m = array(LM_BF16, n), *v = array(LM_BF16, n);
    float *x = array(LM_F32, n);
    void *g = array(g_dtype, n);
    for (int pass = 0; pass < 2; pass++) { /* moments alone, then p alone: each exact in f32 */
        for (int64_t i = 0; i < n; i++) {
            x[i] = 1, p[i] = lm_f32_to_bf16(1), v[i] = lm_f32_to_bf16(pass ? 0 : 1);
            m[i] = lm_f32_to_bf16(pass ? 0 : i % 2 ? -1 : 1);
        }
        double lr = pass ? 1.0 / 1024 : 0;
        ok(lm_cpu_adamw(n, alone ? NULL : x, p, d, g, g_dtype, m, v, LM_BF16, lr, beta, beta,
                        1e-8, 1, 1, 1));
        for (int64_t i = 0; i < n; i++) {
            int64_t e = d->first + i;
            if (d->blocks) e = d->blocks[e / d->unit] * d->unit + e % d->unit;
            uint32_t word = lm_philox_at(d->seed, d->stream, (uint64_t)(e / 2));
            uint32_t bits = word >> 16 * (e % 2) & 0xffff, exact = 0x3f7fc000u;
            uint32_t of_m = (exact + (bits * OF_M & 0xffff)) >> 16,
                     of_v = (exact + (bits * OF_V & 0xffff)) >> 16, of_p = (exact + bits) >> 16;
            near(v[i], pass ? 0 : of_v, 0);
            near(m[i], pass ? 0 : of_m | (i % 2 ? 0x8000u : 0), 0);
            near(p[i], pass == 0 ? 0x3f80 : alone ? of_p : lm_f32_to_bf16((float)beta), 0);
            if (!alone) near((double)x[i], pass ? beta : 1, 0);
        }
    }
    free(p), free(m), free(v), free(x), free(g);
}

/* A few steps of bf16 moments beside the formula, which starts each from what they were. */
static void moments_steps(int64_t n, int alone, int g_dtype) {
    const lm_dither d = {7, 3, 0, 0, NULL};
    uint16_t *p = array(LM_BF16, n), *m = array(LM_BF16, n), *v = array(LM_BF16, n);
    float *x = random_array(LM_F32, n);
    for (int64_t i = 0; i < n; i++) p[i] = lm_f32_to_bf16(x[i]);
    for (int step = 1; step <= 4; step++) {
        void *g = random_array(g_dtype, n);
        double *want = calloc((size_t)n + 1, 3 * sizeof *want);
        for (int64_t i = 0; i < n; i++) {
            double q = get(g_dtype, g, i) * 0.5, *w = want + 3 * i;
            w[1] = 0.9 * get(LM_BF16, m, i) + 0.1 * q;
            w[2] = 0.98 * get(LM_BF16, v, i) + 0.02 * q * q;
            w[0] = alone ? get(LM_BF16, p, i) : (double)x[i];
            w[0] -= 0.01 * 0.1 * w[0];
            w[0] -= 0.01 * (w[1] / (1 - pow(0.9, step))) /
                    (sqrt(w[2] / (1 - pow(0.98, step))) + 1e-8);
        }
        ok(lm_cpu_adamw(n, alone ? NULL : x, p, &d, g, g_dtype, m, v, LM_BF16, 0.01, 0.9, 0.98,
                        1e-8, 0.1, step, 0.5));
        for (int64_t i = 0; i < n; i++) {
            const double *w = want + 3 * i, part = 1.0 / 128 + 3e-6; /* to a neighbour */
            if (!alone) near((double)x[i], w[0], 1e-5);
            near(get(LM_BF16, p, i), alone ? w[0] : (double)x[i], part * fabs(w[0]) + 1e-6);
            near(get(LM_BF16, m, i), w[1],
                 part * fabs(w[1]) + 1e-7); /* two terms of 0.4 cancel */
            near(get(LM_BF16, v, i), w[2], part * w[2] + 1e-9);
        }
        free(g), free(want);
    }
    free(p), free(m), free(v), free(x);
}

static void moments_cases(void) {
    enum { UNIT = 6, BLOCKS = 3000 };
    int64_t blocks[BLOCKS];
    for (int64_t i = 0; i < BLOCKS; i++) blocks[i] = (1LL << 40) + 2 * i + i / 7;
    for (int alone = 0; alone < 2; alone++) {
        for (int dtype = LM_F32; dtype <= LM_BF16; dtype++) {
            for (int s = 0; s < NSIZES; s++) {
                lm_dither d = {7, 1ULL << 63 | 99, s, UNIT, NULL};
                moments_case(sizes[s], &d, alone, dtype);
                d.first = 1237 + (1LL << 33);
                moments_case(sizes[s], &d, alone, dtype);
                moments_steps(sizes[s], alone, dtype);
            }
        }
        lm_dither whole = {7, 99, 0, 0, NULL}, cut = {7, 99, 3, UNIT, blocks};
        for (int t = 1; t <= 2; t++) {
            threads(t);
            moments_case(50000, &whole, alone, LM_F32);
            moments_case(BLOCKS * UNIT - 3, &cut, alone, LM_F32);
        }
    }
    uint16_t p[4], m[4] = {0}, v[4] = {0}; /* inf and NaN in a gradient: in what it reaches */
    float g[4] = {0, INFINITY, -INFINITY, NAN}, one = 1;
    lm_dither d = {7, 99, 0, 0, NULL};
    for (int i = 0; i < 4; i++) p[i] = lm_f32_to_bf16(1);
    ok(lm_cpu_adamw(4, NULL, p, &d, g, LM_F32, m, v, LM_BF16, 1e-3, 0.9, 0.98, 1e-8, 0, 1, 1));
    near(m[0], 0, 0), near(v[0], 0, 0), near(p[0], lm_f32_to_bf16(1), 0);
    near(m[1], 0x7f80, 0), near(m[2], 0xff80, 0), near(v[1], 0x7f80, 0), near(v[2], 0x7f80, 0);
    near((m[3] & 0x7fff) > 0x7f80, 1, 0), near((v[3] & 0x7fff) > 0x7f80, 1, 0);
    for (int i = 1; i < 4; i++) near((p[i] & 0x7fff) > 0x7f80, 1, 0); /* inf / inf */
    near(lm_cpu_adamw(1, &one, NULL, NULL, g, LM_F32, m, v, LM_BF16, 1, 0, 0, 1, 0, 1, 1),
         LM_KERNEL_EDTYPE, 0); /* nothing to round with */
}

/* The bits of an element depend on its number in the whole alone. */
static void dither_cases(void) {
    enum { N = 50000, UNIT = 6, CUT = 1237 };
    static uint16_t whole[N], again[N], part[N];
    lm_dither d = {7, 99, 0, 0, NULL}, other = {7, 100, 0, 0, NULL};
    threads(1);
    dither_case(N, &d, whole);
    threads(2);
    dither_case(N, &d, again);
    near(memcmp(whole, again, sizeof whole), 0, 0);
    dither_case(N, &other, again);
    near(memcmp(whole, again, sizeof whole) == 0, 0, 0);

    uint16_t *p = array(LM_BF16, N); /* one value everywhere: only the bits tell */
    float *g = array(LM_F32, N), *none = NULL;
    int64_t blocks[N / UNIT / 2];
    for (int64_t i = 0; i < N; i++) p[i] = lm_f32_to_bf16(1), g[i] = 1;
    ok(lm_cpu_sgd(N, NULL, p, &d, g, LM_F32, none, 1e-3, 0, 0, 0, 1));
    memcpy(whole, p, sizeof whole);
    d.first = CUT;
    for (int64_t i = 0; i < N; i++) p[i] = lm_f32_to_bf16(1);
    ok(lm_cpu_sgd(N - CUT, NULL, p, &d, g, LM_F32, none, 1e-3, 0, 0, 0, 1));
    near(memcmp(whole + CUT, p, (N - CUT) * sizeof *p), 0, 0);
    for (int64_t i = 0; i < N / UNIT / 2; i++) blocks[i] = 2 * i + 1; /* every second block */
    for (int64_t i = 0; i < N; i++) part[i] = p[i] = lm_f32_to_bf16(1);
    d = (lm_dither){7, 99, 3, UNIT, blocks};
    ok(lm_cpu_sgd(N / UNIT / 2 * UNIT - 3, NULL, p, &d, g, LM_F32, none, 1e-3, 0, 0, 0, 1));
    for (int64_t i = 3; i < N / UNIT / 2 * UNIT; i++)
        part[i - 3] = whole[i / UNIT * 2 * UNIT + UNIT + i % UNIT];
    near(memcmp(part, p, (size_t)(N / UNIT / 2 * UNIT - 3) * sizeof *p), 0, 0);

    uint16_t odd[4] = {0x7f80, 0xff80, 0x7fc1,
                       0x0000}; /* inf, -inf, NaN, 0 stay what they are */
    float m[4] = {0}, v[4] = {0};
    memset(g, 0, 4 * sizeof *g);
    d = (lm_dither){7, 99, 0, 0, NULL};
    ok(lm_cpu_adamw(4, NULL, odd, &d, g, LM_F32, m, v, LM_F32, 1e-3, 0.9, 0.98, 1e-8, 0, 1, 1));
    near(odd[0], 0x7f80, 0), near(odd[1], 0xff80, 0), near(odd[3], 0, 0);
    near((odd[2] & 0x7fff) > 0x7f80, 1, 0);
    free(p), free(g);
}

/* Adafactor gives the same bits with one thread and two. */
static void adafactor_threads(int64_t rows, int64_t cols) {
    int64_t n = rows * (cols ? cols : 1);
    float *g = random_array(LM_F32, n), *p[2], *row[2], *col[2];
    for (int t = 0; t < 2; t++) {
        p[t] = array(LM_F32, n), row[t] = array(LM_F32, rows), col[t] = array(LM_F32, cols);
        threads(1 + t);
        ok(lm_cpu_adafactor_stats(rows, cols, row[t], col[t], g, LM_F32, 0.8, 1e-10, 1));
        ok(lm_cpu_adafactor_update(rows, cols, p[t], NULL, NULL, g, LM_F32, row[t], col[t],
                                   0.05, 0.3, 0.01, 1));
    }
    near(memcmp(p[0], p[1], (size_t)n * 4), 0, 0);
    near(memcmp(row[0], row[1], (size_t)rows * 4), 0, 0);
    if (cols) near(memcmp(col[0], col[1], (size_t)cols * 4), 0, 0);
    for (int t = 0; t < 2; t++) free(p[t]), free(row[t]), free(col[t]);
    free(g);
}

TEST(test_optim) {
    for (int dtype = LM_F32; dtype <= LM_BF16; dtype++) {
        for (int s = 0; s < NSIZES; s++) {
            adamw_case(dtype, sizes[s]);
            for (int f = 0; f < 4; f++) sgd_case(dtype, sizes[s], f & 1, f >> 1);
            adafactor_case(dtype, sizes[s], 0);
            adafactor_case(dtype, sizes[s], 7);
            adafactor_case(dtype, 5, sizes[s] + 1);
        }
        adamw_case(dtype, 40001);
    }
    adafactor_threads(300, 217), adafactor_threads(3, 40000), adafactor_threads(50001, 0);
    dither_cases();
    lattice_case(1, OF_M), lattice_case(1, OF_V), lattice_case(OF_M, OF_V);
    moments_cases();
}
