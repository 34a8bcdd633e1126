/* gemm_test.c - matrix products in every layout, dtype and awkward size. */
#include "tests/kernels/check.h"

#include <omp.h>

/* layout: 0 row-major, 1 column-major, 2 with gaps, 3 every second column (no unit stride) */
static lm_matrix matrix(int dtype, int64_t batch, int64_t rows, int64_t cols, int layout) {
    lm_matrix x = {.dtype = dtype};
    int64_t ld = layout == 2 ? cols + 3 : layout == 3 ? 2 * cols : cols;
    x.row_stride = layout == 1 ? 1 : ld;
    x.col_stride = layout == 1 ? rows : layout == 3 ? 2 : 1;
    x.batch_stride = rows * ld;
    x.data = random_array(dtype, batch * rows * ld + 1);
    return x;
}
static double at(const lm_matrix *x, int64_t b, int64_t i, int64_t j) {
    return get(x->dtype, x->data, b * x->batch_stride + i * x->row_stride + j * x->col_stride);
}

typedef struct {
    int64_t batch, m, n, k;
    int a, b, c; /* dtypes */
    int la, lb, lc;
    double alpha, beta;
    int bias; /* dtype, or -1 */
    int shared_b;
    int activation; /* 0: none; -1: none, and by the library however small */
} gemm_case;

static double activated(int f, double x) {
    switch (f) {
    case LM_RELU: return x > 0 ? x : 0;
    case LM_GELU: return x * 0.5 * erfc(-x * 0.70710678118654752);
    case LM_GELU_TANH:
        return x * 0.5 * (1 + tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
    case LM_SILU: return x / (1 + exp(-x));
    default: return x;
    }
}

static void run_case(const gemm_case *g) {
    lm_matrix a = matrix(g->a, g->batch, g->m, g->k, g->la);
    lm_matrix b = matrix(g->b, g->shared_b ? 1 : g->batch, g->k, g->n, g->lb);
    lm_matrix c = matrix(g->c, g->batch, g->m, g->n, g->lc), before = c;
    if (g->shared_b) b.batch_stride = 0;
    size_t bytes = (size_t)(g->batch * c.batch_stride + 2) * size_of(g->c);
    before.data = malloc(bytes);
    memcpy(before.data, c.data, bytes - size_of(g->c));
    void *bias = g->bias >= 0 ? random_array(g->bias, g->n) : NULL;
    int failed = check_failures;
    if (g->activation)
        ok(lm_cpu_gemm_act(g->batch, g->m, g->n, g->k, g->alpha, &a, &b, g->beta, &c, bias,
                           g->bias, g->activation));
    else
        ok(lm_cpu_gemm(g->batch, g->m, g->n, g->k, g->alpha, &a, &b, g->beta, &c, bias,
                       g->bias));
    int64_t step = g->m * g->n > 4000 ? 13 : 1; /* large ones by samples */
    for (int64_t e = 0; e < g->batch * g->m * g->n; e += step) {
        int64_t j = e % g->n, i = e / g->n % g->m, s = e / g->n / g->m;
        double want = bias ? get(g->bias, bias, j) : 0, size = fabs(want);
        for (int64_t p = 0; p < g->k; p++) {
            double v = g->alpha * at(&a, s, i, p) * at(&b, s, p, j);
            want += v, size += fabs(v);
        }
        want += g->beta != 0 ? g->beta * at(&before, s, i, j) : 0;
        want = activated(g->activation, want);
        near(at(&c, s, i, j), want, g->c == LM_BF16 ? 8e-3 : 1e-6 * (1 + size));
    }
    if (check_failures > failed)
        check_case("^ batch %d m %d n %d k %d dtypes %d%d%d layouts %d%d%d beta %g bias %d",
                   (int)g->batch, (int)g->m, (int)g->n, (int)g->k, g->a, g->b, g->c, g->la,
                   g->lb, g->lc, g->beta, g->bias);
    free(a.data), free(b.data), free(c.data), free(before.data), free(bias);
}

static void all_cases(void) {
    const int64_t edge[] = {0, 1, 3, 17, 70};
    for (int dtype = 0; dtype < 4; dtype++)
        for (int m = 0; m < 5; m++)
            for (int n = 0; n < 5; n++)
                for (int k = 0; k < 5; k++) {
                    gemm_case g = {1,         edge[m],    edge[n], edge[k], dtype & 1,
                                   dtype & 1, dtype >> 1, 0,       0,       0,
                                   1,         0,          -1,      0,       0};
                    run_case(&g);
                    g.activation = -1;
                    if (g.m * g.n * g.k <= 1024) run_case(&g);
                    g.activation = 0, g.bias = dtype & 1;
                    g.la = 1;
                    run_case(&g);
                    g.beta = 1, g.bias = -1, g.la = 0, g.lb = 1;
                    run_case(&g);
                    g.batch = 3, g.la = 1;
                    run_case(&g);
                }
    for (int la = 0; la < 4; la++)
        for (int lb = 0; lb < 4; lb++)
            for (int lc = 0; lc < 4; lc++)
                for (int types = 0; types < 8; types++) {
                    gemm_case g = {2,  19, 23,  29, types & 1, types >> 1 & 1, types >> 2, la,
                                   lb, lc, 0.5, 1,  types & 1, (la + lb) & 1,  0};
                    run_case(&g);
                    g.batch = 1, g.alpha = 1, g.beta = 0;
                    run_case(&g);
                    for (int short_sum = 0; short_sum < 2; short_sum++) { /* small_gemm.c */
                        gemm_case small = {3,          3,
                                           5,          short_sum ? 7 : 21,
                                           types & 1,  types >> 1 & 1,
                                           types >> 2, la,
                                           lb,         lc,
                                           0.5,        1,
                                           types & 1,  (la + lb) & 1,
                                           0};
                        run_case(&small);
                        small.batch = 1, small.alpha = 1, small.beta = 0;
                        run_case(&small);
                    }
                }
    for (int dtype = 0; dtype < 2; dtype++) /* many row counts: the split products */
        for (int64_t r = 65; r < 65 + 30 * 37; r += 37) {
            gemm_case g = {1, r, 40, 24, dtype, dtype, dtype, 0, 0, 0, 1, 0, dtype, 0, 0};
            run_case(&g);
            g.la = 1, g.beta = 1, g.c = LM_F32;
            run_case(&g);
            gemm_case dw = {1, 24, 40, r, dtype, dtype, LM_F32, 1, 0, 0, 1, 1, -1, 0, 0};
            run_case(&dw);
            dw.lb = 1, dw.la = 0, dw.beta = 0, dw.bias = LM_F32;
            run_case(&dw);
        }
}

/* A few rows times a weight [n, k] (thin_gemm.c), and some more rows by columns: sizes that
 * fill nothing, rows apart, and the same bits from any number of threads and rows. */
static void few_rows(void) {
    const int64_t n[] = {16, 31, 64, 100, 391}, k[] = {16, 33, 128, 1030};
    int types = 0;
    for (int64_t m = 1; m <= 70; m += m < 18 ? 1 : 20)
        for (int i = 0; i < 5; i++)
            for (int j = 0; j < 4; j++, types++) {
                int dtype = types & 1, activation = types % 3 == 0 ? LM_SILU : 0;
                gemm_case g = {
                    1, m, n[i],           k[j], dtype, dtype,         dtype || types & 2,
                    0, 1, types >> 1 & 2, 1,    0,     types % 3 - 1, activation,
                    0};
                g.c = dtype ? types >> 1 & 1 : LM_F32;
                run_case(&g);
                g.alpha = 0.5, g.beta = 1, g.activation = 0;
                run_case(&g);
            }
    enum { ROWS = 8, N = 391, K = 270 };
    for (int dtype = LM_F32; dtype <= LM_BF16; dtype++) {
        void *x = random_array(dtype, ROWS * (K + 3)), *w = random_array(dtype, N * K);
        float *y = array(LM_F32, ROWS * N), *some = array(LM_F32, ROWS * N);
        lm_matrix a = {x, dtype, 0, K + 3, 1}, b = {w, dtype, 0, 1, K};
        lm_matrix c = {y, LM_F32, 0, N, 1}, d = {some, LM_F32, 0, N, 1};
        int threads = omp_get_max_threads();
        ok(lm_cpu_gemm(1, ROWS, N, K, 1, &a, &b, 0, &c, NULL, 0));
        for (int m = 1; m <= ROWS; m++) {
            omp_set_num_threads(1 + m % 3);
            ok(lm_cpu_gemm(1, m, N, K, 1, &a, &b, 0, &d, NULL, 0));
            int same = memcmp(y, some, (size_t)m * N * sizeof *y) == 0;
            check_count++, check_failures += !same;
            if (!same) check_case("few rows: dtype %d, %d of %d rows differ", dtype, m, ROWS);
        }
        omp_set_num_threads(threads);
        free(some), free(y), free(w), free(x);
    }
}

/* Sums of one piece and of several, strides that go aside, nothing to multiply. */
static void activations(void) {
    const int f[] = {LM_RELU, LM_GELU, LM_GELU_TANH, LM_SILU};
    const int64_t inner[] = {0, 1, 30, 97, 1500};
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 5; k++)
            for (int dtype = 0; dtype < 4; dtype++)
                for (int layout = 0; layout < 4; layout += 3) {
                    gemm_case g = {1,         37,         24,        inner[k], dtype & 1,
                                   dtype & 1, dtype >> 1, 0,         1,        layout,
                                   0.05,      1,          dtype & 1, 0,        f[i]};
                    run_case(&g);
                    g.m = 70 + 3 * k, g.beta = 0, g.bias = -1;
                    run_case(&g);
                }
    lm_matrix one = {.data = (float[]){1}, .row_stride = 1, .col_stride = 1};
    near(lm_cpu_gemm_act(1, 1, 1, 1, 1, &one, &one, 0, &one, NULL, -1, LM_EXP),
         LM_KERNEL_EDTYPE, 0);
}

TEST(test_gemm) {
    few_rows();
    for (int on = 0; on < 2; on++) {
        lm_cpu_gemm_repeatable(on);
        all_cases();
        activations();
    }
    lm_cpu_gemm_repeatable(0);
}

/* Rows and sums of many sizes, cut from one large matrix, so that strides say nothing of them.
 */
TEST(test_gemm_cut) {
    enum { LD = 48, N = 8 };
    lm_matrix a = matrix(LM_F32, 1, LD, LD, 0), b = matrix(LM_F32, 1, LD, N, 0);
    lm_matrix c = matrix(LM_F32, 1, LD, N, 0);
    for (int turned = 0; turned < 2; turned++) {
        if (turned) a.row_stride = 1, a.col_stride = LD;
        for (int64_t m = 1; m < LD; m += 3)
            for (int64_t k = 1; k < LD; k += 5) {
                ok(lm_cpu_gemm(1, m, N, k, 1, &a, &b, 0, &c, NULL, -1));
                for (int64_t i = 0; i < m; i++)
                    for (int64_t j = 0; j < N; j++) {
                        double want = 0, size = 0;
                        for (int64_t p = 0; p < k; p++) {
                            double v = at(&a, 0, i, p) * at(&b, 0, p, j);
                            want += v, size += fabs(v);
                        }
                        near(at(&c, 0, i, j), want, 1e-6 * (1 + size));
                    }
            }
    }
    free(a.data), free(b.data), free(c.data);
}
